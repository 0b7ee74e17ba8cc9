//! The judge: workers, each of which owns a server, and a queue that any thread may feed.
//!
//! Every program gets an outcome, in the order given, whatever happens to servers in between. A server that
//! failed is replaced, and its program is run once more.

use super::cache::Cache;
use super::layers::Layers;
use super::options::{Limits, Mode, Options, Profile, Program};
use super::outcome::Outcome;
use super::python;
use super::server::{Plan, Server};
use super::supervise::run_program;
use super::ulimits;
use crate::base::error::usage;
use anyhow::Result;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Runs untrusted programs; see the module's documentation.
pub struct Judge {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    layers: Layers,
    cache: Option<Cache>,
}

/// Follows and stops a batch.
#[derive(Clone, Copy, Default)]
pub struct Watch<'a> {
    /// Is called with the number of programs that are done, from the calling thread.
    pub progress: Option<&'a dyn Fn(usize)>,
    /// When it returns true, programs that have not started are given up, as failures of the judge. It is
    /// called a few times a second, from the calling thread.
    pub cancel: Option<&'a dyn Fn() -> bool>,
}

/// What workers and callers share.
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    isolate_cases: bool,
    plan: Plan,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
    /// The process id of each live worker's launcher.
    servers: Vec<u32>,
}

/// A program of a batch.
struct Job {
    program: Program,
    /// The places of its outcome in the batch: several if the cache finds programs equal.
    places: Vec<usize>,
    batch: Arc<Batch>,
}

struct Batch {
    state: Mutex<Progress>,
    advanced: Condvar,
}

struct Progress {
    outcomes: Vec<Option<Outcome>>,
    done: usize,
}

