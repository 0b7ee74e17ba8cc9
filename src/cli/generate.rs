//! `train generate`: sample from a model.

use super::print;
use crate::base::interrupt;
use crate::checkpoint::LanguageModel;
use crate::data::jsonl;
use crate::data::sample::Sample;
use crate::engine::{Engine, EngineConfig, FinishReason, Request, Rollout, SamplingParams};
use crate::tokenizer::Message;
use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `train generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in Hugging Face layout
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Raw text to continue, without a chat template
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "messages",
        required_unless_present = "messages"
    )]
    prompt: Option<String>,
    /// Conversations to answer (JSON Lines of {"messages": [...]})
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// Sampling temperature; 0 takes the most likely token
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep the smallest set of tokens with this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Longest response, in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Responses to each prompt
    #[arg(long, short = 'n', default_value_t = 1)]
    num_samples: usize,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line {
    text: String,
    output_ids: Vec<u32>,
    logprobs: Vec<f32>,
    finish_reason: FinishReason,
}

/// Samples and prints.
pub fn run(args: Args) -> Result<()> {
    interrupt::install()?;
    let model = LanguageModel::open(&args.model)?;
    let prompts = prompts(&args, &model)?;
    let requests: Vec<Request> = prompts
        .into_iter()
        .enumerate()
        .map(|(i, prompt)| Request {
            prompt,
            num_samples: args.num_samples,
            key: crate::base::rng::key(args.seed, &[i as u64]),
        })
        .collect();
    let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap_or(1);
    let config = EngineConfig {
        max_sequences: (requests.len() * args.num_samples).clamp(1, 64),
        max_length: longest + args.max_new_tokens,
        prefill_tokens: 256,
    };
    let sampling = SamplingParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        max_new_tokens: args.max_new_tokens,
        stop_ids: model.stop_ids(),
    };
    let mut done: Vec<(usize, usize, Rollout)> = Vec::new();
    Engine::new(&model.decoder, &model.params, config).generate(
        &requests,
        &sampling,
        |request, sample, rollout| done.push((request, sample, rollout)),
    )?;
    done.sort_by_key(|&(request, sample, _)| (request, sample));
    for (_, _, rollout) in done {
        let text = model.tokenizer.decode(&rollout.tokens)?;
        if args.json {
            let line = Line {
                text,
                output_ids: rollout.tokens,
                logprobs: rollout.logprobs,
                finish_reason: rollout.finish_reason,
            };
            print(format!("{}\n", serde_json::to_string(&line)?))?;
        } else {
            print(format!("{text}\n"))?;
        }
    }
    Ok(())
}

fn prompts(args: &Args, model: &LanguageModel) -> Result<Vec<Vec<u32>>> {
    let tokenizer = &model.tokenizer;
    match (&args.prompt, &args.messages) {
        (Some(text), _) => Ok(vec![tokenizer.encode_with_special_tokens(text)?]),
        (None, Some(file)) => jsonl::read::<Sample>(file)?
            .iter()
            .map(|sample: &Sample| {
                let messages: &[Message] = &sample.messages;
                tokenizer.encode_prompt(messages)
            })
            .collect(),
        (None, None) => Ok(Vec::new()),
    }
}
