//! `grpo.toml`: the settings of reinforcement, under the names of the field.
//!
//! Defaults follow verl, by a named profile (`configs/profiles`); paper Table 7 gives what `configs/llama3-8b` and
//! `configs/qwen2.5-7b` set.

use super::reward_process::ExternalReward;
use crate::base::error::usage;
use crate::checkpoint::ModelSource;
use crate::config::limits::refuse_outside;
use crate::config::limits::refuse_product;
use crate::config::limits::refuse_sizes;
use crate::config::{self, Profile, Resolved};
use crate::engine::{EngineConfig, check_temperature};
use crate::model::{BatchSize, Precision, Recompute};
use crate::objective::{Aggregation, Totals, grpo::LossConfig};
use crate::optim::{AdamWConfig, LossScaleConfig, Schedule};
use crate::plan::PlanConfig;
use crate::rewards::{Overlong, RewardConfig, RewardKind};
use crate::run::CheckpointConfig;
use crate::sandbox::Limits;
use crate::train::check_shared;
use crate::trainer::device::{DeviceKind, GpuConfig};
use crate::trainer::{Execution, LossScaling};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// More than any coefficient is.
const LARGE: f64 = 1e6;

/// What verl does where the paper is silent, by release. The first is the default.
const PROFILES: [Profile; 2] = [
    Profile { name: "verl-0.9", text: include_str!("../../../configs/profiles/verl-0.9.toml") },
    Profile { name: "verl-0.5", text: include_str!("../../../configs/profiles/verl-0.5.toml") },
];

/// The whole of `grpo.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whose defaults lie below: `verl-0.9` (where not given) or `verl-0.5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
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
    /// Asks a program of the user's instead, which is told what the judge found; not where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_reward: Option<ExternalReward>,
    /// Punishes responses that come close to the length limit (DAPO); not where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlong: Option<Overlong>,
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
    /// Scores on held-out problems on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationConfig>,
    /// What the plan is measured against.
    #[serde(default)]
    pub plan: PlanConfig,
}

/// What to learn from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// JSON Lines files of problems.
    pub files: Vec<PathBuf>,
    /// Longest prompt, in tokens (paper: maximum prompt length).
    pub max_prompt_tokens: usize,
    /// What becomes of problems with longer prompts.
    #[serde(default)]
    pub overlong_prompts: OverlongPrompts,
}

/// What becomes of a problem whose prompt is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverlongPrompts {
    /// It is left out, and counted in the log.
    #[default]
    Drop,
    /// It is an error.
    Refuse,
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
    /// Sequences that each rank generates at the same time.
    pub max_sequences: usize,
    /// Positions in each rank's key-value cache; where not given, as many as `max_sequences` of the
    /// longest need, within half of the free memory. A smaller one makes sequences wait, and changes
    /// nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache_tokens: Option<usize>,
    /// Dynamic sampling (DAPO): groups that teach nothing are replaced by those of the next prompts,
    /// in at most this many rounds; 1 takes the first ones as they are.
    #[serde(default = "one")]
    pub max_rounds: u64,
    /// By what dynamic sampling knows groups that teach nothing (verl's `filter_groups.metric`).
    #[serde(default)]
    pub filter_metric: FilterMetric,
}

/// What has to differ within a group for it to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterMetric {
    /// Whether programs pass (`acc`).
    #[default]
    Accuracy,
    /// The reward, with all that adds to it (`seq_final_reward`).
    Reward,
}

fn one_rank() -> usize {
    1
}

fn one() -> u64 {
    1
}

fn five() -> u64 {
    5
}

/// From rewards to advantages.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdvantageConfig {
    /// Divide by the group's standard deviation (verl's `norm_adv_by_std_in_grpo`).
    pub norm_by_std: bool,
    /// Added to the standard deviation.
    pub eps: f64,
    /// Groups whose rewards are all equal do not count in the mean of the loss either.
    pub drop_zero_variance: bool,
}

impl Default for AdvantageConfig {
    fn default() -> Self {
        Self { norm_by_std: true, eps: 1e-6, drop_zero_variance: false }
    }
}

