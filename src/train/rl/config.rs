//! `grpo.toml`: the settings of reinforcement, under the field's usual names.
//!
//! Defaults follow verl, by a named profile (`configs/profiles`). `configs/llama3-8b` and
//! `configs/qwen2.5-7b` set what the paper's Table 7 gives.

use super::reward_process::ExternalReward;
use crate::base::error::usage;
use crate::base::limits::{refuse_product, refuse_sizes};
use crate::base::line_process;
use crate::checkpoint::ModelSource;
use crate::config::{self, Profile, Resolved};
use crate::data::problem::Problem;
use crate::data::rows;
use crate::engine::{EngineConfig, check_temperature};
use crate::model::{BatchSize, Precision, Recompute};
use crate::objective::advantage::AdvantageConfig;
use crate::objective::policy::LossConfig;
use crate::objective::{Aggregation, Totals};
use crate::optim::{AdamWConfig, LossScaleConfig, Schedule};
use crate::plan::PlanConfig;
use crate::rewards::{Overlong, RewardConfig, RewardKind};
use crate::rollout::AttemptSettings;
use crate::run::{CheckpointConfig, Input, RunConfig};
use crate::sandbox::{Judge, Limits};
use crate::tasks::{Task, TaskKind};
use crate::trainer::device::{DeviceKind, GpuConfig};
use crate::trainer::{Execution, LossScaling};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// verl's defaults where the paper is silent, by release. The first profile is the default.
const PROFILES: [Profile; 2] = [
    Profile { name: "verl-0.9", text: include_str!("../../../configs/profiles/verl-0.9.toml") },
    Profile { name: "verl-0.5", text: include_str!("../../../configs/profiles/verl-0.5.toml") },
];

/// The configuration of `train grpo`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The release of verl whose defaults apply: `verl-0.9` (the default) or `verl-0.5`. Where a profile
    /// gives a default that differs from the one shown for a key, the profile's applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The seed of the order of problems and of the sampling.
    #[serde(default)]
    pub seed: u64,
    /// The model from which training starts.
    pub model: ModelSource,
    /// What is asked, and how answers are graded.
    #[serde(default)]
    pub task: TaskKind,
    /// A file with the template of the prompt, also for validation. By default the task's own is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PathBuf>,
    /// The problems to learn from.
    pub data: DataConfig,
    /// How responses are sampled.
    pub rollout: RolloutConfig,
    /// What a response is worth.
    #[serde(default)]
    pub reward: RewardConfig,
    /// A program of yours that gives the rewards instead. It receives what the judge found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_reward: Option<ExternalReward>,
    /// A penalty for responses whose length comes close to the limit (DAPO).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlong: Option<Overlong>,
    /// How rewards become advantages.
    #[serde(default)]
    pub advantage: AdvantageConfig,
    /// How advantages become the loss.
    #[serde(default)]
    pub policy: LossConfig,
    /// AdamW, and the clipping of gradients.
    #[serde(default)]
    pub optim: AdamWConfig,
    /// The learning rate over the run.
    #[serde(default)]
    pub schedule: Schedule,
    /// The number of steps, and the size of their updates.
    pub train: TrainConfig,
    /// What a judged program may use.
    #[serde(default)]
    pub judge: Limits,
    /// Which checkpoints are written and kept.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Scores of held-out problems during the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationConfig>,
    /// The memory for which a run on GPUs is planned.
    #[serde(default)]
    pub plan: PlanConfig,
}

/// The problems to learn from.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// JSON Lines files of problems.
    pub files: Vec<PathBuf>,
    /// The longest prompt in tokens (the paper's maximum prompt length).
    pub max_prompt_tokens: usize,
    /// What happens to problems with longer prompts.
    #[serde(default)]
    pub overlong_prompts: OverlongPrompts,
}

/// What happens to a problem whose prompt is too long.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum OverlongPrompts {
    /// It is left out and counted in the log.
    #[default]
    Drop,
    /// It is an error, which names the problem.
    Refuse,
}

/// How responses are sampled.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutConfig {
    /// The number of prompts in one step.
    pub num_prompts: usize,
    /// The number of responses to each prompt: the group of the advantage.
    pub n: usize,
    /// Logits are divided by this; it is above 0.
    pub temperature: f64,
    /// The longest response, in tokens.
    pub max_new_tokens: usize,
    /// The number of sequences that each rank generates at the same time.
    #[serde(default = "sixty_four")]
    pub max_sequences: usize,
    /// The positions in each rank's key-value cache. By default it is as many as `max_sequences` of the
    /// longest sequences need, within half of the free memory. A smaller cache makes sequences wait and
    /// changes nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache_tokens: Option<usize>,
    /// Tokens that end a response, besides those of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop_ids: Vec<u32>,
    /// Dynamic sampling (DAPO): groups that teach nothing are replaced by groups of the next prompts, in at
    /// most this many rounds; 1 takes the first groups as they are.
    #[serde(default = "one")]
    pub max_rounds: u64,
    /// What has to differ within a group for dynamic sampling to keep it (verl's `filter_groups.metric`).
    #[serde(default)]
    pub filter_metric: FilterMetric,
}

