//! The fields that say how tokens are drawn and when an answer ends, which both kinds of completions have.
//!
//! Contract: defaults are OpenAI's. Beside its fields, those of vLLM are taken. What the engine does not do
//! and what would silently change the meaning is refused. Log-probabilities are those of the model itself, at
//! temperature 1 and before any penalty, as vLLM's and llama.cpp's are.

use super::error::ApiError;
use super::fields::{Fields, integer};
use super::model::ServedModel;
use crate::engine::text::Stops;
use crate::engine::{SamplingParams, check_temperature};
use serde_json::Value;
use std::sync::Arc;

const MOST_SAMPLES: u32 = 128;
const MOST_STOPS: usize = 64;
const MOST_STOP_BYTES: usize = 1024;
const MOST_BIASES: usize = 1024;

/// This server does not do what these fields ask for; they are refused unless they ask for nothing.
const REFUSED: [&str; 28] = [
    "tools",
    "functions",
    "function_call",
    "prediction",
    "audio",
    "web_search_options",
    "suffix",
    "use_beam_search",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "json_schema",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "prompt_embeds",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "allowed_token_ids",
    "bad_words",
    "logits_processors",
    "response_prefix",
    "lora_request",
    "mm_processor_kwargs",
];

/// What a request asks for beside the prompt.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) sampling: SamplingParams,
    pub(crate) stops: Arc<Stops>,
    pub(crate) own_stop_ids: Vec<u32>,
    pub(crate) num_samples: usize,
    pub(crate) seed: u64,
    pub(crate) stream: Option<StreamOptions>,
    pub(crate) returns_token_ids: bool,
}

/// The way in which an answer is streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamOptions {
    /// A last chunk has the usage.
    pub(crate) include_usage: bool,
    /// Every chunk has the usage.
    pub(crate) continuous_usage: bool,
}

impl Common {
    /// Takes the fields that are common to both; `max_new_tokens` is left open.
    pub(crate) fn take(fields: &mut Fields, model: &ServedModel) -> Result<Self, ApiError> {
        if let Some(name) = fields.text("model")?
            && name != model.name
        {
            return Err(ApiError::no_such_model(&name, &model.name));
        }
        refuse_unsupported(fields)?;
        let num_samples = fields.count("n", 1..=MOST_SAMPLES)?.unwrap_or(1);
        let best_of = fields.count("best_of", 0..=MOST_SAMPLES)?.unwrap_or(num_samples);
        if best_of > 1 && best_of != num_samples {
            return Err(ApiError::unsupported("best_of", "this server only samples n"));
        }
        let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0);
        check_temperature("it", temperature).map_err(|e| ApiError::of("temperature", &e))?;
        let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
        if top_p == 0.0 {
            return Err(ApiError::field("top_p", "it must be above 0"));
        }
        let repetition_penalty =
            fields.number("repetition_penalty", 0.0..=f64::from(f32::MAX))?.unwrap_or(1.0);
        if repetition_penalty == 0.0 {
            return Err(ApiError::field("repetition_penalty", "it must be above 0"));
        }
        let min_new_tokens = fields.count("min_tokens", 0..=i32::MAX as u32)?.unwrap_or(0);
        let strings = stop_strings(fields)?;
        let mut stops =
            Stops::new(&model.tokenizer, &strings).map_err(|e| ApiError::of("stop", &e))?;
        stops.keeps_string = fields.boolean("include_stop_str_in_output")?.unwrap_or(false);
        stops.min_tokens = min_new_tokens;
        let own_stop_ids = [&stop_token_ids(fields, model)?[..], &stops.ids].concat();
        let ends: &[u32] =
            if fields.boolean("ignore_eos")?.unwrap_or(false) { &[] } else { &model.end_ids };
        let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
        let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0);
        let penalties = -2.0..=2.0;
        let sampling = SamplingParams {
            temperature,
            top_k: usize::try_from(top_k).unwrap_or(0),
            top_p,
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
            repetition_penalty,
            presence_penalty: fields.number("presence_penalty", penalties.clone())?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", penalties)?.unwrap_or(0.0),
            logit_bias: logit_bias(fields, model)?,
            max_new_tokens: 0,
            min_new_tokens,
            stop_ids: [ends, &own_stop_ids].concat(),
            vocab_size: model.tokenizer.vocab_size(),
            top_logprobs: 0,
            raw_logprobs: true,
            prompt_logprobs: None,
        };
        Ok(Self {
            sampling,
            stops: Arc::new(stops),
            own_stop_ids,
            num_samples,
            seed: seed.map_or_else(rand::random, |seed| seed as u64),
            stream: stream(fields)?,
            returns_token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
        })
    }

    /// Refuses an answer that must be longer than it may.
    pub(crate) fn check_length(&self) -> Result<(), ApiError> {
        let SamplingParams { min_new_tokens, max_new_tokens, .. } = self.sampling;
        if min_new_tokens > max_new_tokens {
            let most = format!("it must be at most max_tokens, {max_new_tokens}");
            return Err(ApiError::field("min_tokens", most));
        }
        Ok(())
    }
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let asks_nothing = |value: &Value| match value {
        Value::Bool(asks) => !asks,
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Null | Value::Number(_) => false,
    };
    if fields.take("tool_choice").is_some_and(|choice| choice == "none") {
        fields.take("tools");
    }
    REFUSED.iter().try_for_each(|name| fields.refuse(name, asks_nothing))?;
    fields.refuse("response_format", |format| format["type"] == "text")?;
    fields.refuse("skip_special_tokens", |skip| *skip == true)?;
    fields.refuse("length_penalty", |penalty| penalty.as_f64() == Some(1.0))?;
    fields.refuse("modalities", |kinds| *kinds == serde_json::json!(["text"]))
}

