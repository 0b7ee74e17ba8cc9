//! `train generate`: sample from a model.

use super::print;
use crate::base::error::usage;
use crate::base::{interrupt, memory};
use crate::checkpoint::InferenceModel;
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
    /// A model directory in Hugging Face layout, or the name of a model on the Hub
    #[arg(long, value_name = "MODEL")]
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
    args.check()?;
    let model = InferenceModel::open(&args.model)?;
    let requests: Vec<Request> = prompts(&args, &model)?
        .into_iter()
        .enumerate()
        .map(|(i, prompt)| Request {
            prompt,
            num_samples: args.num_samples,
            key: crate::base::rng::key(args.seed, &[i as u64]),
        })
        .collect();
    let config = engine_config(&args, &model, &requests)?;
    let sampling = SamplingParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        max_new_tokens: args.max_new_tokens,
        stop_ids: model.stop_ids(),
        vocab_size: model.tokenizer.vocab_size(),
    };
    let mut done: Vec<(usize, usize, Rollout)> = Vec::new();
    Engine::with_weights(&model.decoder, model.weights, config).generate(
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

impl Args {
    fn check(&self) -> Result<()> {
        if self.temperature.is_nan() || self.temperature < 0.0 {
            return Err(usage(format!(
                "--temperature {}: it must be 0 or above",
                self.temperature
            )));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(usage(format!("--top-p {}: it must be above 0 and at most 1", self.top_p)));
        }
        Ok(())
    }
}

/// Sizes that hold every request; refuses lengths that the model or the memory does not reach.
fn engine_config(
    args: &Args,
    model: &InferenceModel,
    requests: &[Request],
) -> Result<EngineConfig> {
    let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap_or(1);
    let limit = model.decoder.config().max_position_embeddings;
    if args.max_new_tokens > limit.saturating_sub(longest) {
        return Err(usage(format!(
            "--max-new-tokens {}: the longest prompt has {longest} tokens and the model has {limit} \
             positions (max_position_embeddings), so at most {} fit",
            args.max_new_tokens,
            limit.saturating_sub(longest)
        )));
    }
    let config = EngineConfig {
        max_sequences: requests.len().saturating_mul(args.num_samples).clamp(1, 64),
        max_length: longest + args.max_new_tokens,
        prefill_tokens: 256,
    };
    memory::check(
        config.cache_bytes(model.decoder.config()),
        &format!(
            "the key-value cache of {} sequences of {} tokens",
            config.max_sequences, config.max_length
        ),
        "lower --max-new-tokens or --num-samples",
    )?;
    Ok(config)
}

fn prompts(args: &Args, model: &InferenceModel) -> Result<Vec<Vec<u32>>> {
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
