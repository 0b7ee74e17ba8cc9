//! `POST /v1/chat/completions`.
//!
//! Contract: the conversation becomes text by the model's own template. Turns of the role `developer` are
//! system turns. An assistant's turn may have no content. Left out: tools, images and sound, which are
//! refused.

use super::App;
use super::answer::{Asked, Shape, reasons};
use super::error::ApiError;
use super::fields::Fields;
use super::job::{Delta, Job, mailbox};
use super::logprobs;
use super::sampling::Common;
use crate::engine::Request;
use crate::tokenizer::{Message, Tokenizer};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

const MOST_MESSAGES: usize = 4096;
const MOST_TOP_LOGPROBS: u32 = 20;

/// Writes the answer to a chat.
pub(crate) struct Chat {
    tokenizer: Arc<Tokenizer>,
    /// Each token comes with so many likely ones, where log-probabilities are asked for.
    logprobs: Option<usize>,
    prompt_token_ids: Option<Vec<u32>>,
    /// The first chunk of these choices was written.
    begun: BTreeSet<usize>,
}

/// Reads a request.
pub(crate) fn read(app: &App, body: &[u8], arrived: Instant) -> Result<Asked<Chat>, ApiError> {
    let model = &app.model;
    let mut fields = Fields::parse(body)?;
    let mut common = Common::take(&mut fields, model)?;
    let prompt = prompt(&mut fields, &model.tokenizer)?;
    let most = i32::MAX as u32;
    let max_tokens = match fields.count("max_completion_tokens", 1..=most)? {
        Some(max_tokens) => {
            fields.take("max_tokens");
            Some(max_tokens)
        }
        None => fields.count("max_tokens", 1..=most)?,
    };
    let logprobs = logprobs(&mut fields)?;
    fields.ignore_rest();
    common.sampling.max_new_tokens = model.room("messages", prompt.len(), max_tokens)?;
    common.check_length()?;
    common.sampling.top_logprobs = logprobs.unwrap_or(0);
    let (outbox, answers) = mailbox(common.num_samples);
    let prompt_token_ids = common.returns_token_ids.then(|| prompt.clone());
    let job = Job {
        request: Request {
            key: Request::key_of(common.seed, &prompt),
            prompt,
            sampling: common.sampling,
            num_samples: common.num_samples,
        },
        stops: common.stops,
        wants_tokens: logprobs.is_some() || common.returns_token_ids,
        own_stop_ids: common.own_stop_ids,
        prompt: 0,
        arrived,
        outbox,
    };
    let tokenizer = Arc::clone(&model.tokenizer);
    let shape = Chat { tokenizer, logprobs, prompt_token_ids, begun: BTreeSet::new() };
    Ok(Asked { shape, jobs: vec![job], answers, stream: common.stream })
}

/// Returns the tokens of the conversation, which `/tokenize` takes as well.
pub(crate) fn prompt(fields: &mut Fields, tokenizer: &Tokenizer) -> Result<Vec<u32>, ApiError> {
    let messages = match fields.take("messages") {
        Some(Value::Array(messages)) if (1..=MOST_MESSAGES).contains(&messages.len()) => messages,
        _ => {
            let expected = format!("expected a list of 1 to {MOST_MESSAGES} messages");
            return Err(ApiError::field("messages", expected));
        }
    };
    let opens_turn = fields.boolean("add_generation_prompt")?.unwrap_or(true);
    let adds_special = fields.boolean("add_special_tokens")?.unwrap_or(false);
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    let of = |error: anyhow::Error| ApiError::of("messages", &error);
    let encode = || {
        messages.iter().try_for_each(Message::check_role)?;
        tokenizer.unread_keys(&messages)?;
        let text = tokenizer.template()?.render(&messages, opens_turn)?;
        match adds_special {
            true => tokenizer.encode_with_special_tokens(&text),
            false => tokenizer.encode(&text),
        }
    };
    encode().map_err(of)
}

fn message(mut message: Value) -> Result<Message, ApiError> {
    if message["role"] == "developer" {
        message["role"] = "system".into();
    }
    if message["role"] == "assistant" && message["content"].is_null() {
        message["content"] = "".into();
    }
    serde_json::from_value(message).map_err(|e| ApiError::field("messages", e.to_string()))
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let is_wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let num_top = fields.count("top_logprobs", 0..=MOST_TOP_LOGPROBS)?;
    match (is_wanted, num_top) {
        (false, Some(1..)) => Err(ApiError::field("top_logprobs", "it needs logprobs: true")),
        (is_wanted, num_top) => Ok(is_wanted.then(|| num_top.unwrap_or(0))),
    }
}

impl Chat {
    /// Returns a choice with `content` under `name`.
    fn choice(&self, name: &str, content: Value, delta: &Delta) -> Value {
        let (finish_reason, stop_reason) = reasons(delta.finish.as_ref());
        let logprobs =
            self.logprobs.map(|num_top| logprobs::of_chat(&self.tokenizer, &delta.tokens, num_top));
        let mut choice = json!({"index": delta.choice});
        choice[name] = content;
        choice["logprobs"] = logprobs.unwrap_or_default();
        choice["finish_reason"] = finish_reason;
        choice["stop_reason"] = stop_reason;
        if self.prompt_token_ids.is_some() {
            choice["token_ids"] = delta.tokens.iter().map(|drawn| drawn.token).collect();
        }
        choice
    }
}

impl Shape for Chat {
    const ID: &str = "chatcmpl";
    const OBJECT: &str = "chat.completion";
    const CHUNK: &str = "chat.completion.chunk";

    fn whole(&mut self, delta: Delta) -> Value {
        let message = json!({"role": "assistant", "content": delta.text, "refusal": null});
        self.choice("message", message, &delta)
    }

    fn extra(&self) -> Map<String, Value> {
        let ids = self.prompt_token_ids.iter();
        ids.map(|ids| ("prompt_token_ids".to_owned(), json!(ids))).collect()
    }

    fn parts(&mut self, delta: Delta) -> Vec<Value> {
        let mut parts = Vec::new();
        if self.begun.insert(delta.choice) {
            parts.push(json!({
                "index": delta.choice,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": null,
                "finish_reason": null,
            }));
        }
        let content = match delta.text.is_empty() {
            true => json!({}),
            false => json!({"content": delta.text}),
        };
        parts.push(self.choice("delta", content, &delta));
        parts
    }
}
