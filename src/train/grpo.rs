//! Group relative policy optimization with rewards from the judge: the loop and its config.
//!
//! A step: sample a group of responses to each prompt with the weights being trained, judge them,
//! turn rewards into advantages within each group, and make one update (paper Table 7, where the
//! mini-batch is the whole batch). One update a step keeps it exactly on-policy: the sampler's
//! log-probabilities are the trainer's, so every ratio is 1, which is logged.
//!
//! Left out here: several updates a step, a reference model, several ranks, validation.

use super::metrics::{Metrics, Row, row};
use super::run::RunDir;
use super::samples;
use super::trainer::{Execution, Trainer, Update};
use super::{CheckpointConfig, Chunk, MicroBatch, ModelSource, resume_or_open, save_checkpoint};
use crate::base::error::{Interrupted, usage};
use crate::base::{interrupt, progress::Progress, rng};
use crate::checkpoint::LanguageModel;
use crate::data::jsonl;
use crate::data::pack::{Batch, first_fit};
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::eval::attempts::{
    Attempt, AttemptCost, AttemptSettings, ProblemAttempts, attempt, prompt_tokens,
};
use crate::objective::grpo::{self, LossConfig, advantages, policy_loss};
use crate::objective::{Aggregation, Totals};
use crate::optim::{AdamWConfig, Schedule};
use crate::rewards::{Breakdown, Reference, RewardConfig, reward};
use crate::sandbox::{Judge, Limits};
use crate::tokenizer::Tokenized;
use anyhow::Result;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Instant;

/// The whole of `grpo.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed of prompt order and sampling.
    #[serde(default)]
    pub seed: u64,
    /// What to start from.
    pub model: ModelSource,
    /// What to learn from.
    pub data: DataConfig,
    /// How responses are sampled.
    pub rollout: RolloutConfig,
    /// What a response is worth.
    #[serde(default)]
    pub reward: RewardConfig,
    /// From rewards to advantages.
    #[serde(default)]
    pub advantage: AdvantageConfig,
    /// From advantages to the loss.
    #[serde(default)]
    pub policy: LossConfig,
    /// The optimizer.
    pub optim: AdamWConfig,
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// How long and in what portions.
    pub train: TrainConfig,
    /// Limits of judged programs.
    #[serde(default)]
    pub judge: Limits,
    /// What is kept on disk.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
}

/// What to learn from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// JSON Lines files of problems.
    pub files: Vec<PathBuf>,
    /// Problems with longer prompts are dropped, in tokens.
    pub max_prompt_tokens: usize,
}

/// How responses are sampled.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutConfig {
    /// Prompts in one step.
    pub num_prompts: usize,
    /// Responses to each prompt; the group of the advantage.
    pub n: usize,
    /// Divides the logits; above 0.
    pub temperature: f64,
    /// Longest response, in tokens.
    pub max_new_tokens: usize,
    /// Sequences generated at the same time.
    pub max_sequences: usize,
}

/// From rewards to advantages.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdvantageConfig {
    /// Divide by the group's standard deviation (verl's `norm_adv_by_std_in_grpo`).
    pub norm_by_std: bool,
    /// Added to the standard deviation.
    pub eps: f64,
}

impl Default for AdvantageConfig {
    fn default() -> Self {
        Self { norm_by_std: true, eps: 1e-6 }
    }
}

/// How long and in what portions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Steps; each is one update.
    pub total_steps: u64,
    /// Most tokens in one packed row.
    pub seq_len: usize,
}

impl Config {
    /// Refuses numbers with which a step could not be made.
    pub fn check(&self) -> Result<()> {
        let RolloutConfig { num_prompts, n, max_new_tokens, max_sequences, temperature } =
            self.rollout;
        super::refuse_zeros(&[
            ("train.total_steps", self.train.total_steps as usize),
            ("rollout.num_prompts", num_prompts),
            ("rollout.n", n),
            ("rollout.max_new_tokens", max_new_tokens),
            ("rollout.max_sequences", max_sequences),
        ])?;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(usage(format!(
                "rollout.temperature is {temperature}: it must be above 0, or no two responses differ"
            )));
        }
        if self.policy.kl_coef != 0.0 {
            return Err(usage(
                "policy.kl_coef must be 0: there is no reference model to stay close to yet",
            ));
        }
        let longest = self.data.max_prompt_tokens.saturating_add(max_new_tokens);
        if self.train.seq_len < longest {
            return Err(usage(format!(
                "train.seq_len is {}, but a row must hold any prompt and response: \
                 data.max_prompt_tokens + rollout.max_new_tokens = {longest}",
                self.train.seq_len
            )));
        }
        Ok(())
    }
}

