//! Sampling on another node: both ends.
//!
//! Contract: a rank elsewhere takes prompts from the queue of node 0 as its engine has room for them, and
//! sends every rollout when it ends. One that grows is shown now and then, which is when node 0 can call
//! sampling off. Left out: judging there.

use super::protocol::{Answer, Request, Sample, mismatch, receive_request};
use super::remote::Remote;
use crate::base::error::Interrupted;
use crate::base::interrupt;
use crate::engine::device::DeviceModel;
use crate::engine::{
    Elsewhere, Engine, EngineConfig, Next, Observer, Queue, Request as Prompt, Rollout,
    SamplingParams, Stats,
};
use crate::ranks::Lane;
use anyhow::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks of node 0 at what grows.
const PACE: Duration = Duration::from_millis(200);

impl Elsewhere for Remote {
    fn work_off(
        &mut self,
        config: &EngineConfig,
        queue: &dyn Queue,
        sampling: &SamplingParams,
        observer: &mut dyn Observer,
    ) -> Result<Stats> {
        let (config, sampling) = (config.clone(), sampling.clone());
        let prompts = queue.requests().to_vec();
        let lane = self.end().lane.clone();
        lane.send(&Request::Sample { config, sampling, prompts }, &[])?;
        loop {
            let (answer, logprobs) = self.answer()?;
            let is_over = interrupt::requested();
            let request = match answer {
                Answer::Take if is_over => Request::Taken(None),
                Answer::Take => Request::Taken(queue.take()),
                Answer::Growing(_) if is_over => Request::Next(Next::Cancel),
                Answer::Growing(Sample { prompt, sample, tokens, finish_reason }) => {
                    let rollout = Rollout { tokens, logprobs, finish_reason };
                    Request::Next(observer.token(prompt, sample, &rollout))
                }
                Answer::Finished(Sample { prompt, sample, tokens, finish_reason }) => {
                    observer.finished(prompt, sample, Rollout { tokens, logprobs, finish_reason });
                    continue;
                }
                Answer::Sampled(_) if is_over => return Err(Interrupted.into()),
                Answer::Sampled(stats) => return Ok(stats),
                other => return mismatch(&other),
            };
            lane.send(&request, &[])?;
        }
    }
}

/// Samples what node 0 has in its queue.
pub(crate) fn sample(
    model: &mut DeviceModel,
    lane: &Lane,
    config: EngineConfig,
    sampling: &SamplingParams,
    prompts: &[Prompt],
) -> Result<Stats> {
    let (failure, is_empty) = (Mutex::new(None), AtomicBool::new(false));
    let node_0 = Node0 { lane, prompts, failure: &failure, is_empty: &is_empty };
    let mut shown = Shown { node_0, looked: Instant::now(), is_cancelled: false };
    let stats = Engine::on_gpu(model, config)?.work_off(&node_0, sampling, &mut shown)?;
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(stats),
    }
}

/// Node 0 as an engine elsewhere sees it: a queue, and an observer.
#[derive(Clone, Copy)]
struct Node0<'l> {
    lane: &'l Lane,
    prompts: &'l [Prompt],
    /// The first failure to reach it, after which nothing is asked any more.
    failure: &'l Mutex<Option<Error>>,
    /// Nothing is left to take.
    is_empty: &'l AtomicBool,
}

impl Node0<'_> {
    /// Does `work` unless it has failed before; `None` where it fails.
    fn reach<T>(&self, work: impl FnOnce(&Lane) -> Result<T>) -> Option<T> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.is_some() {
            return None;
        }
        work(self.lane).map_err(|error| *failure = Some(error)).ok()
    }
}

impl Queue for Node0<'_> {
    fn requests(&self) -> &[Prompt] {
        self.prompts
    }

    fn take(&self) -> Option<usize> {
        if self.is_empty.load(Ordering::Relaxed) {
            return None;
        }
        let taken = self.reach(|lane| {
            lane.send(&Answer::Take, &[])?;
            match receive_request(lane)? {
                (Request::Taken(index), _) => Ok(index),
                (other, _) => mismatch(&other),
            }
        });
        self.is_empty.store(taken.flatten().is_none(), Ordering::Relaxed);
        taken.flatten()
    }
}

/// Shows rollouts to node 0.
struct Shown<'l> {
    node_0: Node0<'l>,
    looked: Instant,
    /// Node 0 wants no more of any.
    is_cancelled: bool,
}

impl Observer for Shown<'_> {
    fn token(&mut self, prompt: usize, sample: usize, rollout: &Rollout) -> Next {
        if self.is_cancelled {
            return Next::Cancel;
        }
        if self.looked.elapsed() < PACE {
            return Next::Continue;
        }
        self.looked = Instant::now();
        let next = self.node_0.reach(|lane| {
            lane.send(&Answer::Growing(of(prompt, sample, rollout)), &rollout.logprobs)?;
            match receive_request(lane)? {
                (Request::Next(next), _) => Ok(next),
                (other, _) => mismatch(&other),
            }
        });
        let next = next.unwrap_or(Next::Cancel);
        self.is_cancelled = next == Next::Cancel;
        next
    }

    fn finished(&mut self, prompt: usize, sample: usize, rollout: Rollout) {
        let shown = Answer::Finished(of(prompt, sample, &rollout));
        self.node_0.reach(|lane| lane.send(&shown, &rollout.logprobs));
    }
}

fn of(prompt: usize, sample: usize, rollout: &Rollout) -> Sample {
    let Rollout { tokens, finish_reason, .. } = rollout;
    Sample { prompt, sample, tokens: tokens.clone(), finish_reason: *finish_reason }
}
