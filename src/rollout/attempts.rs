//! Attempts at problems: prompts rendered, responses sampled, programs judged.
//!
//! The one path that GRPO, GTG evaluation and solvability share, so that a reward, a score and a
//! selection never disagree about what an attempt is worth. Programs are judged while other responses
//! are still being sampled (`judging`); what comes out, and in which order, depends on neither's timing.

use super::judging::{Collector, Desk};
use crate::base::error::usage;
use crate::base::{memory, progress::Progress, rng};
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::engine::generator::Generator;
use crate::engine::{EngineConfig, Request, Rollout, SamplingParams, Stats, check_temperature};
use crate::rewards::{self, ParsedResponse};
use crate::sandbox::{Judge, Verdict, VerdictKind};
use crate::tokenizer::{Message, Tokenizer};
use anyhow::{Context, Result};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Far more rollouts, tokens and sequences than anybody asks for.
const MOST: usize = 1 << 20;

/// How problems are attempted.
#[derive(Debug, Clone)]
pub struct AttemptSettings {
    /// Rollouts for each problem.
    pub num_samples: usize,
    /// Divides the logits.
    pub temperature: f32,
    /// Longest response, in tokens; prompt and response never exceed what the model was made for.
    pub max_new_tokens: usize,
    /// Longest prompt that may come, where that is known before: GPUs then take the same memory each time.
    pub max_prompt_tokens: Option<usize>,
    /// Sequences that each rank generates at the same time.
    pub max_sequences: usize,
    /// Positions in each rank's key-value cache; where not given, as many as `max_sequences` of the
    /// longest need, within half of the free memory.
    pub kv_cache_tokens: Option<usize>,
    /// Key of the randomness; the problem's place in the list is mixed in.
    pub key: u64,
}

impl Default for AttemptSettings {
    /// Those of Table 8 of the paper.
    fn default() -> Self {
        Self {
            num_samples: 32,
            temperature: 1.0,
            max_new_tokens: 10_240,
            max_prompt_tokens: None,
            max_sequences: 64,
            kv_cache_tokens: None,
            key: 0,
        }
    }
}

impl AttemptSettings {
    /// Refuses numbers with which nothing could be sampled.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("num_samples (rollouts)", self.num_samples),
            ("max_new_tokens", self.max_new_tokens),
            ("max_sequences", self.max_sequences),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=MOST).contains(size)) {
            return Err(usage(format!("{name} is {size}: it must be from 1 to {MOST}")));
        }
        check_temperature("temperature", self.temperature)
    }

    /// The task that the problem at `place` of a list is.
    pub fn task<'a>(&self, place: usize, problem: &'a Problem) -> Task<'a> {
        let key = rng::key(self.key, &[place as u64]);
        Task { problem, num_samples: self.num_samples, key }
    }
}

/// A problem to attempt.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// Rollouts, at least one.
    pub num_samples: usize,
    /// Key of their randomness.
    pub key: u64,
}

/// One sampled response and what became of it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Tokens and log-probabilities.
    pub rollout: Rollout,
    /// The response's text, without special tokens.
    pub text: String,
    /// Its parts.
    pub parsed: ParsedResponse,
    /// What the judge said of its program.
    pub verdict: Verdict,
}

impl Attempt {
    /// Whether the judge found anything out.
    pub fn is_judged(&self) -> bool {
        self.verdict.kind != VerdictKind::Infra
    }

    /// Whether the program passes every test.
    pub fn passed(&self) -> bool {
        self.parsed.format_ok() && self.verdict.kind == VerdictKind::Pass
    }

    /// The verdict in the words of rewards.
    pub fn verdict_for_reward(&self) -> rewards::Verdict {
        match self.verdict.kind {
            VerdictKind::Pass => rewards::Verdict::Pass,
            VerdictKind::Fail(_) => rewards::Verdict::Fail,
            VerdictKind::Infra => rewards::Verdict::Infra,
        }
    }
}

/// All attempts at one problem, in sample order.
#[derive(Debug, Clone)]
pub struct ProblemAttempts {
    /// The prompt that was shown.
    pub prompt: Vec<u32>,
    /// The attempts.
    pub attempts: Vec<Attempt>,
}

/// What the attempts took.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttemptCost {
    /// Of the engine.
    pub engine: Stats,
    /// Wall time of generation; judging goes on meanwhile.
    pub generation: Duration,
    /// Wall time from the last response to the last verdict.
    pub judging: Duration,
    /// CPU time of all judged programs.
    pub judging_cpu: Duration,
}

