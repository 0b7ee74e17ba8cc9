//! The table `[data]` of `sft.toml`: which samples are used, which are kept, and how sources are mixed.
//!
//! How they are divided into rows is set in `[train]`.

use super::mixture::MixBy;
use super::rules::{OverLength, TULU3_CODE};
use crate::base::error::usage;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The conversations to learn from.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Files, directories or data-set ids of one unnamed source, all of whose samples are used.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// Several named sources, in place of `files`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, SourceConfig>,
    /// A sample may have at most this many tokens (paper, Table 6: max-length-per-sample).
    pub max_length: usize,
    /// Samples with fewer tokens are dropped (paper, Table 6: min-length).
    #[serde(default)]
    pub min_length: usize,
    /// What happens to samples of more than `max_length` tokens.
    #[serde(default)]
    pub over_length: OverLength,
    /// At most this many samples of each source may have nothing to learn; they are skipped, and one more
    /// is an error.
    #[serde(default)]
    pub max_empty: u64,
    /// Whether weights are shares of samples or of tokens.
    #[serde(default)]
    pub mix_by: MixBy,
    /// This many samples are searched for one that fits into the rest of a row; 0 takes samples in order.
    #[serde(default)]
    pub pack_ahead: usize,
    /// The directory that keeps tokenised samples [default: $XDG_CACHE_HOME/codeseq, for large inputs
    /// only].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Files (.jsonl, .parquet), directories, or ids of data sets in the Hugging Face cache.
    pub paths: Vec<String>,
    /// The weight of this source relative to the others.
    #[serde(default = "one")]
    pub weight: f64,
    /// Samples with more tokens are dropped (the paper drops those over 3K of Tülu 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Samples whose `source` is one of these are dropped [default: the code sources of Tülu 3].
    #[serde(default = "tulu3_code")]
    pub drop_sources: Vec<String>,
    /// Samples that a model called code in this file are dropped: JSON Lines of `{"id": ..., "is_code":
    /// ...}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_answers: Option<PathBuf>,
}

fn one() -> f64 {
    1.0
}

fn tulu3_code() -> Vec<String> {
    TULU3_CODE.map(str::to_owned).to_vec()
}

impl DataConfig {
    /// Refuses a table that names no samples, or rows that could not hold them.
    pub fn check(&self, seq_len: usize) -> Result<()> {
        if self.files.is_empty() == self.sources.is_empty() {
            return Err(usage("data: give either `files`, or tables `[data.sources.NAME]`"));
        }
        if self.max_length > seq_len {
            return Err(usage(format!(
                "data.max_length is {}, but a row holds train.seq_len = {seq_len} tokens",
                self.max_length
            )));
        }
        for (name, source) in &self.sources {
            if !(source.weight > 0.0 && source.weight.is_finite()) {
                return Err(usage(format!(
                    "data.sources.{name}.weight is {}: it must be above 0",
                    source.weight
                )));
            }
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || !name.chars().all(is_plain) {
                return Err(usage(format!(
                    "data.sources: {name:?} is no name for a source: use letters, digits, - and _"
                )));
            }
        }
        Ok(())
    }

    /// Returns what a resumed run may not change: the samples, wherever their tokens are cached.
    pub(crate) fn unchangeable(self) -> Self {
        Self { cache_dir: None, ..self }
    }

    /// Returns the sources by name; the source of `files` has an empty name.
    pub fn named_sources(&self) -> BTreeMap<String, SourceConfig> {
        if !self.sources.is_empty() {
            return self.sources.clone();
        }
        let files = SourceConfig {
            paths: self.files.iter().map(|file| file.to_string_lossy().into_owned()).collect(),
            weight: 1.0,
            max_length: None,
            drop_sources: Vec::new(),
            code_answers: None,
        };
        BTreeMap::from([(String::new(), files)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    #[test]
    fn a_table_that_makes_no_sense_is_refused() {
        for (text, part) in [
            ("max_length = 9", "either `files`"),
            ("files = ['a']\nmax_length = 9\n[sources.b]\npaths = ['b']", "either `files`"),
            ("files = ['a']\nmax_length = 11", "train.seq_len = 10"),
            ("max_length = 9\n[sources.b]\npaths = ['b']\nweight = 0", "data.sources.b.weight"),
            ("max_length = 9\n[sources.'a/b']\npaths = ['b']", "a/b"),
        ] {
            let config: DataConfig = toml::from_str(text).unwrap();
            let error = config.check(10).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(toml::from_str::<DataConfig>("max_length = 9\n[sources.a]\npath = 'x'").is_err());
    }
}
