//! `POST /v1/completions`: text to be continued, given as text or as tokens, one prompt or several.
//!
//! Contract: choice `i` is sample `i % n` of prompt `i / n`. With `echo` the prompt's text and
//! log-probabilities come first, the first token's being null; with `max_tokens` 0 nothing follows them
//! (one token is sampled and left out).

use super::App;
use super::answer::{Asked, Shape, reasons};
use super::error::ApiError;
use super::fields::Fields;
use super::job::{Delta, Finish, Job, mailbox};
use super::logprobs::{Legacy, Scored};
use super::model::ServedModel;
use super::sampling::Common;
use crate::engine::Request;
use crate::ops::sample::Drawn;
use crate::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

const DEFAULT_MAX_TOKENS: usize = 16;
const MOST_PROMPTS: usize = 256;
const MOST_CHOICES: usize = 512;
/// OpenAI allows 5, vLLM 20.
const MOST_LOGPROBS: u32 = 20;

/// Writes the answer to a completion.
pub(crate) struct Completion {
    tokenizer: Arc<Tokenizer>,
    prompts: Vec<Prompt>,
    num_samples: usize,
    has_logprobs: bool,
    echoes: bool,
    /// Nothing is to be generated.
    is_echo_alone: bool,
    returns_token_ids: bool,
    /// The first part of these choices was written.
    begun: BTreeMap<usize, Legacy>,
}

struct Prompt {
    tokens: Vec<u32>,
    text: String,
    scores: Vec<Drawn>,
}

/// Reads a request.
pub(crate) fn read(
    app: &App,
    body: &[u8],
    arrived: Instant,
) -> Result<Asked<Completion>, ApiError> {
    let model = &app.model;
    let mut fields = Fields::parse(body)?;
    let mut common = Common::take(&mut fields, model)?;
    let adds_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let prompts = prompts(&mut fields, model, adds_special)?;
    if prompts.len() * common.num_samples > MOST_CHOICES {
        let most = format!("prompts times n must be at most {MOST_CHOICES}");
        return Err(ApiError::field("n", most));
    }
    let echoes = fields.boolean("echo")?.unwrap_or(false);
    let max_tokens = fields.count("max_tokens", 0..=i32::MAX as u32)?;
    let max_tokens = max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    if max_tokens == 0 && !echoes {
        return Err(ApiError::field("max_tokens", "it may be 0 only with echo"));
    }
    let logprobs = fields.count("logprobs", 0..=MOST_LOGPROBS)?;
    fields.ignore_rest();
    for prompt in &prompts {
        model.room("prompt", prompt.tokens.len(), Some(max_tokens))?;
    }
    common.sampling.max_new_tokens = max_tokens.max(1);
    common.check_length()?;
    common.sampling.top_logprobs = logprobs.unwrap_or(0);
    common.sampling.prompt_logprobs = logprobs.filter(|_| echoes);
    let (outbox, answers) = mailbox(prompts.len() * common.num_samples);
    let job = |(number, prompt): (usize, &Prompt)| Job {
        request: Request {
            prompt: prompt.tokens.clone(),
            sampling: common.sampling.clone(),
            num_samples: common.num_samples,
            key: Request::key_of(common.seed, &prompt.tokens),
        },
        stops: Arc::clone(&common.stops),
        wants_tokens: logprobs.is_some() || common.returns_token_ids,
        own_stop_ids: common.own_stop_ids.clone(),
        prompt: number,
        arrived,
        outbox: outbox.clone(),
    };
    let jobs = prompts.iter().enumerate().map(job).collect();
    let shape = Completion {
        tokenizer: Arc::clone(&model.tokenizer),
        prompts,
        num_samples: common.num_samples,
        has_logprobs: logprobs.is_some(),
        echoes,
        is_echo_alone: max_tokens == 0,
        returns_token_ids: common.returns_token_ids,
        begun: BTreeMap::new(),
    };
    Ok(Asked { shape, jobs, answers, stream: common.stream })
}

fn prompts(
    fields: &mut Fields,
    model: &ServedModel,
    adds_special: bool,
) -> Result<Vec<Prompt>, ApiError> {
    let tokenizer = &model.tokenizer;
    let of_ids = |ids: &Value| {
        let tokens = model.token_ids("prompt", ids)?;
        let text = tokenizer.decode_with_special_tokens(&tokens);
        let text = text.map_err(|e| ApiError::of("prompt", &e))?;
        Ok(Prompt { tokens, text, scores: Vec::new() })
    };
    let of_text = |text: &str| {
        let tokens = match adds_special {
            true => tokenizer.encode_with_special_tokens(text),
            false => tokenizer.encode(text),
        };
        let tokens = tokens.map_err(|e| ApiError::of("prompt", &e))?;
        Ok(Prompt { tokens, text: text.to_owned(), scores: Vec::new() })
    };
    let wrong = || {
        let expected = format!(
            "expected a string, a list of strings, a list of token ids, or a list of such lists; at most \
             {MOST_PROMPTS} prompts"
        );
        ApiError::field("prompt", expected)
    };
    match fields.take("prompt") {
        Some(Value::String(text)) => Ok(vec![of_text(&text)?]),
        Some(Value::Array(items)) => match items.first() {
            Some(Value::Number(_)) => Ok(vec![of_ids(&Value::Array(items))?]),
            Some(Value::String(_) | Value::Array(_)) if items.len() <= MOST_PROMPTS => {
                let prompt = |item: &Value| match item {
                    Value::String(text) => of_text(text),
                    Value::Array(_) => of_ids(item),
                    _ => Err(wrong()),
                };
                items.iter().map(prompt).collect()
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

impl Completion {
    /// The choice that a delta is a part of.
    fn choice(&mut self, delta: Delta) -> Value {
        let (finish_reason, stop_reason) = reasons(delta.finish.as_ref());
        let prompt = &self.prompts[delta.choice / self.num_samples];
        let is_first = !self.begun.contains_key(&delta.choice);
        let is_echoed = is_first && self.echoes;
        let legacy = self.begun.entry(delta.choice).or_default();
        let first = prompt.tokens.first().copied().map(Scored::First);
        let echo = first.into_iter().chain(prompt.scores.iter().map(Scored::Drawn));
        let scored = echo.filter(|_| is_echoed).chain(delta.tokens.iter().map(Scored::Drawn));
        let logprobs = self.has_logprobs.then(|| legacy.of(&self.tokenizer, scored));
        let echoed = if is_echoed { prompt.text.as_str() } else { "" };
        let mut choice = json!({
            "index": delta.choice,
            "text": format!("{echoed}{}", delta.text),
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        });
        if self.returns_token_ids {
            choice["token_ids"] = delta.tokens.iter().map(|drawn| drawn.token).collect();
            choice["prompt_token_ids"] = json!(is_first.then_some(&prompt.tokens));
        }
        choice
    }
}

impl Shape for Completion {
    const ID: &str = "cmpl";
    const OBJECT: &str = "text_completion";
    const CHUNK: &str = "text_completion";

    fn prompt(&mut self, prompt: usize, tokens: Vec<Drawn>) {
        self.prompts[prompt].scores = tokens;
    }

    fn trim(&self, delta: &mut Delta) {
        if self.is_echo_alone {
            let finish = delta.finish.take().map(|_| Finish::Length);
            *delta = Delta { choice: delta.choice, finish, ..Delta::default() };
        }
    }

    fn whole(&mut self, delta: Delta) -> Value {
        self.choice(delta)
    }

    fn parts(&mut self, delta: Delta) -> Vec<Value> {
        vec![self.choice(delta)]
    }
}
