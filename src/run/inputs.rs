//! What a run reads besides its configuration, recorded by content: `inputs.json` in the run directory.
//!
//! A setting such as `model.path` names a place, and the content there can change. What a resumed run reads
//! again must not have changed. Where a change is the user's business, as with a program that was repaired,
//! the user is only told.

use crate::base::error::usage;
use crate::base::fs::{read_text, write_json};
use crate::base::hash;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FILE: &str = "inputs.json";

/// Something that a run reads.
pub(crate) struct Input {
    /// The setting that names it, and what it is.
    pub(crate) name: &'static str,
    pub(crate) files: Vec<PathBuf>,
    /// Whether a resumed run may read another content.
    pub(crate) may_change: bool,
}

/// The hash of each input, by its name.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Hashes(BTreeMap<String, String>);

/// Records the inputs of the run in `dir`. If the run `goes_on` from a checkpoint, compares them with those
/// that its earlier part read.
pub(crate) fn record(dir: &Path, inputs: &[Input], goes_on: bool) -> Result<()> {
    let path = dir.join(FILE);
    let before: Hashes = match goes_on && path.exists() {
        false => Hashes::default(),
        true => serde_json::from_str(&read_text(&path)?)
            .map_err(|e| usage(format!("{}:{}: {e}", path.display(), e.line())))?,
    };
    let mut now = Hashes::default();
    for Input { name, files, may_change } in inputs {
        let hash = hash::of_files(files).with_context(|| (*name).to_owned())?;
        let is_other = before.0.get(*name).is_some_and(|before| *before != hash);
        if is_other && !may_change {
            return Err(usage(format!(
                "{name} is not what it was when this run began: give it the same, or start a new run"
            )));
        }
        if is_other {
            tracing::warn!("{name} is not what it was when this run began");
        }
        now.0.insert((*name).to_owned(), hash);
    }
    write_json(&path, &now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_content_is_refused_or_told_only_where_a_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weights");
        let record = |text: &str, may_change: bool, goes_on: bool| {
            std::fs::write(&file, text).unwrap();
            let input = Input { name: "model.path", files: vec![file.clone()], may_change };
            super::record(dir.path(), &[input], goes_on)
        };
        record("a", false, false).unwrap();
        record("a", false, true).unwrap();
        let refusal = record("b", false, true).unwrap_err().to_string();
        assert!(refusal.starts_with("model.path is not what it was"), "{refusal}");
        record("b", true, true).unwrap();
        record("c", false, false).unwrap();
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        record("d", false, true).unwrap();
    }
}
