//! Calls that go on at the same time, from the first one that is sent to the last one that is settled.
//!
//! Contract: one thread decides and writes; others only send and wait. What comes back together is forced to disk
//! together, before any of it is used. Whatever ends the round (an error, an interrupt, the budget), calls that are on
//! their way are waited for: they are paid.

use super::Call;
use super::answer::{Outcome, Refusal, RefusalKind};
use super::budget::Spend;
use super::decision::{Decision, Failure};
use super::http::Reply;
use super::link::Link;
use super::request::{Key, Request};
use super::senders::{Arrival, Job, Senders};
use crate::base::error::{Interrupted, usage};
use crate::base::progress::Progress;
use crate::base::{interrupt, rng};
use anyhow::{Context, Error, Result, anyhow};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// An interrupt is noticed within this time.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// Waits differ by up to this share, so that calls that failed together do not come again together.
const JITTER: f64 = 0.25;

/// A call that was sent.
struct OnWay {
    key: Key,
    reserved: Spend,
}

pub(crate) struct Round<'a> {
    link: &'a mut Link,
    calls: &'a [Call],
    progress: &'a Progress,
    on_outcome: &'a mut (dyn FnMut(usize, Outcome) -> Result<()> + Send),
    /// Calls that were never sent.
    fresh: VecDeque<usize>,
    /// Calls that failed, with the time from which they may be sent again.
    again: BinaryHeap<Reverse<(Instant, usize)>>,
    num_failures: HashMap<usize, u32>,
    on_way: HashMap<usize, OnWay>,
    /// Why nothing more is sent.
    ending: Option<Error>,
    spent_before: Spend,
    num_done: usize,
}

impl<'a> Round<'a> {
    pub(crate) fn new(
        link: &'a mut Link,
        calls: &'a [Call],
        progress: &'a Progress,
        on_outcome: &'a mut (dyn FnMut(usize, Outcome) -> Result<()> + Send),
    ) -> Self {
        let spent_before = link.ledger.spent;
        Self {
            link,
            calls,
            progress,
            on_outcome,
            fresh: VecDeque::new(),
            again: BinaryHeap::new(),
            num_failures: HashMap::new(),
            on_way: HashMap::new(),
            ending: None,
            spent_before,
            num_done: 0,
        }
    }

    /// Asks the calls of these places, each of another key.
    pub(crate) fn ask(mut self, places: Vec<usize>) -> Result<()> {
        self.fresh = places.into();
        let (replies, arrivals) = mpsc::channel();
        let http = Arc::clone(&self.link.http);
        std::thread::scope(|scope| {
            let mut senders = Senders::new(scope, http, replies);
            loop {
                let sent = self.send(&mut senders);
                self.end_if_failed(sent);
                let has_more = !self.fresh.is_empty() || !self.again.is_empty();
                if self.on_way.is_empty() && (self.ending.is_some() || !has_more) {
                    break;
                }
                let arrived = self.wait(&arrivals);
                let taken = self.take(arrived);
                self.end_if_failed(taken);
            }
        });
        self.ending.map_or(Ok(()), Err)
    }

