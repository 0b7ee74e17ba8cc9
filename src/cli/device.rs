//! `--device`, `--precision` and `--ranks`: where a command computes, and in which numbers.

use crate::base::error::usage;
use crate::checkpoint::{LanguageModel, StoredModel};
use crate::engine::Sampler;
use crate::engine::device::{self, DeviceModel};
use crate::engine::generator::Generator;
use crate::model::{Decoder, Precision};
use crate::nodes;
use crate::trainer::device::DeviceKind;
use anyhow::Result;
use std::path::Path;

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

/// A model opened to generate where the arguments say.
pub enum Candidate {
    /// On so many ranks of threads.
    Threads(LanguageModel, usize),
    /// On GPUs that have its weights.
    Gpus(StoredModel, Vec<DeviceModel>),
}

impl DeviceArgs {
    /// Refuses what this program and this machine do not have.
    pub fn check(self, ranks: usize) -> Result<()> {
        nodes::expect_one()?;
        self.kind.check_precision(self.precision, "--precision")?;
        self.kind.check(ranks)
    }

    /// A model on a GPU, whose parameters have yet to be uploaded.
    pub fn open_gpu(self, ordinal: usize, decoder: &Decoder) -> Result<DeviceModel> {
        device::open(ordinal, decoder, self.kind.precision(self.precision))
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

    /// Opens a model where it generates.
    pub fn open(self, model: &Path) -> Result<Candidate> {
        match self.device.kind {
            DeviceKind::Cpu => Ok(Candidate::Threads(LanguageModel::open(model)?, self.ranks)),
            DeviceKind::Cuda => {
                let model = StoredModel::open(model)?;
                let gpus =
                    (0..self.ranks).map(|ordinal| self.device.open_gpu(ordinal, &model.decoder));
                let mut gpus = gpus.collect::<Result<Vec<_>>>()?;
                model.read(|at, params| {
                    gpus.iter_mut().try_for_each(|gpu| gpu.upload(at, params))
                })?;
                Ok(Candidate::Gpus(model, gpus))
            }
        }
    }
}

impl Candidate {
    /// The model where it generates.
    pub fn generator(&mut self) -> Generator<'_> {
        match self {
            Self::Threads(model, ranks) => Generator::on_threads(model, *ranks),
            Self::Gpus(model, gpus) => {
                let gpus = gpus.iter_mut().map(|gpu| Box::new(gpu) as Box<dyn Sampler>);
                Generator::on_gpus(&model.decoder, &model.tokenizer, gpus.collect())
            }
        }
    }
}
