//! `[data]` of `sft.toml`: which samples, which of them are kept, and how sources are mixed.
//!
//! Left out: how they are cut into rows (`[train]`).

use super::mixture::MixBy;
use super::rules::{OverLength, TULU3_CODE};
use crate::base::error::usage;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The `[data]` table of `sft.toml`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Files, directories or data-set ids of one unnamed source, all of whose samples are used.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// Several sources by name, in place of `files`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, SourceConfig>,
    /// Most tokens of a sample (Table 6: max-length-per-sample).
    pub max_length: usize,
    /// Samples with fewer tokens are dropped (Table 6: min-length).
    #[serde(default)]
    pub min_length: usize,
    /// What happens to samples of more than `max_length` tokens.
    #[serde(default)]
    pub over_length: OverLength,
    /// Samples without anything to learn that may be skipped, in each source; one more is an error.
    #[serde(default)]
    pub max_empty: u64,
    /// What weights are shares of: samples or tokens.
    #[serde(default)]
    pub mix_by: MixBy,
    /// Samples to look through for one that fits into the rest of a row; 0 takes them as they come.
    #[serde(default)]
    pub pack_ahead: usize,
    /// Where tokenised samples are kept [default: $XDG_CACHE_HOME/codeseq, for large inputs only].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Files (.jsonl, .parquet), directories, or ids of data sets in the Hugging Face cache.
    pub paths: Vec<String>,
    /// Its share beside the other sources' weights.
    #[serde(default = "one")]
    pub weight: f64,
    /// Longer samples are dropped, in tokens (the paper: 3K for Tülu 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Samples are dropped whose `source` is one of these [default: the code sources of Tülu 3].
    #[serde(default = "tulu3_code")]
    pub drop_sources: Vec<String>,
    /// Samples are dropped that a model called code: JSON Lines of `{"id": ..., "is_code": ...}`.
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

    /// The same samples wherever they are cached: what a resumed run may not change.
    pub(crate) fn unchangeable(self) -> Self {
        Self { cache_dir: None, ..self }
    }

    /// The sources by name; those of `files` have none.
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
