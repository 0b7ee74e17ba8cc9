//! `train score`: log-probabilities of given tokens.

use crate::base::error::usage;
use crate::base::fs::AtomicFile;
use crate::base::progress::Progress;
use crate::checkpoint::InferenceModel;
use crate::data::jsonl;
use crate::engine::Scorer;
use crate::tokenizer::Message;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `train score`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in Hugging Face layout, or the name of a model on the Hub
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// JSON Lines of {"input_ids": [...]}, {"prompt": ..., "completion": ...} or {"messages": [...]}
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where the log-probabilities go (JSON Lines)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Divides the logits; at 0 the log-probabilities are those of 1
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
}

/// A line of input.
#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Ids { input_ids: Vec<u32> },
    Text { prompt: String, completion: String },
    Chat { messages: Vec<Message> },
}

/// A line of output.
#[derive(Serialize)]
struct Output {
    input_ids: Vec<u32>,
    /// The first token has none: nothing comes before it.
    logprobs: Vec<Option<f32>>,
}

/// Scores every line and writes the result, whole or not at all.
pub fn run(args: Args) -> Result<()> {
    if args.temperature.is_nan() || args.temperature < 0.0 {
        return Err(usage(format!("--temperature {}: it must be 0 or above", args.temperature)));
    }
    let inputs: Vec<Input> = jsonl::read(&args.data)?;
    let model = InferenceModel::open(&args.model)?;
    let vocab = model.decoder.config().vocab_size;
    let mut sequences = Vec::with_capacity(inputs.len());
    for (i, input) in inputs.into_iter().enumerate() {
        let tokens = tokens(&model, input)?;
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(usage(format!(
                "{}: sample {}: token {id} is not below the model's vocab_size {vocab}",
                args.data.display(),
                i + 1
            )));
        }
        sequences.push(tokens);
    }
    let mut file = AtomicFile::create(&args.out)?;
    let total: usize = sequences.iter().map(|tokens| tokens.len().saturating_sub(1)).sum();
    let progress = Progress::new("score", total as u64, "tokens");
    let temperature = if args.temperature == 0.0 { 1.0 } else { args.temperature };
    let scorer = Scorer::new(&model.decoder, &model.weights);
    let scores = scorer.score(&sequences, temperature, &progress)?;
    progress.finish();
    for (input_ids, scores) in sequences.into_iter().zip(scores) {
        let first = input_ids.first().map(|_| None);
        let logprobs = first.into_iter().chain(scores.into_iter().map(Some)).collect();
        serde_json::to_writer(&mut file, &Output { input_ids, logprobs })?;
        writeln!(file)?;
    }
    file.commit()
}

fn tokens(model: &InferenceModel, input: Input) -> Result<Vec<u32>> {
    let tokenizer = &model.tokenizer;
    match input {
        Input::Ids { input_ids } => Ok(input_ids),
        Input::Text { prompt, completion } => {
            tokenizer.encode_with_special_tokens(&format!("{prompt}{completion}"))
        }
        Input::Chat { messages } => Ok(tokenizer.encode_sample(&messages)?.input_ids),
    }
}
