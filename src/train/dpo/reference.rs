//! The log-probabilities of all answers under the reference model, computed once.
//!
//! Contract: they are stored under a key over the contents of the model and of the pairs and over the numbers
//! that computed them, in `data.cache_dir` (where other runs find them) or in the run directory. What is not
//! there is computed: before the first step with the weights in the trainer, which are the reference model's,
//! later with a copy of it.

use super::config::Config;
use super::rows::Rows;
use crate::base::error::{Interrupted, usage};
use crate::base::fs::{read_text, write_json};
use crate::base::hex::hex;
use crate::base::progress::Progress;
use crate::base::{hash, interrupt};
use crate::data::pair::TokenPair;
use crate::run::RunDir;
use crate::trainer::{Parameters, Trainer};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Part of the key: changes with the meaning of what is stored.
const VERSION: &[u8] = b"codeseq reference 1";

/// What is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    key: String,
    /// Sums over the answers of each pair: chosen, rejected.
    log_probabilities: Vec<[f64; 2]>,
}

/// The sums over the answers of each pair, chosen and rejected: read, or else computed and stored.
pub(crate) fn log_probabilities(
    trainer: &mut Trainer,
    config: &Config,
    run: &RunDir,
    pairs: &[TokenPair],
) -> Result<Vec<[f64; 2]>> {
    let key = key(config, pairs)?;
    let dir = config.data.cache_dir.as_deref().unwrap_or(run.path());
    let path = dir.join(format!("reference-{}.json", &key[..16]));
    if let Some(stored) = read(&path, &key) {
        return Ok(stored);
    }
    let log_probabilities = compute(trainer, config, pairs)?;
    let stored = Stored { key, log_probabilities };
    write_json(&path, &stored).context("storing the reference model's log-probabilities")?;
    Ok(stored.log_probabilities)
}

/// A hash of all that the log-probabilities depend on.
fn key(config: &Config, pairs: &[TokenPair]) -> Result<String> {
    let precision = config.train.device.precision(config.train.precision);
    let mut hasher = Sha256::new_with_prefix(VERSION);
    hasher.update(hash::of_files(&config.model.files()?)?);
    // The seed of a model with random weights.
    hasher.update(config.seed.to_le_bytes());
    hasher.update(format!("{:?} {precision}", config.train.device));
    hasher.update(serde_json::to_vec(pairs).context("encoding pairs")?);
    Ok(hex(hasher.finalize()))
}

fn read(path: &Path, key: &str) -> Option<Vec<[f64; 2]>> {
    if !path.exists() {
        return None;
    }
    let stored: Option<Stored> =
        read_text(path).ok().and_then(|text| serde_json::from_str(&text).ok());
    let stored = stored.filter(|stored| stored.key == key);
    if stored.is_none() {
        tracing::warn!("{} is damaged and made anew", path.display());
    }
    stored.map(|stored| stored.log_probabilities)
}

/// The sums as the trainer computes them.
pub(crate) fn compute(
    trainer: &mut Trainer,
    config: &Config,
    pairs: &[TokenPair],
) -> Result<Vec<[f64; 2]>> {
    let parameters = match trainer.has_learnt() {
        false => Parameters::Trained,
        true => {
            trainer.keep_reference(config.model.open(config.seed)?.params)?;
            Parameters::Reference
        }
    };
    let progress = Progress::new("reference", pairs.len() as u64, "pairs");
    let mut all = Vec::new();
    for portion in pairs.chunks(config.train.pairs_per_step) {
        let rows = Rows::pack(&portion.iter().collect::<Vec<_>>(), &config.train);
        all.extend(rows.sums(&trainer.score(parameters, &rows.batches, 1.0)?));
        progress.inc(portion.len() as u64);
        if interrupt::requested() {
            return Err(Interrupted.into());
        }
    }
    progress.finish();
    match all.iter().position(|sums| !sums.iter().all(|sum| sum.is_finite())) {
        Some(pair) => Err(usage(format!(
            "the model gives pair {} of data.files no finite log-probability: its weights are damaged",
            pair + 1
        ))),
        None => Ok(all),
    }
}
