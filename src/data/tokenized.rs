//! Rows of samples, which are conversations or ids with labels made elsewhere, and their tokens.

use super::sample::Sample;
use crate::base::error::usage;
use crate::tokenizer::{Tokenized, Tokenizer};
use anyhow::Result;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;
use std::collections::BTreeSet;

/// The label of a token without loss.
pub const NO_LOSS: i64 = -100;

/// A tokenised sample as it is stored in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelledIds {
    pub input_ids: Vec<u32>,
    /// The same tokens, with [`NO_LOSS`] for those that are not learnt.
    pub labels: Vec<i64>,
    /// 1 for each token; padding is refused.
    #[serde(default, skip_serializing)]
    attention_mask: Vec<u8>,
}

/// One row of a file of samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Sample(Sample),
    /// Tokens made elsewhere.
    Ids(LabelledIds),
}

impl Line {
    /// Returns the keys that are read of a row.
    pub fn keys() -> Vec<&'static str> {
        [&Sample::KEYS[..], &["input_ids", "labels", "attention_mask"]].concat()
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Kind {
            input_ids: Option<IgnoredAny>,
        }
        let row = Box::<RawValue>::deserialize(deserializer)?;
        let row = row.get();
        // It is no untagged enum, since the errors of those do not say which key is wrong.
        match serde_json::from_str(row) {
            Ok(Kind { input_ids: None }) => serde_json::from_str(row).map(Self::Sample),
            Ok(Kind { input_ids: Some(_) }) => serde_json::from_str(row).map(Self::Ids),
            Err(e) => Err(e),
        }
        .map_err(de::Error::custom)
    }
}

impl LabelledIds {
    /// Checks the labels against the tokens, and turns them into a mask.
    fn into_tokenized(self, vocab_size: usize) -> Result<Tokenized> {
        let Self { input_ids, labels, attention_mask } = self;
        if let Some(i) = attention_mask.iter().position(|&is_seen| is_seen == 0) {
            return Err(usage(format!(
                "attention_mask[{i}] is 0: leave padding out, rows are packed without it"
            )));
        }
        if labels.len() != input_ids.len() {
            return Err(usage(format!(
                "{} input_ids but {} labels: give each token a label, {NO_LOSS} for no loss",
                input_ids.len(),
                labels.len()
            )));
        }
        for (i, (&id, &label)) in input_ids.iter().zip(&labels).enumerate() {
            if id as usize >= vocab_size {
                return Err(usage(format!(
                    "input_ids[{i}] is {id}, but the tokenizer has {vocab_size} tokens"
                )));
            }
            if label != NO_LOSS && label != i64::from(id) {
                return Err(usage(format!(
                    "labels[{i}] is {label}: expected {NO_LOSS} or the token itself, {id} (labels are not shifted)"
                )));
            }
        }
        let loss_mask = labels.iter().map(|&label| label != NO_LOSS).collect();
        Ok(Tokenized { input_ids, loss_mask })
    }
}

/// Returns the keys of a line's turns that the chat template does not read.
pub fn unread_keys(line: &Line, tokenizer: &Tokenizer) -> Result<BTreeSet<String>> {
    match line {
        Line::Sample(sample) => tokenizer.unread_keys(&sample.messages),
        Line::Ids(_) => Ok(BTreeSet::new()),
    }
}

/// Returns the tokens of a line, whatever its mask.
pub fn encode(line: Line, tokenizer: &Tokenizer) -> Result<Tokenized> {
    match line {
        Line::Sample(sample) => tokenizer.encode_masked(&sample.messages),
        Line::Ids(ids) => ids.into_tokenized(tokenizer.vocab_size()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::data::input;
    use crate::tokenizer::test_support::small_tokenizer;

    fn load_text(text: &str) -> Result<Vec<Tokenized>> {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let path = dir.path().join("samples.jsonl");
        std::fs::write(&path, text).unwrap();
        let mut samples = Vec::new();
        input::for_each(path.to_str().unwrap(), &tokenizer, |sample| {
            samples.push(sample);
            Ok(())
        })?;
        Ok(samples)
    }

    #[test]
    fn conversations_and_labelled_ids_are_read_from_one_file() {
        let samples = load_text(concat!(
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            "\n\n",
            r#"{"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}"#,
        ))
        .unwrap();
        assert_eq!(samples.len(), 2);
        assert_eq!(samples[1].loss_mask, [false, true, false]);
    }

    #[test]
    fn a_bad_sample_is_named() {
        for (line, reason) in [
            (r#"{"input_ids": [5, 6], "labels": [-100]}"#, "1 labels"),
            (r#"{"input_ids": [5, 6], "labels": [-100, 5]}"#, "labels[1]"),
            (r#"{"input_ids": [5, 99999], "labels": [-100, 99999]}"#, "input_ids[1]"),
            (r#"{"input_ids": [5, 6], "labels": [5, 6]}"#, "every token"),
            (r#"{"input_ids": [0, 6], "labels": [-100, 6], "attention_mask": [0, 1]}"#, "padding"),
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "no token"),
            (r#"{"messages": [{"role": "bard", "content": "q"}]}"#, "unknown role"),
        ] {
            let error = load_text(line).unwrap_err();
            assert_eq!(exit_code(&error), 2, "{line}");
            let text = format!("{error:#}");
            assert!(text.contains(reason) && text.contains("samples.jsonl: sample 1"), "{text}");
        }
    }
}
