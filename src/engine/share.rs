//! Several engines on one workload: ranks that take prompts from a common queue.
//!
//! Contract: an engine takes the next prompt when it has room for it, so a rank's share is what it
//! gets done, long responses weigh what they weigh, and none is idle while prompts wait. A rollout
//! depends on its request alone: any number of ranks gives the same ones. Left out: dividing the
//! samples of one prompt, which is computed once for all of them.

use super::{Engine, EngineConfig, Next, Observer, Request, Rollout, SamplingParams, Stats};
use crate::base::threads;
use anyhow::Result;
use rayon::ThreadPool;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Requests that engines have yet to take.
pub trait Queue: Sync {
    /// All of them.
    fn requests(&self) -> &[Request];

    /// The next request of which samples are wanted; nobody else gets it.
    fn take(&self) -> Option<usize>;
}

/// Requests of this process, in order.
pub(crate) struct InOrder<'r> {
    requests: &'r [Request],
    num_taken: AtomicUsize,
}

impl<'r> InOrder<'r> {
    pub(crate) fn new(requests: &'r [Request]) -> Self {
        Self { requests, num_taken: AtomicUsize::new(0) }
    }
}

impl Queue for InOrder<'_> {
    fn requests(&self) -> &[Request] {
        self.requests
    }

    fn take(&self) -> Option<usize> {
        loop {
            let index = self.num_taken.fetch_add(1, Ordering::Relaxed);
            if self.requests.get(index)?.num_samples > 0 {
                return Some(index);
            }
        }
    }
}

/// One of several that share a queue.
pub trait Worker: Send {
    /// Samples requests of `queue` until it is empty, and tells `observer`.
    fn work_off(
        self,
        queue: &dyn Queue,
        sampling: &SamplingParams,
        observer: &mut dyn Observer,
    ) -> Result<Stats>;
}

/// What makes an engine, on the thread where it will work.
impl<'m, F: FnOnce() -> Result<Engine<'m>> + Send> Worker for F {
    fn work_off(
        self,
        queue: &dyn Queue,
        sampling: &SamplingParams,
        observer: &mut dyn Observer,
    ) -> Result<Stats> {
        self()?.work_off(queue, sampling, observer)
    }
}

/// An engine in another process.
pub trait Elsewhere: Send {
    /// As of [`Worker::work_off`], with an engine of these sizes; what grows is shown now and then alone.
    fn work_off(
        &mut self,
        config: &EngineConfig,
        queue: &dyn Queue,
        sampling: &SamplingParams,
        observer: &mut dyn Observer,
    ) -> Result<Stats>;
}

/// Samples every request on `ranks`, each on a thread of its own with its part of the cores, and tells
/// `observer`, one at a time. Errors are those of making an engine and of [`Engine::generate`].
pub fn share<W: Worker>(
    mut ranks: Vec<W>,
    requests: &[Request],
    sampling: &SamplingParams,
    observer: &mut (impl Observer + Send),
) -> Result<Stats> {
    if ranks.len() == 1 {
        return ranks.remove(0).work_off(&InOrder::new(requests), sampling, observer);
    }
    let pool = |_: &W| threads::of_rank(ranks.len());
    let pools: Vec<_> = ranks.iter().map(pool).collect::<Result<_>>()?;
    let queue = InOrder::new(requests);
    let observer = Mutex::new(observer);
    let (queue, observer) = (&queue, &observer);
    let of_ranks: Vec<Result<Stats>> = std::thread::scope(|scope| {
        let work = |pool: ThreadPool, rank: W| {
            pool.install(|| rank.work_off(queue, sampling, &mut InTurn(observer)))
        };
        let threads: Vec<_> = pools
            .into_iter()
            .zip(ranks)
            .map(|(pool, rank)| scope.spawn(move || work(pool, rank)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let mut all = Stats::default();
    for stats in of_ranks {
        all.merge(&stats?);
    }
    Ok(all)
}

/// An observer that several ranks tell, one after the other.
struct InTurn<'a, O>(&'a Mutex<O>);

impl<O> InTurn<'_, O> {
    fn lock(&self) -> MutexGuard<'_, O> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O: Observer> Observer for InTurn<'_, &mut O> {
    fn token(&mut self, request: usize, sample: usize, rollout: &Rollout) -> Next {
        self.lock().token(request, sample, rollout)
    }

    fn finished(&mut self, request: usize, sample: usize, rollout: Rollout) {
        self.lock().finished(request, sample, rollout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_taken_once_by_whoever_asks() {
        let request = |num_samples| Request { prompt: vec![1], num_samples, key: 0 };
        let requests: Vec<Request> = (0..1000).map(|i| request(i % 3)).collect();
        let queue = InOrder::new(&requests);
        let taken: Vec<Vec<usize>> = std::thread::scope(|scope| {
            let take = || std::iter::from_fn(|| queue.take()).collect();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(taken.iter().all(|of_one| of_one.is_sorted()));
        let mut all = taken.concat();
        all.sort_unstable();
        let wanted = (0..1000).filter(|i| i % 3 > 0);
        assert!(all.into_iter().eq(wanted));
        assert_eq!(queue.take(), None);
    }
}
