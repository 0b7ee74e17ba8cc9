//! `train generate`: sample from a model.
//!
//! Stop strings live here, where tokens become text; the engine only knows tokens.

use super::print;
use crate::base::error::usage;
use crate::base::{interrupt, memory};
use crate::checkpoint::{InferenceModel, StoredModel};
use crate::data::jsonl;
use crate::data::sample::Sample;
use crate::engine::device;
use crate::engine::{
    Engine, EngineConfig, FinishReason, Next, Observer, Request, Rollout, SamplingParams,
};
use crate::model::{Decoder, ModelConfig};
use crate::tokenizer::Tokenizer;
use crate::train::device::DeviceKind;
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
    /// Keep tokens with at least this share of the largest probability
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that are already there less likely; 1 changes nothing
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// End a response where this text appears; the text is left out (may be given several times)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Print text as it comes; for one response
    #[arg(long, conflicts_with = "json")]
    stream: bool,
    /// Longest response, in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Responses to each prompt
    #[arg(long, short = 'n', default_value_t = 1)]
    num_samples: usize,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What computes
    #[arg(long, value_enum, default_value_t)]
    device: DeviceKind,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// All are kept until the last has ended.
const MOST_SAMPLES: usize = 1 << 20;

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
    check(&args)?;
    args.device.check(1)?;
    interrupt::install()?;
    match args.device {
        DeviceKind::Cpu => {
            let model = InferenceModel::open(&args.model)?;
            let work = Work::new(&args, &model.decoder, &model.tokenizer, model.stop_ids())?;
            work.check_memory(model.decoder.config())?;
            let config = work.config.clone();
            work.run(Engine::with_weights(&model.decoder, model.weights, config))
        }
        DeviceKind::Cuda => {
            let model = StoredModel::open(&args.model)?;
            let work = Work::new(&args, &model.decoder, &model.tokenizer, model.stop_ids())?;
            let mut gpu = device::open(0, &model.decoder)?;
            model.read(|at, params| gpu.upload(at, params))?;
            work.run(Engine::on_gpu(&mut gpu, work.config.clone())?)
        }
    }
}

/// What is asked of an engine.
struct Work<'a> {
    args: &'a Args,
    tokenizer: &'a Tokenizer,
    requests: Vec<Request>,
    sampling: SamplingParams,
    config: EngineConfig,
}

impl<'a> Work<'a> {
    fn new(
        args: &'a Args,
        decoder: &Decoder,
        tokenizer: &'a Tokenizer,
        stop_ids: Vec<u32>,
    ) -> Result<Self> {
        let request = |(i, prompt): (u64, Vec<u32>)| Request {
            prompt,
            num_samples: args.num_samples,
            key: crate::base::rng::key(args.seed, &[i]),
        };
        let requests: Vec<Request> = (0..).zip(prompts(args, tokenizer)?).map(request).collect();
        let sampling = SamplingParams {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            max_new_tokens: args.max_new_tokens,
            stop_ids,
            vocab_size: tokenizer.vocab_size(),
        };
        let config = engine_config(args, decoder.config(), &requests)?;
        Ok(Self { args, tokenizer, requests, sampling, config })
    }

    /// Refuses a cache that the memory of this machine does not hold.
    fn check_memory(&self, model: &ModelConfig) -> Result<()> {
        let EngineConfig { max_sequences, max_length, .. } = self.config;
        memory::check(
            self.config.cache_bytes(model),
            &format!("the key-value cache of {max_sequences} sequences of {max_length} tokens"),
            "lower --max-new-tokens or --num-samples",
        )
    }

    fn run(&self, mut engine: Engine<'_>) -> Result<()> {
        let mut watch = Watch::new(self.tokenizer, self.args);
        engine.generate(&self.requests, &self.sampling, &mut watch)?;
        watch.into_result()
    }
}

/// Watches responses for stop strings, and prints one as it grows.
struct Watch<'a> {
    tokenizer: &'a Tokenizer,
    args: &'a Args,
    /// Text already streamed, in bytes.
    streamed: usize,
    done: Vec<(usize, usize, Rollout)>,
    /// What went wrong while watching; the engine has no use for it.
    failure: Option<anyhow::Error>,
}

impl<'a> Watch<'a> {
    fn new(tokenizer: &'a Tokenizer, args: &'a Args) -> Self {
        Self { tokenizer, args, streamed: 0, done: Vec::new(), failure: None }
    }

