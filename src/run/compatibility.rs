//! Which settings a resumed run may change.

use crate::base::error::usage;
use crate::base::fs::read_text;
use crate::config;
use anyhow::Result;
use std::path::Path;

/// Settings that say how a step is computed and what is kept, but not what comes out: a resumed run may
/// change them.
const LAYOUT: [&str; 16] = [
    "train.ranks",
    "train.device",
    "train.precision",
    "train.gpu.moments",
    "train.gpu.gradient_sums",
    "train.gradient_accumulation",
    "train.micro_batch_size",
    "train.recompute",
    "train.peak_tflops",
    "rollout.max_sequences",
    "rollout.kv_cache_tokens",
    "plan.gpu_memory_gb",
    "checkpoint.every",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "data.cache_dir",
];

/// Refuses to resume the run whose configuration lies at `path` with another one.
pub(crate) fn refuse_other_config(path: &Path, config_toml: &str) -> Result<()> {
    let parse = |text: &str| {
        toml::from_str::<toml::Table>(text)
            .map_err(|e| usage(format!("{} is damaged: {}", path.display(), e.message())))
    };
    let tables = [parse(&read_text(path)?)?, parse(config_toml)?];
    let mut changed: Vec<String> = config::differences(&tables)
        .into_iter()
        .filter(|(key, _)| !LAYOUT.contains(&key.as_str()))
        .map(|(key, values)| {
            let [before, now] = [0, 1].map(|i| values[i].as_deref().unwrap_or("unset"));
            format!("{key} was {before}, is {now}")
        })
        .collect();
    for (what, size) in [
        (
            "train.ranks x train.gradient_accumulation x train.micro_batch_size",
            global_batch as Size,
        ),
        ("train.micro_batch_size, over which the loss is averaged,", averaged_batch),
    ] {
        let [before, now] = tables.each_ref().map(size);
        if before != now {
            let [before, now] = [before, now].map(|size| size.unwrap_or_default());
            changed.push(format!("{what} was {before} rows, is {now}"));
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    Err(usage(format!(
        "{} has other settings: {}; resume with the same ones or start a new run",
        path.display(),
        changed.join("; ")
    )))
}

/// A number of rows that follows from a run's settings.
type Size = fn(&toml::Table) -> Option<i64>;

/// Rows of all ranks in one step of fine-tuning.
fn global_batch(table: &toml::Table) -> Option<i64> {
    let size = |key| table.get("train")?.get(key)?.as_integer();
    let accumulated = size("gradient_accumulation")?;
    let others = ["ranks", "micro_batch_size"].map(|key| size(key).unwrap_or(1));
    Some(others.into_iter().fold(accumulated, i64::saturating_mul))
}

/// Responses of a micro-batch of reinforcement, where the loss depends on them.
fn averaged_batch(table: &toml::Table) -> Option<i64> {
    let aggregation = table.get("policy")?.get("aggregation")?.as_str()?;
    let size = || table.get("train")?.get("micro_batch_size")?.as_integer();
    (aggregation == "micro-token-mean").then(size).flatten()
}
