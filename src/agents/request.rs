//! A call as it is sent, and the key under which its answer is kept.
//!
//! Contract: the key is a hash of everything that the answer depends on (endpoint, model, messages, settings, the
//! sample and its seed) and of what it is asked for. It does not depend on how long or how often somebody waits,
//! nor on who pays.

use super::endpoint::{Accepts, Endpoint, MaxTokensField, Sampling};
use super::{Call, TokenCounts};
use crate::base::hex::hex;
use crate::tokenizer::Message;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Tokens that a chat template puts around a conversation, and around each turn, at most.
const TOKENS_AROUND: u64 = 64;
const TOKENS_AROUND_TURN: u64 = 16;

/// The key of a call, in hexadecimal where it is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Key([u8; 32]);

/// A call with all that its answer depends on.
#[derive(Serialize)]
pub(crate) struct Request<'a> {
    endpoint: &'a str,
    id: &'a str,
    sample: usize,
    seed: u64,
    /// What is sent.
    body: Map<String, Value>,
}

impl<'a> Request<'a> {
    pub(crate) fn new(endpoint: &'a Endpoint, sampling: Sampling, call: &'a Call) -> Self {
        let mut body = settings(endpoint, sampling);
        let messages = call.messages.iter().map(|message| sent(message, &endpoint.accepts));
        body.insert("messages".to_owned(), messages.collect());
        if endpoint.accepts.seed {
            // Some endpoints take only numbers of 32 bits with a sign.
            body.insert("seed".to_owned(), json!(call.seed & 0x7fff_ffff));
        }
        Self { endpoint: &endpoint.url, id: &call.id, sample: call.sample, seed: call.seed, body }
    }

    pub(crate) fn key(&self) -> Result<Key> {
        let bytes = serde_json::to_vec(self).context("encoding a request")?;
        Ok(Key(Sha256::digest(bytes).into()))
    }

    /// The bytes that are sent.
    pub(crate) fn body(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(&self.body).context("encoding a request")
    }

    /// The most tokens that the call can take: a token has at least one byte.
    pub(crate) fn most_tokens(&self, max_tokens: u64) -> TokenCounts {
        let turns = self.body["messages"].as_array().map_or(&[][..], Vec::as_slice);
        let of_turn = |turn: &Value| turn.to_string().len() as u64 + TOKENS_AROUND_TURN;
        let prompt = TOKENS_AROUND + turns.iter().map(of_turn).sum::<u64>();
        TokenCounts { prompt, cached: 0, completion: max_tokens }
    }
}

/// What every request to an endpoint has: the model, and how answers are drawn.
pub(crate) fn settings(endpoint: &Endpoint, sampling: Sampling) -> Map<String, Value> {
    let accepts = &endpoint.accepts;
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(endpoint.model));
    if accepts.temperature {
        body.insert("temperature".to_owned(), json!(sampling.temperature));
    }
    let field = match accepts.max_tokens_field {
        MaxTokensField::MaxTokens => "max_tokens",
        MaxTokensField::MaxCompletionTokens => "max_completion_tokens",
    };
    body.insert(field.to_owned(), json!(sampling.max_tokens));
    body.extend(endpoint.extra.clone());
    body
}

fn sent(message: &Message, accepts: &Accepts) -> Value {
    let role = match message.role.as_str() {
        "system" => &accepts.system_role,
        role => role,
    };
    let mut turn = Map::new();
    turn.insert("role".to_owned(), json!(role));
    turn.insert("content".to_owned(), json!(message.content));
    turn.extend(message.more.clone());
    Value::Object(turn)
}

