//! `train data tokenizer`: trains a byte-level BPE tokenizer on conversations.

use crate::base::error::usage;
use crate::base::fs::{check_new_dir, write_dir_atomic};
use crate::cli::print;
use crate::data::rows;
use crate::data::sample::{Message, Sample};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::bpe::{self, BpeOptions};
use anyhow::Result;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Learn from these conversations (JSON Lines with `messages`)
    #[arg(long = "from", value_name = "FILE", num_args = 1.., required = true)]
    from: Vec<PathBuf>,
    /// Make this many tokens, special tokens and the 256 bytes among them
    #[arg(long, value_name = "N", default_value_t = 1024)]
    vocab_size: usize,
    /// Make no token longer than this many bytes
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_token_length: usize,
    /// Create the tokenizer in this directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: Args) -> Result<()> {
    check_new_dir(&args.out)?;
    let mut conversations: Vec<Vec<Message>> = Vec::new();
    for path in &args.from {
        let samples: Vec<Sample> = rows::read(path)?;
        conversations.extend(samples.into_iter().map(|sample| sample.messages));
    }
    if conversations.is_empty() {
        return Err(usage("--from: the files hold no conversation"));
    }
    let options =
        BpeOptions { vocab_size: args.vocab_size, max_token_length: args.max_token_length };
    write_dir_atomic(&args.out, |dir| bpe::train(&conversations, options, dir))?;

    let tokenizer = Tokenizer::load(&args.out)?;
    if tokenizer.vocab_size() < args.vocab_size {
        tracing::warn!(
            "the corpus yields only {} tokens of the {} asked for",
            tokenizer.vocab_size(),
            args.vocab_size
        );
    }
    let (mut bytes, mut tokens) = (0, 0);
    for message in conversations.iter().flatten() {
        bytes += message.content.len();
        tokens += tokenizer.encode(&message.content)?.len();
    }
    print(format_args!(
        "{}: {} tokens; {} conversations, {:.1} tokens each, {:.2} bytes a token\n",
        args.out.display(),
        tokenizer.vocab_size(),
        conversations.len(),
        tokens as f64 / conversations.len() as f64,
        bytes as f64 / tokens.max(1) as f64,
    ))
}
