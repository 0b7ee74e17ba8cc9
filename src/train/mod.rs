//! The loops, and what they share: where a model comes from and what is kept of it.

pub mod device;
pub mod environment;
pub mod flops;
pub mod grpo;
pub mod metrics;
mod micro_batch;
pub mod plan;
mod rank;
pub mod rehearsal;
pub mod run;
pub mod samples;
pub mod settings;
pub mod sft;
pub mod tensorboard;
pub mod trainer;

use crate::base::error::{Interrupted, usage};
use crate::checkpoint::LanguageModel;
use crate::checkpoint::hub::{self, Needs};
use crate::dist::nodes::Nodes;
use crate::optim::{AdamWConfig, Schedule, Warmup};
use anyhow::{Context, Result};
use plan::PlanConfig;
use run::Ending;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

pub use micro_batch::{Chunk, MicroBatch};

/// Lends the GPUs of this node, other than node 0, to a run of `ranks` ranks on all nodes, to its end.
pub fn serve(nodes: &Nodes, ranks: usize) -> Result<()> {
    #[cfg(feature = "cuda")]
    return rank::serve(nodes, nodes.share(ranks)?);
    #[cfg(not(feature = "cuda"))]
    Err(crate::engine::device::refusal().context(format!("{ranks} ranks on {} nodes", nodes.count)))
}

/// What a run starts from: a model directory, or random weights of a given shape.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSource {
    /// A directory in Hugging Face layout, or the name of a model on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A `config.json` whose shape gets random weights; needs `tokenizer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// The tokenizer's directory, with `init`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
}

/// A [`ModelSource`] after checking.
enum Origin<'a> {
    Directory(&'a Path),
    Random { config: &'a Path, tokenizer: &'a Path },
}

impl ModelSource {
    fn origin(&self) -> Result<Origin<'_>> {
        match (&self.path, &self.init, &self.tokenizer) {
            (Some(path), None, None) => Ok(Origin::Directory(path)),
            (None, Some(config), Some(tokenizer)) => Ok(Origin::Random { config, tokenizer }),
            _ => Err(usage(
                "model: give either `path` (a model directory) or both `init` (a config.json) and \
                 `tokenizer` (a directory)",
            )),
        }
    }

    /// Where the tokenizer lies, if it is on this machine.
    pub fn tokenizer_here(&self) -> Option<PathBuf> {
        match self.origin().ok()? {
            Origin::Directory(path) => hub::resolve(path, Needs::Config).ok(),
            Origin::Random { tokenizer, .. } => Some(tokenizer.to_owned()),
        }
    }

    /// The directory of the tokenizer; with a model's name it is downloaded, if need be.
    pub fn tokenizer_dir(&self) -> Result<PathBuf> {
        match self.origin()? {
            Origin::Directory(path) => hub::resolve(path, Needs::Tokenizer),
            Origin::Random { tokenizer, .. } => Ok(tokenizer.to_owned()),
        }
    }

    /// Opens or initialises the model.
    pub fn open(&self, seed: u64) -> Result<LanguageModel> {
        match self.origin()? {
            Origin::Directory(path) => LanguageModel::open(path),
            Origin::Random { config, tokenizer } => LanguageModel::init(config, tokenizer, seed),
        }
    }
}

/// What is kept on disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 writes only the last one (and one on Ctrl-C).
    pub every: u64,
    /// Older ones are removed beyond this many; none given keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<usize>,
    /// Those at multiples of this many steps are kept beside them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
}

impl CheckpointConfig {
    fn is_due(&self, step: u64) -> bool {
        self.every > 0 && step.is_multiple_of(self.every)
    }
}

/// The largest size that a setting may have, and product of settings that are held at once: no machine
/// holds more, and what is computed from them stays within 64 bits.
const MOST: usize = 1 << 30;

/// Refuses a size of 0 or over [`MOST`]; the first one is named by its key.
fn refuse_sizes(sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=MOST).contains(size)) {
        Some((key, 0)) => Err(usage(format!("{key} is 0: it must be at least 1"))),
        Some((key, size)) => Err(usage(format!("{key} is {size}: it must be at most {MOST}"))),
        None => Ok(()),
    }
}

