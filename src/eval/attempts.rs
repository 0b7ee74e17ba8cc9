//! Attempts at problems: prompts rendered, responses sampled, programs judged.
//!
//! The one path that GRPO, GTG evaluation and solvability share, so that a reward, a score and a
//! selection never disagree about what an attempt is worth.

use crate::base::{progress::Progress, rng};
use crate::checkpoint::LanguageModel;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::engine::{Engine, EngineConfig, Request, Rollout, SamplingParams, Stats};
use crate::rewards::{self, ParsedResponse, parse};
use crate::sandbox::{self, Judge, Verdict, VerdictKind};
use crate::tokenizer::Message;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// How problems are attempted.
#[derive(Debug, Clone)]
pub struct AttemptSettings {
    /// Rollouts for each problem.
    pub num_samples: usize,
    /// Divides the logits.
    pub temperature: f32,
    /// Longest response, in tokens.
    pub max_new_tokens: usize,
    /// Sequences generated at the same time.
    pub max_sequences: usize,
    /// Key of the randomness; the problem's place in the list is mixed in.
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
    /// Wall time of generation.
    pub generation: Duration,
    /// Wall time of judging.
    pub judging: Duration,
}

/// The prompt of `problem` in tokens: the GTG prompt as the user's turn, the assistant's opened.
pub fn prompt_tokens(
    model: &LanguageModel,
    prompt: &GtgPrompt,
    problem: &Problem,
) -> Result<Vec<u32>> {
    let content = prompt.render(problem)?;
    model
        .tokenizer
        .encode_prompt(&[Message::new("user", content)])
        .with_context(|| format!("rendering problem {}", problem.problem_id))
}

/// Samples `settings.num_samples` responses to each problem and judges them.
pub fn attempt(
    model: &LanguageModel,
    judge: &Judge,
    prompt: &GtgPrompt,
    problems: &[&Problem],
    settings: &AttemptSettings,
    progress: &Progress,
) -> Result<(Vec<ProblemAttempts>, AttemptCost)> {
    let requests = problems
        .iter()
        .enumerate()
        .map(|(i, problem)| {
            Ok(Request {
                prompt: prompt_tokens(model, prompt, problem)?,
                num_samples: settings.num_samples,
                key: rng::key(settings.key, &[i as u64]),
            })
        })
        .collect::<Result<Vec<_>>>()?;

    let started = Instant::now();
    let (rollouts, engine) = generate(model, &requests, settings, progress)?;
    let generation = started.elapsed();

    let started = Instant::now();
    let texts: Vec<Vec<String>> = rollouts
        .iter()
        .map(|samples| samples.iter().map(|r| model.tokenizer.decode(&r.tokens)).collect())
        .collect::<Result<_>>()?;
    let verdicts = judge_all(judge, problems, &texts);
    let judging = started.elapsed();

    let mut verdicts = verdicts.into_iter();
    let attempts = requests
        .into_iter()
        .zip(rollouts.into_iter().zip(texts))
        .map(|(request, (rollouts, texts))| ProblemAttempts {
            prompt: request.prompt,
            attempts: rollouts
                .into_iter()
                .zip(texts)
                .map(|(rollout, text)| Attempt {
                    rollout,
                    parsed: parse(&text),
                    text,
                    verdict: verdicts.next().expect("one verdict for each response"),
                })
                .collect(),
        })
        .collect();
    Ok((attempts, AttemptCost { engine, generation, judging }))
}

/// Rollouts by request and sample.
fn generate(
    model: &LanguageModel,
    requests: &[Request],
    settings: &AttemptSettings,
    progress: &Progress,
) -> Result<(Vec<Vec<Rollout>>, Stats)> {
    let longest_prompt = requests.iter().map(|r| r.prompt.len()).max().unwrap_or(1);
    let config = EngineConfig {
        max_sequences: settings.max_sequences,
        max_length: longest_prompt + settings.max_new_tokens,
        prefill_tokens: 256,
    };
    let sampling = SamplingParams {
        temperature: settings.temperature,
        top_k: 0,
        top_p: 1.0,
        max_new_tokens: settings.max_new_tokens,
        stop_ids: model.stop_ids(),
        vocab_size: model.tokenizer.vocab_size(),
    };
    let mut rollouts: Vec<Vec<Option<Rollout>>> =
        requests.iter().map(|r| vec![None; r.num_samples]).collect();
    let mut engine = Engine::new(&model.decoder, &model.params, config);
    let stats = engine.generate(requests, &sampling, |request, sample, rollout| {
        rollouts[request][sample] = Some(rollout);
        progress.inc(1);
    })?;
    let all = |samples: Vec<Option<Rollout>>| {
        samples.into_iter().map(|r| r.expect("every sample finishes")).collect()
    };
    Ok((rollouts.into_iter().map(all).collect(), stats))
}

fn judge_all(judge: &Judge, problems: &[&Problem], texts: &[Vec<String>]) -> Vec<Verdict> {
    let jobs: Vec<_> = problems
        .iter()
        .zip(texts)
        .flat_map(|(problem, texts)| {
            texts.iter().map(|text| (sandbox::extract_code(text), problem.tests.as_slice()))
        })
        .collect();
    sandbox::verdicts(judge, &jobs)
}
