//! Supervised fine-tuning: the loop and its config.
//!
//! Loss is the mean negative log-likelihood over the assistant tokens of the step's global batch
//! (paper section 3, step 7; Table 6). Left out here: several ranks.

use super::metrics::{Metrics, Row, row};
use super::run::RunDir;
use super::trainer::{Trainer, Update};
use super::{CheckpointConfig, ModelSource, resume_or_open, save_checkpoint};
use crate::base::error::Interrupted;
use crate::base::{interrupt, progress::Progress};
use crate::data::dataset::DataConfig;
use crate::data::loader::{Cursor, Loader};
use crate::objective::sft::negative_log_likelihood;
use crate::optim::{AdamWConfig, Schedule};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
        self.data.check(self.train.seq_len)?;
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
    let dataset = config.data.open(&model.tokenizer)?;
    let mut trainer = Trainer::new(model, config.optim, config.schedule, total_steps);
    let cursor = match resumed {
        Some(dir) => trainer.restore::<Cursor>(&dir)?,
        None => Cursor::default(),
    };
    let mut loader = dataset.loader(config.train.seq_len, config.seed, cursor)?;
    let num_rows = total_steps as usize * config.train.gradient_accumulation;
    tracing::info!("packing: {}", loader.packing(num_rows));
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

/// What one step saw.
struct StepResult {
    loss: f64,
    num_tokens: usize,
    num_targets: usize,
    /// Tokens of each named source.
    by_source: BTreeMap<String, usize>,
    /// The share of the rows that was filled.
    packing: f64,
    update: Update,
}

/// One update over `num_rows` packed rows.
fn step(trainer: &mut Trainer, loader: &mut Loader, num_rows: usize) -> StepResult {
    let (mut loss_sum, mut num_tokens, mut num_targets) = (0.0, 0, 0);
    let mut by_source = BTreeMap::new();
    for _ in 0..num_rows {
        let batch = loader.next_batch();
        for (source, tokens) in loader.tokens_by_source(&batch) {
            *by_source.entry(source.to_owned()).or_default() += tokens;
        }
        num_tokens += batch.tokens.len();
        num_targets += batch.targets.len();
        trainer.accumulate(&batch, 1.0, &mut |_, scores, dlogp, _| {
            let logp: Vec<f32> = scores.iter().map(|s| s.logp).collect();
            loss_sum += negative_log_likelihood(&logp, 1.0, dlogp);
        });
    }
    let update = trainer.update(num_targets as f64);
    let loss = loss_sum / num_targets as f64;
    let packing = num_tokens as f64 / (num_rows * loader.seq_len()) as f64;
    StepResult { loss, num_tokens, num_targets, by_source, packing, update }
}

impl StepResult {
    fn metrics(&self, secs: f64) -> Row {
        let mut metrics = row([
            ("loss/nll", self.loss),
            ("optim/grad_norm", self.update.grad_norm),
            ("optim/lr", self.update.lr),
            ("optim/skipped", f64::from(u8::from(!self.update.is_finite))),
            ("data/tokens", self.num_tokens as f64),
            ("data/target_tokens", self.num_targets as f64),
            ("data/packing_efficiency", self.packing),
            ("time/step_secs", secs),
            ("time/tokens_per_sec", self.num_tokens as f64 / secs),
        ]);
        let by_source = self.by_source.iter();
        metrics.extend(by_source.map(|(name, &n)| (format!("data/tokens_{name}"), n.into())));
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::LanguageModel;
    use crate::data::dataset::Source;
    use crate::data::mixture::MixBy;
    use crate::data::pack::Batch;
    use crate::model::{Decoder, ModelConfig, layout};
    use crate::tokenizer::{Tokenized, bpe};
    use proptest::prelude::*;

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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn the_loss_of_packed_rows_is_that_of_each_sample_alone(
            lengths in proptest::collection::vec(4usize..20, 2..7),
            seq_len in 20usize..60,
            ahead in 0usize..4,
            seed: u64,
        ) {
            let samples: Vec<Tokenized> = lengths.iter().map(|&n| sample(n)).collect();
            let (learnt, rest) = samples.split_at(samples.len() / 2);
            let sources = [("a", learnt), ("b", rest)].map(|(n, s)| Source::in_memory(n, 1.0, s));
            let mut loader = Loader::of_sources(
                sources.into(), MixBy::Samples, ahead, seq_len, seed, Cursor::default(),
            ).unwrap();
            let packed: Vec<Batch> = (0..3).map(|_| loader.next_batch()).collect();
            let indices = packed.iter().flat_map(|row| row.samples.clone());
            let alone: Vec<Batch> = indices.map(|i| Batch::new(&samples, &[i])).collect();
            let (loss, weights) = learn(&packed);
            let (other, apart) = learn(&alone);
            prop_assert!((loss - other).abs() < 1e-6 * loss, "{} is not {}", loss, other);
            let differences = weights.iter().zip(&apart).map(|(a, b)| (a - b).abs());
            prop_assert!(differences.sum::<f32>() / (weights.len() as f32) < 1e-6);
        }
    }

    /// The loss and the weights after one update over the batches.
    fn learn(batches: &[Batch]) -> (f64, Vec<f32>) {
        let optim: AdamWConfig = toml::from_str("lr = 1e-3").unwrap();
        let mut trainer = Trainer::new(model(), optim, Schedule::default(), 10);
        let mut loss = 0.0;
        for batch in batches {
            trainer.accumulate(batch, 1.0, &mut |_, scores, dlogp, _| {
                let logp: Vec<f32> = scores.iter().map(|s| s.logp).collect();
                loss += negative_log_likelihood(&logp, 1.0, dlogp);
            });
        }
        let num_targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        trainer.update(num_targets as f64);
        (loss / num_targets as f64, trainer.model.params)
    }
}