/// Trains by `config` in `run`, from its last checkpoint if there is one, and returns the model's
/// directory.
pub fn train(config: &Config, run: &RunDir, judge: &Judge, label: &str) -> Result<PathBuf> {
    config.check()?;
    let total_steps = config.train.total_steps;
    let (model, resumed) = resume_or_open(run, &config.model, config.seed)?;
    let execution = Execution::default();
    let mut trainer = Trainer::new(model, config.optim, config.schedule, total_steps, execution)?;
    if let Some(dir) = resumed {
        trainer.restore::<()>(&dir)?;
    }
    let prompt = GtgPrompt::bundled()?;
    let tasks = read_tasks(config, &trainer.model, &prompt)?;
    let mut metrics = Metrics::open(run.path())?;
    metrics.truncate_after(trainer.step)?;
    let progress = Progress::new(label, total_steps, "steps");
    progress.skip(trainer.step);
    while trainer.step < total_steps {
        let is_interrupted = match step(&mut trainer, config, run, judge, &prompt, &tasks) {
            Ok(row) => {
                progress.set_message(describe(&row));
                metrics.log(trainer.step, row)?;
                progress.inc(1);
                interrupt::requested()
            }
            // Generation was cut short: the weights are still those of the last update, which may
            // have been saved then.
            Err(e) if e.downcast_ref::<Interrupted>().is_some() && !is_saved(run, &trainer) => true,
            Err(e) => return Err(e),
        };
        let is_last = trainer.step == total_steps;
        if is_last || is_interrupted || config.checkpoint.is_due(trainer.step) {
            metrics.sync()?;
            save_checkpoint(run, &trainer, &(), &config.checkpoint)?;
        }
        if is_interrupted && !is_last {
            return Err(Interrupted.into());
        }
    }
    progress.finish();
    Ok(run.checkpoints().step_dir(total_steps))
}

/// Whether the weights already lie in a checkpoint.
fn is_saved(run: &RunDir, trainer: &Trainer) -> bool {
    run.checkpoints().step_dir(trainer.step).exists()
}

fn describe(row: &Row) -> String {
    let value = |key: &str| row.get(key).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
    format!("pass {:.2}, reward {:.2}", value("reward/pass_rate"), value("reward/mean"))
}

/// A problem and what its reward is computed from.
struct Task {
    problem: Problem,
    reference: Reference,
}

/// The problems that can be trained on; what is missing in one is an error that names it.
fn read_tasks(config: &Config, model: &LanguageModel, prompt: &GtgPrompt) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for file in &config.data.files {
        for problem in jsonl::read::<Problem>(file)? {
            let reference = Reference::new(&problem, &config.reward)
                .map_err(|e| e.context(format!("reading {}", file.display())))?;
            if prompt_tokens(model, prompt, &problem)?.len() <= config.data.max_prompt_tokens {
                tasks.push(Task { problem, reference });
            }
        }
    }
    if tasks.len() < config.rollout.num_prompts {
        return Err(usage(format!(
            "data.files hold {} problems within data.max_prompt_tokens = {}, fewer than \
             rollout.num_prompts = {}",
            tasks.len(),
            config.data.max_prompt_tokens,
            config.rollout.num_prompts
        )));
    }
    Ok(tasks)
}

/// The problems of a step: consecutive portions of a new shuffle for each pass over the data.
fn tasks_of_step<'t>(config: &Config, tasks: &'t [Task], step: u64) -> Vec<&'t Task> {
    let per_epoch = (tasks.len() / config.rollout.num_prompts) as u64;
    let (epoch, index) = (step / per_epoch, (step % per_epoch) as usize);
    let mut order: Vec<&Task> = tasks.iter().collect();
    order.shuffle(&mut rng::Stream::new(config.seed, &[PROMPT_ORDER, epoch]));
    order[index * config.rollout.num_prompts..][..config.rollout.num_prompts].to_vec()
}

