//! A model's stored answers to "is this sample code?", by the sample's id.
//!
//! Contract: JSON Lines of `{"id": ..., "is_code": ..., "answer": ...}`, the answer's own words for
//! people only. A line is appended when its answer comes; one that a killed process left unfinished is
//! cut off by the next writer. Left out: asking (`train data classify`).

use super::jsonl;
use super::sample::any_text;
use crate::base::error::usage;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Answers that were given before.
#[derive(Debug, Default)]
pub struct CodeAnswers(HashMap<String, bool>);

#[derive(Serialize, Deserialize)]
struct Answer {
    #[serde(deserialize_with = "any_text")]
    id: Option<String>,
    is_code: bool,
    #[serde(default)]
    answer: String,
}

impl CodeAnswers {
    pub fn read(path: &Path) -> Result<Self> {
        let answers = jsonl::rows::<Answer>(path)?.map(|answer| {
            let Answer { id, is_code, .. } = answer?;
            let id = id.ok_or_else(|| usage(format!("{}: an answer has no id", path.display())))?;
            Ok((id, is_code))
        });
        answers.collect::<Result<_>>().map(Self)
    }

    pub fn has(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// Whether the answer for the sample `id` was yes.
    pub fn is_code(&self, id: &str) -> bool {
        self.0.get(id).copied().unwrap_or(false)
    }
}

/// A file of answers that grows.
pub struct AnswerFile {
    /// None before the first answer of all.
    file: Option<File>,
    path: PathBuf,
}

impl AnswerFile {
    /// Opens a file to go on with it, if there is one; also gives the answers that it holds. It is made
    /// with the first answer.
    pub fn open(path: &Path) -> Result<(Self, CodeAnswers)> {
        let unusable = |e| usage(format!("cannot write {}: {e}", path.display()));
        let mut file = match File::options().read(true).append(true).open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Ok((Self { file: None, path: path.to_owned() }, CodeAnswers::default()));
            }
            opened => opened.map_err(unusable)?,
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(unusable)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64).map_err(unusable)?;
        Ok((Self { file: Some(file), path: path.to_owned() }, CodeAnswers::read(path)?))
    }

    fn made(&mut self) -> std::io::Result<&mut File> {
        match &mut self.file {
            Some(file) => Ok(file),
            none => {
                if let Some(dir) = self.path.parent() {
                    std::fs::create_dir_all(dir)?;
                }
                Ok(none.insert(File::options().append(true).create(true).open(&self.path)?))
            }
        }
    }

    pub fn add(&mut self, id: &str, is_code: bool, answer: &str) -> Result<()> {
        let answer = Answer { id: Some(id.to_owned()), is_code, answer: answer.to_owned() };
        let line = serde_json::to_string(&answer).context("encoding an answer")? + "\n";
        let written = self.made().and_then(|file| file.write_all(line.as_bytes()));
        written.with_context(|| format!("writing {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_and_a_torn_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let (mut file, before) = AnswerFile::open(&path).unwrap();
        assert!(!before.has("a") && !path.exists());
        file.add("a", true, "Yes.").unwrap();
        file.add("7", false, "no").unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole, &b"{\"id\": \"c\", \"is_"[..]].concat()).unwrap();
        let (mut file, before) = AnswerFile::open(&path).unwrap();
        assert!(before.is_code("a") && before.has("7") && !before.is_code("7") && !before.has("c"));
        file.add("c", true, "yes").unwrap();
        assert!(CodeAnswers::read(&path).unwrap().is_code("c"));
        assert!(std::fs::read(&path).unwrap().starts_with(&whole));
    }
}
