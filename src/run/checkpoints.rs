//! The checkpoints of a run, and which of them are kept.

use super::SAMPLES;
use crate::base::fs::children;
use crate::base::limits::refuse_sizes;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Which checkpoints of a run are written and kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// The number of steps from one checkpoint to the next; 0 writes only the last one (and one on Ctrl-C).
    pub every: u64,
    /// The newest checkpoints are kept, as many as this says; by default all are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<usize>,
    /// Checkpoints at multiples of this many steps are kept as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
}

impl CheckpointConfig {
    /// Refuses to keep no checkpoint; `table` is the table's name in errors.
    pub fn check(&self, table: &str) -> Result<()> {
        refuse_sizes(table, &[("keep_last", self.keep_last.unwrap_or(1))])
    }

    /// Returns whether a checkpoint is due after `step`.
    pub(crate) fn is_due(&self, step: u64) -> bool {
        self.every > 0 && step.is_multiple_of(self.every)
    }
}

/// Returns the sample files of the run in `run_dir` with their steps, oldest first; none without such a
/// directory.
pub fn steps_with_samples(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    steps(&run_dir.join(SAMPLES), ".jsonl")
}

/// Returns the entries of `dir` that are named after steps, with their steps.
fn steps(dir: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for path in children(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("step-").and_then(|name| name.strip_suffix(suffix));
        if let Some(step) = number.and_then(|number| number.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The checkpoints of a run. Only complete ones are there, since they appear by an atomic rename.
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// Returns the checkpoints of the run in `run_dir`.
    pub fn of(run_dir: &Path) -> Self {
        Self { dir: run_dir.join("checkpoints") }
    }

    /// Returns the path of the checkpoint of `step`, whether it is there or not.
    pub fn step_dir(&self, step: u64) -> PathBuf {
        self.dir.join(step_name(step))
    }

    /// Returns all checkpoints with their steps, oldest first.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        steps(&self.dir, "")
    }

    pub fn latest(&self) -> Result<Option<(u64, PathBuf)>> {
        Ok(self.list()?.pop())
    }

    /// Deletes all checkpoints but the newest `keep_last` and those at multiples of `keep_every` steps.
    pub fn retain(&self, keep_last: usize, keep_every: Option<u64>) -> Result<()> {
        let found = self.list()?;
        let old = found.len().saturating_sub(keep_last);
        for (step, path) in &found[..old] {
            if keep_every.is_none_or(|every| every == 0 || step % every != 0) {
                remove_checkpoint(path)?;
            }
        }
        Ok(())
    }
}

/// Renames a checkpoint before it is deleted, so that half of one is never taken for a whole one.
fn remove_checkpoint(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let doomed = path.with_file_name(format!("codeseq-removed-{name}"));
    fs::rename(path, &doomed)
        .and_then(|()| fs::remove_dir_all(&doomed))
        .with_context(|| format!("removing {}", path.display()))
}

pub(crate) fn step_name(step: u64) -> String {
    format!("step-{step:06}")
}