/// How long and in what portions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Steps; each samples once.
    pub total_steps: u64,
    /// Most tokens in one packed row.
    pub seq_len: usize,
    /// Prompts whose responses make one update (verl's `ppo_mini_batch_size`); all of a step where
    /// not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mini_batch_prompts: Option<usize>,
    /// Most responses in one packed row (verl's micro-batch size); as many as fit where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// Ranks that share rollouts and updates, those of all nodes together; threads on a CPU, GPUs otherwise.
    #[serde(default = "one_rank")]
    pub ranks: usize,
    /// What computes.
    #[serde(default)]
    pub device: DeviceKind,
    /// Numbers of weights and activations, of the sampler's too; where not given, f32 on a CPU and bf16 on
    /// GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// The loss scale, with fp16: of the loss of an update, what each rank learns from with responses of
    /// the greatest length.
    #[serde(default)]
    pub loss_scale: LossScaleConfig,
    /// What a GPU holds.
    #[serde(default)]
    pub gpu: GpuConfig,
    /// What the backward computes again instead of keeping it.
    #[serde(default)]
    pub recompute: Recompute,
    /// Compute a prompt once for all responses of its group in a row: the same log-probabilities to
    /// the bit, and gradients whose sums are taken in another order.
    #[serde(default)]
    pub share_prompts: bool,
    /// Passes over the responses of a step (verl's `ppo_epochs`).
    #[serde(default = "one")]
    pub epochs: u64,
    /// Updates in a row without a finite loss and gradient after which the run stops.
    #[serde(default = "five")]
    pub max_nonfinite_updates: u64,
}

/// Scores on held-out problems; their time is not training time.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationConfig {
    /// JSON Lines files of problems.
    pub files: Vec<PathBuf>,
    /// Steps between scores; the untrained model is scored too.
    pub every: u64,
    /// Rollouts for each problem.
    pub rollouts: usize,
    /// The first so many problems; all where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_problems: Option<usize>,
    /// Divides the logits.
    #[serde(default = "unit")]
    pub temperature: f64,
}

fn unit() -> f64 {
    1.0
}

impl Config {
    /// Merges files and `--set` over the profile that they name.
    pub fn load(files: &[PathBuf], sets: &[String]) -> Result<Resolved<Self>> {
        config::load_over(&PROFILES, files, sets)
    }

    /// The rule that rewards follow; with a program of the user's in its place, one that needs nothing
    /// of a problem.
    pub(crate) fn reward_rule(&self) -> RewardConfig {
        match self.external_reward {
            None => self.reward,
            Some(_) => RewardConfig { kind: RewardKind::Binary, ..self.reward },
        }
    }

