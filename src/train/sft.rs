//! Supervised fine-tuning: the loop and its configuration.
//!
//! The loss is the mean negative log-likelihood over the assistant tokens of a step's global batch (paper
//! section 3, step 7; Table 6). One loader draws the rows of all ranks in order, so what a step learns does
//! not depend on the number of ranks. A step whose loss or gradient is not finite is skipped; several in a
//! row end the run.

use super::session::{Session, Start, Terms};
use super::settings::TrainConfig;
use crate::base::memory;
use crate::checkpoint::ModelSource;
use crate::data::dataset::DataConfig;
use crate::data::loader::Loader;
use crate::data::pack::Batch;
use crate::model::flops::ModelFlops;
use crate::objective::sft::NegativeLogLikelihood;
use crate::optim::{AdamWConfig, Schedule};
use crate::plan::PlanConfig;
use crate::run::metrics::{Row, mebibytes, row};
use crate::run::{CheckpointConfig, RunConfig, RunDir};
use crate::trainer::{MicroBatch, Trainer, Update};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// The configuration of `train sft`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The seed of the initial weights and of the order of samples.
    #[serde(default)]
    pub seed: u64,
    /// The model from which training starts.
    pub model: ModelSource,
    /// The conversations to learn from.
    pub data: DataConfig,
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

impl Config {
    /// Refuses settings with which nothing would be learnt.
    pub fn check(&self) -> Result<()> {
        self.optim.check("optim")?;
        self.schedule.check("schedule")?;
        self.train.check("train")?;
        self.data.check(self.train.seq_len)?;
        self.checkpoint.check("checkpoint")?;
        self.plan.check("plan")
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

    fn rows_per_step(&self) -> Option<usize> {
        Some(self.train.rows_per_step())
    }
}

/// Trains as `config` says in the directory `run`, from its last checkpoint if there is one. Returns the
/// model's directory.
pub fn train(config: &Config, run: &RunDir, label: &str) -> Result<PathBuf> {
    config.check()?;
    let Config { seed, optim, schedule, ref train, ref checkpoint, .. } = *config;
    let start = Start::find(run, &config.model, seed)?;
    let dataset = config.data.open(&start.model.tokenizer)?;
    let model = start.model.decoder.config();
    model.check_length(dataset.longest()).context("the longest sample: lower data.max_length")?;
    let flops = ModelFlops::new(start.model.decoder.config());
    let (trainer, saved) = start.trainer(optim, schedule, train.total_steps, train.execution())?;
    let mut loader = dataset.loader(train.seq_len, seed, saved.unwrap_or_default())?;
    let num_rows = train.total_steps as usize * train.rows_per_step();
    tracing::info!("packing: {}", loader.packing(num_rows));
    let terms = Terms {
        label,
        total_steps: train.total_steps,
        checkpoint,
        max_skipped: train.max_nonfinite_steps,
        max_skipped_key: "train.max_nonfinite_steps",
    };
    let mut session = Session::open(run, trainer, terms)?;
    while session.has_next_step() {
        let result = step(&mut session.trainer, &mut loader, train, &flops)?;
        session.log(result.metrics(train), format!("loss {:.3}", result.loss))?;
        session.end_step(&loader.cursor(), result.trouble())?;
    }
    Ok(session.finish())
}

/// The results of one step.
struct StepResult {
    /// The mean negative log-likelihood of the targets, in nats.
    nll: f64,
    /// The loss that was minimised: `nll` with smoothed labels.
    loss: f64,
    num_tokens: usize,
    num_targets: usize,
    /// The number of tokens of each named source.
    by_source: BTreeMap<String, usize>,
    /// The share of the rows that was filled, from 0 to 1.
    packing: f64,
    /// The samples, as indices into the data.
    samples: Vec<usize>,
    model_flops: f64,
    data_secs: f64,
    secs: f64,
    gpu_peak_bytes: Option<usize>,
    update: Update,
}

/// Makes one update from the rows of all ranks.
fn step(
    trainer: &mut Trainer,
    loader: &mut Loader,
    config: &TrainConfig,
    flops: &ModelFlops,
) -> Result<StepResult> {
    let started = Instant::now();
    let rows: Vec<Batch> = (0..config.rows_per_step()).map(|_| loader.next_batch()).collect();
    let data_secs = started.elapsed().as_secs_f64();
    let batches: Vec<_> = rows.chunks(config.micro_batch_size).map(MicroBatch::join).collect();
    let objective = NegativeLogLikelihood::new(config.label_smoothing as f32, batches.len());
    trainer.accumulate(&batches, 1.0, &objective)?;
    let losses = objective.into_losses();
    let num_targets: usize = rows.iter().map(|row| row.targets.len()).sum();
    let mean = |sum: f64| sum / num_targets as f64;
    let loss = mean(losses.loss);
    let update = trainer.update(num_targets as f64, loss)?;
    trainer.end_step();
    let mut by_source = BTreeMap::new();
    for (source, tokens) in rows.iter().flat_map(|row| loader.tokens_by_source(row)) {
        *by_source.entry(source.to_owned()).or_default() += tokens;
    }
    let num_tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
    let lengths = rows.iter().flat_map(|row| row.cu_seqlens.windows(2)).map(|e| e[1] - e[0]);
    Ok(StepResult {
        nll: mean(losses.nll),
        loss,
        num_tokens,
        num_targets,
        by_source,
        packing: num_tokens as f64 / (rows.len() * loader.seq_len()) as f64,
        model_flops: lengths.map(|length| flops.training(length as usize)).sum(),
        samples: rows.into_iter().flat_map(|row| row.samples).collect(),
        data_secs,
        secs: started.elapsed().as_secs_f64(),
        gpu_peak_bytes: trainer.gpu_peak_bytes()?,
        update,
    })
}

impl StepResult {
    fn metrics(&self, config: &TrainConfig) -> Row {
        let mut metrics = row([
            ("loss/nll", self.nll),
            ("optim/grad_norm", self.update.grad_norm),
            ("optim/lr", self.update.lr),
            ("optim/skipped", f64::from(u8::from(self.update.skipped.is_some()))),
            ("data/tokens", self.num_tokens as f64),
            ("data/target_tokens", self.num_targets as f64),
            ("data/packing_efficiency", self.packing),
            ("time/step_secs", self.secs),
            ("time/data_secs", self.data_secs),
            ("time/tokens_per_sec", self.num_tokens as f64 / self.secs),
            ("time/model_tflops_per_sec", self.model_flops / self.secs / 1e12),
        ]);
        let optional = [
            ("loss/smoothed", (config.label_smoothing > 0.0).then_some(self.loss)),
            ("optim/loss_scale", self.update.loss_scale),
            (
                "time/mfu",
                config
                    .peak_tflops()
                    .map(|peak| self.model_flops / self.secs / (peak * 1e12 * config.ranks as f64)),
            ),
            ("time/resident_mib", memory::resident().map(|b| mebibytes(b as usize))),
            ("time/gpu_peak_mib", self.gpu_peak_bytes.map(mebibytes)),
        ];
        metrics.extend(row(optional.into_iter().filter_map(|(key, v)| Some((key, v?)))));
        let numbers: Vec<usize> = self.samples.iter().map(|sample| sample + 1).collect();
        metrics.insert("data/samples".into(), numbers.into());
        let by_source = self.by_source.iter();
        metrics.extend(by_source.map(|(name, &n)| (format!("data/tokens_{name}"), n.into())));
        metrics
    }

