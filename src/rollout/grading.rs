//! Grades responses while others are sampled: responses go to grading threads when they end, and grades
//! come back.
//!
//! Attempts are collected by query and sample, so timing cannot change them. When either side fails or the
//! user interrupts, responses whose grading has not started are given up without grades, and nothing waits.
//! What is done with the attempts is up to `on_done` of the caller.

use super::attempt::{Attempt, ProblemAttempts};
use crate::base::error::Interrupted;
use crate::base::interrupt;
use crate::base::progress::Progress;
use crate::engine::text::text_of;
use crate::engine::{Next, Observer, Request, RequestId, Rollout};
use crate::tasks::{Task, with_opened_thought};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::Duration;

/// What a query asked.
pub(crate) struct Asked {
    pub(crate) problem: usize,
    /// Whether the prompt ends with an open thought.
    pub(crate) opens_thought: bool,
}

/// A response that waits for its grade.
pub(crate) struct Sampled {
    query: usize,
    sample: usize,
    rollout: Rollout,
}

/// A response that is graded.
pub(crate) struct Graded {
    query: usize,
    sample: usize,
    attempt: Result<Attempt>,
}

/// What the grading threads share.
pub(crate) struct Desk<'a> {
    task: &'a dyn Task,
    tokenizer: &'a Tokenizer,
    asked: &'a [Asked],
    /// The responses that wait; a thread that is free takes the next.
    inbox: Mutex<Receiver<Sampled>>,
    is_closed: AtomicBool,
}

impl<'a> Desk<'a> {
    /// Creates a desk that grades responses to what was `asked`, as they come into `inbox`.
    pub(crate) fn new(
        task: &'a dyn Task,
        tokenizer: &'a Tokenizer,
        asked: &'a [Asked],
        inbox: Receiver<Sampled>,
    ) -> Self {
        Self { task, tokenizer, asked, inbox: Mutex::new(inbox), is_closed: AtomicBool::new(false) }
    }

    /// Starts as many threads as the task can use. They end when no more responses can come.
    pub(crate) fn open<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Receiver<Graded> {
        let (sender, graded) = mpsc::channel();
        for _ in 0..self.task.num_graders() {
            let sender = sender.clone();
            scope.spawn(move || {
                while let Some(sampled) = self.next() {
                    let Some(graded) = self.grade(sampled) else { continue };
                    if sender.send(graded).is_err() {
                        break;
                    }
                }
            });
        }
        graded
    }

    fn next(&self) -> Option<Sampled> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    /// Grades a response; `None` once the desk is closed.
    fn grade(&self, Sampled { query, sample, rollout }: Sampled) -> Option<Graded> {
        if self.is_closed() {
            return None;
        }
        let attempt = self.attempt(&self.asked[query], rollout);
        // A response whose grading was given up looks as if the judge had failed, but it has not.
        (!self.is_closed()).then_some(Graded { query, sample, attempt })
    }

    fn attempt(&self, asked: &Asked, rollout: Rollout) -> Result<Attempt> {
        let text = text_of(self.tokenizer, &rollout.tokens)?;
        let response = with_opened_thought(&text, asked.opens_thought);
        let grade = self.task.grade(asked.problem, &response, &|| self.is_closed())?;
        Ok(Attempt { rollout, text, grade })
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed) || interrupt::requested()
    }
}

/// Sends responses to the desk, and collects what comes back.
pub(crate) struct Collector<'a> {
    rollouts: Sender<Sampled>,
    graded: Receiver<Graded>,
    groups: Groups<'a>,
}

/// The attempts so far, by query.
struct Groups<'a> {
    desk: &'a Desk<'a>,
    groups: Vec<Group>,
    progress: &'a Progress,
    on_done: &'a mut (dyn FnMut(usize, ProblemAttempts) -> Result<()> + Send),
    judging_cpu: Duration,
    failure: Option<anyhow::Error>,
}

/// The attempts of one query; it is empty once they are handed out.
struct Group {
    prompt: Vec<u32>,
    attempts: Vec<Option<Attempt>>,
    num_missing: usize,
}

impl<'a> Collector<'a> {
    /// Creates a collector of the responses to `requests`.
    pub(crate) fn new(
        desk: &'a Desk<'a>,
        requests: &[Request],
        (rollouts, graded): (Sender<Sampled>, Receiver<Graded>),
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
        Self { rollouts, graded, groups }
    }

    /// Waits for the missing grades, if everything was sampled. Returns the CPU time of all judged
    /// programs.
    pub(crate) fn finish(self, is_sampled: bool) -> Result<Duration> {
        let Self { rollouts, graded, mut groups } = self;
        drop(rollouts);
        if !is_sampled {
            groups.desk.close();
        }
        graded.into_iter().for_each(|graded| groups.take(graded));
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
    fn token(&mut self, _request: RequestId, _sample: usize, _rollout: &Rollout) -> Next {
        while let Ok(graded) = self.graded.try_recv() {
            self.groups.take(graded);
        }
        if self.groups.failure.is_some() { Next::Cancel } else { Next::Continue }
    }

    fn finished(&mut self, RequestId(query): RequestId, sample: usize, rollout: Rollout) {
        // The desk outlives the sender, so this cannot fail.
        let _ = self.rollouts.send(Sampled { query, sample, rollout });
    }
}

impl Groups<'_> {
    fn take(&mut self, graded: Graded) {
        if self.failure.is_none()
            && let Err(failure) = self.put(graded)
        {
            self.failure = Some(failure);
            self.desk.close();
        }
    }

    fn put(&mut self, Graded { query, sample, attempt }: Graded) -> Result<()> {
        let attempt = attempt?;
        self.progress.inc(1);
        self.judging_cpu += Duration::from_secs_f64(attempt.grade.verdict.cpu_ms.max(0.0) / 1e3);
        let group = &mut self.groups[query];
        group.attempts[sample] = Some(attempt);
        group.num_missing -= 1;
        if group.num_missing > 0 {
            return Ok(());
        }
        let prompt = std::mem::take(&mut group.prompt);
        let attempts = std::mem::take(&mut group.attempts).into_iter().flatten().collect();
        (self.on_done)(query, ProblemAttempts { prompt, attempts })
    }
}
