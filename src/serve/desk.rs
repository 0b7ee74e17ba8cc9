//! The desk between protocol handlers and engines: jobs wait here until an engine has room for them.
//!
//! Contract: what waits and runs is bounded, in samples and in tokens of prompts that wait, and a request
//! is taken whole or refused. Any number of engines take jobs, in the order of their arrival. Jobs whose
//! reader is gone are never taken.

use super::job::{Event, Failure, Job};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// So much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// At most so many samples wait or are sampled.
    pub max_queued_requests: usize,
    /// The prompts that no engine has taken have at most so many tokens.
    pub max_queued_tokens: usize,
}

/// The reason for which a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too much waits. The job that was taken last had waited for so long.
    Full(Duration),
    /// The server is shutting down.
    ShuttingDown,
}

/// A desk holds the jobs that wait, and counts those that engines have taken.
pub(crate) struct Desk {
    limits: Limits,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Engines have taken so many samples and not finished them.
    num_running: usize,
    last_wait: Duration,
    phase: Phase,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd)]
enum Phase {
    #[default]
    Open,
    /// Takes nothing new.
    Draining,
    /// Gives everything up.
    Closed,
}

/// The samples at a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) num_waiting: usize,
    pub(crate) num_running: usize,
}

impl State {
    fn load(&self) -> Load {
        let num_waiting = self.waiting.iter().map(|job| job.request.num_samples).sum();
        Load { num_waiting, num_running: self.num_running }
    }
}

impl Desk {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all of `jobs`, or none. A desk with nothing on it takes any request.
    pub(crate) fn submit(&self, jobs: Vec<Job>) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.phase > Phase::Open {
            return Err(Refusal::ShuttingDown);
        }
        state.waiting.retain(|job| !job.outbox.is_closed());
        let Load { num_waiting, num_running } = state.load();
        let samples = jobs.iter().map(|job| job.request.num_samples).sum::<usize>();
        let tokens = |job: &Job| job.request.prompt.len();
        let queued = state.waiting.iter().map(tokens).sum::<usize>();
        let wanted = jobs.iter().map(tokens).sum::<usize>();
        let has_work = num_waiting + num_running > 0;
        let is_full = num_waiting + num_running + samples > self.limits.max_queued_requests
            || queued + wanted > self.limits.max_queued_tokens;
        if has_work && is_full {
            return Err(Refusal::Full(state.last_wait));
        }
        state.waiting.extend(jobs);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Returns the next job, for an engine that has room.
    pub(crate) fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        state.waiting.retain(|job| !job.outbox.is_closed());
        let job = state.waiting.pop_front()?;
        state.num_running += job.request.num_samples;
        state.last_wait = job.arrived.elapsed();
        Some(job)
    }

    /// Says that samples which were taken have ended.
    pub(crate) fn finish(&self, num_samples: usize) {
        self.lock().num_running -= num_samples;
        self.changed.notify_all();
    }

    /// Waits until a job can be taken; false once the desk is closed.
    pub(crate) fn wait(&self) -> bool {
        let is_idle = |state: &mut State| state.waiting.is_empty() && state.phase < Phase::Closed;
        let state = self.changed.wait_while(self.lock(), is_idle);
        state.unwrap_or_else(PoisonError::into_inner).phase < Phase::Closed
    }

    /// Returns whether everything is given up.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().phase == Phase::Closed
    }

    /// Returns whether nothing new is taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.lock().phase > Phase::Open
    }

    /// Takes nothing new.
    pub(crate) fn drain(&self) {
        let mut state = self.lock();
        state.phase = if state.phase == Phase::Open { Phase::Draining } else { state.phase };
    }

    /// Gives up what waits, and has engines give up what they have taken.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.phase = Phase::Closed;
        for job in state.waiting.drain(..) {
            job.outbox.put(Event::Failed(Failure::ShuttingDown));
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn load(&self) -> Load {
        self.lock().load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Request, SamplingParams};
    use crate::serve::job::{Answers, mailbox};
    use std::sync::Arc;
    use std::time::Instant;

    const LIMITS: Limits = Limits { max_queued_requests: 4, max_queued_tokens: 10 };

    fn job(prompt: usize, num_samples: usize) -> (Job, Answers) {
        let (outbox, answers) = mailbox(num_samples);
        let request = Request {
            prompt: vec![1; prompt],
            sampling: SamplingParams::default(),
            num_samples,
            key: 0,
        };
        let job = Job {
            request,
            stops: Arc::default(),
            wants_tokens: false,
            own_stop_ids: Vec::new(),
            prompt: 0,
            arrived: Instant::now(),
            outbox,
        };
        (job, answers)
    }

    #[test]
    fn samples_and_tokens_that_wait_are_bounded() {
        let desk = Desk::new(LIMITS);
        let (first, _first) = job(100, 9);
        desk.submit(vec![first]).expect("an empty desk takes anything");
        let (second, _second) = job(1, 1);
        assert!(matches!(desk.submit(vec![second]), Err(Refusal::Full(_))));
        desk.take().unwrap();
        desk.finish(9);
        for _ in 0..4 {
            let (job, answers) = job(2, 1);
            desk.submit(vec![job]).unwrap();
            std::mem::forget(answers);
        }
        let (fifth, _fifth) = job(1, 1);
        assert!(matches!(desk.submit(vec![fifth]), Err(Refusal::Full(_))));
        desk.take().unwrap();
        assert_eq!(desk.load(), Load { num_waiting: 3, num_running: 1 });
    }

    #[test]
    fn a_job_whose_reader_is_gone_holds_no_place_and_is_not_taken() {
        let desk = Desk::new(LIMITS);
        let (gone, answers) = job(5, 4);
        desk.submit(vec![gone]).unwrap();
        drop(answers);
        let (next, _answers) = job(5, 3);
        desk.submit(vec![next]).unwrap();
        assert_eq!(desk.take().unwrap().request.num_samples, 3);
        assert!(desk.take().is_none());
    }

    #[test]
    fn a_desk_that_drains_refuses_and_one_that_closes_gives_up() {
        let desk = Desk::new(LIMITS);
        let (waiting, mut answers) = job(1, 1);
        desk.submit(vec![waiting]).unwrap();
        desk.drain();
        let (late, _late) = job(1, 1);
        assert_eq!(desk.submit(vec![late]).unwrap_err(), Refusal::ShuttingDown);
        assert!(desk.wait(), "what waits is still taken");
        desk.close();
        assert!(!desk.wait() && desk.take().is_none());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let events = runtime.block_on(answers.next()).unwrap();
        assert!(matches!(events[..], [Event::Failed(Failure::ShuttingDown)]));
    }
}
