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

impl Config {
    /// Refuses sizes with which nothing would be learnt.
    pub fn check(&self) -> Result<()> {
        super::refuse_zeros(&[
            ("train.total_steps", self.train.total_steps as usize),
            ("train.seq_len", self.train.seq_len),
            ("train.gradient_accumulation", self.train.gradient_accumulation),
        ])
    }
}

/// Trains by `config` in `run`, from its last checkpoint if there is one, and returns the model's
/// directory.
pub fn train(config: &Config, run: &RunDir, label: &str) -> Result<PathBuf> {
    config.check()?;
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
    trainer.end_step();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::checkpoint::LanguageModel;
    use crate::model::{Decoder, ModelConfig, layout};
    use crate::tokenizer::bpe;

    fn model() -> LanguageModel {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"model_type": "llama", "vocab_size": 400, "hidden_size": 16,
            "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}"#;
        let config = ModelConfig::from_json(text).unwrap();
        LanguageModel {
            params: layout::init(&config, 1),
            decoder: Decoder::new(config),
            tokenizer: bpe::tests::small(dir.path()),
        }
    }

    fn sample(length: usize) -> Tokenized {
        Tokenized {
            input_ids: (0..length).map(|i| (31 * i + length) as u32 % 400).collect(),
            loss_mask: (0..length).map(|i| i > 2).collect(),
        }
    }

    /// The loss and the weights after one step over three samples in `num_rows` rows.
    fn one_step(seq_len: usize, num_rows: usize) -> (f64, Vec<f32>) {
        let samples = vec![sample(16), sample(30), sample(17)];
        let optim: AdamWConfig = toml::from_str("lr = 1e-3").unwrap();
        let mut trainer = Trainer::new(model(), optim, Schedule::default(), 10);
        let mut loader = Loader::new(samples, seq_len, 1, Cursor::default()).unwrap();
        let result = step(&mut trainer, &mut loader, num_rows);
        assert_eq!((result.num_tokens, result.num_targets), (63, 54));
        (result.loss, trainer.model.params)
    }

    #[test]
    fn packing_and_accumulation_do_not_change_the_loss() {
        let (loss, together) = one_step(63, 1);
        let (other, apart) = one_step(30, 3);
        assert!((loss - other).abs() < 1e-6 * loss, "{loss} is not {other}");
        let apart_by: f32 = together.iter().zip(&apart).map(|(a, b)| (a - b).abs()).sum();
        assert!(apart_by / (together.len() as f32) < 1e-6, "{apart_by}");
    }

    #[test]
    fn samples_that_are_too_long_are_dropped_and_none_left_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("samples.jsonl");
        let lines = [4usize, 7].map(|length| {
            let ids: Vec<usize> = (0..length).collect();
            let labels: Vec<i64> =
                (0..length as i64).map(|i| if i < 2 { -100 } else { i }).collect();
            serde_json::json!({"input_ids": ids, "labels": labels}).to_string()
        });
        std::fs::write(&file, lines.join("\n")).unwrap();
        let tokenizer = bpe::tests::small(dir.path());
        let config = |max_length| DataConfig { files: vec![file.clone()], max_length };
        assert_eq!(read_samples(&config(7), &tokenizer).unwrap().len(), 2);
        assert_eq!(read_samples(&config(6), &tokenizer).unwrap().len(), 1);
        let error = read_samples(&config(3), &tokenizer).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("data.max_length = 3"), "{error}");
    }
}
