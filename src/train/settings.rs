//! The table `[train]` of `sft.toml`: how long a run is, how large its batches are, and where it is
//! computed.
//!
//! The optimizer (`[optim]`), the learning rate (`[schedule]`) and the data (`[data]`) have tables of their
//! own.

use crate::base::error::usage;
use crate::base::limits::{refuse_product, refuse_sizes};
use crate::engine::device;
use crate::model::flops::dense_tflops;
use crate::model::{BatchSize, Precision, Recompute};
use crate::optim::LossScaleConfig;
use crate::trainer::device::{DeviceKind, GpuConfig};
use crate::trainer::{Execution, LossScaling};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The number of updates, and the size of their batches. The global batch is `ranks` x
/// `gradient_accumulation` x `micro_batch_size` rows of `seq_len` tokens.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The number of updates.
    pub total_steps: u64,
    /// A packed row of samples has at most this many tokens.
    pub seq_len: usize,
    /// The number of rows that go through the model together; the paper's is 1.
    #[serde(default = "one")]
    pub micro_batch_size: usize,
    /// The number of micro-batches of each rank in one update, as InternEvo counts them: 16 on 8 ranks are
    /// 128 rows. The paper can also be read as 16 rows in all; for that, divide by the ranks.
    #[serde(default = "one")]
    pub gradient_accumulation: usize,
    /// The number of ranks that share the work, on all nodes together; the paper's is 8. On a CPU a rank is
    /// a thread, on GPUs each rank is a GPU.
    #[serde(default = "one")]
    pub ranks: usize,
    /// Where the ranks compute: on threads of this machine, or on GPUs.
    #[serde(default)]
    pub device: DeviceKind,
    /// The number format of weights and activations in the forward and backward. By default it is f32 on a
    /// CPU and bf16 on GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// The number formats in which a GPU holds moments and sums of gradients.
    #[serde(default)]
    pub gpu: GpuConfig,
    /// The loss scale, with fp16. It multiplies the mean loss over the tokens of a rank's update, as in
    /// InternEvo.
    #[serde(default)]
    pub loss_scale: LossScaleConfig,
    /// What the backward computes again, instead of keeping it from the forward.
    #[serde(default)]
    pub recompute: Recompute,
    /// The share of the target that is spread evenly over the vocabulary; the paper's is 0.
    #[serde(default)]
    pub label_smoothing: f64,
    /// The run ends after this many steps in a row without a finite loss and gradient.
    #[serde(default = "five")]
    pub max_nonfinite_steps: u64,
    /// The TFLOP/s that one rank's device reaches at most; MFU is a share of it. If it is not given, it is
    /// that of the first GPU's data sheet. No MFU is logged on a CPU or an unknown GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
}

fn one() -> usize {
    1
}

fn five() -> u64 {
    5
}

