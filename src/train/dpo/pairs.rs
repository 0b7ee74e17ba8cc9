//! `[data]` of `dpo.toml`: the pairs that a run learns from, as tokens.

use crate::base::error::usage;
use crate::base::limits::refuse_sizes;
use crate::data::pair::{Pair, TokenPair};
use crate::data::rows;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The pairs to learn from.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Files of pairs (.jsonl, .parquet), such as `train data pairs` makes.
    pub files: Vec<PathBuf>,
    /// Most tokens of a prompt with an answer; pairs with more are left out and counted.
    pub max_length: usize,
    /// Where log-probabilities of the reference model are kept, for other runs too; the run directory where
    /// not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
}

impl DataConfig {
    /// Refuses a table that names no pairs, or none that could be learnt.
    pub(crate) fn check(&self, table: &str) -> Result<()> {
        if self.files.is_empty() {
            return Err(usage(format!("{table}.files names no file: give at least one")));
        }
        refuse_sizes(table, &[("max_length", self.max_length)])
    }

    /// The same pairs wherever something is cached: what a resumed run may not change.
    pub(crate) fn unchangeable(self) -> Self {
        Self { cache_dir: None, ..self }
    }

    /// The pairs that are short enough, at least one; a row that is none is named.
    pub(crate) fn read(&self, tokenizer: &Tokenizer) -> Result<Vec<TokenPair>> {
        let mut pairs = Vec::new();
        for file in &self.files {
            let rows = rows::numbered::<Pair>(file, None)?.collect::<Result<Vec<_>>>()?;
            let encode = |(number, pair): &(usize, Pair)| {
                TokenPair::new(tokenizer, pair)
                    .with_context(|| format!("{}:{number}", file.display()))
            };
            pairs.extend(rows.par_iter().map(encode).collect::<Result<Vec<_>>>()?);
        }
        let num_all = pairs.len();
        pairs.retain(|pair| pair.longest() <= self.max_length);
        let num_long = num_all - pairs.len();
        if pairs.is_empty() {
            return Err(usage(format!(
                "data.files hold {num_all} pairs, none of them within data.max_length = {}",
                self.max_length
            )));
        }
        if num_long > 0 {
            tracing::warn!(
                "left out {num_long} of {num_all} pairs longer than data.max_length = {}",
                self.max_length
            );
        }
        Ok(pairs)
    }
}
