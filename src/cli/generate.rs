//! `train generate`: samples responses from a model.

use super::device::DeviceArgs;
use super::model::ModelArgs;
use super::print;
use crate::base::error::usage;
use crate::base::interrupt;
use crate::checkpoint::warn_of_run_on;
use crate::data::rows;
use crate::data::sample::Sample;
use crate::engine::text::{Reader, Reading, Stops};
use crate::engine::{
    EngineConfig, FinishReason, OpenModel, Request, RequestId, Rollout, SamplingParams,
    check_temperature,
};
use crate::model::ModelConfig;
use crate::tokenizer::{Message, Tokenizer};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    asked: Asked,
    /// Sample at this temperature; 0 takes the most likely token
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Keep only this many most likely tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep the fewest most likely tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Keep tokens with at least this share of the largest probability
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that the text already has less likely; 1 changes nothing
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Subtract this from the logits of tokens that the response already has
    #[arg(long, default_value_t = 0.0)]
    presence_penalty: f32,
    /// Subtract this as often as the response has the token
    #[arg(long, default_value_t = 0.0)]
    frequency_penalty: f32,
    /// Add to a token's logit, as in 17:-100 (may be given several times)
    #[arg(long, value_name = "ID:BIAS", value_parser = logit_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// End a response before this text, or with the special token that it spells (may be given several
    /// times)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End a response with this token, which is a part of it (may be given several times)
    #[arg(long, value_name = "ID")]
    stop_id: Vec<u32>,
    /// Continue after the tokens with which the model ends a response
    #[arg(long)]
    ignore_eos: bool,
    /// Print the text of a single response while it is generated
    #[arg(long, conflicts_with = "json")]
    stream: bool,
    /// End a response after this many tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Let nothing end a response before it has this many tokens
    #[arg(long, default_value_t = 0)]
    min_new_tokens: usize,
    /// Generate this many responses to each prompt
    #[arg(long, short = 'n', default_value_t = 1)]
    num_samples: usize,
    /// Use this seed for the sampling; a response follows from the seed, the prompt and its number
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object a line: prompt and sample (numbered from 0), text, output_ids, logprobs,
    /// finish_reason
    #[arg(long)]
    json: bool,
    /// Add top_logprobs to each line: for every token the N most likely tokens at its position, as [id,
    /// log-probability]
    #[arg(long, value_name = "N", default_value_t = 0, requires = "json")]
    top_logprobs: usize,
}

/// What the model is asked.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Asked {
    /// Answer this message, in the model's chat template
    #[arg(long, value_name = "TEXT")]
    chat: Option<String>,
    /// Answer the conversations in this file (JSON Lines of {"messages": [...]})
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// Continue this text, without a chat template
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
}

const MOST_SAMPLES: usize = 1 << 20;

/// No command accepts more, since a line of `--json` would be longer than anybody reads.
const MOST_TOP_LOGPROBS: usize = 1000;

/// A line of `--json`.
#[derive(Serialize)]
struct Line {
    prompt: usize,
    sample: usize,
    text: String,
    output_ids: Vec<u32>,
    logprobs: Vec<f32>,
    /// For each token the most likely tokens at its position, as (id, log-probability).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_logprobs: Vec<Vec<(u32, f32)>>,
    finish_reason: FinishReason,
}

/// Samples and prints.
pub fn run(args: Args) -> Result<()> {
    check(&args)?;
    args.device.check(1)?;
    interrupt::install()?;
    let mut model = args.device.open(args.model.place(), 1)?;
    let mut stops = Stops::new(&model.tokenizer, &args.stop)
        .map_err(|refusal| usage(format!("--stop: {refusal}")))?;
    stops.min_tokens = args.min_new_tokens;
    model.tokenizer.check_ids("--stop-id", &args.stop_id)?;
    let biased: Vec<u32> = args.logit_bias.iter().map(|(id, _)| *id).collect();
    model.tokenizer.check_ids("--logit-bias", &biased)?;
    if args.asked.prompt.is_none() && !args.ignore_eos {
        warn_of_run_on(model.decoder.config(), &model.tokenizer, &args.stop_id);
    }
    let sampling = sampling(&args, &model, &stops);
    let requests = requests(&args, &model.tokenizer, &sampling)?;
    let config = engine_config(&args, model.decoder.config(), &requests)?;
    let advice = "lower --max-new-tokens or --num-samples";
    let (mut engine, tokenizer) = model.engine(config, advice)?;
    let printer = Printer { args: &args, done: BTreeMap::new(), next: (0, 0) };
    let mut reading = Reading::new(tokenizer, stops, args.stream, printer);
    let started = Instant::now();
    let stats = engine.generate(&requests, &mut reading)?;
    reading.into_result()?;
    tracing::debug!("{}", stats.summary(started.elapsed()));
    Ok(())
}