/// A waiting caller looks at its cancel flag this often.
const CANCEL_LATENCY: Duration = Duration::from_millis(50);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain data, which is still consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Judge {
    /// Starts the workers and their servers.
    ///
    /// It refuses a machine on which neither Landlock nor seccomp is available, unless `allow_unsafe` is
    /// set, and resource limits that leave a program less than its own.
    pub fn start(options: Options) -> Result<Self> {
        ulimits::check(&options)?;
        Self::start_within_limits(options).map_err(ulimits::or_process_limit)
    }

    fn start_within_limits(options: Options) -> Result<Self> {
        let python = python::find(options.python.as_deref())?;
        let (plan, first, layers) = start_first(&options, python)?;
        if !layers.confines() && !options.allow_unsafe {
            return Err(usage(
                "this kernel offers neither Landlock nor seccomp, so programs could do anything \
                 this user can; run the judge elsewhere, or accept that with --unsafe",
            ));
        }
        let cache = (options.cache_entries > 0).then(|| Cache::new(&options, &plan.python));
        drop(first);
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            isolate_cases: options.isolate_cases,
            plan,
        });
        let workers = (0..options.workers.max(1))
            .map(|number| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("judge-{number}"))
                    .spawn(move || work(&shared))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { shared, workers, layers, cache })
    }

    /// Runs all programs and returns their outcomes in order. Any number of threads may call it.
    pub fn run(&self, programs: &[Program]) -> Vec<Outcome> {
        self.run_watched(programs, Watch::default())
    }

    /// Runs all programs as [`Judge::run`] does, with progress and cancellation.
    pub fn run_watched(&self, programs: &[Program], watch: Watch<'_>) -> Vec<Outcome> {
        let keys: Option<Vec<_>> =
            self.cache.as_ref().map(|cache| programs.iter().map(|p| cache.key(p)).collect());
        let known = |index: usize| self.cache.as_ref()?.get(&keys.as_ref()?[index]);
        let outcomes: Vec<Option<Outcome>> = (0..programs.len()).map(known).collect();
        let mut todo: Vec<Vec<usize>> = Vec::new();
        let mut job_of_key = HashMap::new();
        for index in (0..programs.len()).filter(|&i| outcomes[i].is_none()) {
            let next = todo.len();
            let job = keys.as_ref().map_or(next, |k| *job_of_key.entry(k[index]).or_insert(next));
            match todo.get_mut(job) {
                Some(places) => places.push(index),
                None => todo.push(vec![index]),
            }
        }
        let done = programs.len() - todo.iter().map(Vec::len).sum::<usize>();
        let batch = Arc::new(Batch {
            state: Mutex::new(Progress { outcomes, done }),
            advanced: Condvar::new(),
        });
        lock(&self.shared.queue).jobs.extend(todo.iter().map(|places| Job {
            program: programs[places[0]].clone(),
            places: places.clone(),
            batch: batch.clone(),
        }));
        self.shared.work.notify_all();
        self.wait(&batch, programs, watch);
        let outcomes: Vec<Outcome> = std::mem::take(&mut lock(&batch.state).outcomes)
            .into_iter()
            .map(|outcome| outcome.expect("a finished batch has every outcome"))
            .collect();
        if let (Some(cache), Some(keys)) = (&self.cache, keys) {
            for places in todo {
                cache.put(keys[places[0]], &outcomes[places[0]]);
            }
        }
        outcomes
    }

    /// Returns the number of programs that run at the same time.
    pub fn num_workers(&self) -> usize {
        self.workers.len()
    }

    /// Returns the settings on which verdicts depend.
    pub fn limits(&self) -> (&Limits, Profile) {
        self.shared.plan.limits()
    }

    /// Returns the protections that are in force.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Returns the process ids of the servers' launchers. Ending them is safe: no verdict is lost.
    pub fn server_pids(&self) -> Vec<u32> {
        lock(&self.shared.queue).servers.clone()
    }

    fn wait(&self, batch: &Arc<Batch>, programs: &[Program], watch: Watch<'_>) {
        let mut seen = None;
        let mut state = lock(&batch.state);
        loop {
            let done = state.done;
            if seen != Some(done) {
                seen = Some(done);
                if let Some(progress) = watch.progress {
                    drop(state);
                    progress(done);
                    state = lock(&batch.state);
                    continue;
                }
            }
            if done == programs.len() {
                return;
            }
            if watch.cancel.is_some_and(|cancel| cancel()) {
                drop(state);
                self.give_up(batch);
                state = lock(&batch.state);
            }
            if state.done < programs.len() {
                let waited = batch.advanced.wait_timeout(state, CANCEL_LATENCY);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Removes a batch's waiting programs from the queue.
    fn give_up(&self, batch: &Arc<Batch>) {
        let dropped: VecDeque<Job> = {
            let mut queue = lock(&self.shared.queue);
            let (gone, kept) = queue.jobs.drain(..).partition(|job| Arc::ptr_eq(&job.batch, batch));
            queue.jobs = kept;
            gone
        };
        for job in dropped {
            let outcome = Outcome::infra(job.program.inputs.len(), "cancelled");
            job.batch.finish(&job.places, &outcome);
        }
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has nothing left to clean up.
            let _ = worker.join();
        }
    }
}

impl Batch {
    fn finish(&self, places: &[usize], outcome: &Outcome) {
        let mut state = lock(&self.state);
        for &place in places {
            state.outcomes[place] = Some(outcome.clone());
        }
        state.done += places.len();
        drop(state);
        self.advanced.notify_all();
    }
}

/// Starts the first server, and so finds out which mode works here.
fn start_first(options: &Options, python: super::PythonInfo) -> Result<(Plan, Server, Layers)> {
    if options.mode != Mode::OneShot {
        let plan = Plan::new(options, python.clone(), false)?;
        match Server::start(&plan) {
            Ok((server, layers)) => return Ok((plan, server, layers)),
            Err(e) if options.mode == Mode::ForkServer => return Err(e),
            Err(e) => {
                tracing::warn!("one process a program, as the fork server cannot start: {e:#}")
            }
        }
    }
    let plan = Plan::new(options, python, true)?;
    let (server, layers) = Server::start(&plan)?;
    Ok((plan, server, layers))
}

/// Runs a worker to its end. It starts its own servers, which end with the thread that started them.
fn work(shared: &Shared) {
    let mut server: Option<Server> = None;
    while let Some(job) = next_job(shared) {
        let mut outcome = None;
        for attempt in 1..=2 {
            match run_on(&mut server, shared, &job.program) {
                Ok(done) => {
                    outcome = Some(done);
                    break;
                }
                Err(e) => {
                    tracing::warn!("judge: {e:#} (attempt {attempt} of 2)");
                    forget(&mut server, shared);
                    outcome = Some(Outcome::infra(job.program.inputs.len(), &format!("{e:#}")));
                }
            }
        }
        let outcome = outcome.expect("at least one attempt was made");
        job.batch.finish(&job.places, &outcome);
    }
    forget(&mut server, shared);
}

fn run_on(server: &mut Option<Server>, shared: &Shared, program: &Program) -> Result<Outcome> {
    let server = match server {
        Some(server) => server,
        None => {
            let (started, _) = Server::start(&shared.plan)?;
            lock(&shared.queue).servers.push(started.launcher_pid());
            server.insert(started)
        }
    };
    run_program(server, &program.code, &program.inputs, shared.isolate_cases)
}

fn forget(server: &mut Option<Server>, shared: &Shared) {
    if let Some(old) = server.take() {
        let pid = old.launcher_pid();
        lock(&shared.queue).servers.retain(|&other| other != pid);
    }
}

fn next_job(shared: &Shared) -> Option<Job> {
    let mut queue = lock(&shared.queue);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            return Some(job);
        }
        if queue.closed {
            return None;
        }
        queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}
