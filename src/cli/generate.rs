//! `train generate`: sample from a model.
//!
//! Stop strings live here, where tokens become text; the engine only knows tokens.

use super::device::DeviceArgs;
use super::print;
use crate::base::error::usage;
use crate::base::{interrupt, memory, rng};
use crate::checkpoint::{InferenceModel, StoredModel};
use crate::data::rows;
use crate::data::sample::Sample;
use crate::engine::{
    Engine, EngineConfig, FinishReason, Next, Observer, Request, RequestId, Rollout,
    SamplingParams, check_temperature,
};
use crate::model::{Decoder, ModelConfig};
use crate::tokenizer::Tokenizer;
use crate::trainer::device::DeviceKind;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

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
    /// End a response with this token, which it keeps (may be given several times)
    #[arg(long, value_name = "ID")]
    stop_id: Vec<u32>,
    /// Go on after the tokens with which the model ends a response
    #[arg(long)]
    ignore_eos: bool,
    /// Print text as it comes; for one response
    #[arg(long, conflicts_with = "json")]
    stream: bool,
    /// Longest response, in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Responses to each prompt
    #[arg(long, short = 'n', default_value_t = 1)]
    num_samples: usize,
    /// Seed of the sampling; a response follows from it, the prompt and the response's number
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object a line: prompt and sample (numbered from 0), text, output_ids, logprobs,
    /// finish_reason
    #[arg(long)]
    json: bool,
}

const MOST_SAMPLES: usize = 1 << 20;

/// Tokens beside those of a stop string that are looked at, should some of them have no text.
const RECENT: usize = 16;

/// A line of `--json`.
#[derive(Serialize)]
struct Line {
    prompt: usize,
    sample: usize,
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
    match args.device.kind {
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
            let mut gpu = args.device.open_gpu(0, &model.decoder)?;
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
    config: EngineConfig,
}

impl<'a> Work<'a> {
    fn new(
        args: &'a Args,
        decoder: &Decoder,
        tokenizer: &'a Tokenizer,
        eos_ids: Vec<u32>,
    ) -> Result<Self> {
        // Of its tokens, not of its place: a prompt has the same responses in any company.
        let key = |prompt: &[u32]| {
            let labels: Vec<u64> = prompt.iter().map(|&token| token.into()).collect();
            rng::key(args.seed, &labels)
        };
        let eos_ids = if args.ignore_eos { Vec::new() } else { eos_ids };
        let stop_ids = eos_ids.into_iter().chain(args.stop_id.iter().copied()).collect();
        let sampling = SamplingParams {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            max_new_tokens: args.max_new_tokens,
            stop_ids,
            vocab_size: tokenizer.vocab_size(),
            top_logprobs: 0,
        };
        let request = |prompt: Vec<u32>| Request {
            key: key(&prompt),
            prompt,
            sampling: sampling.clone(),
            num_samples: args.num_samples,
        };
        let requests: Vec<Request> = prompts(args, tokenizer)?.into_iter().map(request).collect();
        let config = engine_config(args, decoder.config(), &requests)?;
        Ok(Self { args, tokenizer, requests, config })
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
        let started = Instant::now();
        let mut watch = Watch::new(self.tokenizer, self.args);
        let stats = engine.generate(&self.requests, &mut watch)?;
        watch.into_result()?;
        tracing::debug!("{}", stats.summary(started.elapsed()));
        Ok(())
    }
}

/// Watches responses for stop strings, and prints one as it grows.
struct Watch<'a> {
    tokenizer: &'a Tokenizer,
    args: &'a Args,
    /// Text already streamed, in bytes.
    streamed: usize,
    /// Ended responses that wait for earlier ones.
    done: BTreeMap<(usize, usize), Rollout>,
    /// The response to be printed next.
    next: (usize, usize),
    /// What went wrong while watching; the engine has no use for it.
    failure: Option<anyhow::Error>,
}

impl<'a> Watch<'a> {
    fn new(tokenizer: &'a Tokenizer, args: &'a Args) -> Self {
        Self { tokenizer, args, streamed: 0, done: BTreeMap::new(), next: (0, 0), failure: None }
    }

    /// The response's text up to the first stop string, and whether there was one.
    fn text(&self, tokens: &[u32]) -> Result<(String, bool)> {
        let mut text = self.tokenizer.decode(tokens)?;
        let first = self.args.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
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
        let held = self.args.stop.iter().map(String::len).max().unwrap_or(0);
        // A stop string that is new ends with the last token, and tokens are a byte or more.
        let recent = &tokens[tokens.len().saturating_sub(held + RECENT)..];
        if !self.args.stream && !self.text(recent)?.1 {
            return Ok(Next::Continue);
        }
        let (text, is_stopped) = self.text(tokens)?;
        if self.args.stream {
            // What may yet become a stop string or another character is held back.
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

    /// Prints, in order, the responses that are complete up to here.
    fn print_ended(&mut self) -> Result<()> {
        while let Some(rollout) = self.done.remove(&self.next) {
            let (prompt, sample) = self.next;
            let is_last = sample + 1 == self.args.num_samples;
            self.next = if is_last { (prompt + 1, 0) } else { (prompt, sample + 1) };
            let (text, _) = self.text(&rollout.tokens)?;
            if self.args.stream {
                self.stream(&text, text.len())?;
                print("\n")?;
            } else if self.args.json {
                let Rollout { tokens: output_ids, logprobs, finish_reason, .. } = rollout;
                let line = Line { prompt, sample, text, output_ids, logprobs, finish_reason };
                print(format!("{}\n", serde_json::to_string(&line)?))?;
            } else {
                print(format!("{text}\n"))?;
            }
        }
        Ok(())
    }

    fn into_result(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }
}

impl Observer for Watch<'_> {
    fn token(&mut self, _request: RequestId, _sample: usize, rollout: &Rollout) -> Next {
        if self.failure.is_some() {
            return Next::Cancel;
        }
        self.look(&rollout.tokens).unwrap_or_else(|failure| {
            self.failure = Some(failure);
            Next::Cancel
        })
    }

    fn finished(&mut self, RequestId(request): RequestId, sample: usize, rollout: Rollout) {
        self.done.insert((request, sample), rollout);
        if let Err(failure) = self.print_ended() {
            self.failure.get_or_insert(failure);
        }
    }
}

/// Refuses settings under which no distribution would be left, or no response could be streamed.
fn check(args: &Args) -> Result<()> {
    check_temperature("--temperature", args.temperature)?;
    let checks = [
        (args.stop.iter().all(|stop| !stop.is_empty()), "--stop must be a text, not empty"),
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
            let samples: Vec<(usize, Sample)> =
                rows::numbered(file, None)?.collect::<Result<_>>()?;
            if samples.is_empty() {
                return Err(usage(format!("{}: no conversation to answer", file.display())));
            }
            let prompt = |(line, sample): (usize, &Sample)| match sample.messages.last() {
                Some(message) if message.role != "assistant" => {
                    tokenizer.encode_prompt(&sample.messages)
                }
                _ => Err(usage(format!(
                    "{}:{line}: there is nothing to answer: a conversation ends with its user",
                    file.display()
                ))),
            };
            samples.iter().map(|(line, sample)| prompt((*line, sample))).collect()
        }
        (None, None) => Ok(Vec::new()),
    }
}