fn sampling(args: &Args, model: &OpenModel, stops: &Stops) -> SamplingParams {
    let eos_ids = if args.ignore_eos { Vec::new() } else { model.stop_ids() };
    SamplingParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        logit_bias: args.logit_bias.clone(),
        max_new_tokens: args.max_new_tokens,
        min_new_tokens: args.min_new_tokens,
        stop_ids: [&eos_ids[..], &args.stop_id, &stops.ids].concat(),
        vocab_size: model.tokenizer.vocab_size(),
        top_logprobs: args.top_logprobs,
        ..SamplingParams::default()
    }
}

/// Reads `ID:BIAS`.
fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parts =
        text.split_once(':').and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    parts
        .filter(|(_, bias): &(u32, f32)| bias.is_finite())
        .ok_or_else(|| "expected a token's id and a number, as in 17:-100".to_owned())
}

fn requests(args: &Args, tokenizer: &Tokenizer, sampling: &SamplingParams) -> Result<Vec<Request>> {
    let request = |prompt: Vec<u32>| Request {
        key: Request::key_of(args.seed, &prompt),
        prompt,
        sampling: sampling.clone(),
        num_samples: args.num_samples,
    };
    Ok(prompts(&args.asked, tokenizer)?.into_iter().map(request).collect())
}

/// Prints responses in the order of prompts and samples, or a single one while it grows.
struct Printer<'a> {
    args: &'a Args,
    /// Responses that ended and wait for earlier ones.
    done: BTreeMap<(usize, usize), (String, Rollout)>,
    /// The prompt and the sample of the response that is printed next.
    next: (usize, usize),
}

impl Reader for Printer<'_> {
    fn text(&mut self, _request: RequestId, _sample: usize, new: &str) -> Result<()> {
        if new.is_empty() { Ok(()) } else { print(new) }
    }

    fn finished(
        &mut self,
        RequestId(prompt): RequestId,
        sample: usize,
        text: String,
        rollout: Rollout,
    ) -> Result<()> {
        if self.args.stream {
            return print("\n");
        }
        self.done.insert((prompt, sample), (text, rollout));
        while let Some((text, rollout)) = self.done.remove(&self.next) {
            let (prompt, sample) = self.next;
            let is_last = sample + 1 == self.args.num_samples;
            self.next = if is_last { (prompt + 1, 0) } else { (prompt, sample + 1) };
            if self.args.json {
                let Rollout { tokens: output_ids, logprobs, top_logprobs, finish_reason } = rollout;
                let line = Line {
                    prompt,
                    sample,
                    text,
                    output_ids,
                    logprobs,
                    top_logprobs,
                    finish_reason,
                };
                print(format!("{}\n", serde_json::to_string(&line)?))?;
            } else {
                print(format!("{text}\n"))?;
            }
        }
        Ok(())
    }
}

/// Refuses settings that leave no token to draw, or with which no response could be streamed.
fn check(args: &Args) -> Result<()> {
    check_temperature("--temperature", args.temperature)?;
    let checks = [
        (args.top_logprobs <= MOST_TOP_LOGPROBS, "--top-logprobs must be at most 1000"),
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
        (
            args.presence_penalty.is_finite() && args.frequency_penalty.is_finite(),
            "--presence-penalty and --frequency-penalty must be numbers",
        ),
        (
            args.min_new_tokens <= args.max_new_tokens,
            "--min-new-tokens must be at most --max-new-tokens",
        ),
        (!args.stream || args.num_samples == 1, "--stream prints one response: leave out -n"),
        (
            !args.stream || args.asked.messages.is_none(),
            "--stream prints one response: use --chat or --prompt",
        ),
    ];
    match checks.iter().find(|(is_right, _)| !is_right) {
        Some((_, message)) => Err(usage(*message)),
        None => Ok(()),
    }
}

/// Returns sizes that hold every request. Refuses lengths that exceed the model's positions.
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

fn prompts(asked: &Asked, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let Asked { chat, messages, prompt } = asked;
    let chat = chat.iter().map(|text| tokenizer.encode_prompt(&[Message::new("user", text)]));
    let raw = prompt.iter().map(|text| tokenizer.encode_with_special_tokens(text));
    let mut prompts: Vec<Vec<u32>> = chat.chain(raw).collect::<Result<_>>()?;
    if let Some(file) = messages {
        prompts.extend(conversations(file, tokenizer)?);
    }
    Ok(prompts)
}

/// Reads the conversations of a file, each with the assistant's next turn opened.
fn conversations(file: &Path, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let samples: Vec<(usize, Sample)> = rows::numbered(file, None)?.collect::<Result<_>>()?;
    if samples.is_empty() {
        return Err(usage(format!("{}: no conversation to answer", file.display())));
    }
    let prompt = |(line, sample): (usize, &Sample)| match sample.messages.last() {
        Some(message) if message.role != "assistant" => tokenizer.encode_prompt(&sample.messages),
        _ => Err(usage(format!(
            "{}:{line}: there is nothing to answer: a conversation must end with a user's turn",
            file.display()
        ))),
    };
    samples.iter().map(|(line, sample)| prompt((*line, sample))).collect()
}
