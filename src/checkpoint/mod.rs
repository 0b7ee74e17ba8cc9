//! Model directories in Hugging Face layout, and step directories that hold all a run needs to go on.
//!
//! Contract: what is written loads in transformers and vLLM as it lies; a step directory is whole
//! or absent; what is read is checked tensor by tensor, and a mismatch names tensor and file.
//! Parameters live in one flat buffer; a [`TensorSpec`] says which range of it a tensor is.

pub mod hf;
pub mod state;

use anyhow::{Context, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A named tensor and its place in the flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its Hugging Face name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements in the flat buffer, row-major.
    pub range: Range<usize>,
}

const STEP_PREFIX: &str = "step-";

/// The directory of a step's checkpoint under `checkpoints`.
pub fn step_dir(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("{STEP_PREFIX}{step:06}"))
}

/// All checkpoints under `checkpoints` with their steps, oldest first; none if there is no directory.
pub fn steps(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !checkpoints.is_dir() {
        return Ok(Vec::new());
    }
    let listing = || format!("listing {}", checkpoints.display());
    let mut steps = Vec::new();
    for entry in std::fs::read_dir(checkpoints).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|n| n.strip_prefix(STEP_PREFIX)?.parse().ok());
        steps.extend(step.map(|step| (step, entry.path())));
    }
    steps.sort_unstable();
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_listed_in_order_and_other_entries_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert!(steps(&dir.path().join("none")).unwrap().is_empty());
        for name in ["step-1000000", "step-000200", "step-x", "codeseq-tmp", "step-000030"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let found: Vec<u64> = steps(dir.path()).unwrap().into_iter().map(|s| s.0).collect();
        assert_eq!(found, [30, 200, 1_000_000]);
        assert_eq!(steps(dir.path()).unwrap()[1].1, step_dir(dir.path(), 200));
    }
}