/// Refuses sizes whose product is over [`MOST`], each of which is not; `what` says what they make.
fn refuse_product(what: &str, sizes: &[(&str, usize)]) -> Result<()> {
    let product = sizes.iter().fold(1, |product: u128, (_, size)| product * *size as u128);
    if product <= MOST as u128 {
        return Ok(());
    }
    let names: Vec<&str> = sizes.iter().map(|(key, _)| *key).collect();
    Err(usage(format!("{} make {product} {what}: at most {MOST} can be", names.join(" x "))))
}

/// Refuses a number outside its range; the first one is named by its key.
fn refuse_outside(numbers: &[(&str, f64, RangeInclusive<f64>)]) -> Result<()> {
    match numbers.iter().find(|(_, value, range)| !range.contains(value)) {
        Some((key, value, range)) => Err(usage(format!(
            "{key} is {value}: it must be from {:?} to {:?}",
            range.start(),
            range.end()
        ))),
        None => Ok(()),
    }
}

/// Refuses settings of the optimizer, its schedule and the checkpoints that no run can have.
fn check_shared(
    optim: &AdamWConfig,
    schedule: &Schedule,
    checkpoint: &CheckpointConfig,
    plan: &PlanConfig,
) -> Result<()> {
    let below_one = 1.0 - f64::EPSILON;
    let warmup = match schedule.warmup {
        Warmup::Ratio(ratio) => ratio,
        Warmup::Steps(_) => 0.0,
    };
    refuse_outside(&[
        ("optim.lr", optim.lr, 0.0..=f64::MAX),
        ("optim.betas[0]", optim.betas.0, 0.0..=below_one),
        ("optim.betas[1]", optim.betas.1, 0.0..=below_one),
        ("optim.eps", optim.eps, f64::MIN_POSITIVE..=1e9),
        ("optim.weight_decay", optim.weight_decay, 0.0..=f64::MAX),
        ("optim.max_grad_norm", optim.max_grad_norm, 0.0..=f64::MAX),
        ("schedule.warmup.ratio", warmup, 0.0..=1.0),
        ("schedule.min_lr_ratio", schedule.min_lr_ratio, 0.0..=1.0),
        ("plan.gpu_memory_gb", plan.gpu_memory_gb.unwrap_or(1.0), 1e-3..=1e6),
    ])?;
    refuse_sizes(&[("checkpoint.keep_last", checkpoint.keep_last.unwrap_or(1))])
}

/// The model of the run's last checkpoint with that checkpoint's directory, or else of `source`.
fn resume_or_open(
    run: &run::RunDir,
    source: &ModelSource,
    seed: u64,
) -> Result<(LanguageModel, Option<PathBuf>)> {
    match run.checkpoints().latest()? {
        Some((_, dir)) => {
            let model = LanguageModel::open(&dir).with_context(|| unusable(&dir))?;
            Ok((model, Some(dir)))
        }
        None => {
            if run.path().join(metrics::FILE).exists() {
                tracing::warn!("there is no checkpoint to go on from: the run starts at step 0");
            }
            Ok((source.open(seed)?, None))
        }
    }
}

/// The end of a run that the user stopped, which says how it goes on.
fn stopped(step: u64) -> anyhow::Error {
    anyhow::Error::new(Interrupted).context(Ending::saved_at(step))
}

/// What to do where a run cannot go on from its last checkpoint.
fn unusable(dir: &Path) -> Ending {
    Ending(format!(
        "cannot go on from {0}; without {0}, --resume takes the one before",
        dir.display()
    ))
}

/// Writes the checkpoint of the trainer's step and removes those that are not kept.
fn save_checkpoint<S: Serialize>(
    run: &run::RunDir,
    trainer: &mut trainer::Trainer,
    state: &S,
    config: &CheckpointConfig,
) -> Result<()> {
    let checkpoints = run.checkpoints();
    trainer.save(&checkpoints.step_dir(trainer.step), state)?;
    match config.keep_last {
        Some(keep_last) => checkpoints.retain(keep_last, config.keep_every),
        None => Ok(()),
    }
}
