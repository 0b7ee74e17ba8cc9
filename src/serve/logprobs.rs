//! Log-probabilities as each kind of completion writes them.
//!
//! Contract: a token is spelled by its bytes, with U+FFFD for what is no character; special tokens by their
//! names. The chosen token is always among the likely ones. Of two likely tokens that are spelled alike, the
//! likelier one stays. What JSON cannot say, minus infinity, is -9999.

use crate::ops::sample::Drawn;
use crate::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// Returns the likely tokens at a position, the drawn one included.
fn likely(drawn: &Drawn) -> impl Iterator<Item = (u32, f32)> {
    let chosen = (drawn.token, drawn.logprob);
    let is_there = drawn.top.iter().any(|(token, _)| *token == drawn.token);
    drawn.top.iter().copied().chain((!is_there).then_some(chosen))
}

fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// Returns `choices[].logprobs` of a chat.
pub(crate) fn of_chat(tokenizer: &Tokenizer, tokens: &[Drawn], num_top: usize) -> Value {
    let entry = |(token, logprob): (u32, f32)| {
        let bytes = tokenizer.token_bytes(token);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        json!({"token": text, "logprob": finite(logprob), "bytes": bytes})
    };
    let content = tokens.iter().map(|drawn| {
        let mut of_token = entry((drawn.token, drawn.logprob));
        let top = drawn.top.iter().take(num_top).map(|&likely| entry(likely));
        of_token["top_logprobs"] = top.collect();
        of_token
    });
    json!({"content": content.collect::<Value>(), "refusal": null})
}

/// Writes `choices[].logprobs` of a completion, whose tokens may come in several chunks.
#[derive(Debug, Default)]
pub(crate) struct Legacy {
    /// The tokens before have so many characters.
    offset: usize,
}

/// A token of a completion: its place has no log-probability where nothing comes before it.
pub(crate) enum Scored<'a> {
    First(u32),
    Drawn(&'a Drawn),
}

impl Legacy {
    /// The next tokens.
    pub(crate) fn of<'a>(
        &mut self,
        tokenizer: &Tokenizer,
        scored: impl IntoIterator<Item = Scored<'a>>,
    ) -> Value {
        let spell = |token| String::from_utf8_lossy(&tokenizer.token_bytes(token)).into_owned();
        let (mut tokens, mut offsets) = (Vec::new(), Vec::new());
        let (mut logprobs, mut tops) = (Vec::new(), Vec::new());
        for scored in scored {
            let (token, logprob, top) = match scored {
                Scored::First(token) => (token, None, None),
                Scored::Drawn(drawn) => {
                    let mut top = Map::new();
                    for (token, logprob) in likely(drawn) {
                        top.entry(spell(token)).or_insert_with(|| finite(logprob).into());
                    }
                    (drawn.token, Some(finite(drawn.logprob)), Some(top))
                }
            };
            let text = spell(token);
            offsets.push(self.offset);
            self.offset += text.chars().count();
            tokens.push(text);
            logprobs.push(logprob);
            tops.push(top);
        }
        json!({
            "text_offset": offsets,
            "token_logprobs": logprobs,
            "tokens": tokens,
            "top_logprobs": tops,
        })
    }
}
