//! Attempts at problems of a task: prompts are rendered, responses sampled and graded.
//!
//! GRPO, evaluation and solvability all use this path, so a reward, a score and a selection never disagree
//! about what an attempt is worth. Responses are graded while others are still being sampled (`grading`).
//! The results and their order do not depend on timing.

use super::attempt::{Attempt, AttemptCost, ProblemAttempts, Query};
use super::grading::{Asked, Grading, Took};
use super::settings::AttemptSettings;
use crate::base::{memory, progress::Progress};
use crate::engine::generator::Generator;
use crate::engine::text::text_of;
use crate::engine::{EngineConfig, Request, Rollout, SamplingParams};
use crate::tasks::{Task, opens_thought};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};

/// A prompt as the model reads it.
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// Whether it ends with an open thought.
    pub opens_thought: bool,
}

impl Prompt {
    /// Renders the conversation that asks for a response to a problem, with the assistant's turn opened.
    pub fn new(tokenizer: &Tokenizer, task: &dyn Task, problem: usize) -> Result<Self> {
        let render = || -> Result<Self> {
            let text = tokenizer.template()?.render(&task.messages(problem)?, true)?;
            Ok(Self { tokens: tokenizer.encode(&text)?, opens_thought: opens_thought(&text) })
        };
        render().with_context(|| format!("rendering problem {}", task.about(problem).id))
    }
}

/// Samples the responses of each query and grades them. Returns the groups in the order of the queries.
pub fn attempt(
    generator: &mut Generator<'_>,
    task: &dyn Task,
    queries: &[Query],
    settings: &AttemptSettings,
    progress: &Progress,
) -> Result<(Vec<ProblemAttempts>, AttemptCost)> {
    let mut groups = vec![None; queries.len()];
    let cost = attempt_each(generator, task, queries, settings, progress, &mut |query, group| {
        groups[query] = Some(group);
        Ok(())
    })?;
    let all = groups.into_iter().map(|group| group.expect("every query was attempted"));
    Ok((all.collect(), cost))
}

/// Attempts each query, and gives its attempts to `on_done` as soon as the last of them is graded, in no
/// particular order. The number of samples and the keys are those of the queries.
///
/// An error, also of `on_done`, or an interrupt ends sampling and grading.
pub fn attempt_each(
    generator: &mut Generator<'_>,
    task: &dyn Task,
    queries: &[Query],
    settings: &AttemptSettings,
    progress: &Progress,
    on_done: &mut (dyn FnMut(usize, ProblemAttempts) -> Result<()> + Send),
) -> Result<AttemptCost> {
    let tokenizer = generator.tokenizer();
    let prompts = prompts(tokenizer, task, queries)?;
    let config = engine_config(generator, task, queries, &prompts, settings)?;
    let sampling = SamplingParams {
        temperature: settings.temperature,
        max_new_tokens: settings.max_new_tokens,
        stop_ids: [generator.stop_ids(), settings.stop_ids.clone()].concat(),
        vocab_size: tokenizer.vocab_size(),
        ..SamplingParams::default()
    };
    let asked = queries.iter().zip(&prompts);
    let asked: Vec<Asked> = asked
        .map(|(query, prompt)| Asked {
            problem: query.problem,
            opens_thought: prompt.opens_thought,
        })
        .collect();
    let requests: Vec<Request> = queries
        .iter()
        .zip(prompts)
        .map(|(query, prompt)| Request {
            prompt: prompt.tokens,
            sampling: sampling.clone(),
            num_samples: query.num_samples,
            key: query.key,
        })
        .collect();
    let text = |rollout: &Rollout| text_of(tokenizer, &rollout.tokens);
    let grading = Grading { task, queries, asked: &asked, text: &text, progress };
    let mut with_prompt = |query: usize, attempts| {
        let prompt = requests[query].prompt.clone();
        on_done(query, ProblemAttempts { prompt, attempts })
    };
    let Took { sampled, generation, grading, judging_cpu } = grading
        .during(&mut with_prompt, |collector| generator.generate(&config, &requests, collector))?;
    Ok(AttemptCost { engine: sampled, generation, grading, judging_cpu })
}

/// Refuses problems whose prompts are too long for the model, or whose responses do not fit into this
/// machine's memory.
pub fn check_fit(
    generator: &Generator<'_>,
    task: &dyn Task,
    queries: &[Query],
    settings: &AttemptSettings,
) -> Result<()> {
    let prompts = prompts(generator.tokenizer(), task, queries)?;
    engine_config(generator, task, queries, &prompts, settings).map(|_| ())
}

fn prompts(tokenizer: &Tokenizer, task: &dyn Task, queries: &[Query]) -> Result<Vec<Prompt>> {
    queries.iter().map(|query| Prompt::new(tokenizer, task, query.problem)).collect()
}

/// Returns sizes that fit the model and the free memory. A smaller cache makes sequences wait, but does not
/// change them.
fn engine_config(
    generator: &Generator<'_>,
    task: &dyn Task,
    queries: &[Query],
    prompts: &[Prompt],
    settings: &AttemptSettings,
) -> Result<EngineConfig> {
    settings.check()?;
    generator.tokenizer().check_ids("stop id", &settings.stop_ids)?;
    let made_for = generator.config().max_position_embeddings;
    let there = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(1);
    let announced = settings.max_prompt_tokens.filter(|_| generator.is_on_gpus());
    let longest = there.max(announced.unwrap_or(0));
    let max_length = longest.saturating_add(settings.max_new_tokens).min(made_for);
    for (query, prompt) in queries.iter().zip(prompts) {
        let what =
            || format!("problem {}: its prompt and a first token", task.about(query.problem).id);
        generator.config().check_length(prompt.tokens.len() + 1).with_context(what)?;
    }
    let num_attempts: usize = queries.iter().map(|query| query.num_samples).sum();
    memory::check(
        (num_attempts * size_of::<Attempt>()) as u64,
        &format!("keeping {num_attempts} attempts"),
        "ask for fewer rollouts",
    )?;
    let config = EngineConfig::roomy(settings.max_sequences, max_length);
    generator.fit(match settings.kv_cache_tokens {
        Some(tokens) => config.within(tokens),
        None => config,
    })
}
