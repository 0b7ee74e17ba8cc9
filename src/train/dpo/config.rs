//! `dpo.toml`: the settings of preference optimisation. Defaults of the loss are TRL's.

use super::pairs::DataConfig;
use crate::base::error::usage;
use crate::base::limits::{refuse_product, refuse_sizes};
use crate::checkpoint::ModelSource;
use crate::model::{BatchSize, Precision, Recompute};
use crate::objective::dpo::LossConfig;
use crate::optim::{AdamWConfig, LossScaleConfig, Schedule};
use crate::plan::PlanConfig;
use crate::run::{CheckpointConfig, Input, RunConfig};
use crate::trainer::device::{DeviceKind, GpuConfig};
use crate::trainer::{Execution, LossScaling};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The settings of a run.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The seed of the order of pairs.
    #[serde(default)]
    pub seed: u64,
    /// The model from which training starts. It is also the reference model.
    pub model: ModelSource,
    /// The pairs to learn from.
    pub data: DataConfig,
    /// The loss that is minimised.
    #[serde(default)]
    pub loss: LossConfig,
    /// AdamW, and the clipping of gradients.
    #[serde(default)]
    pub optim: AdamWConfig,
    /// The learning rate over the run.
    #[serde(default)]
    pub schedule: Schedule,
    /// The number of updates, and the size of their batches.
    pub train: TrainConfig,
    /// Which checkpoints are written and kept.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// The memory for which a run on GPUs is planned.
    #[serde(default)]
    pub plan: PlanConfig,
}

/// The number of updates, and the size of their batches.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The number of updates of the run.
    pub total_steps: u64,
    /// The number of pairs in one update, of all ranks together. The loss is the mean over them.
    pub pairs_per_step: usize,
    /// A packed row of answers has at most this many tokens.
    pub seq_len: usize,
    /// The number of ranks that share the rows of an update, on all nodes together. On a CPU a rank is a
    /// thread, on GPUs each rank is a GPU.
    #[serde(default = "one")]
    pub ranks: usize,
    /// Where the ranks compute: on threads of this machine, or on GPUs.
    #[serde(default)]
    pub device: DeviceKind,
    /// The number format of weights and activations. By default it is f32 on a CPU and bf16 on GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// The loss scale, with fp16. It multiplies the mean loss over the pairs of a rank in an update.
    #[serde(default)]
    pub loss_scale: LossScaleConfig,
    /// The number formats in which a GPU holds moments and sums of gradients.
    #[serde(default)]
    pub gpu: GpuConfig,
    /// What the backward computes again, instead of keeping it from the forward.
    #[serde(default)]
    pub recompute: Recompute,
    /// Whether a prompt is computed once for both answers, where a row has room for them. Log-probabilities
    /// keep their bits; the sums of gradients are taken in another order. By default a CPU does so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_prompts: Option<bool>,
    /// The run stops after this many steps in a row without a finite loss and gradient.
    #[serde(default = "five")]
    pub max_nonfinite_steps: u64,
}

fn one() -> usize {
    1
}

fn five() -> u64 {
    5
}

impl Config {
    /// Refuses settings with which nothing would be learnt.
    pub fn check(&self) -> Result<()> {
        self.data.check("data")?;
        self.loss.check("loss")?;
        self.optim.check("optim")?;
        self.schedule.check("schedule")?;
        self.train.check("train")?;
        self.checkpoint.check("checkpoint")?;
        self.plan.check("plan")?;
        if self.data.max_length > self.train.seq_len {
            return Err(usage(format!(
                "data.max_length is {}, but a row holds train.seq_len = {} tokens",
                self.data.max_length, self.train.seq_len
            )));
        }
        Ok(())
    }

    /// Returns the files that a resumed run reads again.
    pub(crate) fn inputs(&self) -> Result<Vec<Input>> {
        let input = |name, files| Input { name, files, may_change: false };
        Ok(vec![
            input("the reference model (model)", self.model.files()?),
            input("data.files", self.data.files.clone()),
        ])
    }

