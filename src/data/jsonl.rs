//! JSON Lines in and out. A malformed line is the user's error and is named by file and line.

use crate::base::error::usage;
use crate::base::fs::{AtomicFile, read_text};
use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::io::Write;
use std::path::Path;

/// Reads every line of `path`; blank lines are skipped.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = read_text(path)?;
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| {
            serde_json::from_str(line)
                .map_err(|e| usage(format!("{}:{}: {e}", path.display(), i + 1)))
        })
        .collect()
}

/// Writes one object a line; the file appears whole or not at all.
pub fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    for row in rows {
        serde_json::to_writer(&mut file, row).context("encoding a row")?;
        file.write_all(b"\n").with_context(|| format!("writing {}", path.display()))?;
    }
    file.commit()
}
