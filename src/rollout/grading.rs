//! Grades responses while others are sampled: responses go to grading threads when they end, and grades
//! come back.
//!
//! Attempts are collected by query and sample, so timing cannot change them. When either side fails or the
//! user interrupts, responses whose grading has not started are given up without grades, and nothing waits.
//! What is done with the attempts is up to `on_done` of the caller.

use super::attempt::{Attempt, Query};
use crate::base::error::Interrupted;
use crate::base::interrupt;
use crate::base::progress::Progress;
use crate::engine::{Next, Observer, RequestId, Rollout};
use crate::tasks::{Task, with_opened_thought};
use anyhow::Result;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// What a query asked.
pub(crate) struct Asked {
    pub(crate) problem: usize,
    /// Whether the prompt ends with an open thought.
    pub(crate) opens_thought: bool,
}

/// Who gets the attempts at a query, by its place in the list, once the last of them is graded.
pub(crate) type OnDone<'a, R> = dyn FnMut(usize, Vec<Attempt<R>>) -> Result<()> + Send + 'a;

/// What is graded: the queries of a task, and how a response is read.
pub(crate) struct Grading<'a, R> {
    pub(crate) task: &'a dyn Task,
    pub(crate) queries: &'a [Query],
    pub(crate) asked: &'a [Asked],
    /// The text of a response.
    pub(crate) text: &'a (dyn Fn(&R) -> Result<String> + Sync),
    pub(crate) progress: &'a Progress,
}

/// What `sample` gave, and what it and the grading took.
pub(crate) struct Took<T> {
    pub(crate) sampled: T,
    pub(crate) generation: Duration,
    pub(crate) grading: Duration,
    pub(crate) judging_cpu: Duration,
}

impl<R: Send> Grading<'_, R> {
    /// Runs `sample`, which gives all responses to a collector, and grades them meanwhile.
    pub(crate) fn during<T>(
        &self,
        on_done: &mut OnDone<'_, R>,
        sample: impl FnOnce(&mut Collector<'_, R>) -> Result<T>,
    ) -> Result<Took<T>> {
        let (responses, inbox) = mpsc::channel();
        let Self { task, queries, asked, text, progress } = *self;
        let desk = Desk { task, text, asked, inbox: Mutex::new(inbox), is_closed: false.into() };
        std::thread::scope(|scope| {
            let graded = desk.open(scope);
            let groups = queries.iter().map(|query| Group::of(query.num_samples)).collect();
            let judging_cpu = Duration::ZERO;
            let groups =
                Groups { desk: &desk, groups, progress, on_done, judging_cpu, failure: None };
            let mut collector = Collector { responses, graded, groups };
            let started = Instant::now();
            let sampled = sample(&mut collector);
            let generation = started.elapsed();
            let graded = collector.finish(sampled.is_ok());
            let grading = started.elapsed() - generation;
            match (sampled, graded) {
                (Ok(sampled), graded) => {
                    Ok(Took { sampled, generation, grading, judging_cpu: graded? })
                }
                // Sampling that was called off knows no reason.
                (Err(called_off), Err(reason)) if called_off.is::<Interrupted>() => Err(reason),
                (Err(error), _) => Err(error),
            }
        })
    }
}

/// A response that waits for its grade.
struct Sampled<R> {
    query: usize,
    sample: usize,
    response: R,
}

/// A response that is graded.
struct Graded<R> {
    query: usize,
    sample: usize,
    attempt: Result<Attempt<R>>,
}

/// What the grading threads share.
struct Desk<'a, R> {
    task: &'a dyn Task,
    text: &'a (dyn Fn(&R) -> Result<String> + Sync),
    asked: &'a [Asked],
    /// The responses that wait; a thread that is free takes the next.
    inbox: Mutex<Receiver<Sampled<R>>>,
    is_closed: AtomicBool,
}

impl<R: Send> Desk<'_, R> {
    /// Starts as many threads as the task can use. They end when no more responses can come.
    fn open<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Receiver<Graded<R>>
    where
        R: 'scope,
    {
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

    fn next(&self) -> Option<Sampled<R>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    /// Grades a response; `None` once the desk is closed.
    fn grade(&self, Sampled { query, sample, response }: Sampled<R>) -> Option<Graded<R>> {
        if self.is_closed() {
            return None;
        }
        let attempt = self.attempt(&self.asked[query], response);
        // A response whose grading was given up looks as if the judge had failed, but it has not.
        (!self.is_closed()).then_some(Graded { query, sample, attempt })
    }

    fn attempt(&self, asked: &Asked, rollout: R) -> Result<Attempt<R>> {
        let text = (self.text)(&rollout)?;
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
pub(crate) struct Collector<'a, R> {
    responses: Sender<Sampled<R>>,
    graded: Receiver<Graded<R>>,
    groups: Groups<'a, R>,
}

/// The attempts so far, by query.
struct Groups<'a, R> {
    desk: &'a Desk<'a, R>,
    groups: Vec<Group<R>>,
    progress: &'a Progress,
    on_done: &'a mut OnDone<'a, R>,
    judging_cpu: Duration,
    failure: Option<anyhow::Error>,
}

/// The attempts of one query; it is empty once they are handed out.
struct Group<R> {
    attempts: Vec<Option<Attempt<R>>>,
    num_missing: usize,
}

impl<R> Group<R> {
    fn of(num_samples: usize) -> Self {
        let attempts = std::iter::repeat_with(|| None).take(num_samples).collect();
        Self { attempts, num_missing: num_samples }
    }
}

impl<R: Send> Collector<'_, R> {
    /// Sends a response to be graded.
    pub(crate) fn send(&mut self, query: usize, sample: usize, response: R) {
        // The desk outlives the sender.
        let _ = self.responses.send(Sampled { query, sample, response });
    }

    /// Takes what is graded. Says whether more responses are wanted: not once something failed.
    pub(crate) fn wants_more(&mut self) -> bool {
        while let Ok(graded) = self.graded.try_recv() {
            self.groups.take(graded);
        }
        self.groups.failure.is_none()
    }

    /// Waits for the missing grades, if everything was sampled. Returns the CPU time of all judged
    /// programs.
    fn finish(self, is_sampled: bool) -> Result<Duration> {
        let Self { responses, graded, mut groups } = self;
        drop(responses);
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

impl Observer for Collector<'_, Rollout> {
    fn token(&mut self, _request: RequestId, _sample: usize, _rollout: &Rollout) -> Next {
        if self.wants_more() { Next::Continue } else { Next::Cancel }
    }

    fn finished(&mut self, RequestId(query): RequestId, sample: usize, rollout: Rollout) {
        self.send(query, sample, rollout);
    }
}

impl<R: Send> Groups<'_, R> {
    fn take(&mut self, graded: Graded<R>) {
        if self.failure.is_none()
            && let Err(failure) = self.put(graded)
        {
            self.failure = Some(failure);
            self.desk.close();
        }
    }

    fn put(&mut self, Graded { query, sample, attempt }: Graded<R>) -> Result<()> {
        let attempt = attempt?;
        self.progress.inc(1);
        self.judging_cpu += Duration::from_secs_f64(attempt.grade.verdict.cpu_ms.max(0.0) / 1e3);
        let group = &mut self.groups[query];
        group.attempts[sample] = Some(attempt);
        group.num_missing -= 1;
        if group.num_missing > 0 {
            return Ok(());
        }
        (self.on_done)(query, std::mem::take(&mut group.attempts).into_iter().flatten().collect())
    }
}
