//! `--device`, `--precision` and `--ranks`: where a command computes, and in which numbers.

use crate::base::error::usage;
use crate::checkpoint::ModelPlace;
use crate::engine::OpenModel;
use crate::model::Precision;
use crate::nodes;
use crate::trainer::device::DeviceKind;
use anyhow::Result;

/// Far more ranks than anybody has.
const MOST_RANKS: usize = 1 << 10;

/// Where a command computes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DeviceArgs {
    /// What computes
    #[arg(long = "device", value_name = "DEVICE", value_enum, default_value_t)]
    pub kind: DeviceKind,
    /// Numbers of weights and activations, in whichever the model is stored; where not given, f32 on a
    /// CPU and bf16 on a GPU
    #[arg(long, value_enum)]
    precision: Option<Precision>,
}

/// Where a command that shares its work generates.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RankArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Ranks that share the problems, threads on a CPU and GPUs otherwise; any number gives the same
    /// result
    #[arg(long, value_name = "N", default_value_t = 1)]
    ranks: usize,
}

impl DeviceArgs {
    /// Refuses what this program and this machine do not have.
    pub fn check(self, ranks: usize) -> Result<()> {
        nodes::expect_one()?;
        self.kind.check_precision(self.precision, "--precision")?;
        self.kind.check(ranks)
    }

    /// Opens a model to run it on so many ranks.
    pub fn open(self, model: ModelPlace<'_>, ranks: usize) -> Result<OpenModel> {
        match self.kind {
            DeviceKind::Cpu => OpenModel::on_threads(model, ranks),
            DeviceKind::Cuda => {
                OpenModel::on_gpus(model, ranks, self.kind.precision(self.precision))
            }
        }
    }
}

impl RankArgs {
    /// What responses depend on: the device and its numbers.
    pub fn device(self) -> String {
        let precision = self.device.kind.precision(self.device.precision);
        match self.device.kind {
            DeviceKind::Cpu => format!("cpu, {precision}"),
            DeviceKind::Cuda => format!("cuda, {precision}"),
        }
    }

    /// Refuses what this program and this machine do not have.
    pub fn check(self) -> Result<()> {
        if !(1..=MOST_RANKS).contains(&self.ranks) {
            return Err(usage(format!(
                "--ranks is {}: it must be from 1 to {MOST_RANKS}",
                self.ranks
            )));
        }
        self.device.check(self.ranks)
    }

    /// Opens a model to run it.
    pub fn open(self, model: ModelPlace<'_>) -> Result<OpenModel> {
        self.device.open(model, self.ranks)
    }
}
