//! Judging while sampling: responses go to judging threads as they end, verdicts come back.
//!
//! Contract: attempts are put together by task and sample, so timing cannot change them. When
//! either side fails or the user interrupts, programs that have not started are given up, without
//! verdicts, and nothing waits. Left out: what to do with the attempts (the caller's `on_done`).

use super::attempts::{Attempt, ProblemAttempts, Task};
use crate::base::error::Interrupted;
use crate::base::interrupt;
use crate::base::progress::Progress;
use crate::engine::{Next, Observer, Request, Rollout};
use crate::rewards::parse;
use crate::sandbox::{Job, Judge, Watch, extract_code, verdicts_with};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::Duration;

/// A response to be judged.
pub(crate) struct Sampled {
    task: usize,
    sample: usize,
    rollout: Rollout,
}

/// A response that was judged.
pub(crate) struct Judged {
    task: usize,
    sample: usize,
    attempt: Result<Attempt>,
}

/// What judging threads share.
pub(crate) struct Desk<'a> {
    judge: &'a Judge,
    tokenizer: &'a Tokenizer,
    tasks: &'a [Task<'a>],
    /// Whoever is free takes the next.
    inbox: Mutex<Receiver<Sampled>>,
    is_closed: AtomicBool,
}

impl<'a> Desk<'a> {
    /// A desk that judges answers to `tasks` as they come into `inbox`.
    pub(crate) fn new(
        judge: &'a Judge,
        tokenizer: &'a Tokenizer,
        tasks: &'a [Task<'a>],
        inbox: Receiver<Sampled>,
    ) -> Self {
        Self {
            judge,
            tokenizer,
            tasks,
            inbox: Mutex::new(inbox),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Starts the threads, one for each worker of the judge; they end when no more responses can come.
    pub(crate) fn open<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Receiver<Judged> {
        let (sender, judged) = mpsc::channel();
        for _ in 0..self.judge.num_workers() {
            let sender = sender.clone();
            scope.spawn(move || {
                while let Some(sampled) = self.next() {
                    let Some(judged) = self.judge(sampled) else { continue };
                    if sender.send(judged).is_err() {
                        break;
                    }
                }
            });
        }
        judged
    }

    fn next(&self) -> Option<Sampled> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    /// The judged response; `None` once the desk is closed.
    fn judge(&self, Sampled { task, sample, rollout }: Sampled) -> Option<Judged> {
        if self.is_closed() {
            return None;
        }
        let attempt = self.attempt(task, rollout);
        // A program that was given up looks like a failure of the judge; it is none.
        (!self.is_closed()).then_some(Judged { task, sample, attempt })
    }

    fn attempt(&self, task: usize, rollout: Rollout) -> Result<Attempt> {
        let text = self.tokenizer.decode(&rollout.tokens)?;
        let cases = &self.tasks[task].problem.tests;
        let job = Job { code: extract_code(&text), cases, tolerance: None };
        let watch = Watch { progress: None, cancel: Some(&|| self.is_closed()) };
        let verdict = verdicts_with(self.judge, &[job], watch).pop();
        let verdict = verdict.context("the judge gave no verdict")?;
        Ok(Attempt { rollout, parsed: parse(&text), text, verdict })
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed) || interrupt::requested()
    }
}

/// Sends responses to the desk and puts together what comes back.
pub(crate) struct Collector<'a> {
    rollouts: Sender<Sampled>,
    judged: Receiver<Judged>,
    groups: Groups<'a>,
}

/// The attempts so far, by task.
struct Groups<'a> {
    desk: &'a Desk<'a>,
    groups: Vec<Group>,
    progress: &'a Progress,
    on_done: &'a mut (dyn FnMut(usize, ProblemAttempts) -> Result<()> + Send),
    judging_cpu: Duration,
    failure: Option<anyhow::Error>,
}

/// The attempts of one task; empty once they are handed out.
struct Group {
    prompt: Vec<u32>,
    attempts: Vec<Option<Attempt>>,
    num_missing: usize,
}

impl<'a> Collector<'a> {
    /// Collects the answers to `requests`.
    pub(crate) fn new(
        desk: &'a Desk<'a>,
        requests: &[Request],
        (rollouts, judged): (Sender<Sampled>, Receiver<Judged>),
        progress: &'a Progress,
        on_done: &'a mut (dyn FnMut(usize, ProblemAttempts) -> Result<()> + Send),
    ) -> Self {
        let group = |request: &Request| Group {
            prompt: request.prompt.clone(),
            attempts: vec![None; request.num_samples],
            num_missing: request.num_samples,
        };
        let groups = Groups {
            desk,
            groups: requests.iter().map(group).collect(),
            progress,
            on_done,
            judging_cpu: Duration::ZERO,
            failure: None,
        };
        Self { rollouts, judged, groups }
    }

    /// Waits for the verdicts that are missing, if all was sampled, and returns the CPU time of all
    /// judged programs.
    pub(crate) fn finish(self, is_sampled: bool) -> Result<Duration> {
        let Self { rollouts, judged, mut groups } = self;
        drop(rollouts);
        if !is_sampled {
            groups.desk.close();
        }
        judged.into_iter().for_each(|judged| groups.take(judged));
        match groups.failure {
            Some(failure) => Err(failure),
            None if groups.groups.iter().any(|group| group.num_missing > 0) => {
                Err(Interrupted.into())
            }
            None => Ok(groups.judging_cpu),
        }
    }
}

impl Observer for Collector<'_> {
    fn token(&mut self, _request: usize, _sample: usize, _rollout: &Rollout) -> Next {
        while let Ok(judged) = self.judged.try_recv() {
            self.groups.take(judged);
        }
        if self.groups.failure.is_some() { Next::Cancel } else { Next::Continue }
    }

    fn finished(&mut self, task: usize, sample: usize, rollout: Rollout) {
        // The desk outlives the sender.
        let _ = self.rollouts.send(Sampled { task, sample, rollout });
    }
}

impl Groups<'_> {
    fn take(&mut self, judged: Judged) {
        if self.failure.is_none()
            && let Err(failure) = self.put(judged)
        {
            self.failure = Some(failure);
            self.desk.close();
        }
    }

    fn put(&mut self, Judged { task, sample, attempt }: Judged) -> Result<()> {
        let attempt = attempt?;
        self.progress.inc(1);
        self.judging_cpu += Duration::from_secs_f64(attempt.verdict.cpu_ms.max(0.0) / 1e3);
        let group = &mut self.groups[task];
        group.attempts[sample] = Some(attempt);
        group.num_missing -= 1;
        if group.num_missing > 0 {
            return Ok(());
        }
        let prompt = std::mem::take(&mut group.prompt);
        let attempts = std::mem::take(&mut group.attempts).into_iter().flatten().collect();
        (self.on_done)(task, ProblemAttempts { prompt, attempts })
    }
}