/// What has to differ within a group for it to be kept.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum FilterMetric {
    /// Whether programs pass (verl's `acc`).
    #[default]
    Accuracy,
    /// The reward, with all that is added to it (verl's `seq_final_reward`).
    Reward,
}

fn one_rank() -> usize {
    1
}

fn one() -> u64 {
    1
}

fn sixty_four() -> usize {
    64
}

fn five() -> u64 {
    5
}

/// The number of steps, and the size of their updates.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The number of steps; each step samples once.
    pub total_steps: u64,
    /// A packed row has at most this many tokens.
    pub seq_len: usize,
    /// The responses to this many prompts make one update (verl's `ppo_mini_batch_size`). By default it is
    /// all prompts of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mini_batch_prompts: Option<usize>,
    /// A packed row has at most this many responses (verl's micro-batch size). By default it has as many as
    /// fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// The number of ranks that share rollouts and updates, on all nodes together. On a CPU a rank is a
    /// thread, on GPUs each rank is a GPU.
    #[serde(default = "one_rank")]
    pub ranks: usize,
    /// Where the ranks compute: on threads of this machine, or on GPUs.
    #[serde(default)]
    pub device: DeviceKind,
    /// The number format of weights and activations, for sampling too. By default it is f32 on a CPU and
    /// bf16 on GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// The loss scale, with fp16. It multiplies the loss of an update, taken as a mean over the largest number
    /// of tokens or sequences that a rank can learn from.
    #[serde(default)]
    pub loss_scale: LossScaleConfig,
    /// The number formats in which a GPU holds moments and sums of gradients.
    #[serde(default)]
    pub gpu: GpuConfig,
    /// What the backward computes again, instead of keeping it from the forward.
    #[serde(default)]
    pub recompute: Recompute,
    /// Whether a prompt is computed once for all responses of its group in a row. Log-probabilities keep
    /// their bits; the sums of gradients are taken in another order.
    #[serde(default)]
    pub share_prompts: bool,
    /// The number of passes over the responses of a step (verl's `ppo_epochs`).
    #[serde(default = "one")]
    pub epochs: u64,
    /// The run ends after this many updates in a row without a finite loss and gradient.
    #[serde(default = "five")]
    pub max_nonfinite_updates: u64,
}

