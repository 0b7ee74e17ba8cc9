//! `train score`: computes log-probabilities of given tokens.

use super::device::DeviceArgs;
use super::model::ModelArgs;
use crate::base::error::usage;
use crate::base::fs::{AtomicFile, check_writable};
use crate::base::progress::Progress;
use crate::data::rows;
use crate::engine::check_temperature;
use crate::model::Decoder;
use crate::tokenizer::{Message, Tokenizer};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Read the tokens from this file: JSON Lines of {"input_ids": [...]}, {"prompt": ..., "completion": ...} (tokenised together) or {"messages": [...]}
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Write the log-probabilities to this file (JSON Lines)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Divide the logits by this; 0 is the same as 1
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A line of input. It is no untagged enum, since the errors of those do not say what is wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    input_ids: Option<Vec<u32>>,
    prompt: Option<String>,
    completion: Option<String>,
    messages: Option<Vec<Message>>,
}

/// A line of output.
#[derive(Serialize)]
struct Output {
    input_ids: Vec<u32>,
    /// The log-probability of each token. The first token has none, since nothing comes before it.
    logprobs: Vec<Option<f32>>,
}

/// Scores every line and writes the result atomically.
pub fn run(args: Args) -> Result<()> {
    check_temperature("--temperature", args.temperature)?;
    args.device.check(1)?;
    check_writable(&args.out, &[&args.data])?;
    let lines: Vec<(usize, Line)> = rows::numbered(&args.data, None)?.collect::<Result<_>>()?;
    if lines.is_empty() {
        return Err(usage(format!("{}: no lines to score", args.data.display())));
    }
    let temperature = if args.temperature == 0.0 { 1.0 } else { args.temperature };
    let mut model = args.device.open(args.model.place(), 1)?;
    let sequences = sequences(&args.data, lines, &model.decoder, &model.tokenizer)?;
    let progress = progress(&sequences);
    let scores = model.score(&sequences, temperature, &progress)?;
    progress.finish();
    let mut file = AtomicFile::create(&args.out)?;
    for (input_ids, scores) in sequences.into_iter().zip(scores) {
        let first = input_ids.first().map(|_| None);
        let logprobs = first.into_iter().chain(scores.into_iter().map(Some)).collect();
        serde_json::to_writer(&mut file, &Output { input_ids, logprobs })?;
        writeln!(file)?;
    }
    file.commit()
}

fn progress(sequences: &[Vec<u32>]) -> Progress {
    let total: usize = sequences.iter().map(|tokens| tokens.len().saturating_sub(1)).sum();
    Progress::new("score", total as u64, "tokens")
}

/// Returns the tokens of every line. Warns of completions that do not begin with a token of their own.
fn sequences(
    data: &Path,
    lines: Vec<(usize, Line)>,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>> {
    let mut merged = Vec::new();
    let of_line = |(number, line): (usize, Line)| {
        if line.is_merged(tokenizer)? {
            merged.push(number);
        }
        let place = || format!("{}:{number}", data.display());
        tokens(decoder, tokenizer, line).with_context(place)
    };
    let sequences = lines.into_iter().map(of_line).collect::<Result<_>>()?;
    if let [first, rest @ ..] = &merged[..] {
        let more =
            if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        tracing::warn!(
            "{}:{first}{more}: prompt and completion are tokenised together, and share a token \
             where they meet",
            data.display()
        );
    }
    Ok(sequences)
}

impl Line {
    /// Returns whether a prompt's tokens differ before its completion from those of the prompt alone.
    fn is_merged(&self, tokenizer: &Tokenizer) -> Result<bool> {
        let (Some(prompt), Some(completion)) = (&self.prompt, &self.completion) else {
            return Ok(false);
        };
        let together = tokenizer.encode(&format!("{prompt}{completion}"))?;
        Ok(!together.starts_with(&tokenizer.encode(prompt)?))
    }
}

/// Returns the tokens of a line. Refuses a token that the model does not have, and a line that is longer
/// than its positions.
fn tokens(decoder: &Decoder, tokenizer: &Tokenizer, line: Line) -> Result<Vec<u32>> {
    let tokens = match line {
        Line { input_ids: Some(ids), prompt: None, completion: None, messages: None } => ids,
        Line { input_ids: None, prompt: Some(prompt), completion: Some(rest), messages: None } => {
            tokenizer.encode_with_special_tokens(&(prompt + &rest))?
        }
        Line { input_ids: None, prompt: None, completion: None, messages: Some(messages) } => {
            tokenizer.encode_sample(&messages)?.input_ids
        }
        _ => return Err(usage("give either input_ids, or prompt and completion, or messages")),
    };
    let vocab = decoder.config().vocab_size;
    decoder.config().check_length(tokens.len())?;
    match tokens.iter().position(|&id| id as usize >= vocab) {
        Some(i) => Err(usage(format!(
            "token {i} is {}: it must be below the model's vocab_size {vocab}",
            tokens[i]
        ))),
        None if tokens.is_empty() => Err(usage("there is no token to score")),
        None => Ok(tokens),
    }
}
