//! Converts text to token ids and back, with the files of a Hugging Face model directory.
//!
//! [`Tokenizer::load`] reads `tokenizer.json`, `tokenizer_config.json`, the chat template and the
//! end-of-sequence ids, and encodes exactly as transformers does. A file that is missing or malformed is
//! the user's error and is named. The files are never rewritten: [`Tokenizer::copy_files`] copies them byte
//! for byte.
//!
//! A tokenizer is trained in [`bpe`]; conversations are in [`chat`].

pub mod bpe;
mod bytes;
pub mod chat;
mod dialect;
mod directory;
mod jinja;
mod json;
mod message;
#[cfg(feature = "candle")]
mod parts;
mod python;
mod targets;
mod template;
#[cfg(test)]
pub(crate) mod test_support;

pub use chat::Tokenized;
pub(crate) use directory::{MORE_TEMPLATES, is_tokenizer_file};
pub(crate) use jinja::FUEL;
pub use message::Message;
#[cfg(feature = "candle")]
pub(crate) use parts::TokenizerParts;
pub use template::ChatTemplate;
pub(crate) use template::one_line;

use crate::base::error::usage;
use crate::base::fs::write_atomic;
use anyhow::{Result, anyhow};
use chrono::NaiveDate;
use directory::{Directory, GENERATION, MODEL, VOCABULARY, file_order, parse_object};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use template::{DATE, Spellings};
use tokenizers::{AddedToken, Encoding, PostProcessor, PostProcessorWrapper};

/// What thoughts begin with, in most models and in Magistral.
pub(crate) const THOUGHT_OPENS: [&str; 2] = ["<think>", "[THINK]"];
/// What they end with.
pub(crate) const THOUGHT_CLOSES: [&str; 2] = ["</think>", "[/THINK]"];

/// The key of `tokenizer_config.json` that gives templates their date of today.
const DATE_KEY: &str = "chat_template_date";

