//! Direct preference optimisation: the loop.
//!
//! A step: draw pairs, sum up the log-probabilities of their answers, which says how much each pair has to
//! learn, and learn that. A loss over whole answers costs one more forward, and in return rows are packed as
//! those of any other loss. Pairs come in a new order for each pass over the data. The reference model's
//! log-probabilities never change, so they are computed once (`reference`).

mod config;
mod pairs;
#[cfg(test)]
mod parity;
mod reference;
mod rows;

pub use config::{Config, TrainConfig};
pub use pairs::DataConfig;

use super::session::{Session, Start, Terms};
use crate::data::pair::TokenPair;
use crate::data::shuffle::Shuffled;
use crate::objective::dpo::{Answer, LossConfig, Metrics, PreferenceObjective, pair_loss};
use crate::run::RunDir;
use crate::run::metrics::{Row, mebibytes, row};
use crate::trainer::{Parameters, Trainer, Update};
use anyhow::{Context, Result};
use rows::Rows;
use std::path::PathBuf;
use std::time::Instant;

/// Trains by `config` in `run`, from its last checkpoint if there is one, and returns the model's directory.
pub fn train(config: &Config, run: &RunDir, label: &str) -> Result<PathBuf> {
    config.check()?;
    run.record_inputs(&config.inputs()?)?;
    let start = Start::find(run, &config.model, config.seed)?;
    let pairs = config.data.read(&start.model.tokenizer)?;
    let longest = pairs.iter().map(TokenPair::longest).max().unwrap_or_default();
    let model = start.model.decoder.config();
    model.check_length(longest).context("the longest answer: lower data.max_length")?;
    let (optim, schedule, total_steps) = (config.optim, config.schedule, config.train.total_steps);
    let (trainer, saved) = start.trainer(optim, schedule, total_steps, config.execution())?;
    let mut order = Shuffled::new(pairs.len(), config.seed, saved.unwrap_or_default())?;
    let mut session = Session::open(run, trainer, terms(config, label))?;
    let reference = reference::log_probabilities(&mut session.trainer, config, run, &pairs)
        .map_err(|error| session.break_off(&order.place(), error))?;
    while session.has_next_step() {
        let drawn = (0..config.train.pairs_per_step).map(|_| order.take());
        let drawn: Vec<_> = drawn.map(|pair| (&pairs[pair], reference[pair])).collect();
        let result = step(&mut session.trainer, config, &drawn)?;
        session.log(result.metrics(), result.describe())?;
        session.end_step(&order.place(), result.trouble())?;
    }
    Ok(session.finish())
}

fn terms<'a>(config: &'a Config, label: &'a str) -> Terms<'a> {
    Terms {
        label,
        total_steps: config.train.total_steps,
        checkpoint: &config.checkpoint,
        max_skipped: config.train.max_nonfinite_steps,
        max_skipped_key: "train.max_nonfinite_steps",
    }
}

/// What one step saw and did.
struct StepResult {
    metrics: Metrics,
    num_tokens: usize,
    num_targets: usize,
    /// The share of the rows that was filled.
    packing: f64,
    secs: f64,
    gpu_peak_bytes: Option<usize>,
    update: Update,
}

/// One update over some pairs, each with its log-probabilities under the reference model.
fn step(
    trainer: &mut Trainer,
    config: &Config,
    drawn: &[(&TokenPair, [f64; 2])],
) -> Result<StepResult> {
    let started = Instant::now();
    let pairs: Vec<&TokenPair> = drawn.iter().map(|&(pair, _)| pair).collect();
    let rows = Rows::pack(&pairs, &config.train);
    // Scoring and learning take their memory in turn.
    trainer.release_memory();
    let sums = rows.sums(&trainer.score(Parameters::Trained, &rows.batches, 1.0)?);
    let (metrics, slopes) = losses(&config.loss, drawn, &sums);
    let objective = PreferenceObjective(rows.spread(&slopes));
    trainer.accumulate(&rows.batches, 1.0, &objective)?;
    let num_pairs = drawn.len() as f64;
    let update = trainer.update(num_pairs, metrics.loss / num_pairs)?;
    trainer.end_step();
    let num_tokens = rows.num_tokens();
    Ok(StepResult {
        metrics,
        num_tokens,
        num_targets: rows.num_targets(),
        packing: num_tokens as f64 / (rows.batches.len() * config.train.seq_len) as f64,
        secs: started.elapsed().as_secs_f64(),
        gpu_peak_bytes: trainer.gpu_peak_bytes()?,
        update,
    })
}

/// The losses of pairs whose answers have these log-probabilities, and their derivatives by them.
fn losses(
    config: &LossConfig,
    drawn: &[(&TokenPair, [f64; 2])],
    sums: &[[f64; 2]],
) -> (Metrics, Vec<[f64; 2]>) {
    let mut metrics = Metrics::default();
    let mut slopes = Vec::new();
    for ((pair, reference), sums) in drawn.iter().zip(sums) {
        let answer = |side: usize, num_tokens: usize| Answer {
            logp: sums[side],
            reference_logp: reference[side],
            num_tokens,
        };
        let chosen = answer(0, pair.chosen.answer.len());
        let rejected = answer(1, pair.rejected.answer.len());
        let loss = pair_loss(config, &chosen, &rejected);
        metrics.add(config.beta, &loss, &chosen, &rejected);
        slopes.push([loss.by_chosen, loss.by_rejected]);
    }
    (metrics, slopes)
}

impl StepResult {
    fn metrics(&self) -> Row {
        let Metrics { pairs, loss, chosen_reward, rejected_reward, right_way, .. } = self.metrics;
        let mean = |sum: f64| sum / pairs as f64;
        let mut metrics = row([
            ("loss/preference", mean(loss)),
            ("reward/chosen", mean(chosen_reward)),
            ("reward/rejected", mean(rejected_reward)),
            ("reward/margin", mean(chosen_reward - rejected_reward)),
            ("reward/accuracy", mean(right_way as f64)),
            ("logp/chosen", mean(self.metrics.chosen_logp)),
            ("logp/rejected", mean(self.metrics.rejected_logp)),
            ("optim/grad_norm", self.update.grad_norm),
            ("optim/lr", self.update.lr),
            ("optim/skipped", f64::from(u8::from(self.update.skipped.is_some()))),
            ("data/tokens", self.num_tokens as f64),
            ("data/target_tokens", self.num_targets as f64),
            ("data/packing_efficiency", self.packing),
            ("time/step_secs", self.secs),
            ("time/tokens_per_sec", self.num_tokens as f64 / self.secs),
        ]);
        metrics.extend(row(self.update.loss_scale.map(|scale| ("optim/loss_scale", scale))));
        let peak = self.gpu_peak_bytes.map(|bytes| ("time/gpu_peak_mib", mebibytes(bytes)));
        metrics.extend(row(peak));
        metrics
    }

    fn describe(&self) -> String {
        let Metrics { pairs, loss, right_way, .. } = self.metrics;
        let mean = |sum: f64| sum / pairs as f64;
        format!("loss {:.3}, accuracy {:.2}", mean(loss), mean(right_way as f64))
    }

    /// What was wrong with the step, if it was skipped.
    fn trouble(&self) -> Option<String> {
        let found = self.update.skipped.as_ref()?;
        Some(match found.tensors.first() {
            None => format!("the loss is {}", found.loss),
            Some(first) => format!(
                "the loss is {}, and the gradients of {} tensors are not finite, {first} among them",
                found.loss,
                found.tensors.len()
            ),
        })
    }
}
