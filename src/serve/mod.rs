//! A model behind OpenAI's protocol, with a page to try it on.
//!
//! Contract: what a request is answered follows from the request and the model alone, bit for bit what
//! `train generate` gives with the same seed, whatever runs beside it. Handlers ([`router`]) read requests
//! into jobs, a [`desk`] holds a bounded number of them, and each rank's engine ([`worker`]) takes them on a
//! thread of its own and tells what it samples as it comes ([`job`]). A request whose client is gone is
//! given up before the next pass. Left out: TLS, HTTP/2, tools, images, several models.

mod answer;
mod chat;
mod completions;
mod desk;
mod error;
mod fields;
mod job;
mod keys;
mod listener;
mod logprobs;
mod metrics;
mod model;
mod playground;
mod router;
mod sampling;
mod tokens;
mod worker;

pub use desk::Limits;
pub use keys::ApiKeys;
pub use playground::Playground;

use crate::base::error::usage;
use crate::base::threads;
use crate::engine::{EngineConfig, OpenModel, Rank};
use anyhow::{Context, Result};
use axum::http::HeaderValue;
use desk::Desk;
use metrics::Metrics;
use model::ServedModel;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use worker::Shared;

/// So many threads serve connections: they only move bytes.
const CONNECTION_THREADS: usize = 2;

/// So many threads read requests: they tokenise and judge.
const READING_THREADS: usize = 8;

/// The way in which a model is served.
pub struct Settings {
    /// Requests call the model by this name.
    pub name: String,
    /// The sizes of each rank's engine.
    pub engine: EngineConfig,
    /// So much may wait.
    pub limits: Limits,
    /// Who has one of these keys may use it.
    pub keys: ApiKeys,
    /// Pages of these origins may call it from a browser.
    pub origins: Vec<HeaderValue>,
    /// The page offers these problems and this judge.
    pub playground: Playground,
    /// Work that runs may go on for so long after the server is asked to stop.
    pub drain_time: Duration,
}

/// All handlers share this.
pub(crate) struct App {
    model: ServedModel,
    shared: Arc<Shared>,
    keys: ApiKeys,
    playground: Playground,
}

/// A server at work.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<u32>,
    connections: JoinHandle<Result<()>>,
    engines: JoinHandle<Result<()>>,
}

impl Server {
    /// Takes an address; refuses one that is taken or not this machine's.
    pub fn bind(host: &str, port: u16) -> Result<TcpListener> {
        let listener = TcpListener::bind((host, port)).map_err(|error| {
            let what = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "another program listens there: choose another --port"
                }
                std::io::ErrorKind::PermissionDenied => {
                    "this user may not: choose a --port above 1023"
                }
                _ => return usage(format!("cannot listen on {host}:{port}: {error}")),
            };
            usage(format!("cannot listen on {host}:{port}: {what}"))
        })?;
        listener.set_nonblocking(true).context("preparing to listen")?;
        Ok(listener)
    }

    /// Serves a model on an address that was taken.
    pub fn start(model: OpenModel, listener: TcpListener, settings: Settings) -> Result<Self> {
        let address = listener.local_addr().context("reading the address")?;
        let Settings { name, engine, limits, keys, origins, playground, drain_time } = settings;
        let metrics = Metrics::new(&name, engine.max_length, engine.cache_blocks);
        let shared = Arc::new(Shared { desk: Desk::new(limits), metrics });
        let model_card = ServedModel {
            name,
            tokenizer: Arc::clone(&model.tokenizer),
            end_ids: model.stop_ids(),
            max_length: engine.max_length,
            created: chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now())
                .timestamp(),
        };
        let app = App { model: model_card, shared: Arc::clone(&shared), keys, playground };
        let router = router::router(Arc::new(app), origins);
        let (stop, stops) = watch::channel(0);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONNECTION_THREADS)
            .max_blocking_threads(READING_THREADS)
            .thread_name("serve")
            .enable_all()
            .build()
            .context("starting the threads for connections")?;
        let of_listener = Arc::clone(&shared);
        let connections = spawn("connections", move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                listener::listen(listener, router, of_listener, stops, drain_time).await;
                Ok(())
            })
        })?;
        let ended = stop.clone();
        let engines = spawn("engines", move || {
            let done = work(model, &engine, &shared);
            // Nobody would answer any more.
            ended.send_modify(|count| *count += 2);
            done
        })?;
        Ok(Self { address, stop, connections, engines })
    }

    /// Returns the address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks it to stop: the first time it finishes what runs, the second it gives that up.
    pub fn stop(&self) {
        self.stop.send_modify(|count| *count += 1);
    }

    /// Stops at the first SIGINT or SIGTERM, at once at the second, and waits for the end.
    pub fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("starting a thread for signals")?;
        runtime.block_on(async {
            let (mut interrupt, mut terminate) =
                (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            while !self.connections.is_finished() {
                tokio::select! {
                    _ = interrupt.recv() => self.stop(),
                    _ = terminate.recv() => self.stop(),
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            }
            anyhow::Ok(())
        })?;
        self.join()
    }

    /// Waits for its end.
    pub fn join(self) -> Result<()> {
        for thread in [self.engines, self.connections] {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }
}

fn spawn(
    name: &str,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<Result<()>>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).context("starting a thread")
}

/// Has every rank work until the desk is closed.
fn work(mut model: OpenModel, config: &EngineConfig, shared: &Shared) -> Result<()> {
    let tokenizer = Arc::clone(&model.tokenizer);
    let ranks = model.ranks();
    let pools: Vec<_> =
        ranks.iter().map(|_| threads::rank_pool(ranks.len())).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let work = |mut rank: Rank<'_>, pool: rayon::ThreadPool| {
            let done = pool.install(|| worker::work(shared, &tokenizer, &mut rank, config));
            // Nobody would answer what this rank has taken.
            shared.desk.close();
            done
        };
        let start = |(rank, pool)| scope.spawn(move || work(rank, pool));
        let threads: Vec<_> = ranks.into_iter().zip(pools).map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().try_for_each(join)
    })
}