    /// Returns what was wrong with the step, if it was skipped.
    fn trouble(&self) -> Option<String> {
        let found = self.update.skipped.as_ref()?;
        let what = match found.tensors.as_slice() {
            [] if self.loss.is_finite() => "the norm of the gradient overflows".to_owned(),
            [] => "every gradient is finite".to_owned(),
            [only] => format!("the gradient of {only} is not finite"),
            [first, rest @ ..] => {
                format!("the gradients of {first} and {} more tensors are not finite", rest.len())
            }
        };
        let shown = self.samples.iter().take(8).map(|sample| (sample + 1).to_string());
        let shown = shown.collect::<Vec<_>>().join(", ");
        let more = if self.samples.len() > 8 { ", ..." } else { "" };
        Some(format!("the loss is {}, {what}; samples {shown}{more}", self.loss))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::LanguageModel;
    use crate::data::dataset::Source;
    use crate::data::loader::Cursor;
    use crate::data::mixture::MixBy;
    use crate::model::{Decoder, ModelConfig, layout};
    use crate::tokenizer::Tokenized;
    use crate::tokenizer::test_support::small_tokenizer;
    use crate::trainer::Execution;
    use proptest::prelude::*;

    fn model() -> LanguageModel {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"model_type": "llama", "vocab_size": 400, "hidden_size": 16,
            "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}"#;
        let config = ModelConfig::from_json(text).unwrap();
        LanguageModel {
            params: layout::init(&config, 1),
            decoder: Decoder::new(config),
            tokenizer: small_tokenizer(dir.path()),
        }
    }

    fn sample(length: usize) -> Tokenized {
        Tokenized {
            input_ids: (0..length).map(|i| (31 * i + length) as u32 % 400).collect(),
            loss_mask: (0..length).map(|i| i > 2).collect(),
        }
    }

    /// Makes one step over three samples, and returns it with the weights after it.
    fn one_step(config: &TrainConfig) -> (StepResult, Vec<f32>) {
        let samples = vec![sample(16), sample(30), sample(17)];
        let optim: AdamWConfig = toml::from_str("lr = 1e-3").unwrap();
        let execution = config.execution();
        let mut trainer = Trainer::new(model(), optim, Schedule::default(), 10, execution).unwrap();
        let mut loader = Loader::new(samples, config.seq_len, 1, Cursor::default()).unwrap();
        let flops = ModelFlops::new(trainer.model.decoder.config());
        let result = step(&mut trainer, &mut loader, config, &flops).unwrap();
        assert_eq!((result.num_tokens, result.num_targets), (63, 54));
        (result, trainer.model.params)
    }

    #[test]
    fn packing_accumulation_and_ranks_do_not_change_the_loss() {
        let of = |cut: &str| {
            let config = toml::from_str(&format!("total_steps = 10\n{cut}")).unwrap();
            let (result, params) = one_step(&config);
            (result.loss, params)
        };
        let (loss, together) = of("seq_len = 63\ngradient_accumulation = 1");
        for cut in [
            "seq_len = 30\ngradient_accumulation = 3",
            "seq_len = 30\ngradient_accumulation = 1\nmicro_batch_size = 3",
            "seq_len = 30\ngradient_accumulation = 1\nranks = 3",
        ] {
            let (other, apart) = of(cut);
            assert!((loss - other).abs() < 1e-6 * loss, "{loss} is not {other}");
            let apart_by: f32 = together.iter().zip(&apart).map(|(a, b)| (a - b).abs()).sum();
            assert!(apart_by / (together.len() as f32) < 1e-6, "{apart_by}");
        }
    }

    #[test]
    fn smoothed_labels_and_the_share_of_the_peak_are_logged_where_asked_for() {
        let text = "total_steps = 10\nseq_len = 63\ngradient_accumulation = 1";
        let row = |more: &str| {
            let config: TrainConfig = toml::from_str(&format!("{text}\n{more}")).unwrap();
            one_step(&config).0.metrics(&config)
        };
        let plain = row("");
        assert!(!plain.contains_key("loss/smoothed") && !plain.contains_key("time/mfu"));
        let asked = row("label_smoothing = 0.5\npeak_tflops = 0.1");
        let value = |key: &str| asked[key].as_f64().unwrap();
        assert_eq!(asked["loss/nll"], plain["loss/nll"]);
        assert_ne!(asked["loss/smoothed"], asked["loss/nll"]);
        assert_ne!(asked["optim/grad_norm"], plain["optim/grad_norm"]);
        let mfu = value("time/model_tflops_per_sec") / 0.1;
        assert!((value("time/mfu") - mfu).abs() < 1e-9 * mfu);
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
            let (first, rest) = samples.split_at(samples.len() / 2);
            let sources = [("a", first), ("b", rest)].map(|(n, s)| Source::in_memory(n, 1.0, s));
            let mut loader = Loader::of_sources(
                sources.into(), MixBy::Samples, ahead, seq_len, seed, Cursor::default(),
            ).unwrap();
            let packed: Vec<Batch> = (0..3).map(|_| loader.next_batch()).collect();
            let indices = packed.iter().flat_map(|row| row.samples.clone());
            let alone: Vec<Batch> = indices.map(|i| Batch::new(&samples, &[i])).collect();
            let (loss, weights) = learn_batches(&packed);
            let (other, apart) = learn_batches(&alone);
            prop_assert!((loss - other).abs() < 1e-6 * loss, "{} is not {}", loss, other);
            let differences = weights.iter().zip(&apart).map(|(a, b)| (a - b).abs());
            prop_assert!(differences.sum::<f32>() / (weights.len() as f32) < 1e-6);
        }
    }

    /// Makes one update over the batches, and returns the loss and the weights after it.
    fn learn_batches(batches: &[Batch]) -> (f64, Vec<f32>) {
        let optim: AdamWConfig = toml::from_str("lr = 1e-3").unwrap();
        let schedule = Schedule::default();
        let mut trainer = Trainer::new(model(), optim, schedule, 10, Execution::default()).unwrap();
        let rows: Vec<_> = batches.chunks(1).map(MicroBatch::join).collect();
        let objective = NegativeLogLikelihood::new(0.0, rows.len());
        trainer.accumulate(&rows, 1.0, &objective).unwrap();
        let loss = objective.into_losses().loss;
        let num_targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        trainer.update(num_targets as f64, loss / num_targets as f64).unwrap();
        (loss / num_targets as f64, trainer.model.params)
    }
}