    /// The response's text up to the first stop string, and whether there was one.
    fn text(&self, tokens: &[u32]) -> Result<(String, bool)> {
        let mut text = self.tokenizer.decode(tokens)?;
        let stops = self.args.stop.iter().filter(|stop| !stop.is_empty());
        let first = stops.filter_map(|stop| text.find(stop.as_str())).min();
        if let Some(end) = first {
            text.truncate(end);
        }
        Ok((text, first.is_some()))
    }

    /// What follows a token.
    fn look(&mut self, tokens: &[u32]) -> Result<Next> {
        if self.args.stop.is_empty() && !self.args.stream {
            return Ok(Next::Continue);
        }
        let (text, is_stopped) = self.text(tokens)?;
        if self.args.stream {
            // What may yet become a stop string or another character is held back.
            let held = self.args.stop.iter().map(String::len).max().unwrap_or(0);
            let is_whole = is_stopped || (held == 0 && !text.ends_with('\u{fffd}'));
            let end = if is_whole { text.len() } else { text.len().saturating_sub(held.max(4)) };
            let end = (0..=end).rev().find(|&end| text.is_char_boundary(end));
            self.stream(&text, end.unwrap_or(0))?;
        }
        Ok(if is_stopped { Next::Stop } else { Next::Continue })
    }

    fn stream(&mut self, text: &str, end: usize) -> Result<()> {
        if end > self.streamed {
            print(&text[self.streamed..end])?;
            self.streamed = end;
        }
        Ok(())
    }

    /// Prints what has not been streamed.
    fn into_result(mut self) -> Result<()> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let mut done = std::mem::take(&mut self.done);
        done.sort_by_key(|&(request, sample, _)| (request, sample));
        for (_, _, rollout) in done {
            let (text, _) = self.text(&rollout.tokens)?;
            if self.args.stream {
                self.stream(&text, text.len())?;
                print("\n")?;
            } else if self.args.json {
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
}

impl Observer for Watch<'_> {
    fn token(&mut self, _request: usize, _sample: usize, rollout: &Rollout) -> Next {
        self.look(&rollout.tokens).unwrap_or_else(|failure| {
            self.failure = Some(failure);
            Next::Cancel
        })
    }

    fn finished(&mut self, request: usize, sample: usize, rollout: Rollout) {
        self.done.push((request, sample, rollout));
    }
}

/// Refuses settings under which no distribution would be left, or no response could be streamed.
fn check(args: &Args) -> Result<()> {
    let checks = [
        (
            args.temperature >= 0.0 && args.temperature.is_finite(),
            "--temperature must be a number from 0 up",
        ),
        (
            (1..=MOST_SAMPLES).contains(&args.num_samples) && args.max_new_tokens > 0,
            "-n must be from 1 to 1048576, --max-new-tokens at least 1",
        ),
        (args.top_p > 0.0 && args.top_p <= 1.0, "--top-p must be above 0 and at most 1"),
        ((0.0..=1.0).contains(&args.min_p), "--min-p must be from 0 to 1"),
        (
            args.repetition_penalty > 0.0 && args.repetition_penalty.is_finite(),
            "--repetition-penalty must be above 0",
        ),
        (!args.stream || args.num_samples == 1, "--stream prints one response: leave out -n"),
        (!args.stream || args.messages.is_none(), "--stream prints one response: use --prompt"),
    ];
    match checks.iter().find(|(is_right, _)| !is_right) {
        Some((_, message)) => Err(usage(*message)),
        None => Ok(()),
    }
}

/// Sizes that hold every request; refuses lengths that the model does not reach.
fn engine_config(args: &Args, model: &ModelConfig, requests: &[Request]) -> Result<EngineConfig> {
    let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap_or(1);
    let limit = model.max_position_embeddings;
    if args.max_new_tokens > limit.saturating_sub(longest) {
        return Err(usage(format!(
            "--max-new-tokens {}: the longest prompt has {longest} tokens and the model has {limit} \
             positions (max_position_embeddings), so at most {} fit",
            args.max_new_tokens,
            limit.saturating_sub(longest)
        )));
    }
    let max_sequences = requests.len().saturating_mul(args.num_samples).clamp(1, 64);
    Ok(EngineConfig::roomy(max_sequences, longest + args.max_new_tokens))
}

fn prompts(args: &Args, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    match (&args.prompt, &args.messages) {
        (Some(text), _) => Ok(vec![tokenizer.encode_with_special_tokens(text)?]),
        (None, Some(file)) => {
            let samples: Vec<Sample> = jsonl::read(file)?;
            if samples.is_empty() {
                return Err(usage(format!("{}: no conversation to answer", file.display())));
            }
            samples.iter().map(|sample| tokenizer.encode_prompt(&sample.messages)).collect()
        }
        (None, None) => Ok(Vec::new()),
    }
}
