//! Threads that send calls and wait for what comes of them.

use super::http::{Http, Reply};
use anyhow::{Context, Result};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope};
use std::time::{Duration, Instant};

/// A thread that waits for a response needs little.
const STACK_BYTES: usize = 512 << 10;

/// A call to be sent.
pub(crate) struct Job {
    pub(crate) index: usize,
    pub(crate) body: Vec<u8>,
}

/// What came of it.
pub(crate) struct Arrival {
    pub(crate) index: usize,
    pub(crate) reply: Reply,
    pub(crate) took: Duration,
}

/// Threads, as many as there ever were calls at the same time; they end with this.
pub(crate) struct Senders<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    http: Arc<Http>,
    jobs: Sender<Job>,
    /// Whoever is free takes the next.
    inbox: Arc<Mutex<Receiver<Job>>>,
    replies: Sender<Arrival>,
    num_threads: usize,
}

impl<'scope, 'env> Senders<'scope, 'env> {
    pub(crate) fn new(
        scope: &'scope Scope<'scope, 'env>,
        http: Arc<Http>,
        replies: Sender<Arrival>,
    ) -> Self {
        let (jobs, inbox) = mpsc::channel();
        Self { scope, http, jobs, inbox: Arc::new(Mutex::new(inbox)), replies, num_threads: 0 }
    }

    /// Sends a call, which makes `num_on_way` of them at the same time.
    pub(crate) fn send(&mut self, job: Job, num_on_way: usize) -> Result<()> {
        if self.num_threads < num_on_way {
            let (http, inbox) = (Arc::clone(&self.http), Arc::clone(&self.inbox));
            let replies = self.replies.clone();
            let started = Builder::new()
                .stack_size(STACK_BYTES)
                .spawn_scoped(self.scope, move || work(&http, &inbox, &replies));
            match started {
                Ok(_) => self.num_threads += 1,
                // Those that there are send it later.
                Err(_) if self.num_threads > 0 => {}
                Err(e) => return Err(e).context("starting a thread to send calls"),
            }
        }
        self.jobs.send(job).context("no thread sends calls any more")
    }
}

/// Sends calls until there are no more.
fn work(http: &Http, inbox: &Mutex<Receiver<Job>>, replies: &Sender<Arrival>) {
    loop {
        let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { index, body }) = job else { return };
        let started = Instant::now();
        let reply = http.post(&body);
        if replies.send(Arrival { index, reply, took: started.elapsed() }).is_err() {
            return;
        }
    }
}
