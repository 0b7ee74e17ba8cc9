//! Sampling on another node, at both ends.
//!
//! A rank of another node takes prompts from the queue of node 0 when its engine has room for them, and
//! sends every rollout when it ends. It shows a rollout that grows from time to time, and only then can
//! node 0 call sampling off. Node 0 judges all programs.

use super::protocol::{Answer, Request, Sample, mismatch, receive_request};
use super::remote::Remote;
use crate::base::error::Interrupted;
use crate::base::interrupt;
use crate::engine::device::DeviceModel;
use crate::engine::{
    Engine, EngineConfig, Next, Numbered, Observer, Queue, RequestId, Rollout, Sampler, Stats,
};
use crate::nodes::Lane;
use anyhow::{Error, Result};
use std::time::{Duration, Instant};

/// Node 0 looks at growing rollouts this often.
const PACE: Duration = Duration::from_millis(200);

impl Sampler for Remote {
    fn sample(&mut self, queue: &Queue<'_>, observer: &mut dyn Observer) -> Result<Stats> {
        let lane = self.end().lane.clone();
        lane.send(&Request::Sample(queue.config().clone()), &[])?;
        loop {
            let (answer, logprobs) = self.answer()?;
            let is_over = interrupt::requested();
            let whole = |rollout: Rollout| Rollout { logprobs, ..rollout };
            let request = match answer {
                Answer::Take if is_over => Request::Taken(None),
                Answer::Take => {
                    Request::Taken(queue.take().map(|(place, request)| (place, request.clone())))
                }
                Answer::Growing(_) if is_over => Request::Next(Next::Cancel),
                Answer::Growing(Sample { prompt, sample, rollout }) => {
                    Request::Next(observer.token(prompt, sample, &whole(rollout)))
                }
                Answer::Finished(Sample { prompt, sample, rollout }) => {
                    observer.finished(prompt, sample, whole(rollout));
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

/// Samples what is in the queue of node 0.
pub(crate) fn sample(model: &mut DeviceModel, lane: &Lane, config: EngineConfig) -> Result<Stats> {
    let mut engine = Engine::on_gpu(model, config)?;
    let mut node_0 = Node0 { lane, looked: Instant::now(), is_cancelled: false, failure: None };
    let mut observer = Numbered::new(&mut node_0);
    let mut is_empty = false;
    loop {
        while !is_empty && engine.has_room() {
            match take(lane)? {
                Some((place, request)) => observer.name(engine.submit(request)?, place),
                None => is_empty = true,
            }
        }
        if engine.is_idle() {
            return Ok(engine.take_stats());
        }
        engine.step(&mut observer)?;
        if let Some(failure) = observer.observer.failure.take() {
            return Err(failure);
        }
    }
}

/// Returns the next prompt of node 0's queue, with its place there.
fn take(lane: &Lane) -> Result<Option<(usize, crate::engine::Request)>> {
    lane.send(&Answer::Take, &[])?;
    match receive_request(lane)? {
        (Request::Taken(taken), _) => Ok(taken),
        (other, _) => mismatch(&other),
    }
}

/// Node 0 as the observer of rollouts on another node.
struct Node0<'l> {
    lane: &'l Lane,
    looked: Instant,
    /// Whether node 0 wants no more rollouts.
    is_cancelled: bool,
    /// The first failure to reach node 0.
    failure: Option<Error>,
}

impl Node0<'_> {
    /// Shows a rollout that grows, and returns what happens to it.
    fn show(&self, shown: Sample, logprobs: &[f32]) -> Result<Next> {
        self.lane.send(&Answer::Growing(shown), logprobs)?;
        match receive_request(self.lane)? {
            (Request::Next(next), _) => Ok(next),
            (other, _) => mismatch(&other),
        }
    }

    fn fail(&mut self, error: Error) -> Next {
        self.failure.get_or_insert(error);
        Next::Cancel
    }
}

impl Observer for Node0<'_> {
    fn token(&mut self, prompt: RequestId, sample: usize, rollout: &Rollout) -> Next {
        if self.is_cancelled {
            return Next::Cancel;
        }
        if self.looked.elapsed() < PACE {
            return Next::Continue;
        }
        self.looked = Instant::now();
        let (shown, logprobs) = split(prompt, sample, rollout.clone());
        let next = self.show(shown, &logprobs).unwrap_or_else(|error| self.fail(error));
        self.is_cancelled = next == Next::Cancel;
        next
    }

    fn finished(&mut self, prompt: RequestId, sample: usize, rollout: Rollout) {
        let (shown, logprobs) = split(prompt, sample, rollout);
        if self.failure.is_none()
            && let Err(error) = self.lane.send(&Answer::Finished(shown), &logprobs)
        {
            self.fail(error);
        }
    }
}

/// Separates a rollout into the message about it and its log-probabilities.
fn split(prompt: RequestId, sample: usize, mut rollout: Rollout) -> (Sample, Vec<f32>) {
    let logprobs = std::mem::take(&mut rollout.logprobs);
    (Sample { prompt, sample, rollout }, logprobs)
}