/// Labels of the two uses of the run's seed.
const PROMPT_ORDER: u64 = 1;
const SAMPLING: u64 = 2;

/// Samples, judges, rewards and updates once.
fn step(
    trainer: &mut Trainer,
    config: &Config,
    run: &RunDir,
    judge: &Judge,
    prompt: &GtgPrompt,
    tasks: &[Task],
) -> Result<Row> {
    let tasks = tasks_of_step(config, tasks, trainer.step);
    let problems: Vec<&Problem> = tasks.iter().map(|task| &task.problem).collect();
    let settings = AttemptSettings {
        num_samples: config.rollout.n,
        temperature: config.rollout.temperature as f32,
        max_new_tokens: config.rollout.max_new_tokens,
        max_sequences: config.rollout.max_sequences,
        key: rng::key(config.seed, &[SAMPLING, trainer.step]),
    };
    let (mut groups, cost) =
        attempt(&trainer.model, judge, prompt, &problems, &settings, &Progress::hidden())?;
    let journal = run.samples(trainer.step);
    samples::replay(&journal, &problems, &mut groups)?;
    samples::record(&journal, &problems, &groups)?;

    let started = Instant::now();
    let rewards = rewards(&config.reward, &tasks, &groups);
    let advantages: Vec<_> = rewards
        .iter()
        .map(|group| {
            let totals: Vec<_> = group.iter().map(|r| r.as_ref().map(|r| r.total)).collect();
            advantages(&totals, config.advantage.norm_by_std, config.advantage.eps)
        })
        .collect();
    let (policy, update) = improve(trainer, config, &groups, &advantages)?;
    let mut row = rollout_metrics(&groups, &rewards, &advantages);
    row.extend(policy_metrics(&policy, &update));
    row.extend(time_metrics(&cost, started.elapsed().as_secs_f64()));
    Ok(row)
}

/// What each response is worth; `None` where the judge failed.
fn rewards(
    config: &RewardConfig,
    tasks: &[&Task],
    groups: &[ProblemAttempts],
) -> Vec<Vec<Option<Breakdown>>> {
    let of_group = |(task, group): (&&Task, &ProblemAttempts)| {
        let of_attempt =
            |a: &Attempt| reward(config, &task.reference, &a.parsed, a.verdict_for_reward());
        group.attempts.iter().map(of_attempt).collect()
    };
    tasks.iter().zip(groups).map(of_group).collect()
}

/// One response as the update sees it.
struct Learnt<'g> {
    sequence: Tokenized,
    old_logp: &'g [f32],
    advantage: f32,
}

/// The responses to learn from. Without KL and entropy terms a response whose advantage is 0 has
/// a gradient of exactly 0: it counts in the divisor, but is not computed.
fn learnt<'g>(
    config: &LossConfig,
    groups: &'g [ProblemAttempts],
    advantages: &[grpo::Advantages],
) -> Vec<Learnt<'g>> {
    let needs_all = config.kl_coef != 0.0
        || config.entropy_coef != 0.0
        || config.aggregation == Aggregation::MicroTokenMean;
    let mut learnt = Vec::new();
    for (group, advantages) in groups.iter().zip(advantages) {
        for (attempt, &advantage) in group.attempts.iter().zip(&advantages.values) {
            if attempt.is_judged() && (needs_all || advantage != 0.0) {
                let response = &attempt.rollout.tokens;
                let mut loss_mask = vec![false; group.prompt.len()];
                loss_mask.resize(group.prompt.len() + response.len(), true);
                learnt.push(Learnt {
                    sequence: Tokenized {
                        input_ids: [group.prompt.as_slice(), response].concat(),
                        loss_mask,
                    },
                    old_logp: &attempt.rollout.logprobs,
                    advantage,
                });
            }
        }
    }
    learnt
}

