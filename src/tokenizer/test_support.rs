//! A small tokenizer for tests.

use super::bpe::{BpeOptions, train};
use super::{Message, Tokenizer};
use std::path::Path;

/// The sizes of [`small_tokenizer`].
pub(crate) const OPTIONS: BpeOptions = BpeOptions { vocab_size: 400, max_token_length: 12 };

fn conversation(i: usize) -> Vec<Message> {
    vec![
        Message::new("user", format!("Print term {i} of the sequence. Input: one line.")),
        Message::new(
            "assistant",
            format!("<think>\ncase: {i} -> {}\n</think>\nn = int(input())\nprint(n)", i * i),
        ),
    ]
}

/// Trains a tokenizer on a few generated conversations, writes it to `dir` and loads it.
pub(crate) fn small_tokenizer(dir: &Path) -> Tokenizer {
    let corpus: Vec<_> = (0..40).map(conversation).collect();
    train(&corpus, OPTIONS, dir).unwrap();
    Tokenizer::load(dir).unwrap()
}