/// Scores of held-out problems. Their time does not count as training time.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidationConfig {
    /// JSON Lines files of problems.
    pub files: Vec<PathBuf>,
    /// The number of steps from one score to the next; the untrained model is scored too.
    pub every: u64,
    /// The number of rollouts for each problem.
    pub rollouts: usize,
    /// Only the first problems are scored, as many as this says. By default all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_problems: Option<usize>,
    /// Logits are divided by this; 0 takes the most likely token.
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

    /// Opens the task with the problems of `files`, at most the first `most` of them.
    pub(crate) fn open_task<'j>(
        &self,
        files: &[PathBuf],
        most: Option<usize>,
        judge: &'j Judge,
    ) -> Result<Box<dyn Task + 'j>> {
        let mut problems = Vec::new();
        for file in files {
            problems.extend(rows::read::<Problem>(file)?);
        }
        problems.truncate(most.unwrap_or(usize::MAX));
        self.task.open(problems, self.prompt.as_deref(), judge)
    }

    /// Returns how problems are attempted, with `key` as the key of the randomness.
    pub(crate) fn attempts(
        &self,
        num_samples: usize,
        temperature: f64,
        key: u64,
    ) -> AttemptSettings {
        AttemptSettings {
            num_samples,
            temperature: temperature as f32,
            max_new_tokens: self.rollout.max_new_tokens,
            max_prompt_tokens: Some(self.data.max_prompt_tokens),
            max_sequences: self.rollout.max_sequences,
            kv_cache_tokens: self.rollout.kv_cache_tokens,
            stop_ids: self.rollout.stop_ids.clone(),
            key,
        }
    }

    /// Returns the rule of the rewards. Where an external program replaces it, the rule is one that needs
    /// nothing of a problem.
    pub(crate) fn reward_rule(&self) -> RewardConfig {
        match self.external_reward {
            None => self.reward,
            Some(_) => RewardConfig { kind: RewardKind::Binary, ..self.reward },
        }
    }

    /// Refuses settings with which a step could not be made: first those that one table can tell, then
    /// those that contradict each other.
    pub fn check(&self) -> Result<()> {
        self.data.check("data")?;
        self.rollout.check("rollout")?;
        self.reward.check("reward")?;
        self.external_reward.as_ref().map_or(Ok(()), |reward| reward.check("external_reward"))?;
        self.advantage.check("advantage")?;
        self.policy.check("policy")?;
        self.optim.check("optim")?;
        self.schedule.check("schedule")?;
        self.train.check("train")?;
        self.judge.check("judge")?;
        self.checkpoint.check("checkpoint")?;
        self.validation.as_ref().map_or(Ok(()), |validation| validation.check("validation"))?;
        self.plan.check("plan")?;
        if let Some(overlong) = self.overlong {
            overlong.check("overlong", self.rollout.max_new_tokens)?;
        }
        if self.task == TaskKind::NextNumber && self.reward_rule().kind.needs_own_cases() {
            return Err(usage(
                "reward.kind (cssr where not given) pays for cases that responses make themselves, and \
                 responses to the task next-number make none: set reward.kind = \"binary\", for one",
            ));
        }
        self.check_lengths()
    }

    /// Refuses a prompt or a program that cannot be used, before any work is done.
    pub fn check_files(&self) -> Result<()> {
        self.task.check_prompt(self.prompt.as_deref()).context("prompt")?;
        let command = self.external_reward.as_ref().map(|reward| reward.command.as_slice());
        command.map_or(Ok(()), line_process::check).context("external_reward.command")
    }

    /// Returns what a resumed run reads again. The problems of `data.files` and the prompt are not in it,
    /// since the cursor compares them.
    pub(crate) fn inputs(&self) -> Result<Vec<Input>> {
        let mut inputs = Vec::new();
        if self.policy.needs_reference() {
            let files = self.model.files()?;
            inputs.push(Input { name: "the reference model (model)", files, may_change: false });
        }
        if let Some(ValidationConfig { files, .. }) = &self.validation {
            let files = files.clone();
            inputs.push(Input { name: "validation.files", files, may_change: false });
        }
        if let Some(ExternalReward { command, .. }) = &self.external_reward {
            let files = command.iter().map(PathBuf::from).filter(|word| word.is_file()).collect();
            // A program that failed may have been repaired.
            inputs.push(Input { name: "external_reward.command", files, may_change: true });
        }
        Ok(inputs)
    }

    /// Refuses a cache or rows that cannot hold the longest prompt with its response.
    fn check_lengths(&self) -> Result<()> {
        let longest = self.longest();
        let least = EngineConfig::least_cache_tokens(longest);
        if let Some(given) = self.rollout.kv_cache_tokens.filter(|&given| given < least) {
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

    /// Returns how the work is divided.
    pub(crate) fn execution(&self) -> Execution {
        let TrainConfig { ranks, recompute, device, precision, gpu, seq_len, .. } = self.train;
        let largest = BatchSize { tokens: seq_len, longest: self.longest(), targets: seq_len };
        let gpus = device.gpus(gpu, device.precision(precision), largest);
        Execution { ranks, recompute, loss_scale: self.loss_scale(), gpus }
    }

    /// Returns the loss scale, if the precision needs one.
    fn loss_scale(&self) -> Option<LossScaling> {
        let TrainConfig { ranks, device, precision, loss_scale, .. } = self.train;
        let sequences = self.mini_batch_prompts() * self.rollout.n;
        let tokens = sequences * self.rollout.max_new_tokens;
        let of_all = self.policy.aggregation.divisor(Totals { tokens, sequences });
        let divisor = (of_all / ranks as f64).ceil() as usize;
        let scaling = LossScaling { config: loss_scale, divisor };
        (device.precision(precision) == Precision::Fp16).then_some(scaling)
    }

    /// Returns the tokens of the longest prompt and response together.
    pub(crate) fn longest(&self) -> usize {
        self.data.max_prompt_tokens.saturating_add(self.rollout.max_new_tokens)
    }

    /// Returns the number of prompts in one update.
    pub(crate) fn mini_batch_prompts(&self) -> usize {
        self.train.mini_batch_prompts.unwrap_or(self.rollout.num_prompts)
    }
}

impl RunConfig for Config {
    fn checkpoint(&self) -> &CheckpointConfig {
        &self.checkpoint
    }

    fn unchangeable(&self) -> Self {
        let config = self.clone();
        Self {
            rollout: config.rollout.unchangeable(),
            train: config.train.unchangeable(config.policy.aggregation),
            checkpoint: CheckpointConfig::default(),
            plan: PlanConfig::default(),
            ..config
        }
    }
}

impl DataConfig {
    fn check(&self, table: &str) -> Result<()> {
        refuse_sizes(table, &[("max_prompt_tokens", self.max_prompt_tokens)])
    }
}

impl RolloutConfig {
    fn check(&self, table: &str) -> Result<()> {
        refuse_sizes(
            table,
            &[
                ("num_prompts", self.num_prompts),
                ("n", self.n),
                ("max_new_tokens", self.max_new_tokens),
                ("max_sequences", self.max_sequences),
                ("max_rounds", self.max_rounds as usize),
                ("kv_cache_tokens", self.kv_cache_tokens.unwrap_or(1)),
            ],
        )?;
        let responses = [
            ("num_prompts", self.num_prompts),
            ("n", self.n),
            ("max_rounds", self.max_rounds as usize),
        ];
        refuse_product(table, "responses a step", &responses)?;
        let tokens =
            [("max_sequences", self.max_sequences), ("max_new_tokens", self.max_new_tokens)];
        refuse_product(table, "tokens at once", &tokens)?;
        if self.temperature == 0.0 {
            return Err(usage(format!(
                "{table}.temperature is 0: it must be above, or no two responses differ"
            )));
        }
        check_temperature(&format!("{table}.temperature"), self.temperature as f32)
    }

    /// Returns what a resumed run may not change: the responses, however much room the sampler has.
    fn unchangeable(self) -> Self {
        Self { max_sequences: 1, kv_cache_tokens: None, ..self }
    }
}

impl TrainConfig {
    /// Refuses sizes with which nothing would be learnt, and what the device cannot compute.
    fn check(&self, table: &str) -> Result<()> {
        refuse_sizes(
            table,
            &[
                ("total_steps", self.total_steps as usize),
                ("epochs", self.epochs as usize),
                ("max_nonfinite_updates", self.max_nonfinite_updates as usize),
                ("ranks", self.ranks),
                ("seq_len", self.seq_len),
                ("mini_batch_prompts", self.mini_batch_prompts.unwrap_or(1)),
                ("micro_batch_size", self.micro_batch_size.unwrap_or(1)),
            ],
        )?;
        self.device.check_precision(self.precision, &format!("{table}.precision"))?;
        self.loss_scale.check(&format!("{table}.loss_scale"))?;
        self.device.check_tokens(self.seq_len, &format!("{table}.seq_len"))?;
        self.device.check_share_prompts(self.share_prompts, table)
    }

    /// Returns what a resumed run may not change: the updates, however they are computed. The size of a
    /// micro-batch is among it only if `aggregation` takes means over micro-batches.
    fn unchangeable(self, aggregation: Aggregation) -> Self {
        let is_averaged = aggregation == Aggregation::MicroTokenMean;
        Self {
            micro_batch_size: self.micro_batch_size.filter(|_| is_averaged),
            ranks: 1,
            device: DeviceKind::default(),
            precision: None,
            loss_scale: LossScaleConfig::default(),
            gpu: GpuConfig::default(),
            recompute: Recompute::default(),
            ..self
        }
    }
}

impl ValidationConfig {
    fn check(&self, table: &str) -> Result<()> {
        refuse_sizes(
            table,
            &[
                ("every", self.every as usize),
                ("rollouts", self.rollouts),
                ("num_problems", self.num_problems.unwrap_or(1)),
            ],
        )?;
        check_temperature(&format!("{table}.temperature"), self.temperature as f32)
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
        // verl's AdamW decays all parameters; the default here is that of transformers.
        let without = config::load::<Config>(&files, &["optim.decayed=all".to_owned()]).unwrap();
        assert_eq!(with.to_toml(), without.to_toml());
        assert_eq!(with.origin("policy.clip_dual").to_string(), "profile verl-0.9:13");
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
    fn what_a_task_or_a_disk_does_not_have_is_refused_before_the_run() {
        let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/demo/grpo.toml"));
        let config = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
            Config::load(std::slice::from_ref(&demo), &sets).unwrap().value
        };
        config(&["task=next-number", "reward.kind=binary"]).check().unwrap();
        let error = config(&["task=next-number", "reward.kind=cssr"]).check().unwrap_err();
        assert!(error.to_string().starts_with("reward.kind"), "{error}");
        config(&[]).check_files().unwrap();
        for (set, named) in [
            ("prompt=gone.txt", "prompt: cannot read gone.txt"),
            ("external_reward={command=['sh', 'gone.sh']}", "external_reward.command: gone.sh"),
        ] {
            let error = format!("{:#}", config(&[set]).check_files().unwrap_err());
            assert!(error.starts_with(named), "{error}");
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