/// One update from the advantages.
fn improve(
    trainer: &mut Trainer,
    config: &Config,
    groups: &[ProblemAttempts],
    advantages: &[grpo::Advantages],
) -> Result<(grpo::Metrics, Update)> {
    let loss = &config.policy;
    let judged = groups.iter().flat_map(|g| &g.attempts).filter(|a| a.is_judged());
    let divisor = loss.aggregation.divisor(Totals::of(judged.map(|a| a.rollout.tokens.len())));
    let learnt = learnt(loss, groups, advantages);
    let sequences: Vec<Tokenized> = learnt.iter().map(|l| l.sequence.clone()).collect();
    let lengths: Vec<usize> = sequences.iter().map(|s| s.input_ids.len()).collect();
    let packs = first_fit(&lengths, config.train.seq_len)
        .expect("invariant: the configuration gives a row room for any prompt and response");
    let mut batches = Vec::new();
    let mut tokens_of_batch = Vec::new();
    for indices in packs {
        batches.push(MicroBatch::of(&[Batch::new(&sequences, &indices)]));
        let tokens_of = |i: &usize| learnt[*i].old_logp.len();
        let weight =
            loss.aggregation.token_weights(&indices.iter().map(tokens_of).collect::<Vec<_>>());
        let old_logp = indices.iter().map(|&i| learnt[i].old_logp).collect::<Vec<_>>().concat();
        let advantage: Vec<f32> = indices
            .iter()
            .flat_map(|&i| std::iter::repeat_n(learnt[i].advantage, learnt[i].old_logp.len()))
            .collect();
        tokens_of_batch.push((old_logp, advantage, weight));
    }
    let temperature = config.rollout.temperature as f32;
    let gathered: Vec<Vec<grpo::Metrics>> =
        trainer.accumulate(&batches, temperature, |chunk, gradients, gathered: &mut Vec<_>| {
            let Chunk { batch, first, scores } = chunk;
            let (old_logp, advantage, weight) = &tokens_of_batch[batch];
            let chunk = first..first + scores.len();
            let tokens = grpo::Tokens {
                logp: &scores.iter().map(|s| s.logp).collect::<Vec<_>>(),
                old_logp: &old_logp[chunk.clone()],
                reference_logp: None,
                entropy: Some(&scores.iter().map(|s| s.entropy).collect::<Vec<_>>()),
                advantage: &advantage[chunk.clone()],
                weight: &weight[chunk],
            };
            let (mut dlogp, mut dentropy) = (vec![0.0; scores.len()], vec![0.0; scores.len()]);
            gathered.push(policy_loss(loss, &tokens, 1.0, &mut dlogp, Some(&mut dentropy)));
            for (gradient, (logp, entropy)) in gradients.iter_mut().zip(dlogp.iter().zip(dentropy))
            {
                (gradient.logp, gradient.entropy) = (*logp, entropy);
            }
        })?;
    let mut metrics = grpo::Metrics::default();
    gathered.iter().flatten().for_each(|of_chunk| metrics.merge(of_chunk));
    metrics.loss /= divisor;
    let update = trainer.update(divisor, metrics.loss)?;
    Ok((metrics, update))
}

fn rollout_metrics(
    groups: &[ProblemAttempts],
    rewards: &[Vec<Option<Breakdown>>],
    advantages: &[grpo::Advantages],
) -> Row {
    let rewards: Vec<&Breakdown> = rewards.iter().flatten().flatten().collect();
    let attempts: Vec<_> = groups.iter().flat_map(|g| &g.attempts).collect();
    let mean = |sum: f64, n: usize| sum / n.max(1) as f64;
    let reward_mean =
        |f: &dyn Fn(&Breakdown) -> f64| mean(rewards.iter().map(|r| f(r)).sum(), rewards.len());
    let lengths = attempts.iter().map(|a| a.rollout.tokens.len() as f64);
    let is_true = |b: bool| f64::from(u8::from(b));
    row([
        ("reward/mean", reward_mean(&|r| r.total)),
        ("reward/pass_rate", reward_mean(&|r| is_true(r.passed))),
        ("reward/format_errors", reward_mean(&|r| is_true(!r.format))),
        ("reward/solvability_term", reward_mean(&|r| r.solvability_term)),
        ("reward/case_term", reward_mean(&|r| r.case_term)),
        ("reward/infra", (attempts.len() - rewards.len()) as f64),
        (
            "reward/zero_variance_groups",
            mean(advantages.iter().filter(|a| a.zero_variance).count() as f64, advantages.len()),
        ),
        ("response/mean_tokens", mean(lengths.clone().sum(), attempts.len())),
        ("response/max_tokens", lengths.fold(0.0, f64::max)),
    ])
}

