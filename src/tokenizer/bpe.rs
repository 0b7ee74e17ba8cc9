//! Trains a small byte-level BPE tokenizer and writes it in Hugging Face layout.
//!
//! The directory loads in transformers as it is, and any Unicode text is encoded and decoded back without
//! loss; equal corpora give equal files. The text is first cut into pieces, within which bytes merge: a
//! digit is a piece, and so is a stretch of a line together with the line breaks before it. So merges may
//! cross spaces, and frequent phrases and lines of code become single tokens, which keeps the sequences of
//! a small model short. A token has at most `max_token_length` bytes, so that rare whole lines do not enter
//! the vocabulary.

use crate::base::error::usage;
use crate::base::fs::write_atomic;
use crate::tokenizer::Message;
use anyhow::{Result, anyhow};
use serde_json::json;
use std::path::Path;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// Ends every turn; a response ends with it.
pub const END_OF_TURN: &str = "<|im_end|>";
/// Fills places that are not used.
const PAD: &str = "<|endoftext|>";
/// Each role opens its turn with a token of its own, so no merge crosses the border of a turn.
const ROLES: [&str; 3] = ["<|system|>", "<|user|>", "<|assistant|>"];
const PIECES: &str = r"[0-9]|\n*[^0-9\n]+|\n+";
const BYTES: usize = 256;

/// The text between the generation tags carries loss: an assistant's text and the end of its turn.
const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}
{%- elif message.role == 'user' or message.role == 'system' -%}
{{- '<|' + message.role + '|>' + message.content + '<|im_end|>' -}}
{%- else -%}
{{- raise_exception('unknown role ' + message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
";

/// The size of the vocabulary and of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpeOptions {
    /// The number of tokens: special tokens, the 256 bytes, and merges.
    pub vocab_size: usize,
    /// The longest token in bytes.
    pub max_token_length: usize,
}

/// Learns merges from the contents of `conversations` and writes a tokenizer to `dir`.
pub fn train(conversations: &[Vec<Message>], options: BpeOptions, dir: &Path) -> Result<()> {
    let smallest = special_tokens().count() + BYTES;
    if options.vocab_size < smallest {
        return Err(usage(format!(
            "--vocab-size {}: at least {smallest} are needed for all bytes and special tokens",
            options.vocab_size
        )));
    }
    if options.max_token_length == 0 {
        return Err(usage("--max-token-length 0: a token has at least one byte"));
    }
    let texts: Vec<&str> =
        conversations.iter().flatten().map(|message| message.content.as_str()).collect();
    let failed = |e| anyhow!("training the tokenizer: {e}");

    let mut tokenizer = Tokenizer::new(BPE::default());
    let split =
        Split::new(SplitPattern::Regex(PIECES.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map_err(failed)?;
    let bytes = ByteLevel::new(false, false, false);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(bytes),
    ])));
    tokenizer.with_decoder(Some(ByteLevelDecoder::new(false, false, false)));
    let trainer = BpeTrainer::builder()
        .vocab_size(options.vocab_size)
        .max_token_length(Some(options.max_token_length))
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special_tokens().map(|t| AddedToken::from(t, true)).collect())
        .show_progress(false)
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts.into_iter()).map_err(failed)?;

    let text = tokenizer.to_string(true).map_err(failed)?;
    write_atomic(&dir.join("tokenizer.json"), text.as_bytes())?;
    let id = |token: &str| tokenizer.token_to_id(token);
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    write_json(&dir.join("tokenizer_config.json"), &config)?;
    let generation = json!({"eos_token_id": id(END_OF_TURN), "pad_token_id": id(PAD)});
    write_json(&dir.join("generation_config.json"), &generation)
}

fn special_tokens() -> impl Iterator<Item = &'static str> {
    [PAD, END_OF_TURN].into_iter().chain(ROLES)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    write_atomic(path, format!("{value:#}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tokenizer::test_support::{OPTIONS, small_tokenizer};
    use proptest::prelude::*;

    #[test]
    fn merges_cross_spaces_but_neither_digits_nor_line_ends_nor_the_length_limit() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        assert!((300..=OPTIONS.vocab_size).contains(&tokenizer.vocab_size()));
        let ids = tokenizer.encode("\ncase: 12 -> 34\n\n5").unwrap();
        let texts: Vec<String> = ids.iter().map(|&id| tokenizer.decode(&[id]).unwrap()).collect();
        assert_eq!(texts, ["\ncase: ", "1", "2", " -> ", "3", "4", "\n", "\n", "5"]);
        for id in 0..tokenizer.vocab_size() as u32 {
            let text = tokenizer.decode(&[id]).unwrap();
            assert!(text.len() <= OPTIONS.max_token_length, "{text:?}");
            assert!(!text.trim_start_matches('\n').contains('\n'), "{text:?}");
            assert!(text.len() == 1 || !text.contains(|c: char| c.is_ascii_digit()), "{text:?}");
        }
    }

    #[test]
    fn equal_corpora_give_equal_files() {
        let [a, b] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        small_tokenizer(a.path());
        small_tokenizer(b.path());
        let read = |d: &Path| std::fs::read(d.join("tokenizer.json")).unwrap();
        assert!(read(a.path()) == read(b.path()));
    }

    #[test]
    fn a_vocabulary_smaller_than_its_bytes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let options = BpeOptions { vocab_size: 100, ..OPTIONS };
        assert_eq!(exit_code(&train(&[], options, dir.path()).unwrap_err()), 2);
    }

    #[test]
    fn any_text_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        proptest!(|(text in any::<String>())| {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(&tokenizer.decode_with_special_tokens(&ids).unwrap(), &text);
        });
        for text in ["", "\r\n\n  \t", "<|im_end|> 123 <|user|>", "日本語 🎉 \u{0}\u{e000}"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode_with_special_tokens(&ids).unwrap(), text);
        }
    }
}
