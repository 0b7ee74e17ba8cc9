//! A model's stored answers to the question whether a sample is code, by the sample's id.
//!
//! The file is JSON Lines of `{"id": ..., "is_code": ..., "answer": ...}`; the answer's own words are for
//! people only. A line is appended when its answer comes. A line that a killed process left unfinished is
//! removed by the next writer. `train data classify` asks the question.

use super::jsonl;
use super::sample::any_text;
use crate::base::error::usage;
use crate::base::jsonl_log::JsonlLog;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The answers that were given before.
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

    /// Returns whether the answer for the sample `id` was yes.
    pub fn is_code(&self, id: &str) -> bool {
        self.0.get(id).copied().unwrap_or(false)
    }
}

/// A file to which answers are appended.
pub struct AnswerFile {
    /// Is `None` before the first answer.
    log: Option<JsonlLog>,
    path: PathBuf,
}

impl AnswerFile {
    /// Opens a file to append to it, and returns the answers in it too. A file that does not exist is
    /// created with the first answer.
    pub fn open(path: &Path) -> Result<(Self, CodeAnswers)> {
        let path = path.to_owned();
        if !path.exists() {
            return Ok((Self { log: None, path }, CodeAnswers::default()));
        }
        let mut log = JsonlLog::open(&path)?;
        log.recover()?;
        let answers = CodeAnswers::read(&path)?;
        Ok((Self { log: Some(log), path }, answers))
    }

    pub fn add(&mut self, id: &str, is_code: bool, answer: &str) -> Result<()> {
        let log = match &mut self.log {
            Some(log) => log,
            none => none.insert(JsonlLog::open(&self.path)?),
        };
        log.append(&Answer { id: Some(id.to_owned()), is_code, answer: answer.to_owned() })
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
