//! Text to token ids and back, from files in Hugging Face layout.
//!
//! Contract: [`Tokenizer::load`] reads `tokenizer.json`, `tokenizer_config.json`, the chat template and
//! the end-of-sequence ids of a model directory and encodes exactly as transformers does; anything
//! missing or malformed is the user's error and names its file. The files themselves are never
//! rewritten: [`Tokenizer::copy_files`] hands them on byte for byte.
//!
//! Left out: training a tokenizer ([`bpe`]) and conversations ([`chat`]).

pub mod bpe;
pub mod chat;
mod json;
mod message;
mod targets;
mod template;

pub use chat::Tokenized;
pub use message::Message;
pub use template::ChatTemplate;
pub(crate) use template::{FUEL, one_line};

use crate::base::error::usage;
use crate::base::fs::{read_text, write_atomic};
use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper};

/// Everything that transformers and vLLM read to tokenize; those that exist travel with a model.
pub const FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// A tokenizer with its chat template and end-of-sequence ids.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Kept apart from `inner`: it adds special tokens and trims offsets, and masks need the true ones.
    post_processor: Option<PostProcessorWrapper>,
    template: Option<ChatTemplate>,
    eos_ids: Vec<u32>,
    vocab_size: usize,
    dir: PathBuf,
    /// Kept whole: a checkpoint that a run resumed from may be gone when the next one is written.
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() && dir.join("tokenizer.model").is_file() {
            return Err(only_sentencepiece(dir));
        }
        let text = read_text(&path)?;
        let mut inner: tokenizers::Tokenizer =
            text.parse().map_err(|e| usage(format!("{}: not a tokenizer: {e}", path.display())))?;
        let post_processor = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| usage(format!("{}: bad truncation: {e}", path.display())))?;
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);

        let config = read_object(&dir.join("tokenizer_config.json"))?
            .ok_or_else(|| missing(dir, "tokenizer_config.json"))?;
        let eos_ids = eos_ids(dir, &config, &inner)?;
        let ends = eos_ids.iter().filter_map(|&id| inner.id_to_token(id)).collect();
        let template = ChatTemplate::load(dir, &config, ends)?;
        let files = read_files(dir)?;
        let dir = dir.to_owned();
        Ok(Self { inner, post_processor, template, eos_ids, vocab_size, dir, files })
    }

    /// The ids of `text` as it stands; text that spells a special token becomes that token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    /// The ids of `text` with the special tokens that the tokenizer's own post-processor adds.
    pub fn encode_with_special_tokens(&self, text: &str) -> Result<Vec<u32>> {
        let mut encoding = self.encoding(text)?;
        if let Some(post_processor) = &self.post_processor {
            encoding = post_processor
                .process(encoding, None, true)
                .map_err(|e| anyhow!("post-processing text: {e}"))?;
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids` without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| anyhow!("decoding tokens: {e}"))
    }

    /// The text of `ids` with special tokens spelled out.
    pub fn decode_with_special_tokens(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| anyhow!("decoding tokens: {e}"))
    }

    /// One more than the largest id; a model's embedding needs at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Refuses a model with fewer embedding rows than there are tokens.
    pub fn check_fits(&self, embedding_rows: usize) -> Result<()> {
        if self.vocab_size > embedding_rows {
            return Err(usage(format!(
                "the tokenizer in {} has {} tokens, but the model only {embedding_rows} (vocab_size \
                 in its config.json): they do not belong together",
                self.dir.display(),
                self.vocab_size
            )));
        }
        Ok(())
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The ids that end a response.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The chat template; its absence is the user's error.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            usage(format!(
                "{}: no chat template: add chat_template.jinja, or the key \"chat_template\" to \
                 tokenizer_config.json",
                self.dir.display()
            ))
        })
    }

    /// Where the tokenizer was read from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A hash of all that decides which tokens a conversation becomes.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (name, content) in &self.files {
            hash.update(name);
            hash.update((content.len() as u64).to_le_bytes());
            hash.update(content);
        }
        self.eos_ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        hash.finalize().into()
    }

    /// Writes the tokenizer's files to `to`, byte for byte as they were read.
    pub fn copy_files(&self, to: &Path) -> Result<()> {
        self.files.iter().try_for_each(|(name, content)| write_atomic(&to.join(name), content))
    }

    /// Ids with the byte range of each in `text`, untrimmed.
    fn encoding(&self, text: &str) -> Result<Encoding> {
        self.inner.encode(text, false).map_err(|e| anyhow!("tokenizing text: {e}"))
    }
}

/// Those of [`FILES`] that exist.
fn read_files(dir: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let existing = FILES.into_iter().filter(|name| dir.join(name).is_file());
    existing
        .map(|name| {
            let path = dir.join(name);
            let content =
                std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok((name, content))
        })
        .collect()
}

fn missing(dir: &Path, name: &str) -> anyhow::Error {
    usage(format!("{}: no {name}: expected a tokenizer in Hugging Face layout", dir.display()))
}

fn only_sentencepiece(dir: &Path) -> anyhow::Error {
    let dir = dir.display();
    usage(format!(
        "{dir}: no tokenizer.json, only tokenizer.model (SentencePiece); convert it with: python -c \
         \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{dir}', \
         trust_remote_code=True).save_pretrained('{dir}')\""
    ))
}

/// A JSON object, `None` if there is no such file.
fn read_object(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let value: Value = serde_json::from_str(&read_text(path)?)
        .map_err(|e| usage(format!("{}: {e}", path.display())))?;
    match value {
        Value::Object(_) => Ok(Some(value)),
        _ => Err(usage(format!("{}: expected a JSON object", path.display()))),
    }
}

/// A special token's text: configs spell it as a string or as an object with `content`.
fn special_token<'a>(config: &'a Value, key: &str) -> Option<&'a str> {
    let token = &config[key];
    token.as_str().or_else(|| token["content"].as_str())
}

/// The generation config decides; then the model's config; then the tokenizer's `eos_token`.
fn eos_ids(dir: &Path, config: &Value, inner: &tokenizers::Tokenizer) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        let Some(object) = read_object(&path)? else { continue };
        let ids = match &object["eos_token_id"] {
            Value::Null => continue,
            Value::Array(ids) => ids.iter().map(Value::as_u64).collect(),
            one => Some(one.as_u64().into_iter().collect::<Vec<_>>()).filter(|ids| !ids.is_empty()),
        };
        return ids
            .and_then(|ids| ids.into_iter().map(|id| u32::try_from(id).ok()).collect())
            .ok_or_else(|| {
                usage(format!(
                    "{}: eos_token_id: expected an id or a list of ids, found {}",
                    path.display(),
                    object["eos_token_id"]
                ))
            });
    }
    let Some(token) = special_token(config, "eos_token") else { return Ok(Vec::new()) };
    let id = inner.token_to_id(token).ok_or_else(|| {
        usage(format!(
            "{}: eos_token {token:?} is not in the vocabulary of tokenizer.json",
            dir.join("tokenizer_config.json").display()
        ))
    })?;
    Ok(vec![id])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    #[test]
    fn a_directory_without_a_tokenizer_is_the_users_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tokenizer::load(dir.path()).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
        std::fs::write(dir.path().join("tokenizer.model"), "").unwrap();
        let error = Tokenizer::load(dir.path()).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("python -c"), "{error}");
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        let error = Tokenizer::load(dir.path()).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("not a tokenizer"), "{error}");
    }

    #[test]
    fn every_source_of_end_ids_is_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        bpe::tests::small(dir.path());
        let end = |dir: &Path| Tokenizer::load(dir).map(|t| t.eos_ids().to_vec());
        let generation = dir.path().join("generation_config.json");
        std::fs::write(&generation, r#"{"eos_token_id": [1, 0]}"#).unwrap();
        assert_eq!(end(dir.path()).unwrap(), [1, 0]);
        std::fs::write(&generation, r#"{"eos_token_id": "x"}"#).unwrap();
        assert!(end(dir.path()).unwrap_err().to_string().contains("eos_token_id"));
        std::fs::remove_file(&generation).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.eos_ids(), [tokenizer.token_to_id(bpe::END_OF_TURN).unwrap()]);
    }

    #[test]
    fn a_model_with_fewer_rows_than_tokens_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(dir.path());
        assert!(tokenizer.check_fits(tokenizer.vocab_size() + 7).is_ok());
        let error = tokenizer.check_fits(tokenizer.vocab_size() - 1).unwrap_err();
        assert_eq!(exit_code(&error), 2);
    }

    #[test]
    fn copied_files_are_the_same_bytes_even_when_the_first_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        let read = |d: &Path, name: &str| std::fs::read(d.join(name)).unwrap();
        let tokenizer = bpe::tests::small(dir.path());
        let names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
        let before = names.map(|name| read(dir.path(), name));
        drop(dir);
        tokenizer.copy_files(to.path()).unwrap();
        assert_eq!(names.map(|name| read(to.path(), name)), before);
    }
}
