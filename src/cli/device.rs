//! `--device`, `--precision` and `--ranks`: where a command computes, and in which number format.

use crate::base::error::usage;
use crate::checkpoint::ModelPlace;
use crate::engine::OpenModel;
use crate::model::Precision;
use crate::nodes;
use crate::trainer::device::DeviceKind;
use anyhow::Result;

/// No command accepts more ranks; it is far more than anybody has.
const MOST_RANKS: usize = 1 << 10;

/// Where a command computes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Compute on threads of this machine, or on GPUs
    #[arg(long = "device", value_name = "DEVICE", value_enum, default_value_t)]
    pub kind: DeviceKind,
    /// Compute in this number format, whatever the format of the model's files [default: f32 on a CPU, bf16
    /// on a GPU]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
}

/// Where a command generates that divides its work among ranks.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RankArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Divide the problems among this many ranks, which are threads on a CPU and GPUs otherwise; the result
    /// is the same for any number
    #[arg(long, value_name = "N", default_value_t = 1)]
    ranks: usize,
}

impl DeviceArgs {
    /// Refuses a device that is named although an endpoint computes.
    pub fn expect_none(self) -> Result<()> {
        match self {
            Self { kind: DeviceKind::Cpu, precision: None } => Ok(()),
            _ => Err(usage(
                "--device and --precision are for a model of this machine, not for --api",
            )),
        }
    }

    /// Refuses a device that this build or this machine does not have.
    pub fn check(self, ranks: usize) -> Result<()> {
        nodes::expect_one()?;
        self.kind.check_precision(self.precision, "--precision")?;
        self.kind.check(ranks)
    }

    /// Opens a model to run it on this many ranks.
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
    /// Refuses a device that is named although an endpoint computes.
    pub fn expect_none(self) -> Result<()> {
        if self.ranks != 1 {
            return Err(usage("--ranks is for a model of this machine, not for --api"));
        }
        self.device.expect_none()
    }

    /// Describes what responses depend on: the device and its number format.
    pub fn device(self) -> String {
        let precision = self.device.kind.precision(self.device.precision);
        match self.device.kind {
            DeviceKind::Cpu => format!("cpu, {precision}"),
            DeviceKind::Cuda => format!("cuda, {precision}"),
        }
    }

    /// Refuses a device that this build or this machine does not have.
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