    /// Returns how the work is spread over ranks and devices.
    pub(crate) fn execution(&self) -> Execution {
        let TrainConfig { ranks, recompute, device, precision, gpu, seq_len, .. } = self.train;
        let largest =
            BatchSize { tokens: seq_len, longest: self.data.max_length, targets: seq_len };
        let gpus = device.gpus(gpu, device.precision(precision), largest);
        Execution { ranks, recompute, loss_scale: self.train.loss_scale(), gpus }
    }
}

impl RunConfig for Config {
    fn checkpoint(&self) -> &CheckpointConfig {
        &self.checkpoint
    }

    fn unchangeable(&self) -> Self {
        let config = self.clone();
        Self {
            data: config.data.unchangeable(),
            train: config.train.unchangeable(),
            checkpoint: CheckpointConfig::default(),
            plan: PlanConfig::default(),
            ..config
        }
    }
}

impl TrainConfig {
    /// Refuses sizes with which nothing would be learnt, and what the device does not compute.
    fn check(&self, table: &str) -> Result<()> {
        refuse_sizes(
            table,
            &[
                ("total_steps", self.total_steps as usize),
                ("pairs_per_step", self.pairs_per_step),
                ("seq_len", self.seq_len),
                ("ranks", self.ranks),
                ("max_nonfinite_steps", self.max_nonfinite_steps as usize),
            ],
        )?;
        refuse_product(
            table,
            "tokens a step",
            &[("pairs_per_step", self.pairs_per_step), ("seq_len", self.seq_len)],
        )?;
        self.device.check_precision(self.precision, &format!("{table}.precision"))?;
        self.loss_scale.check(&format!("{table}.loss_scale"))?;
        self.device.check_tokens(self.seq_len, &format!("{table}.seq_len"))?;
        self.device.check_share_prompts(self.share_prompts.unwrap_or(false), table)
    }

    /// Returns the settings that a resumed run may not change; the others take their defaults.
    fn unchangeable(self) -> Self {
        Self {
            ranks: 1,
            device: DeviceKind::default(),
            precision: None,
            gpu: GpuConfig::default(),
            recompute: Recompute::default(),
            share_prompts: None,
            ..self
        }
    }

    /// Tells whether a prompt is computed once for both of its answers.
    pub(crate) fn shares_prompts(&self) -> bool {
        self.share_prompts.unwrap_or(self.device == DeviceKind::Cpu)
    }

    /// Returns the loss scale, if the precision needs one.
    fn loss_scale(&self) -> Option<LossScaling> {
        let divisor = self.pairs_per_step.div_ceil(self.ranks);
        let scaling = LossScaling { config: self.loss_scale, divisor };
        (self.device.precision(self.precision) == Precision::Fp16).then_some(scaling)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Settings of rows of `seq_len` tokens, with more of them or others.
    pub(crate) fn config(seq_len: usize, more: &str) -> Config {
        let text = format!(
            "model.path = 'm'\ndata = {{ files = ['p'], max_length = {seq_len} }}\n[train]\n\
             total_steps = 9\npairs_per_step = 4\nseq_len = {seq_len}\n{more}"
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn a_prompt_is_shared_where_the_device_can() {
        for (more, shared) in
            [("", true), ("share_prompts = false", false), ("device = 'cuda'", false)]
        {
            let config = config(64, more);
            config.check().unwrap();
            assert_eq!(config.train.shares_prompts(), shared, "{more}");
        }
    }

    #[test]
    fn numbers_that_cannot_work_are_named() {
        for (more, key) in [
            ("ranks = 0", "train.ranks"),
            ("device = 'cuda'\nshare_prompts = true", "train.share_prompts"),
            ("precision = 'bf16'", "train.precision is bf16: a CPU"),
            ("[loss]\nbeta = 0.0", "loss.beta"),
            ("[optim]\nbetas = [1.0, 0.9]", "optim.betas[0]"),
        ] {
            let error = config(64, more).check().unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
        let mut long = config(64, "");
        long.data.max_length = 65;
        assert!(long.check().unwrap_err().to_string().contains("train.seq_len = 64"));
    }

    #[test]
    fn the_loss_scale_of_fp16_is_that_of_the_mean_over_a_ranks_pairs() {
        let config = config(64, "device = 'cuda'\nprecision = 'fp16'\nranks = 3");
        config.check().unwrap();
        assert_eq!(config.execution().loss_scale.unwrap().divisor, 2);
    }
}