/// The prompt of `problem` in tokens: the GTG prompt as the user's turn, the assistant's opened.
pub fn prompt_tokens(
    tokenizer: &Tokenizer,
    prompt: &GtgPrompt,
    problem: &Problem,
) -> Result<Vec<u32>> {
    let content = prompt.render(problem)?;
    tokenizer
        .encode_prompt(&[Message::new("user", content)])
        .with_context(|| format!("rendering problem {}", problem.problem_id))
}

/// Samples `settings.num_samples` responses to each problem and judges them.
pub fn attempt(
    generator: &mut Generator<'_>,
    judge: &Judge,
    prompt: &GtgPrompt,
    problems: &[&Problem],
    settings: &AttemptSettings,
    progress: &Progress,
) -> Result<(Vec<ProblemAttempts>, AttemptCost)> {
    let tasks: Vec<Task<'_>> =
        problems.iter().enumerate().map(|(place, problem)| settings.task(place, problem)).collect();
    let mut groups = vec![None; tasks.len()];
    let cost =
        attempt_each(generator, judge, prompt, &tasks, settings, progress, &mut |task, group| {
            groups[task] = Some(group);
            Ok(())
        })?;
    let all = groups.into_iter().map(|group| group.expect("every task was attempted"));
    Ok((all.collect(), cost))
}

/// Attempts each task and gives its attempts to `on_done` as soon as the last one is judged, in no
/// particular order. Samples and keys are those of the tasks.
///
/// Errors, also those of `on_done`, and an interrupt end sampling and judging.
pub fn attempt_each(
    generator: &mut Generator<'_>,
    judge: &Judge,
    prompt: &GtgPrompt,
    tasks: &[Task<'_>],
    settings: &AttemptSettings,
    progress: &Progress,
    on_done: &mut (dyn FnMut(usize, ProblemAttempts) -> Result<()> + Send),
) -> Result<AttemptCost> {
    let tokenizer = generator.tokenizer();
    let requests = requests(tokenizer, prompt, tasks)?;
    let config = engine_config(generator, tasks, &requests, settings)?;
    let sampling = SamplingParams {
        temperature: settings.temperature,
        max_new_tokens: settings.max_new_tokens,
        stop_ids: generator.stop_ids(),
        vocab_size: tokenizer.vocab_size(),
        ..SamplingParams::default()
    };
    let (rollouts, inbox) = mpsc::channel();
    let desk = Desk::new(judge, tokenizer, tasks, inbox);
    std::thread::scope(|scope| {
        let judged = desk.open(scope);
        let mut collector = Collector::new(&desk, &requests, (rollouts, judged), progress, on_done);
        let started = Instant::now();
        let sampled = generator.generate(&config, &requests, &sampling, &mut collector);
        let generation = started.elapsed();
        let judged = collector.finish(sampled.is_ok());
        let judging = started.elapsed() - generation;
        Ok(AttemptCost { engine: sampled?, generation, judging, judging_cpu: judged? })
    })
}

/// Refuses problems whose prompts the model, or responses the memory of this machine, cannot hold.
pub fn check_fit(
    generator: &Generator<'_>,
    prompt: &GtgPrompt,
    tasks: &[Task<'_>],
    settings: &AttemptSettings,
) -> Result<()> {
    let requests = requests(generator.tokenizer(), prompt, tasks)?;
    engine_config(generator, tasks, &requests, settings).map(|_| ())
}

fn requests(tokenizer: &Tokenizer, prompt: &GtgPrompt, tasks: &[Task<'_>]) -> Result<Vec<Request>> {
    let request = |task: &Task<'_>| {
        Ok(Request {
            prompt: prompt_tokens(tokenizer, prompt, task.problem)?,
            num_samples: task.num_samples,
            key: task.key,
        })
    };
    tasks.iter().map(request).collect()
}

/// Sizes that fit the model and the free memory. A smaller cache makes sequences wait; it never changes
/// them.
fn engine_config(
    generator: &Generator<'_>,
    tasks: &[Task<'_>],
    requests: &[Request],
    settings: &AttemptSettings,
) -> Result<EngineConfig> {
    settings.check()?;
    let made_for = generator.config().max_position_embeddings;
    let there = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(1);
    let announced = settings.max_prompt_tokens.filter(|_| generator.is_on_gpus());
    let longest = there.max(announced.unwrap_or(0));
    let max_length = longest.saturating_add(settings.max_new_tokens).min(made_for);
    for (task, request) in tasks.iter().zip(requests) {
        if request.prompt.len() >= made_for {
            return Err(usage(format!(
                "problem {}: the prompt has {} tokens, which leaves no room for a response: the model \
                 was made for {made_for} (max_position_embeddings)",
                task.problem.problem_id,
                request.prompt.len()
            )));
        }
    }
    let num_attempts: usize = tasks.iter().map(|task| task.num_samples).sum();
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