    fn end_if_failed(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.ending.get_or_insert(error);
        }
    }

    /// Sends as many calls as may be on their way.
    fn send(&mut self, senders: &mut Senders<'_, '_>) -> Result<()> {
        while self.ending.is_none() && self.on_way.len() < self.link.throttle.limit() {
            if interrupt::requested() {
                return Err(Interrupted.into());
            }
            let now = Instant::now();
            if self.link.throttle.pause(now).is_some() {
                break;
            }
            let is_due = self.again.peek().is_some_and(|Reverse((at, _))| *at <= now);
            let next = match is_due {
                true => self.again.pop().map(|Reverse((_, index))| index),
                false => self.fresh.pop_front(),
            };
            let Some(index) = next else { break };
            if !self.send_one(index, senders)? {
                self.fresh.push_front(index);
                break;
            }
        }
        Ok(())
    }

    /// Sends a call. Says whether it did: not where the budget has no room before others are settled.
    fn send_one(&mut self, index: usize, senders: &mut Senders<'_, '_>) -> Result<bool> {
        let request = self.link.request(&self.calls[index]);
        let key = request.key()?;
        let most = request.most_tokens(self.link.sampling.max_tokens);
        let body = request.body()?;
        let reserved = self.link.ledger.cost(most);
        if !self.link.ledger.reserve(reserved) {
            return if self.on_way.is_empty() {
                Err(self.out_of_budget(reserved))
            } else {
                Ok(false)
            };
        }
        let sent = self.link.journal.sent(key, reserved);
        let sent = sent.and_then(|()| senders.send(Job { index, body }, self.on_way.len() + 1));
        if sent.is_ok() {
            self.on_way.insert(index, OnWay { key, reserved });
        } else {
            self.link.ledger.settle(reserved, Spend::default(), true);
        }
        sent.map(|()| true)
    }

    fn out_of_budget(&self, next: Spend) -> Error {
        let ledger = &self.link.ledger;
        anyhow!(
            "the budget has no room for another call: {} were spent, at most {} more may have been, and a call \
             costs at most {next}; {} calls are left. Raise `budget` and give the same command again: what was \
             answered is kept in {}",
            ledger.spent,
            ledger.unknown,
            self.fresh.len() + self.again.len() + 1,
            self.link.journal.path().display()
        )
    }

    /// What arrives next, and whatever else has arrived; nothing if it is time to look around.
    fn wait(&self, arrivals: &Receiver<Arrival>) -> Vec<Arrival> {
        let now = Instant::now();
        // What is due and was not sent waits for an arrival.
        let due = self.again.peek().map(|Reverse((at, _))| *at).filter(|at| *at > now);
        let wake =
            due.max(self.link.throttle.pause(now)).map(|at| at.saturating_duration_since(now));
        let wait = wake.map_or(LONGEST_WAIT, |wake| wake.min(LONGEST_WAIT));
        arrivals.recv_timeout(wait).into_iter().chain(arrivals.try_iter()).collect()
    }

    /// Writes down what arrived, then makes use of it.
    fn take(&mut self, arrived: Vec<Arrival>) -> Result<()> {
        if arrived.is_empty() {
            return Ok(());
        }
        let mut written = Ok(());
        let mut usable = Vec::new();
        for arrival in arrived {
            let OnWay { key, reserved } = self
                .on_way
                .remove(&arrival.index)
                .context("a reply to a call that was not sent")?;
            let Link { endpoint, sampling, journal, .. } = &mut *self.link;
            let request = Request::new(endpoint, *sampling, &self.calls[arrival.index]);
            if written.is_ok() {
                written = journal.came(&request, key, &arrival.reply, arrival.took);
            }
            usable.push((arrival, key, reserved));
        }
        written.and_then(|()| self.link.journal.sync())?;
        for (Arrival { index, reply, .. }, key, reserved) in usable {
            let used = self.make_use_of(index, &reply, key, reserved);
            self.end_if_failed(used);
        }
        self.show();
        Ok(())
    }

    fn make_use_of(
        &mut self,
        index: usize,
        reply: &Reply,
        key: Key,
        reserved: Spend,
    ) -> Result<()> {
        let decision = Decision::of(reply, &self.link.endpoint, self.link.was_reached);
        self.link.was_reached |= matches!(reply, Reply::Response { .. });
        let answer = match &decision {
            Decision::Answered(answer) => Some(answer),
            _ => None,
        };
        let may_be_paid = match &decision {
            Decision::Answered(_) => true,
            Decision::Again(failure) => failure.may_be_paid,
            Decision::Refused(_) | Decision::Stop(_) => false,
        };
        let (cost, is_known) = match may_be_paid {
            true => self.link.ledger.cost_of_answer(answer, reserved),
            false => (Spend::default(), true),
        };
        self.link.ledger.settle(reserved, cost, is_known);
        self.link.journal.settled(key, answer, cost, is_known)?;
        match decision {
            Decision::Answered(answer) => {
                self.num_done += 1;
                self.link.throttle.answered();
                (self.on_outcome)(index, Outcome::Answered(answer))
            }
            Decision::Again(failure) => self.try_again(index, key, failure),
            Decision::Refused(refusal) => self.refuse(index, refusal),
            Decision::Stop(error) => Err(error),
        }
    }

    fn try_again(&mut self, index: usize, key: Key, failure: Failure) -> Result<()> {
        let Failure { reason, pause, is_overload, .. } = failure;
        let now = Instant::now();
        if is_overload {
            self.link.throttle.had_too_many(now, pause);
        }
        let num_failures = self.num_failures.entry(index).or_default();
        *num_failures += 1;
        tracing::debug!("{}: failed {num_failures} times: {reason}", self.calls[index].id);
        if *num_failures >= self.link.endpoint.limits.attempts {
            let message = format!("failed {num_failures} times, the last time so: {reason}");
            if !self.link.was_reached {
                let url = &self.link.endpoint.url;
                return Err(usage(format!("{url} has not answered once: a call {message}")));
            }
            return self.refuse(index, Refusal { kind: RefusalKind::GaveUp, message });
        }
        let first = Duration::from_secs_f64(self.link.endpoint.limits.first_wait_secs);
        let doubled = first.saturating_mul(1 << (*num_failures - 1).min(16)).min(LONGEST_BACKOFF);
        let jitter = f64::from(rng::uniform(key.low_bits(), u64::from(*num_failures)));
        let wait = doubled.mul_f64(1.0 - JITTER * jitter).max(pause.unwrap_or_default());
        self.again.push(Reverse((now + wait, index)));
        Ok(())
    }

    fn refuse(&mut self, index: usize, refusal: Refusal) -> Result<()> {
        self.num_done += 1;
        (self.on_outcome)(index, Outcome::Refused(refusal))
    }

    /// Shows what was spent, and what all of it will cost about.
    fn show(&self) {
        let Link { ledger, throttle, .. } = &*self.link;
        let mut here = ledger.spent;
        here -= self.spent_before;
        let total = self.num_done + self.fresh.len() + self.again.len() + self.on_way.len();
        let all = here.scaled(total as f64 / self.num_done.max(1) as f64) + self.spent_before;
        let unknown = match ledger.unknown.tokens {
            0 => String::new(),
            _ => format!(" (at most {} more may have been)", ledger.unknown),
        };
        let (spent, num_on_way, limit) = (ledger.spent, self.on_way.len(), throttle.limit());
        self.progress.set_message(format!(
            "spent {spent}{unknown}, about {all} in all; {num_on_way} of {limit} calls on their way"
        ));
    }
}
