//! A tokenizer taken apart, for formats that store it otherwise.

use super::Tokenizer;
use super::directory::Directory;
use anyhow::{Result, anyhow};
use serde_json::Value;
use std::collections::HashMap;

/// What a tokenizer consists of.
pub(crate) struct TokenizerParts {
    /// `tokenizer.json` with the tokens that other files add.
    pub(crate) json: Value,
    /// Ids and spellings of all tokens.
    pub(crate) tokens: Vec<(u32, String)>,
    /// Whether a token that was added to the vocabulary is special, by its id.
    pub(crate) special: HashMap<u32, bool>,
    /// Whether those match as they are spelled, without the spaces or word borders around them.
    pub(crate) has_plain_tokens: bool,
    /// The source of the chat template.
    pub(crate) template: Option<String>,
    /// Special tokens under their names (`bos_token`, ...).
    pub(crate) named: Vec<(String, String)>,
}

impl Tokenizer {
    /// Takes the tokenizer apart.
    pub(crate) fn parts(&self) -> Result<TokenizerParts> {
        let text = self.inner.to_string(false).map_err(|e| anyhow!("writing a tokenizer: {e}"))?;
        let mut json: Value = serde_json::from_str(&text)?;
        json["post_processor"] = serde_json::to_value(&self.post_processor)?;
        let vocabulary = self.inner.get_vocab(true);
        let mut tokens: Vec<(u32, String)> =
            vocabulary.into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort_unstable();
        let added = self.inner.get_added_tokens_decoder();
        let directory = Directory::of_files(&self.dir, self.files.clone())?.with_config()?;
        Ok(TokenizerParts {
            json,
            tokens,
            has_plain_tokens: added.values().all(|t| !t.lstrip && !t.rstrip && !t.single_word),
            special: added.into_iter().map(|(id, token)| (id, token.special)).collect(),
            template: directory.template()?.map(|template| template.source),
            named: directory.special_tokens(),
        })
    }
}