fn policy_metrics(policy: &grpo::Metrics, update: &Update) -> Row {
    let per_token = |sum: f64| sum / policy.tokens.max(1) as f64;
    row([
        ("loss/policy", policy.loss),
        ("policy/entropy", per_token(policy.entropy)),
        ("policy/approx_kl", per_token(policy.approx_kl)),
        ("policy/clip_fraction", per_token(policy.clipped as f64)),
        ("policy/ratio_max_deviation", policy.ratio_max_deviation),
        ("policy/learnt_tokens", policy.tokens as f64),
        ("optim/grad_norm", update.grad_norm),
        ("optim/lr", update.lr),
        ("optim/skipped", f64::from(u8::from(update.skipped.is_some()))),
    ])
}

fn time_metrics(cost: &AttemptCost, update_secs: f64) -> Row {
    let generation_secs = cost.generation.as_secs_f64();
    row([
        ("time/generation_secs", generation_secs),
        ("time/judging_secs", cost.judging.as_secs_f64()),
        ("time/update_secs", update_secs),
        ("time/generated_tokens_per_sec", cost.engine.generated_tokens as f64 / generation_secs),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{Reason, VerdictKind};
    use crate::train::samples::tests::{group, problem};
    use std::collections::HashSet;

    fn config(num_prompts: usize) -> Config {
        let mut config: Config =
            toml::from_str(include_str!("../../configs/demo/grpo.toml")).unwrap();
        config.rollout.num_prompts = num_prompts;
        config
    }

    fn tasks(count: usize) -> Vec<Task> {
        let reward =
            RewardConfig { kind: crate::rewards::RewardKind::Binary, ..Default::default() };
        let task = |i: usize| {
            let problem = problem(&i.to_string());
            Task { reference: Reference::new(&problem, &reward).unwrap(), problem }
        };
        (0..count).map(task).collect()
    }

    #[test]
    fn a_pass_over_the_data_has_no_problem_twice_and_each_pass_its_own_order() {
        let (config, tasks) = (config(3), tasks(10));
        let ids = |steps: std::ops::Range<u64>| -> Vec<String> {
            steps
                .flat_map(|step| tasks_of_step(&config, &tasks, step))
                .map(|task| task.problem.problem_id.clone())
                .collect()
        };
        let [first, second] = [ids(0..3), ids(3..6)];
        for pass in [&first, &second] {
            assert_eq!(pass.iter().collect::<HashSet<_>>().len(), 9);
        }
        assert_ne!(first, second);
        assert_eq!(first, ids(0..3));
    }

    #[test]
    fn responses_without_an_advantage_or_a_verdict_are_not_computed() {
        let wrong = VerdictKind::Fail(Reason::WrongAnswer);
        let groups = [group(&[("a", VerdictKind::Pass), ("b", wrong), ("c", VerdictKind::Infra)])];
        let advantages = [grpo::Advantages { values: vec![0.0, -1.0, 0.0], zero_variance: false }];
        let config = LossConfig::default();
        let taken = learnt(&config, &groups, &advantages);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].advantage, -1.0);
        assert_eq!(taken[0].sequence.input_ids, [5, 6, 7, 8]);
        assert_eq!(taken[0].sequence.loss_mask, [false, false, true, true]);

        let with_entropy = LossConfig { entropy_coef: 0.1, ..config };
        assert_eq!(learnt(&with_entropy, &groups, &advantages).len(), 2);
    }

    #[test]
    fn a_failure_of_the_judge_is_neither_reward_nor_score() {
        let groups = [group(&[("```python\nx\n```", VerdictKind::Infra)])];
        let tasks = tasks(1);
        let rewards = rewards(&RewardConfig::default(), &[&tasks[0]], &groups);
        assert_eq!(rewards[0][0].map(|r| r.total), None);
        let row = rollout_metrics(&groups, &rewards, &[]);
        assert_eq!(row["reward/infra"], 1.0);
        assert_eq!(row["reward/mean"], 0.0);
    }
}
