//! A JSON Lines file that grows while a program runs, and outlives its being killed.
//!
//! Contract: a row is in the file, whole, when [`JsonlLog::append`] returns; of a row that a killed process
//! left unfinished nothing is read, and the next writer cuts it off. Left out: what the rows are.

use crate::base::error::usage;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

pub struct JsonlLog {
    file: File,
    path: PathBuf,
}

impl JsonlLog {
    /// Opens the file, or makes it with the folder that it lies in; what it holds stays.
    pub fn open(path: &Path) -> Result<Self> {
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let file =
            made.and_then(|()| File::options().read(true).append(true).create(true).open(path));
        let file = file.map_err(|e| usage(format!("cannot write {}: {e}", path.display())))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Refuses a file that another process has locked. File systems without locks are used without.
    pub fn lock(&self) -> Result<()> {
        match self.file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(usage(format!("{} is in use by another process", self.path.display())))
            }
            _ => Ok(()),
        }
    }

    /// Cuts off a row without its end and returns all others.
    pub fn recover(&mut self) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = self.file.read_to_end(&mut content);
        read.with_context(|| format!("reading {}", self.path.display()))?;
        content.truncate(whole_rows(&content).len());
        self.cut(content.len() as u64)?;
        Ok(content)
    }

    /// Removes all rows.
    pub fn clear(&mut self) -> Result<()> {
        self.cut(0)
    }

    /// Removes what comes after the first `len` bytes.
    pub fn cut(&mut self, len: u64) -> Result<()> {
        self.file.set_len(len).with_context(|| format!("writing {}", self.path.display()))
    }

    /// The bytes of all rows.
    pub fn size(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        Ok(metadata.with_context(|| format!("reading {}", self.path.display()))?.len())
    }

    /// Adds a row, in one write.
    pub fn append(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(row).context("encoding a row")?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| format!("writing {}", self.path.display()))
    }

    /// Forces the rows to disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().with_context(|| format!("flushing {}", self.path.display()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns the content of a log up to the end of its last complete row.
pub fn whole_rows(content: &[u8]) -> &[u8] {
    let end = content.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    &content[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_left_unfinished_is_cut_off_wherever_that_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = JsonlLog::open(&path).unwrap();
        log.append(&"first").unwrap();
        log.append(&["second"]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole, b"\"first\"\n[\"second\"]\n");
        let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for len in first..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let mut log = JsonlLog::open(&path).unwrap();
            assert_eq!(log.recover().unwrap(), whole[..first]);
            log.append(&["second"]).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_log_that_is_locked_is_refused_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let log = JsonlLog::open(&path).unwrap();
        log.lock().unwrap();
        assert!(JsonlLog::open(&path).unwrap().lock().is_err());
    }
}
