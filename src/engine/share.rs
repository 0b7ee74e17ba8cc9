//! Several engines on one workload: ranks that take prompts from a common queue.
//!
//! Contract: an engine takes the next prompt when it has room for it, so a rank's share is what it
//! gets done, long responses weigh what they weigh, and none is idle while prompts wait. A rollout
//! depends on its request alone: any number of ranks gives the same ones. Left out: dividing the
//! samples of one prompt, which is computed once for all of them.

use super::{Engine, Next, Observer, Request, Rollout, SamplingParams, Stats};
use crate::base::threads;
use anyhow::Result;
use rayon::ThreadPool;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Requests that engines have yet to take, in order.
pub(super) struct Queue<'r> {
    pub(super) requests: &'r [Request],
    num_taken: AtomicUsize,
}

impl<'r> Queue<'r> {
    pub(super) fn new(requests: &'r [Request]) -> Self {
        Self { requests, num_taken: AtomicUsize::new(0) }
    }

    /// The next request of which samples are wanted; nobody else gets it.
    pub(super) fn take(&self) -> Option<usize> {
        loop {
            let index = self.num_taken.fetch_add(1, Ordering::Relaxed);
            if self.requests.get(index)?.num_samples > 0 {
                return Some(index);
            }
        }
    }
}

/// Samples every request on engines that `ranks` make, one each on a thread of its own with its part
/// of the cores, and tells `observer`, one at a time. Errors are those of making an engine and of
/// [`Engine::generate`].
pub fn share<'m, F: FnOnce() -> Result<Engine<'m>> + Send>(
    mut ranks: Vec<F>,
    requests: &[Request],
    sampling: &SamplingParams,
    observer: &mut (impl Observer + Send),
) -> Result<Stats> {
    if ranks.len() == 1 {
        let make = ranks.remove(0);
        return make()?.generate(requests, sampling, observer);
    }
    let pool = |_: &F| threads::of_rank(ranks.len());
    let pools: Vec<_> = ranks.iter().map(pool).collect::<Result<_>>()?;
    let queue = Queue::new(requests);
    let observer = Mutex::new(observer);
    let (queue, observer) = (&queue, &observer);
    let of_ranks: Vec<Result<Stats>> = std::thread::scope(|scope| {
        let work = |pool: ThreadPool, make: F| {
            pool.install(|| make()?.work_off(queue, sampling, &mut InTurn(observer)))
        };
        let threads: Vec<_> = pools
            .into_iter()
            .zip(ranks)
            .map(|(pool, make)| scope.spawn(move || work(pool, make)))
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
        let queue = Queue::new(&requests);
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