/// A tokenizer with its chat template and the ids that end a sequence.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// It is kept apart from `inner`, because it adds special tokens and trims offsets, and masks need true
    /// offsets.
    post_processor: Option<PostProcessorWrapper>,
    template: Option<ChatTemplate>,
    eos_ids: Vec<u32>,
    /// Special tokens, without those that a thought lies between.
    silent: HashSet<u32>,
    vocab_size: usize,
    dir: PathBuf,
    /// The contents of the files. They are kept because the directory may be gone when the next checkpoint
    /// is written.
    files: Vec<(String, Vec<u8>)>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory. Its errors name the file.
    pub fn load(dir: &Path) -> Result<Self> {
        if !dir.join(VOCABULARY).is_file() {
            refuse_slow(dir)?;
        }
        Self::of(Directory::read(dir)?)
    }

    /// The tokenizer of files that lie nowhere; messages say that they are in `place`.
    #[cfg(feature = "candle")]
    pub(crate) fn of_files(place: &Path, files: Vec<(String, Vec<u8>)>) -> Result<Self> {
        Self::of(Directory::of_files(place, files)?)
    }

    fn of(directory: Directory) -> Result<Self> {
        let path = directory.path(VOCABULARY);
        let text = directory.text(VOCABULARY)?.unwrap_or_default();
        let mut inner: tokenizers::Tokenizer =
            text.parse().map_err(|e| usage(format!("{}: not a tokenizer: {e}", path.display())))?;
        let post_processor = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| usage(format!("{}: bad truncation: {e}", path.display())))?;
        let directory = directory.with_config()?;
        directory.add_tokens(&mut inner)?;
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let eos_ids = eos_ids(&directory, &inner)?;
        let template = chat_template(&directory, &inner, &eos_ids)?;
        let added = inner.get_added_tokens_decoder().into_iter();
        let is_mark = |mark: &str| THOUGHT_OPENS.contains(&mark) || THOUGHT_CLOSES.contains(&mark);
        let is_silent = |token: &AddedToken| token.special && !is_mark(&token.content);
        let silent = added.filter(|(_, token)| is_silent(token)).map(|(id, _)| id).collect();
        let dir = directory.dir().to_owned();
        let files = directory.into_files();
        Ok(Self { inner, post_processor, template, eos_ids, silent, vocab_size, dir, files })
    }

    /// Returns the ids of `text` alone. Text that spells a special token becomes that token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    /// Returns the ids of `text` and of the special tokens that the tokenizer's own post-processor adds.
    pub fn encode_with_special_tokens(&self, text: &str) -> Result<Vec<u32>> {
        let mut encoding = self.encoding(text)?;
        if let Some(post_processor) = &self.post_processor {
            encoding = post_processor
                .process(encoding, None, true)
                .map_err(|e| anyhow!("post-processing text: {e}"))?;
        }
        if let [first, second, ..] = encoding.get_ids()
            && first == second
            && encoding.get_special_tokens_mask().first() == Some(&1)
        {
            let token = &encoding.get_tokens()[0];
            tracing::warn!(
                "a text begins with {token}, and the tokenizer puts another before it: leave it out"
            );
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the text of `ids` without special tokens. Tokens that mark a thought are text all the same,
    /// since grading must know where a thought ends. Fails for an id that no token has.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let spoken: Vec<u32> = ids.iter().copied().filter(|id| !self.silent.contains(id)).collect();
        self.decode_with_special_tokens(&spoken)
    }

    /// Returns the text of `ids` with special tokens spelled out.
    pub fn decode_with_special_tokens(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| anyhow!("decoding tokens: {e}"))
    }

    /// Returns the largest id plus 1; a model's embedding needs at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Refuses a model with fewer embedding rows than there are tokens, or than an end of sequence has.
    pub fn check_fits(&self, embedding_rows: usize) -> Result<()> {
        if self.vocab_size > embedding_rows {
            return Err(usage(format!(
                "the tokenizer in {} has {} tokens, but the model only {embedding_rows} (vocab_size \
                 in its config.json): they do not belong together",
                self.dir.display(),
                self.vocab_size
            )));
        }
        match self.eos_ids.iter().find(|&&id| id as usize >= embedding_rows) {
            None => Ok(()),
            Some(id) => Err(usage(format!(
                "{}: eos_token_id {id}: the model has only {embedding_rows} tokens (vocab_size in its \
                 config.json), so no response would end there",
                self.dir.display()
            ))),
        }
    }

    /// Refuses ids that no token has; `what` says in errors what the ids are.
    pub(crate) fn check_ids(&self, what: &str, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            None => Ok(()),
            Some(id) => {
                let most = self.vocab_size.saturating_sub(1);
                Err(usage(format!("{what} {id}: the tokens of the model have ids up to {most}")))
            }
        }
    }

    /// Returns the id of the token with this spelling in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the ids that end a response.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Returns the token with which the chat template ends an assistant's turn.
    pub(crate) fn turn_end(&self) -> Option<u32> {
        self.token_to_id(self.template.as_ref()?.turn_end()?)
    }

    /// Makes these ids end responses, also in the generation config that is saved with a model.
    pub(crate) fn set_eos_ids(&mut self, ids: Vec<u32>) -> Result<()> {
        let path = self.dir.join(GENERATION);
        let place = self.files.iter().position(|(name, _)| name == GENERATION);
        let mut object = match place {
            Some(place) => parse_object(&path, &String::from_utf8_lossy(&self.files[place].1))?,
            None => serde_json::Map::new(),
        };
        object.insert("eos_token_id".to_owned(), ids.clone().into());
        let content = format!("{:#}\n", Value::from(object)).into_bytes();
        match place {
            Some(place) => self.files[place].1 = content,
            None => self.files.push((GENERATION.to_owned(), content)),
        }
        self.files.sort_by_key(|(name, _)| file_order(name));
        for &id in ids.iter().filter(|id| !self.eos_ids.contains(id)) {
            if let (Some(template), Some(token)) = (&mut self.template, self.inner.id_to_token(id))
            {
                template.add_end(token);
            }
        }
        self.eos_ids = ids;
        Ok(())
    }

    /// Returns the chat template. Its absence is the user's error.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            usage(format!(
                "{}: no chat template: add chat_template.jinja, or the key \"chat_template\" to \
                 tokenizer_config.json",
                self.dir.display()
            ))
        })
    }

    /// Returns the directory from which the tokenizer was read.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns a hash of everything that decides which tokens a conversation becomes.
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

    /// Writes the tokenizer's files to the directory `to`, byte for byte.
    pub fn copy_files(&self, to: &Path) -> Result<()> {
        self.files.iter().try_for_each(|(name, content)| write_atomic(&to.join(name), content))
    }

    /// Returns ids with the byte range of each in `text`, untrimmed.
    fn encoding(&self, text: &str) -> Result<Encoding> {
        self.inner.encode(text, false).map_err(|e| anyhow!("tokenizing text: {e}"))
    }
}

