//! Whoever attempts the problems of an evaluation: a model of this machine, or an agent.
//!
//! Contract: responses are sampled and graded; what comes out depends on neither's timing. Left out: what is
//! made of the answers (`eval`).

use super::AttemptSettings;
use super::attempt::{Answer, Attempt, AttemptCost, Query};
use super::attempts::attempt_each;
use super::grading::{Asked, Grading, Took};
use crate::agents::{self, Account, Agent, Call, Outcome, Refusal, RefusalKind};
use crate::base::error::{Interrupted, usage};
use crate::base::progress::Progress;
use crate::base::rng;
use crate::engine::generator::Generator;
use crate::engine::{OpenModel, Stats};
use crate::tasks::Task;
use crate::tokenizer::Message;
use anyhow::{Context, Error, Result, anyhow};
use std::sync::Arc;

/// Whoever attempts problems, whether a model of this machine or not.
pub trait Candidate {
    /// Answers each query and gives its graded answers, in the order of its samples, to `on_done` as soon as the
    /// last one is graded, in no particular order of queries.
    ///
    /// Errors, also those of `on_done`, and an interrupt end it.
    fn answer_each(
        &mut self,
        task: &dyn Task,
        queries: &[Query],
        settings: &AttemptSettings,
        progress: &Progress,
        on_done: &mut (dyn FnMut(usize, Vec<Answer>) -> Result<()> + Send),
    ) -> Result<AttemptCost>;

    /// What a result says of an agent; a model of this machine is known by its files.
    fn answered_by(&self) -> Option<Account> {
        None
    }
}

impl Candidate for OpenModel {
    fn answer_each(
        &mut self,
        task: &dyn Task,
        queries: &[Query],
        settings: &AttemptSettings,
        progress: &Progress,
        on_done: &mut (dyn FnMut(usize, Vec<Answer>) -> Result<()> + Send),
    ) -> Result<AttemptCost> {
        self.generator().answer_each(task, queries, settings, progress, on_done)
    }
}

impl Candidate for Generator<'_> {
    fn answer_each(
        &mut self,
        task: &dyn Task,
        queries: &[Query],
        settings: &AttemptSettings,
        progress: &Progress,
        on_done: &mut (dyn FnMut(usize, Vec<Answer>) -> Result<()> + Send),
    ) -> Result<AttemptCost> {
        attempt_each(self, task, queries, settings, progress, &mut |query, group| {
            on_done(query, group.attempts.into_iter().map(Answer::from).collect())
        })
    }
}

impl Candidate for Box<dyn Agent> {
    /// How answers are drawn is the agent's own affair; of `settings` only the queries count.
    fn answer_each(
        &mut self,
        task: &dyn Task,
        queries: &[Query],
        _settings: &AttemptSettings,
        progress: &Progress,
        on_done: &mut (dyn FnMut(usize, Vec<Answer>) -> Result<()> + Send),
    ) -> Result<AttemptCost> {
        let (calls, places) = calls(task, queries)?;
        let asked =
            queries.iter().map(|query| Asked { problem: query.problem, opens_thought: false });
        let asked: Vec<Asked> = asked.collect();
        let text = |answer: &agents::Answer| Ok(answer.text());
        let grading = Grading { task, queries, asked: &asked, text: &text, progress };
        let mut on_graded = |query: usize, attempts: Vec<Attempt<agents::Answer>>| {
            on_done(query, attempts.into_iter().map(Answer::from).collect())
        };
        let took = grading.during(&mut on_graded, |collector| {
            let mut stats = Stats::default();
            self.ask(&calls, progress, &mut |index, outcome| {
                let answer = match outcome {
                    Outcome::Answered(answer) => answer,
                    Outcome::Refused(refusal) => return Err(refused(&calls[index], refusal)),
                };
                let tokens = answer.tokens.unwrap_or_default();
                stats.prompt_tokens += tokens.prompt as usize;
                stats.generated_tokens += tokens.completion as usize;
                let (query, sample) = places[index];
                collector.send(query, sample, answer);
                // What failed is told by the collector.
                if collector.wants_more() { Ok(()) } else { Err(Interrupted.into()) }
            })?;
            Ok(stats)
        })?;
        let Took { sampled, generation, grading, judging_cpu } = took;
        Ok(AttemptCost { engine: sampled, generation, grading, judging_cpu })
    }

    fn answered_by(&self) -> Option<Account> {
        Some((**self).account())
    }
}

/// The number of a query, and the sample of it.
type Place = (usize, usize);

/// A call for each sample of each query, and what it is for.
fn calls(task: &dyn Task, queries: &[Query]) -> Result<(Vec<Call>, Vec<Place>)> {
    let (mut calls, mut places) = (Vec::new(), Vec::new());
    for (number, query) in queries.iter().enumerate() {
        let id = task.about(query.problem).id;
        let messages = task.messages(query.problem);
        let messages = messages.with_context(|| format!("rendering problem {id}"))?;
        let messages: Arc<[Message]> = messages.into();
        for sample in 0..query.num_samples {
            let seed = rng::key(query.key, &[sample as u64]);
            calls.push(Call { id: id.to_owned(), messages: Arc::clone(&messages), sample, seed });
            places.push((number, sample));
        }
    }
    Ok((calls, places))
}

/// A problem without an answer has no score.
fn refused(call: &Call, refusal: Refusal) -> Error {
    let Refusal { kind, message } = refusal;
    let text = match kind {
        RefusalKind::TooLong => format!("problem {}: the prompt is too long: {message}", call.id),
        RefusalKind::Rejected => format!("problem {}: the call is refused: {message}", call.id),
        RefusalKind::GaveUp => {
            return anyhow!("problem {}, sample {}: {message}", call.id, call.sample);
        }
    };
    usage(text)
}
