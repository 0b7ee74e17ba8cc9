//! Whether a run may be resumed with given settings.
//!
//! A changed setting makes another run, unless the setting says only how the work is divided or what is
//! kept. Each table of settings knows which of its settings those are ([`RunConfig::unchangeable`]).

use super::checkpoints::CheckpointConfig;
use crate::base::error::usage;
use crate::base::fs::read_text;
use crate::config;
use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;
use toml::Value;

/// The whole configuration of a run, as its directory keeps it.
pub trait RunConfig: Serialize + DeserializeOwned {
    fn checkpoint(&self) -> &CheckpointConfig;

    /// Returns the configuration with a fixed value for every setting that a resumed run may change, so
    /// that two configurations of the same run are equal.
    fn unchangeable(&self) -> Self;

    /// Returns the rows of all ranks in one step, if several settings that may each change make up that
    /// number.
    fn rows_per_step(&self) -> Option<usize> {
        None
    }
}

/// Refuses to resume, with another configuration, the run whose configuration is at `path`.
pub(crate) fn refuse_other_config<C: RunConfig>(path: &Path, config: &C) -> Result<()> {
    let before: C = toml::from_str(&read_text(path)?).map_err(|e| {
        let message = e.message().replace('\n', ", ");
        usage(format!(
            "{} is damaged or of another version: {message}; start a new run",
            path.display()
        ))
    })?;
    let mut changed = Vec::new();
    match (before.rows_per_step(), config.rows_per_step()) {
        (Some(before), Some(now)) if before != now => changed.push(format!(
            "ranks x gradient_accumulation x micro_batch_size was {before} rows, is {now}"
        )),
        _ => changed = differences(&before, config)?,
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

/// Returns whether two values in TOML, or each two of two lists, name the same files, however they are
/// spelled.
fn is_same_place(before: &str, now: &str) -> bool {
    fn same(before: &Value, now: &Value) -> bool {
        match (before, now) {
            (Value::String(before), Value::String(now)) => {
                let place = |path: &str| Path::new(path).canonicalize().ok();
                before == now || place(before).is_some_and(|before| Some(before) == place(now))
            }
            (Value::Array(before), Value::Array(now)) => {
                before.len() == now.len() && before.iter().zip(now).all(|(a, b)| same(a, b))
            }
            _ => before == now,
        }
    }
    match (before.parse::<Value>(), now.parse::<Value>()) {
        (Ok(before), Ok(now)) => same(&before, &now),
        _ => false,
    }
}

/// Describes the settings that differ.
fn differences<C: RunConfig>(before: &C, now: &C) -> Result<Vec<String>> {
    let table = |config: &C| toml::Table::try_from(config.unchangeable());
    let tables = [table(before), table(now)];
    let tables = tables.into_iter().collect::<Result<Vec<_>, _>>().context("comparing settings")?;
    let is_same = |values: &[Option<String>]| match values {
        [Some(before), Some(now)] => is_same_place(before, now),
        _ => false,
    };
    let differences = config::differences(&tables).into_iter();
    let changed = differences.filter(|(_, values)| !is_same(values)).map(|(key, values)| {
        let [before, now] = [0, 1].map(|i| values[i].as_deref().unwrap_or("unset"));
        format!("{key} was {before}, is {now}")
    });
    Ok(changed.collect())
}