impl Key {
    /// A number by which waits of different calls differ.
    pub(crate) fn low_bits(self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.0[i]))
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        hex(key.0)
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = digits(i).ok_or_else(|| format!("{text:?} is no key"))?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    pub(crate) fn endpoint() -> Endpoint {
        Endpoint::load(None, Some("http://localhost:1/v1"), Some("m"), None).unwrap()
    }

    pub(crate) fn call(id: &str, sample: usize) -> Call {
        let messages = [Message::new("system", "Be brief."), Message::new("user", "1 + 1 = ")];
        Call { id: id.to_owned(), messages: Arc::from(messages), sample, seed: 1 << 40 | 5 }
    }

    pub(crate) const SAMPLING: Sampling = Sampling { temperature: 0.7, max_tokens: 9 };

    fn key(endpoint: &Endpoint, sampling: Sampling, call: &Call) -> Key {
        Request::new(endpoint, sampling, call).key().unwrap()
    }

    #[test]
    fn what_is_sent_is_what_the_endpoint_takes() {
        let mut endpoint = endpoint();
        let body = |endpoint: &Endpoint| {
            String::from_utf8(Request::new(endpoint, SAMPLING, &call("a", 0)).body().unwrap())
                .unwrap()
        };
        let turns = r#""messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"1 + 1 = "}]"#;
        assert_eq!(
            body(&endpoint),
            format!(r#"{{"model":"m","temperature":0.7,"max_tokens":9,{turns},"seed":5}}"#)
        );
        endpoint.accepts = Accepts {
            temperature: false,
            seed: false,
            max_tokens_field: MaxTokensField::MaxCompletionTokens,
            system_role: "developer".to_owned(),
        };
        endpoint.extra.insert("reasoning_effort".to_owned(), json!("high"));
        assert_eq!(
            body(&endpoint),
            format!(
                r#"{{"model":"m","max_completion_tokens":9,"reasoning_effort":"high",{}}}"#,
                turns.replace("system", "developer")
            )
        );
    }

    #[test]
    fn all_that_an_answer_depends_on_is_in_the_key_and_nothing_else() {
        let (plain, first) = (endpoint(), call("a", 0));
        let of_plain = key(&plain, SAMPLING, &first);
        let changed = |change: fn(&mut Endpoint)| {
            let mut endpoint = endpoint();
            change(&mut endpoint);
            key(&endpoint, SAMPLING, &first)
        };
        let mut other_words = first.clone();
        other_words.messages = Arc::from([Message::new("user", "1 + 1 = ")]);
        let others = [
            changed(|endpoint| endpoint.url.push('x')),
            changed(|endpoint| endpoint.model.push('x')),
            changed(|endpoint| endpoint.accepts.temperature = false),
            changed(|endpoint| drop(endpoint.extra.insert("top_k".into(), json!(1)))),
            key(&plain, Sampling { temperature: 0.8, ..SAMPLING }, &first),
            key(&plain, Sampling { max_tokens: 10, ..SAMPLING }, &first),
            key(&plain, SAMPLING, &call("b", 0)),
            key(&plain, SAMPLING, &call("a", 1)),
            key(&plain, SAMPLING, &Call { seed: 6, ..first.clone() }),
            key(&plain, SAMPLING, &other_words),
        ];
        assert!(others.iter().all(|other| *other != of_plain));
        let same = [
            changed(|endpoint| endpoint.key_env = Some("OTHER".into())),
            changed(|endpoint| endpoint.limits.call_timeout_secs = 1.0),
            changed(|endpoint| endpoint.budget.tokens = Some(1)),
        ];
        assert!(same.iter().all(|same| *same == of_plain));
        let written = serde_json::to_string(&of_plain).unwrap();
        assert!(serde_json::from_str::<Key>(&written).unwrap() == of_plain);
        assert!(serde_json::from_str::<Key>("\"ab\"").is_err());
    }

    #[test]
    fn the_most_tokens_of_a_prompt_are_more_than_its_bytes() {
        let counts = Request::new(&endpoint(), SAMPLING, &call("a", 0)).most_tokens(9);
        assert!(counts.prompt > ("Be brief.".len() + "1 + 1 = ".len()) as u64);
        assert_eq!(counts.completion, 9);
    }
}