    /// Refuses numbers with which a step could not be made.
    pub fn check(&self) -> Result<()> {
        let RolloutConfig {
            num_prompts,
            n,
            max_new_tokens,
            max_sequences,
            temperature,
            max_rounds,
            kv_cache_tokens,
            filter_metric: _,
        } = self.rollout;
        refuse_sizes(&[
            ("train.total_steps", self.train.total_steps as usize),
            ("rollout.num_prompts", num_prompts),
            ("rollout.n", n),
            ("rollout.max_new_tokens", max_new_tokens),
            ("rollout.max_sequences", max_sequences),
            ("rollout.max_rounds", max_rounds as usize),
            ("train.epochs", self.train.epochs as usize),
            ("train.max_nonfinite_updates", self.train.max_nonfinite_updates as usize),
            ("train.ranks", self.train.ranks),
            ("train.seq_len", self.train.seq_len),
            ("data.max_prompt_tokens", self.data.max_prompt_tokens),
            ("rollout.kv_cache_tokens", kv_cache_tokens.unwrap_or(1)),
            ("train.mini_batch_prompts", self.train.mini_batch_prompts.unwrap_or(1)),
            ("train.micro_batch_size", self.train.micro_batch_size.unwrap_or(1)),
        ])?;
        refuse_product(
            "responses a step",
            &[
                ("rollout.num_prompts", num_prompts),
                ("rollout.n", n),
                ("rollout.max_rounds", max_rounds as usize),
            ],
        )?;
        let response = ("rollout.max_new_tokens", max_new_tokens);
        refuse_product("tokens at once", &[("rollout.max_sequences", max_sequences), response])?;
        check_shared(&self.optim, &self.schedule, &self.checkpoint, &self.plan)?;
        self.check_device()?;
        let policy = &self.policy;
        let length = match policy.aggregation {
            Aggregation::SeqMeanTokenSumNorm { length } => length,
            _ => 1.0,
        };
        refuse_outside(&[
            ("reward.lambda", self.reward.lambda, 0.0..=1.0),
            ("reward.eps", self.reward.eps, f64::MIN_POSITIVE..=1.0),
            ("advantage.eps", self.advantage.eps, 0.0..=1.0),
            ("policy.clip_low", policy.clip_low, 0.0..=1.0),
            ("policy.clip_high", policy.clip_high, 0.0..=LARGE),
            ("policy.clip_dual", policy.clip_dual, 1.0..=LARGE),
            ("policy.log_ratio_clamp", policy.log_ratio_clamp, f64::MIN_POSITIVE..=LARGE),
            ("policy.kl_coef", policy.kl_coef, 0.0..=LARGE),
            ("policy.entropy_coef", policy.entropy_coef, -LARGE..=LARGE),
            ("policy.aggregation.length", length, 1.0..=LARGE),
            (
                "policy.importance_sampling_cap",
                policy.importance_sampling_cap.unwrap_or(1.0),
                1.0..=LARGE,
            ),
        ])?;
        let limit = |key, value, most| (key, value as f64, 1.0..=most);
        refuse_outside(&[
            limit("judge.cpu_ms_per_case", self.judge.cpu_ms_per_case, 1e9),
            limit("judge.cpu_ms_per_program", self.judge.cpu_ms_per_program, 1e9),
            limit("judge.wall_secs_per_case", self.judge.wall_secs_per_case, 1e6),
            limit("judge.output_bytes", self.judge.output_bytes as u64, 4e9),
            ("judge.memory_mb", self.judge.memory_mb as f64, 64.0..=1e6),
            ("judge.recursion", f64::from(self.judge.recursion), 50.0..=1e6),
        ])?;
        self.external_reward.as_ref().map_or(Ok(()), ExternalReward::check)?;
        if let Some(validation) = &self.validation {
            refuse_sizes(&[
                ("validation.every", validation.every as usize),
                ("validation.rollouts", validation.rollouts),
                ("validation.num_problems", validation.num_problems.unwrap_or(1)),
            ])?;
        }
        if temperature == 0.0 {
            return Err(usage(
                "rollout.temperature is 0: it must be above, or no two responses differ",
            ));
        }
        check_temperature("rollout.temperature", temperature as f32)?;
        if let Some(Overlong { buffer, factor }) = self.overlong
            && (buffer == 0 || buffer > max_new_tokens || !(factor >= 0.0 && factor.is_finite()))
        {
            return Err(usage(format!(
                "overlong.buffer is {buffer} and overlong.factor {factor}: the buffer must be from 1 to \
                 rollout.max_new_tokens = {max_new_tokens}, the factor 0 or more"
            )));
        }
        let longest = self.longest();
        let least = EngineConfig::least_cache_tokens(longest);
        if let Some(given) = kv_cache_tokens.filter(|&given| given < least) {
            return Err(usage(format!(
                "rollout.kv_cache_tokens is {given}, but one sequence of the longest prompt and response \
                 ({longest} tokens) needs {least}"
            )));
        }
        if self.train.seq_len < longest {
            return Err(usage(format!(
                "train.seq_len is {}, but a row must hold any prompt and response: \
                 data.max_prompt_tokens + rollout.max_new_tokens = {longest}",
                self.train.seq_len
            )));
        }
        Ok(())
    }

    /// Refuses what the device does not compute.
    fn check_device(&self) -> Result<()> {
        self.train.device.check_precision(self.train.precision, "train.precision")?;
        self.train.loss_scale.check("train.loss_scale")?;
        self.train.device.check_tokens(self.train.seq_len, "train.seq_len")?;
        match (self.train.device, self.train.share_prompts) {
            (DeviceKind::Cuda, true) => Err(usage(
                "train.share_prompts is true, which only a CPU computes: leave it out, or set \
                 train.device=\"cpu\"",
            )),
            _ => Ok(()),
        }
    }

    /// How the work is laid out.
    pub(crate) fn execution(&self) -> Execution {
        let TrainConfig { ranks, recompute, device, precision, gpu, seq_len, .. } = self.train;
        let largest = BatchSize { tokens: seq_len, longest: self.longest(), targets: seq_len };
        let gpus = device.gpus(gpu, device.precision(precision), largest);
        Execution { ranks, recompute, loss_scale: self.loss_scale(), gpus }
    }