fn stop_strings(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::field("stop", "expected a string or a list of strings");
    let strings = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(string)) => vec![string],
        Some(Value::Array(strings)) if strings.len() <= MOST_STOPS => {
            let text = |value| match value {
                Value::String(string) => Ok(string),
                _ => Err(wrong()),
            };
            strings.into_iter().map(text).collect::<Result<_, _>>()?
        }
        Some(Value::Array(_)) => {
            return Err(ApiError::field("stop", format!("at most {MOST_STOPS} strings")));
        }
        Some(_) => return Err(wrong()),
    };
    if strings.iter().any(|string| string.len() > MOST_STOP_BYTES) {
        return Err(ApiError::field("stop", format!("at most {MOST_STOP_BYTES} bytes a string")));
    }
    Ok(strings)
}

fn stop_token_ids(fields: &mut Fields, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
    match fields.take("stop_token_ids") {
        None => Ok(Vec::new()),
        Some(ids) => model.token_ids("stop_token_ids", &ids),
    }
}

fn logit_bias(fields: &mut Fields, model: &ServedModel) -> Result<Vec<(u32, f32)>, ApiError> {
    let biases = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(biases)) if biases.len() <= MOST_BIASES => biases,
        Some(_) => {
            let expected = format!("expected an object of at most {MOST_BIASES} ids and biases");
            return Err(ApiError::field("logit_bias", expected));
        }
    };
    let read = |(id, bias): (&String, &Value)| {
        let wrong = |what| ApiError::field("logit_bias", what);
        let id: u32 = id.parse().map_err(|_| wrong("its keys must be ids of tokens"))?;
        if id as usize >= model.tokenizer.vocab_size() {
            return Err(wrong("a key is no id of a token of this model"));
        }
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        Ok((id, bias.ok_or_else(|| wrong("a bias must be a number from -100 to 100"))? as f32))
    };
    biases.iter().map(read).collect()
}

fn stream(fields: &mut Fields) -> Result<Option<StreamOptions>, ApiError> {
    let is_streamed = fields.boolean("stream")?.unwrap_or(false);
    let options = match fields.take("stream_options") {
        None => StreamOptions::default(),
        Some(_) if !is_streamed => {
            return Err(ApiError::field("stream_options", "it needs stream: true"));
        }
        Some(options @ Value::Object(_)) => StreamOptions {
            include_usage: options["include_usage"] == true,
            continuous_usage: options["continuous_usage_stats"] == true,
        },
        Some(_) => return Err(ApiError::field("stream_options", "expected an object")),
    };
    Ok(is_streamed.then_some(options))
}

impl ServedModel {
    /// Reads ids of tokens, and refuses unknown ones.
    pub(crate) fn token_ids(&self, name: &'static str, ids: &Value) -> Result<Vec<u32>, ApiError> {
        let wrong = || ApiError::field(name, "expected a list of ids of this model's tokens");
        let most = self.tokenizer.vocab_size() as i64;
        let id = |value| integer(value).filter(|id| (0..most).contains(id)).ok_or_else(wrong);
        let ids = ids.as_array().ok_or_else(wrong)?;
        ids.iter().map(|value| Ok(id(value)? as u32)).collect()
    }
}
