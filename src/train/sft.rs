//! Supervised fine-tuning: the loop and its config.
//!
//! Loss is the mean negative log-likelihood over the assistant tokens of the step's global batch
//! (paper section 3, step 7; Table 6). Left out here: mixing of sources and several ranks.

use super::metrics::{Metrics, Row, row};
use super::run::RunDir;
use super::trainer::{Trainer, Update};
use super::{CheckpointConfig, ModelSource, resume_or_open, save_checkpoint};
use crate::base::error::{Interrupted, usage};
use crate::base::{interrupt, progress::Progress};
use crate::data::pack::{Cursor, Loader};
use crate::data::tokenized;
use crate::objective::sft::negative_log_likelihood;
use crate::optim::{AdamWConfig, Schedule};
use crate::tokenizer::{Tokenized, Tokenizer};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Instant;

/// The whole of `sft.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed of initial weights and shuffling.
    #[serde(default)]
    pub seed: u64,
    /// What to start from.
    pub model: ModelSource,
    /// What to learn from.
    pub data: DataConfig,
    /// The optimizer.
    pub optim: AdamWConfig,
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// How long and in what portions.
    pub train: TrainConfig,
    /// What is kept on disk.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
}

/// What to learn from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// JSON Lines files of samples.
    pub files: Vec<PathBuf>,
    /// Longer samples are dropped, in tokens.
    pub max_length: usize,
}

/// How long and in what portions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Updates.
    pub total_steps: u64,
    /// Most tokens in one packed row of samples.
    pub seq_len: usize,
    /// Packed rows in one update.
    pub gradient_accumulation: usize,
}

/// Trains by `config` in `run`, from its last checkpoint if there is one, and returns the model's
/// directory.
pub fn train(config: &Config, run: &RunDir, label: &str) -> Result<PathBuf> {
    let total_steps = config.train.total_steps;
    let (model, resumed) = resume_or_open(run, &config.model, config.seed)?;
    let samples = read_samples(&config.data, &model.tokenizer)?;
    let mut trainer = Trainer::new(model, config.optim, config.schedule, total_steps);
    let cursor = match resumed {
        Some(dir) => trainer.restore::<Cursor>(&dir)?,
        None => Cursor::default(),
    };
    let mut loader = Loader::new(samples, config.train.seq_len, config.seed, cursor)?;
    let mut metrics = Metrics::open(run.path())?;
    metrics.truncate_after(trainer.step)?;
    let progress = Progress::new(label, total_steps, "steps");
    progress.skip(trainer.step);
    while trainer.step < total_steps {
        let started = Instant::now();
        let batch = step(&mut trainer, &mut loader, config.train.gradient_accumulation);
        metrics.log(trainer.step, batch.metrics(started.elapsed().as_secs_f64()))?;
        progress.set_message(format!("loss {:.3}", batch.loss));
        progress.inc(1);
        let is_interrupted = interrupt::requested();
        let is_last = trainer.step == total_steps;
        if is_last || is_interrupted || config.checkpoint.is_due(trainer.step) {
            metrics.sync()?;
            save_checkpoint(run, &trainer, &loader.cursor(), &config.checkpoint)?;
        }
        if is_interrupted && !is_last {
            return Err(Interrupted.into());
        }
    }
    progress.finish();
    Ok(run.checkpoints().step_dir(total_steps))
}

/// The samples of all files that are short enough.
pub(super) fn read_samples(config: &DataConfig, tokenizer: &Tokenizer) -> Result<Vec<Tokenized>> {
    let mut samples = Vec::new();
    for file in &config.files {
        samples.extend(tokenized::load(file, tokenizer)?);
    }
    let num_read = samples.len();
    samples.retain(|sample| sample.input_ids.len() <= config.max_length);
    if samples.is_empty() {
        return Err(usage(format!(
            "data.files: none of {num_read} samples has at most data.max_length = {} tokens",
            config.max_length
        )));
    }
    if samples.len() < num_read {
        tracing::warn!(
            "dropped {} of {num_read} samples longer than data.max_length = {}",
            num_read - samples.len(),
            config.max_length
        );
    }
    Ok(samples)
}

/// What one step saw.
struct StepResult {
    loss: f64,
    num_tokens: usize,
    num_targets: usize,
    update: Update,
}

/// One update over `num_rows` packed rows.
fn step(trainer: &mut Trainer, loader: &mut Loader, num_rows: usize) -> StepResult {
    let (mut loss_sum, mut num_tokens, mut num_targets) = (0.0, 0, 0);
    for _ in 0..num_rows {
        let batch = loader.next_batch();
        num_tokens += batch.tokens.len();
        num_targets += batch.targets.len();
        trainer.accumulate(&batch, 1.0, &mut |_, scores, dlogp, _| {
            let logp: Vec<f32> = scores.iter().map(|s| s.logp).collect();
            loss_sum += negative_log_likelihood(&logp, 1.0, dlogp);
        });
    }
    let update = trainer.update(num_targets as f64);
    StepResult { loss: loss_sum / num_targets as f64, num_tokens, num_targets, update }
}

impl StepResult {
    fn metrics(&self, secs: f64) -> Row {
        row([
            ("loss/nll", self.loss),
            ("optim/grad_norm", self.update.grad_norm),
            ("optim/lr", self.update.lr),
            ("optim/skipped", f64::from(u8::from(!self.update.is_finite))),
            ("data/tokens", self.num_tokens as f64),
            ("data/target_tokens", self.num_targets as f64),
            ("time/step_secs", secs),
            ("time/tokens_per_sec", self.num_tokens as f64 / secs),
        ])
    }
}
