//! The connections of a server, from the first to the last.
//!
//! Contract: connections are bounded; one that sends no whole header for two minutes is closed, which is
//! longer than the pools of common clients and proxies keep theirs. When asked to stop, the server takes no
//! new work, finishes what runs until a deadline, gives the rest up, and says so to whoever waits.

use super::worker::Shared;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

const MOST_CONNECTIONS: usize = 1024;
const HEADER_TIME: Duration = Duration::from_secs(120);

/// Answers that are complete must leave within this time.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves until `stop` comes, and then as long as the contract says; a second `stop` is the deadline.
pub(crate) async fn listen(
    listener: TcpListener,
    router: Router,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<u32>,
    drain_time: Duration,
) {
    let (closing, _) = watch::channel(false);
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let accepting = accept(listener, router, Arc::clone(&places), closing.clone());
    let accepting = tokio::spawn(accepting);
    let _nobody_stops_it = stop.wait_for(|count| *count > 0).await.is_err();
    shared.desk.drain();
    let load = shared.desk.load();
    tracing::info!(
        "stopping: {} requests run and {} wait; they have {} s",
        load.num_running,
        load.num_waiting,
        drain_time.as_secs()
    );
    let is_done = async {
        while shared.desk.load() != Default::default() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = is_done => {}
        () = sleep(drain_time) => {}
        _ = stop.wait_for(|count| *count > 1) => {}
    }
    shared.desk.close();
    // Connections close once their answers have left.
    let _nobody_listens = closing.send(true);
    let all = u32::try_from(MOST_CONNECTIONS).unwrap_or(u32::MAX);
    let _some_are_left = timeout(LAST_WORDS, places.acquire_many(all)).await;
    accepting.abort();
}

async fn accept(
    listener: TcpListener,
    router: Router,
    places: Arc<Semaphore>,
    closing: watch::Sender<bool>,
) {
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, say: others will close.
                tracing::warn!("accepting a connection: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _cosmetic = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let mut closing = closing.subscribe();
        tokio::spawn(async move {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
            let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
            let closed = async {
                let _ended = closing.wait_for(|is_closing| *is_closing).await;
            };
            tokio::select! {
                _ended = connection.as_mut() => {}
                () = closed => {
                    connection.as_mut().graceful_shutdown();
                    let _ended = connection.await;
                }
            }
            drop(place);
        });
    }
}