    /// The loss scale that the precision needs.
    fn loss_scale(&self) -> Option<LossScaling> {
        let TrainConfig { ranks, device, precision, loss_scale, .. } = self.train;
        let sequences = self.mini_batch_prompts() * self.rollout.n;
        let tokens = sequences * self.rollout.max_new_tokens;
        let of_all = self.policy.aggregation.divisor(Totals { tokens, sequences });
        let divisor = (of_all / ranks as f64).ceil() as usize;
        let scaling = LossScaling { config: loss_scale, divisor };
        (device.precision(precision) == Precision::Fp16).then_some(scaling)
    }

    /// Tokens of the longest prompt and response.
    pub(crate) fn longest(&self) -> usize {
        self.data.max_prompt_tokens.saturating_add(self.rollout.max_new_tokens)
    }

    /// Prompts of one update.
    pub(crate) fn mini_batch_prompts(&self) -> usize {
        self.train.mini_batch_prompts.unwrap_or(self.rollout.num_prompts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_says_what_the_code_assumes_without_one() {
        let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/demo/grpo.toml"));
        let files = [demo];
        let with = Config::load(&files, &[]).unwrap();
        // verl gives AdamW all parameters; the default is transformers' choice.
        let without = config::load::<Config>(&files, &["optim.decayed=all".to_owned()]).unwrap();
        assert_eq!(with.to_toml(), without.to_toml());
        assert_eq!(with.origin("policy.clip_dual").to_string(), "profile verl-0.9:12");
    }

    #[test]
    fn what_only_a_cpu_computes_is_refused_on_gpus() {
        let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/demo/grpo.toml"));
        let check = |set: &str| {
            let sets = ["train.device=cuda".to_owned(), set.to_owned()];
            Config::load(std::slice::from_ref(&demo), &sets).unwrap().value.check()
        };
        check("policy.kl_coef=0.1").unwrap();
        check("train.precision=fp16").unwrap();
        for (set, says) in [
            ("train.share_prompts=true", ["train.share_prompts", "\"cpu\""]),
            ("train.precision=f32", ["train.precision is f32", "device cpu"]),
            ("train.loss_scale={initial=0}", ["train.loss_scale.initial", "between"]),
        ] {
            let text = check(set).unwrap_err().to_string();
            assert!(says.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn a_loss_scale_is_that_of_the_mean_over_what_a_rank_learns_from() {
        let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/demo/grpo.toml"));
        let divisor = |sets: &[&str]| {
            let sets =
                ["train.device=cuda", "train.precision=fp16", "train.ranks=2"].iter().chain(sets);
            let sets: Vec<String> = sets.map(|&set| set.to_owned()).collect();
            let config = Config::load(std::slice::from_ref(&demo), &sets).unwrap().value;
            config.execution().loss_scale.map(|scaling| scaling.divisor)
        };
        assert_eq!(divisor(&[]), Some(24 * 8 * 320 / 2));
        assert_eq!(divisor(&["train.mini_batch_prompts=3"]), Some(3 * 8 * 320 / 2));
        assert_eq!(divisor(&["policy.aggregation=seq-mean-token-mean"]), Some(24 * 8 / 2));
        assert_eq!(divisor(&["train.precision=bf16"]), None);
    }

    #[test]
    fn numbers_under_which_nothing_would_be_learnt_are_refused_by_their_key() {
        let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/demo/grpo.toml"));
        for (key, value) in [
            ("policy.log_ratio_clamp", "-1"),
            ("policy.clip_low", "nan"),
            ("policy.clip_high", "-1"),
            ("policy.clip_dual", "0.5"),
            ("policy.kl_coef", "nan"),
            ("policy.entropy_coef", "inf"),
            ("policy.aggregation", "{seq-mean-token-sum-norm={length=0}}"),
            ("advantage.eps", "-1"),
            ("rollout.temperature", "1e-40"),
            ("train.max_nonfinite_updates", "0"),
        ] {
            let sets = [format!("{key}={value}")];
            let config = Config::load(std::slice::from_ref(&demo), &sets).unwrap().value;
            let text = config.check().unwrap_err().to_string();
            assert!(text.contains(key) && text.len() < 120, "{text}");
        }
    }

    #[test]
    fn the_older_profile_means_over_micro_batches_of_four() {
        let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/demo/grpo.toml"));
        let older = Config::load(&[demo], &["profile=verl-0.5".to_owned()]).unwrap().value;
        assert_eq!(older.policy.aggregation, crate::objective::Aggregation::MicroTokenMean);
        assert_eq!(older.train.micro_batch_size, Some(4));
    }
}
