//! Samples as tokens, from either kind of file: conversations, or ids with labels made elsewhere.
//!
//! Contract: every sample that [`for_each`] gives has a loss mask that is neither empty nor full; one
//! that breaks this, or that the tokenizer or its template refuses, is named by file and row.

use super::input::resolve;
use super::sample::Sample;
use crate::base::error::usage;
use crate::tokenizer::{Tokenized, Tokenizer};
use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize};

/// The label of a token without loss.
pub const NO_LOSS: i64 = -100;

/// A tokenised sample as it lies in a file (JSON Lines).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelledIds {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// The same tokens, or [`NO_LOSS`] where none is to be learnt.
    pub labels: Vec<i64>,
}

/// One line of a file of samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A conversation.
    Sample(Sample),
    /// Tokens made elsewhere.
    Ids(LabelledIds),
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        // Not an untagged enum: its errors do not say which key is wrong.
        if value.get("input_ids").is_some() {
            serde_json::from_value(value).map(Self::Ids)
        } else {
            serde_json::from_value(value).map(Self::Sample)
        }
        .map_err(serde::de::Error::custom)
    }
}

impl LabelledIds {
    /// Checks the labels against the tokens and turns them into a mask.
    fn into_tokenized(self, vocab_size: usize) -> Result<Tokenized> {
        let Self { input_ids, labels } = self;
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

/// One line as tokens, whatever its mask.
pub fn encode(line: Line, tokenizer: &Tokenizer) -> Result<Tokenized> {
    match line {
        Line::Sample(sample) => tokenizer.encode_masked(&sample.messages),
        Line::Ids(ids) => ids.into_tokenized(tokenizer.vocab_size()),
    }
}

/// Reads and tokenizes every sample of a place (see [`super::input`]), in order, and hands each to
/// `take`; only some are held at a time.
pub fn for_each(
    place: &str,
    tokenizer: &Tokenizer,
    mut take: impl FnMut(Tokenized) -> Result<()>,
) -> Result<()> {
    for file in resolve(place)? {
        let mut number = 0;
        file.for_each_chunk(|lines| {
            let tokenized: Vec<Result<Tokenized>> = lines
                .into_par_iter()
                .map(|line| {
                    let sample = encode(line, tokenizer)?;
                    sample.check_mask("conversation").map(|()| sample)
                })
                .collect();
            tokenized.into_iter().try_for_each(|sample| {
                number += 1;
                let name = || format!("{}: sample {number}", file.path().display());
                take(sample.with_context(name)?)
            })
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tokenizer::bpe;

    fn load_text(text: &str) -> Result<Vec<Tokenized>> {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(dir.path());
        let path = dir.path().join("samples.jsonl");
        std::fs::write(&path, text).unwrap();
        let mut samples = Vec::new();
        for_each(path.to_str().unwrap(), &tokenizer, |sample| {
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
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "no token"),
            (r#"{"messages": [{"role": "bard", "content": "q"}]}"#, "unknown role"),
        ] {
            let error = load_text(line).unwrap_err();
            assert_eq!(exit_code(&error), 2, "{line}");
            let text = format!("{error:#}");
            assert!(text.contains(reason) && text.contains("sample 1"), "{text}");
        }
    }
}