/// Reads the chat template of a directory, if it has one.
fn chat_template(
    directory: &Directory,
    inner: &tokenizers::Tokenizer,
    eos_ids: &[u32],
) -> Result<Option<ChatTemplate>> {
    let Some(template) = directory.template()? else { return Ok(None) };
    let added = inner.get_added_tokens_decoder();
    let spellings = Spellings {
        named: directory.special_tokens(),
        ends: eos_ids.iter().filter_map(|&id| inner.id_to_token(id)).collect(),
        special: added.into_values().filter(|token| token.special).map(|t| t.content).collect(),
    };
    let date = match directory.get(DATE_KEY) {
        None => DATE,
        Some(value) => {
            value.as_str().and_then(|text| text.parse::<NaiveDate>().ok()).ok_or_else(|| {
                let place = directory.path("tokenizer_config.json");
                usage(format!(
                    "{}: {DATE_KEY}: expected a day such as \"2024-07-26\", found {value}",
                    place.display()
                ))
            })?
        }
    };
    ChatTemplate::new(template, spellings, date).map(Some)
}

/// Refuses a directory whose tokenizer is stored only in older formats.
fn refuse_slow(dir: &Path) -> Result<()> {
    let mut older = ["tokenizer.model", "vocab.json"].into_iter();
    let Some(name) = older.find(|name| dir.join(name).is_file()) else { return Ok(()) };
    let dir = dir.display();
    Err(usage(format!(
        "{dir}: no tokenizer.json, only {name}; convert it with: python -c \
         \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{dir}', \
         trust_remote_code=True).save_pretrained('{dir}')\""
    )))
}

/// Returns the ids that end a response: those of the generation config, else of the model's config, else
/// the tokenizer's `eos_token`.
fn eos_ids(directory: &Directory, inner: &tokenizers::Tokenizer) -> Result<Vec<u32>> {
    for name in [GENERATION, MODEL] {
        let path = directory.path(name);
        let Some(object) = directory.object(name)? else { continue };
        let ids = match object.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids.iter().map(Value::as_u64).collect(),
            Some(one) => one.as_u64().map(|id| vec![id]),
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
    let Some(token) = directory.eos_token() else { return Ok(Vec::new()) };
    // The tokens of the directory are in the vocabulary, or were added to it.
    Ok(inner.token_to_id(token).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::test_support::small_tokenizer;
    use super::*;
    use crate::base::error::exit_code;
    use crate::base::fs::read_text;

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
        small_tokenizer(dir.path());
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
    fn the_marks_of_a_thought_are_text_also_where_they_are_special_tokens() {
        let dir = tempfile::tempdir().unwrap();
        small_tokenizer(dir.path());
        let path = dir.path().join("tokenizer_config.json");
        let mut config: Value = serde_json::from_str(&read_text(&path).unwrap()).unwrap();
        let marks = [THOUGHT_OPENS, THOUGHT_CLOSES].concat();
        config["additional_special_tokens"] = marks.clone().into();
        std::fs::write(&path, config.to_string()).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let text = "<think>why</think>so[THINK]why[/THINK]";
        let ids = tokenizer.encode(&format!("{text}{}", bpe::END_OF_TURN)).unwrap();
        for mark in marks {
            assert!(ids.contains(&tokenizer.token_to_id(mark).unwrap()), "{mark}");
        }
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn ends_of_sequences_that_no_model_can_say_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        small_tokenizer(dir.path());
        let path = dir.path().join("generation_config.json");
        std::fs::write(&path, r#"{"eos_token_id": [1, 5000]}"#).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap().check_fits(4096).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("eos_token_id 5000"), "{error}");
    }

    #[test]
    fn a_model_with_fewer_rows_than_tokens_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        assert!(tokenizer.check_fits(tokenizer.vocab_size() + 7).is_ok());
        let error = tokenizer.check_fits(tokenizer.vocab_size() - 1).unwrap_err();
        assert_eq!(exit_code(&error), 2);
    }

    #[test]
    fn copied_files_are_the_same_bytes_even_when_the_first_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        let read = |d: &Path, name: &str| std::fs::read(d.join(name)).unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
        let before = names.map(|name| read(dir.path(), name));
        drop(dir);
        tokenizer.copy_files(to.path()).unwrap();
        assert_eq!(names.map(|name| read(to.path(), name)), before);
    }
}
