//! `--device` and `--ranks`: where a command generates.

use crate::base::error::usage;
use crate::checkpoint::LanguageModel;
use crate::engine::device::{self, DeviceModel};
use crate::eval::generator::{Generator, GpuRank};
use crate::train::device::DeviceKind;
use anyhow::Result;

/// Far more ranks than anybody has.
const MOST_RANKS: usize = 1 << 10;

/// Where a command that shares its work generates.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RankArgs {
    /// What computes
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceKind,
    /// Ranks that share the problems, threads on a CPU and GPUs otherwise; any number gives the same
    /// result
    #[arg(long, value_name = "N", default_value_t = 1)]
    ranks: usize,
}

/// A model opened to generate where the arguments say.
pub struct Candidate {
    /// The model.
    pub model: LanguageModel,
    gpus: Vec<DeviceModel>,
    ranks: usize,
}

impl RankArgs {
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

    /// Puts the model where it generates.
    pub fn place(self, model: LanguageModel) -> Result<Candidate> {
        let gpus = match self.device {
            DeviceKind::Cpu => Vec::new(),
            DeviceKind::Cuda => {
                let open = |ordinal| device::open(ordinal, &model.decoder, &model.params);
                (0..self.ranks).map(open).collect::<Result<_>>()?
            }
        };
        Ok(Candidate { model, gpus, ranks: self.ranks })
    }
}

impl Candidate {
    /// The model where it generates.
    pub fn generator(&mut self) -> Generator<'_> {
        match self.gpus.is_empty() {
            true => Generator::on_threads(&self.model, self.ranks),
            false => {
                Generator::on_gpus(&self.model, self.gpus.iter_mut().map(GpuRank::Here).collect())
            }
        }
    }
}
