//! Which samples of a source are kept, and the count of those that are not.
//!
//! Every sample that is read is either kept or counted under exactly one reason. Rules look at the row
//! before it is tokenised, and at its tokens after. The paper drops Tülu's samples of over 3K tokens and
//! its code samples. It finds the latter by asking a model, whose stored answers are used here
//! ([`CodeAnswers`]); without them, the sources that hold code are dropped by name.

use super::code_answers::CodeAnswers;
use super::sample::Sample;
use crate::base::error::usage;
use crate::base::human;
use crate::tokenizer::Tokenized;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The code sources of `allenai/tulu-3-sft-mixture`: 142,275 of its 939,344 rows.
pub const TULU3_CODE: [&str; 2] = [
    "ai2-adapt-dev/evol_codealpaca_heval_decontaminated",
    "ai2-adapt-dev/personahub_code_v2_34999",
];

/// What happens to a sample that has more tokens than a packed row may take of one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum OverLength {
    /// It is left out and counted.
    #[default]
    Drop,
    /// Its first tokens are kept. It is left out if none of them carries loss.
    Truncate,
    /// It is an error, and the run stops.
    Refuse,
}

/// What decides about a sample.
#[derive(Debug, Clone, Serialize)]
pub struct Rules {
    /// Samples with fewer tokens are dropped.
    pub min_length: usize,
    /// Samples with more tokens are dropped, whatever `over_length` says.
    pub drop_above: Option<usize>,
    /// A sample may have at most this many tokens.
    pub max_length: usize,
    /// What happens to a longer sample.
    pub over_length: OverLength,
    /// Samples of these sources are dropped.
    pub drop_sources: Vec<String>,
}

/// Why a sample was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its source is in the list of sources to drop.
    Source,
    /// A model said that it is code.
    Code,
    /// No token carries loss, or no assistant says anything.
    Empty,
    /// It has fewer tokens than `min_length`.
    Short,
    /// It has more tokens than are allowed.
    Long,
}

impl Reason {
    /// Returns the reason as tables and logs name it.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Source => "of a dropped source",
            Self::Code => "code, says the model",
            Self::Empty => "nothing to learn",
            Self::Short => "too short",
            Self::Long => "too long",
        }
    }
}

impl Rules {
    /// Decides by what the row says.
    pub fn of_sample(&self, sample: &Sample, answers: &CodeAnswers) -> Option<Reason> {
        if sample.source.as_ref().is_some_and(|source| self.drop_sources.contains(source)) {
            return Some(Reason::Source);
        }
        if sample.id.as_ref().is_some_and(|id| answers.is_code(id)) {
            return Some(Reason::Code);
        }
        let mut said = sample.messages.iter().filter(|m| m.role == "assistant");
        said.all(|message| message.content.trim().is_empty()).then_some(Reason::Empty)
    }

    /// Decides by the tokens, and cuts them if the rule says so.
    pub fn of_tokens(&self, sample: &mut Tokenized) -> Result<Decision> {
        let length = sample.input_ids.len();
        if sample.learnt() == 0 {
            return Ok(Decision::Drop(Reason::Empty));
        }
        if length < self.min_length {
            return Ok(Decision::Drop(Reason::Short));
        }
        if self.drop_above.is_some_and(|most| length > most) {
            return Ok(Decision::Drop(Reason::Long));
        }
        if length <= self.max_length {
            return Ok(Decision::Keep);
        }
        match self.over_length {
            OverLength::Drop => Ok(Decision::Drop(Reason::Long)),
            OverLength::Refuse => Err(usage(format!(
                "{length} tokens, more than data.max_length = {}: raise it, or set \
                 data.over_length to \"drop\" or \"truncate\"",
                self.max_length
            ))),
            OverLength::Truncate => {
                sample.input_ids.truncate(self.max_length);
                sample.loss_mask.truncate(self.max_length);
                let is_empty = sample.learnt() == 0;
                Ok(if is_empty { Decision::Drop(Reason::Long) } else { Decision::Truncate })
            }
        }
    }
}

/// What happens to a tokenised sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Keep,
    /// It is kept, cut to the longest length.
    Truncate,
    Drop(Reason),
}

/// What was read of a source, and what happened to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// The number of samples in the files.
    pub read: u64,
    pub kept: u64,
    /// The number of kept samples that were cut.
    pub truncated: u64,
    /// The number of tokens of the kept samples.
    pub tokens: u64,
    /// The number of those tokens that carry loss.
    pub learnt: u64,
    /// The number of samples that were left out, by reason.
    pub dropped: BTreeMap<Reason, u64>,
    /// The number of kept samples in which a turn has a key that the chat template does not use, by the
    /// key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unread: BTreeMap<String, u64>,
    /// The number of kept samples, by the source that their rows name.
    pub origins: BTreeMap<String, u64>,
}

