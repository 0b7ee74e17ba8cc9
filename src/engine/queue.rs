//! A queue of requests, and the samplers that work it off: threads, a GPU, a rank of another node, or a
//! team of several.
//!
//! A sampler takes the next request when it has room for it, so each member of a team does as much as it
//! can and none is idle while requests wait. A rollout depends on its request alone: any team of one kind
//! gives the same rollouts. The samples of one request are not divided among samplers, because its prompt
//! is computed once for all of them.

use super::{EngineConfig, Next, Observer, Request, RequestId, Rollout, Stats};
use crate::base::threads;
use crate::ops::sample::Drawn;
use anyhow::{Context, Result};
use rayon::ThreadPool;
use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Requests in order, of which samplers take one after the other.
pub struct Queue<'r> {
    requests: &'r [Request],
    config: EngineConfig,
    num_taken: AtomicUsize,
}

impl<'r> Queue<'r> {
    /// Creates a queue; engines that work on it have the sizes `config`.
    pub fn new(requests: &'r [Request], config: EngineConfig) -> Self {
        Self { requests, config, num_taken: AtomicUsize::new(0) }
    }

    /// Returns the sizes of the engines that work on this queue.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Takes the next request that wants samples, and returns it with its index in the queue. No request is
    /// taken twice.
    pub fn take(&self) -> Option<(usize, &'r Request)> {
        loop {
            let number = self.num_taken.fetch_add(1, Ordering::Relaxed);
            let request = self.requests.get(number)?;
            if request.num_samples > 0 {
                return Some((number, request));
            }
        }
    }

    /// Runs `check` on every request. Its error names the prompt by its number, from 1.
    pub(crate) fn check(&self, check: impl Fn(&Request) -> Result<()>) -> Result<()> {
        let check =
            |(index, request)| check(request).with_context(|| format!("prompt {}", index + 1));
        self.requests.iter().enumerate().try_for_each(check)
    }
}

/// A sampler turns requests into rollouts.
pub trait Sampler: Send {
    /// Samples requests of `queue` until it is empty; other samplers may take some of them. `observer` is
    /// told of their rollouts, with [`RequestId`]s that are indices in the queue. A sampler on another node
    /// tells it of new tokens from time to time only, not of each.
    fn sample(&mut self, queue: &Queue<'_>, observer: &mut dyn Observer) -> Result<Stats>;
}

impl<S: Sampler + ?Sized> Sampler for &mut S {
    fn sample(&mut self, queue: &Queue<'_>, observer: &mut dyn Observer) -> Result<Stats> {
        (**self).sample(queue, observer)
    }
}

/// Samplers that share a queue. Each runs on a thread of its own, with its share of the cores.
pub struct Team<'m>(Vec<Box<dyn Sampler + 'm>>);

impl<'m> Team<'m> {
    /// Creates a team of at least one member.
    pub fn new(members: Vec<Box<dyn Sampler + 'm>>) -> Self {
        Self(members)
    }
}

impl Sampler for Team<'_> {
    fn sample(&mut self, queue: &Queue<'_>, observer: &mut dyn Observer) -> Result<Stats> {
        if let [alone] = &mut self.0[..] {
            return alone.sample(queue, observer);
        }
        let pool = |_: &_| threads::rank_pool(self.0.len());
        let pools: Vec<_> = self.0.iter().map(pool).collect::<Result<_>>()?;
        let observer = &Mutex::new(observer);
        let of_members: Vec<Result<Stats>> = std::thread::scope(|scope| {
            let work = |pool: ThreadPool, member: &mut Box<dyn Sampler + '_>| {
                pool.install(|| member.sample(queue, &mut InTurn(observer)))
            };
            let threads: Vec<_> = pools
                .into_iter()
                .zip(&mut self.0)
                .map(|(pool, member)| scope.spawn(move || work(pool, member)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        let mut all = Stats::default();
        for stats in of_members {
            all.merge(&stats?);
        }
        Ok(all)
    }
}

/// Lets several samplers tell one observer, one at a time.
struct InTurn<'a, 'o>(&'a Mutex<&'o mut dyn Observer>);

impl<'o> InTurn<'_, 'o> {
    fn lock(&self) -> MutexGuard<'_, &'o mut dyn Observer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for InTurn<'_, '_> {
    fn prompt(&mut self, request: RequestId, tokens: Vec<Drawn>) {
        self.lock().prompt(request, tokens);
    }

    fn token(&mut self, request: RequestId, sample: usize, rollout: &Rollout) -> Next {
        self.lock().token(request, sample, rollout)
    }

    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout) {
        self.lock().finished(request, sample, rollout);
    }
}

/// Translates the ids that an engine gave to requests into their indices in a queue. The observer is not
/// told of other requests of the engine.
pub(crate) struct Numbered<'o, O: ?Sized> {
    pub(crate) observer: &'o mut O,
    places: HashMap<RequestId, RequestId>,
}

impl<'o, O: Observer + ?Sized> Numbered<'o, O> {
    pub(crate) fn new(observer: &'o mut O) -> Self {
        Self { observer, places: HashMap::new() }
    }

    /// Records that the engine knows the request at index `place` of the queue as `id`.
    pub(crate) fn name(&mut self, id: RequestId, place: usize) {
        self.places.insert(id, RequestId(place));
    }
}

impl<O: Observer + ?Sized> Observer for Numbered<'_, O> {
    fn prompt(&mut self, request: RequestId, tokens: Vec<Drawn>) {
        if let Some(&place) = self.places.get(&request) {
            self.observer.prompt(place, tokens);
        }
    }

    fn token(&mut self, request: RequestId, sample: usize, rollout: &Rollout) -> Next {
        let place = self.places.get(&request);
        place.map_or(Next::Continue, |&place| self.observer.token(place, sample, rollout))
    }

    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout) {
        if let Some(&place) = self.places.get(&request) {
            self.observer.finished(place, sample, rollout);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SamplingParams;

    #[test]
    fn every_request_is_taken_once_by_whoever_asks() {
        let request = |num_samples| Request {
            prompt: vec![1],
            sampling: SamplingParams::default(),
            num_samples,
            key: 0,
        };
        let requests: Vec<Request> = (0..1000).map(|i| request(i % 3)).collect();
        let queue = Queue::new(&requests, EngineConfig::roomy(1, 8));
        let taken: Vec<Vec<usize>> = std::thread::scope(|scope| {
            let take = || std::iter::from_fn(|| Some(queue.take()?.0)).collect();
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