impl TrainConfig {
    /// Refuses numbers with which nothing would be learnt; `table` is the table's name in errors.
    pub fn check(&self, table: &str) -> Result<()> {
        refuse_sizes(
            table,
            &[
                ("total_steps", self.total_steps as usize),
                ("seq_len", self.seq_len),
                ("micro_batch_size", self.micro_batch_size),
                ("gradient_accumulation", self.gradient_accumulation),
                ("ranks", self.ranks),
                ("max_nonfinite_steps", self.max_nonfinite_steps as usize),
            ],
        )?;
        refuse_product(
            table,
            "tokens a step",
            &[
                ("ranks", self.ranks),
                ("gradient_accumulation", self.gradient_accumulation),
                ("micro_batch_size", self.micro_batch_size),
                ("seq_len", self.seq_len),
            ],
        )?;
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Err(usage(format!(
                "{table}.label_smoothing is {}: it must be at least 0 and below 1",
                self.label_smoothing
            )));
        }
        if let Some(peak) = self.peak_tflops
            && (peak.is_nan() || peak <= 0.0)
        {
            return Err(usage(format!("{table}.peak_tflops is {peak}: it must be above 0")));
        }
        self.device.check_precision(self.precision, &format!("{table}.precision"))?;
        let tokens = self.seq_len * self.micro_batch_size;
        self.device.check_tokens(tokens, &format!("{table}.seq_len x {table}.micro_batch_size"))?;
        self.loss_scale.check(&format!("{table}.loss_scale"))
    }

    /// Returns what a resumed run may not change: the rows of a step, however ranks and micro-batches
    /// divide them.
    pub(crate) fn unchangeable(self) -> Self {
        Self {
            gradient_accumulation: self.rows_per_step(),
            micro_batch_size: 1,
            ranks: 1,
            device: DeviceKind::default(),
            precision: None,
            gpu: GpuConfig::default(),
            loss_scale: LossScaleConfig::default(),
            recompute: Recompute::default(),
            peak_tflops: None,
            ..self
        }
    }

    /// Returns the number format of weights and activations.
    pub fn precision(&self) -> Precision {
        self.device.precision(self.precision)
    }

    /// Returns the TFLOP/s that one rank's device reaches at most, if they are known.
    pub fn peak_tflops(&self) -> Option<f64> {
        self.peak_tflops.or_else(|| match self.device {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda => dense_tflops(&device::name(0)?),
        })
    }

    /// Returns how the work is divided.
    pub fn execution(&self) -> Execution {
        let tokens = self.seq_len * self.micro_batch_size;
        let largest = BatchSize { tokens, longest: self.seq_len, targets: tokens };
        Execution {
            ranks: self.ranks,
            recompute: self.recompute,
            loss_scale: self.loss_scale(),
            gpus: self.device.gpus(self.gpu, self.precision(), largest),
        }
    }

    /// Returns the rows of all ranks in one update.
    pub fn rows_per_step(&self) -> usize {
        self.ranks * self.gradient_accumulation * self.micro_batch_size
    }

    /// Returns the loss scale, if the precision needs one.
    fn loss_scale(&self) -> Option<LossScaling> {
        let tokens = self.seq_len * self.micro_batch_size * self.gradient_accumulation;
        let scaling = LossScaling { config: self.loss_scale, divisor: tokens };
        (self.precision() == Precision::Fp16).then_some(scaling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> TrainConfig {
        let text = format!("total_steps = 9\nseq_len = 64\ngradient_accumulation = 4\n{more}");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn defaults_are_one_rank_in_f32() {
        let config = config("");
        config.check("train").unwrap();
        assert_eq!((config.rows_per_step(), config.loss_scale()), (4, None));
        assert_eq!((config.precision(), config.peak_tflops()), (Precision::F32, None));
    }

    #[test]
    fn gpus_compute_in_bf16_or_in_fp16_with_a_loss_scale() {
        let gpu = config("device = 'cuda'");
        gpu.check("train").unwrap();
        assert_eq!((gpu.precision(), gpu.loss_scale()), (Precision::Bf16, None));
        assert_eq!(config("device = 'cuda'\npeak_tflops = 3.5").peak_tflops(), Some(3.5));

        let half = config("device = 'cuda'\nprecision = 'fp16'\nloss_scale = { initial = 256.0 }");
        half.check("train").unwrap();
        let LossScaling { config, divisor } = half.loss_scale().unwrap();
        assert_eq!((config.initial, divisor), (256.0, 4 * 64));
    }

    #[test]
    fn numbers_that_cannot_work_are_named() {
        for (more, key) in [
            ("ranks = 0", "train.ranks"),
            ("micro_batch_size = 0", "train.micro_batch_size"),
            ("max_nonfinite_steps = 0", "train.max_nonfinite_steps"),
            ("label_smoothing = 1.0", "train.label_smoothing"),
            ("peak_tflops = 0.0", "train.peak_tflops"),
            ("loss_scale = { hysteresis = 0 }", "train.loss_scale.hysteresis"),
            ("precision = 'bf16'", "train.precision is bf16: a CPU"),
            ("precision = 'f32'\ndevice = 'cuda'", "train.precision is f32: GPUs"),
        ] {
            let error = config(more).check("train").unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
