//! `train score`: log-probabilities of given tokens.

use crate::base::error::usage;
use crate::base::fs::AtomicFile;
use crate::checkpoint::LanguageModel;
use crate::data::jsonl;
use crate::model::{Packed, Target, Workspace};
use crate::tokenizer::Message;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `train score`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in Hugging Face layout
    #[arg(long, value_name = "DIR")]
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
    let model = LanguageModel::open(&args.model)?;
    let inputs: Vec<Input> = jsonl::read(&args.data)?;
    let mut file = AtomicFile::create(&args.out)?;
    let mut workspace = Workspace::default();
    let temperature = if args.temperature == 0.0 { 1.0 } else { args.temperature };
    for (i, input) in inputs.into_iter().enumerate() {
        let tokens = tokens(&model, input)?;
        let vocab = model.decoder.config().vocab_size;
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(usage(format!(
                "{}: sample {}: token {id} is not below the model's vocab_size {vocab}",
                args.data.display(),
                i + 1
            )));
        }
        let targets: Vec<Target> =
            tokens.iter().skip(1).enumerate().map(|(row, &token)| Target { row, token }).collect();
        let packed = Packed { cu_seqlens: vec![0, tokens.len()], tokens };
        let scores =
            model.decoder.score(&model.params, &packed, &targets, temperature, &mut workspace);
        let mut logprobs: Vec<Option<f32>> = vec![None; packed.tokens.len().min(1)];
        logprobs.extend(scores.iter().map(|s| Some(s.logp)));
        serde_json::to_writer(&mut file, &Output { input_ids: packed.tokens, logprobs })?;
        writeln!(file)?;
    }
    file.commit()
}

fn tokens(model: &LanguageModel, input: Input) -> Result<Vec<u32>> {
    let tokenizer = &model.tokenizer;
    match input {
        Input::Ids { input_ids } => Ok(input_ids),
        Input::Text { prompt, completion } => {
            tokenizer.encode_with_special_tokens(&format!("{prompt}{completion}"))
        }
        Input::Chat { messages } => Ok(tokenizer.encode_sample(&messages)?.input_ids),
    }
}