impl Counts {
    pub fn keep(&mut self, sample: &Tokenized, origin: Option<&str>, is_cut: bool) {
        self.read += 1;
        self.kept += 1;
        self.truncated += u64::from(is_cut);
        self.tokens += sample.input_ids.len() as u64;
        self.learnt += sample.learnt() as u64;
        if let Some(origin) = origin {
            *self.origins.entry(origin.to_owned()).or_default() += 1;
        }
    }

    pub fn drop(&mut self, reason: Reason) {
        self.read += 1;
        *self.dropped.entry(reason).or_default() += 1;
    }

    /// Describes the counts in a line: `800 of 900 samples kept (60 too long, 40 too short), 3 truncated`.
    pub fn describe(&self) -> String {
        let count = |n| human::count(n);
        let mut text = format!("{} of {} samples kept", count(self.kept), count(self.read));
        let reasons: Vec<String> = self
            .dropped
            .iter()
            .map(|(why, &n)| format!("{} {}", count(n), why.describe()))
            .collect();
        if !reasons.is_empty() {
            text += &format!(" ({})", reasons.join(", "));
        }
        if self.truncated > 0 {
            text += &format!(", {} truncated", count(self.truncated));
        }
        if !self.unread.is_empty() {
            let keys = self.unread.iter().map(|(key, &n)| format!("`{key}` in {}", count(n)));
            let keys: Vec<String> = keys.collect();
            text +=
                &format!("; turns have keys that the template does not use: {}", keys.join(", "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::Message;

    fn rules(over_length: OverLength) -> Rules {
        Rules {
            min_length: 3,
            drop_above: Some(9),
            max_length: 6,
            over_length,
            drop_sources: vec!["code".to_owned()],
        }
    }

    fn decide(over_length: OverLength, length: usize, prompt: usize) -> Result<Decision> {
        let loss_mask = (0..length).map(|i| i >= prompt).collect();
        let mut sample = Tokenized { input_ids: vec![0; length], loss_mask };
        rules(over_length).of_tokens(&mut sample).inspect(|decision| {
            let is_cut = *decision == Decision::Truncate;
            assert!(!is_cut || sample.input_ids.len() == 6 && sample.loss_mask.len() == 6);
        })
    }

    #[test]
    fn lengths_decide_in_the_stated_way() {
        use Decision::{Drop, Keep, Truncate};
        let cases = [
            (2, 1, Drop(Reason::Short)),
            (3, 1, Keep),
            (6, 1, Keep),
            (7, 1, Truncate),
            (7, 6, Drop(Reason::Long)),
            (10, 1, Drop(Reason::Long)),
            (5, 5, Drop(Reason::Empty)),
        ];
        for (length, prompt, expected) in cases {
            assert_eq!(decide(OverLength::Truncate, length, prompt).unwrap(), expected, "{length}");
        }
        assert_eq!(decide(OverLength::Drop, 7, 1).unwrap(), Drop(Reason::Long));
        let error = decide(OverLength::Refuse, 7, 1).unwrap_err().to_string();
        assert!(error.contains("7 tokens") && error.contains("data.max_length = 6"), "{error}");
    }

    #[test]
    fn code_is_dropped_by_its_source_or_by_a_stored_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let lines = "{\"id\": \"7\", \"is_code\": true}\n{\"id\": 8, \"is_code\": false}\n";
        std::fs::write(&path, lines).unwrap();
        let answers = CodeAnswers::read(&path).unwrap();
        let decide = |id: &str, source: &str, said: &str| {
            let sample = Sample {
                id: Some(id.to_owned()),
                source: Some(source.to_owned()),
                messages: vec![Message::new("user", "q"), Message::new("assistant", said)],
                ..Sample::default()
            };
            rules(OverLength::Drop).of_sample(&sample, &answers)
        };
        assert_eq!(decide("8", "code", "a"), Some(Reason::Source));
        assert_eq!(decide("7", "maths", "a"), Some(Reason::Code));
        assert_eq!(decide("8", "maths", " \n"), Some(Reason::Empty));
        assert_eq!(decide("9", "maths", "a"), None, "never asked about");
    }

    #[test]
    fn every_sample_is_counted_once() {
        let mut counts = Counts::default();
        let sample =
            Tokenized { input_ids: vec![1; 5], loss_mask: vec![false, true, true, true, true] };
        counts.keep(&sample, Some("a"), true);
        counts.drop(Reason::Short);
        counts.drop(Reason::Long);
        assert_eq!((counts.read, counts.kept, counts.tokens, counts.learnt), (3, 1, 5, 4));
        assert_eq!(counts.describe(), "1 of 3 samples kept (1 too short, 1 too long), 1 truncated");
        counts.unread.insert("name".to_owned(), 1);
        assert!(counts.describe().ends_with("the template does not use: `name` in 1"));
    }
}
