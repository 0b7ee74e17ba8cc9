//! What comes of a call, and how the body of a chat completion is read.
//!
//! Contract: a thought is kept apart from what was said. A body that holds no answer is no answer, whatever its
//! status; the reason is said.

use super::error_body::ErrorBody;
use serde::Deserialize;
use serde_json::Value;

/// What comes of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Answered(Answer),
    Refused(Refusal),
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What was said, without the thought.
    pub content: String,
    /// The thought, where there is one that can be seen.
    pub reasoning: Option<String>,
    pub finish: Finish,
    /// Tokens, as the endpoint counts them; some do not.
    pub tokens: Option<TokenCounts>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    /// At the token limit.
    Length,
    /// The endpoint withheld the answer, or a part of it.
    Filtered,
    /// For a reason that only the endpoint knows.
    Other,
}

/// The tokens of a call, as its endpoint counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenCounts {
    pub prompt: u64,
    /// Those of the prompt that the endpoint had in a cache.
    pub cached: u64,
    /// Those of the answer, the thought among them.
    pub completion: u64,
}

/// A call that was not answered, and will not be if it is asked again as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// What the endpoint said, or what failed.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The messages are longer than the model can read.
    TooLong,
    /// The endpoint does not take the request.
    Rejected,
    /// It failed as often as calls are tried.
    GaveUp,
}

/// Why the body of a response holds no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// It holds an error instead.
    Error(ErrorBody),
    /// It is no chat completion, or one that ended early through no fault of the request.
    Broken(String),
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

impl Answer {
    /// The answer that all of a model's text is, whose prompt may have opened the thought.
    pub(crate) fn of_text(
        text: &str,
        is_thought_opened: bool,
        finish: Finish,
        tokens: Option<TokenCounts>,
    ) -> Self {
        let thought = match text.trim_start().strip_prefix(OPEN) {
            Some(thought) => Some(thought),
            None => is_thought_opened.then_some(text),
        };
        let (reasoning, content) = match thought.map(|thought| thought.split_once(CLOSE)) {
            Some(Some((thought, said))) => (Some(thought.to_owned()), said.trim_start()),
            Some(None) => (thought.map(str::to_owned), ""),
            None => (None, text),
        };
        Self { content: content.to_owned(), reasoning, finish, tokens }
    }

    /// All of it as one text, as a model without a separate thought would have written it. A thought that was cut
    /// off stays open.
    pub fn text(&self) -> String {
        match &self.reasoning {
            None => self.content.clone(),
            Some(thought) if self.content.is_empty() && self.finish == Finish::Length => {
                format!("{OPEN}{thought}")
            }
            Some(thought) => format!("{OPEN}{thought}{CLOSE}\n{}", self.content),
        }
    }

    /// Reads the body of a response with status 200.
    pub(crate) fn read(body: &[u8]) -> Result<Self, NoAnswer> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(NoAnswer::Broken("the body is empty".to_owned()));
        }
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| NoAnswer::Broken(format!("the body is not JSON: {e}")))?;
        if let Some(error) = ErrorBody::of(&value) {
            return Err(NoAnswer::Error(error));
        }
        let body: Body = serde_json::from_value(value)
            .map_err(|e| NoAnswer::Broken(format!("the body is no chat completion: {e}")))?;
        let tokens = body.usage.as_ref().and_then(token_counts);
        let choice = body.choices.into_iter().flatten().next();
        let choice =
            choice.ok_or_else(|| NoAnswer::Broken("the body has no choices".to_owned()))?;
        let Message { content, refusal, reasoning_content, reasoning } = choice.message;
        let finish = match choice.finish_reason.as_deref() {
            Some("insufficient_system_resource") => {
                return Err(NoAnswer::Broken("the endpoint ran out of resources".to_owned()));
            }
            Some("length") => Finish::Length,
            Some("content_filter") => Finish::Filtered,
            _ if refusal.is_some() => Finish::Filtered,
            Some("stop") => Finish::Stop,
            _ => Finish::Other,
        };
        let said = content.and_then(text).or(refusal).unwrap_or_default();
        Ok(match reasoning_content.or(reasoning).filter(|thought| !thought.is_empty()) {
            Some(thought) => Self { content: said, reasoning: Some(thought), finish, tokens },
            None => Self::of_text(&said, false, finish, tokens),
        })
    }
}

#[derive(Deserialize)]
struct Body {
    choices: Option<Vec<Choice>>,
    usage: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Value>,
    refusal: Option<String>,
    /// DeepSeek's and llama.cpp's name of the thought.
    reasoning_content: Option<String>,
    /// vLLM's.
    reasoning: Option<String>,
}

/// The text of a content: a string, or parts of which each has one.
fn text(content: Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text),
        Value::Array(parts) => {
            Some(parts.iter().filter_map(|part| part["text"].as_str()).collect())
        }
        _ => None,
    }
}

/// The token counts of a `usage`; none of one that counts nothing.
fn token_counts(usage: &Value) -> Option<TokenCounts> {
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    Some(TokenCounts {
        prompt: usage["prompt_tokens"].as_u64()?,
        cached: cached.or(usage["prompt_cache_hit_tokens"].as_u64()).unwrap_or(0),
        completion: usage["completion_tokens"].as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(message: Value, finish: &str) -> Answer {
        let body = json!({
            "choices": [{"message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_cache_hit_tokens": 2},
        });
        Answer::read(body.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_thought_is_kept_apart_in_each_of_its_spellings() {
        for message in [
            json!({"content": "4", "reasoning_content": "2 + 2"}),
            json!({"content": [{"type": "text", "text": "4"}], "reasoning": "2 + 2"}),
            json!({"content": "<think>2 + 2</think>\n\n4"}),
        ] {
            let answer = read(message, "stop");
            assert_eq!(answer.reasoning.as_deref(), Some("2 + 2"));
            assert_eq!((answer.content.as_str(), answer.finish), ("4", Finish::Stop));
            assert_eq!(answer.text(), "<think>2 + 2</think>\n4");
            let tokens = TokenCounts { prompt: 7, cached: 2, completion: 3 };
            assert_eq!(answer.tokens, Some(tokens));
        }
    }

    #[test]
    fn an_answer_that_was_cut_off_in_its_thought_has_an_open_one() {
        for message in
            [json!({"content": null, "reasoning_content": "2 +"}), json!({"content": "<think>2 +"})]
        {
            let answer = read(message, "length");
            assert_eq!((answer.content.as_str(), answer.finish), ("", Finish::Length));
            assert_eq!(answer.text(), "<think>2 +");
        }
        assert_eq!(Answer::of_text("2 +", true, Finish::Length, None).text(), "<think>2 +");
    }

    #[test]
    fn a_refusal_of_the_model_is_an_answer() {
        let answer = read(json!({"content": null, "refusal": "I cannot."}), "stop");
        assert_eq!((answer.content.as_str(), answer.finish), ("I cannot.", Finish::Filtered));
    }

    #[test]
    fn a_body_without_an_answer_says_why() {
        for (body, reason) in [
            ("", "empty"),
            ("\n\n", "empty"),
            ("<html>", "not JSON"),
            ("{\"choices\": [{\"mess", "not JSON"),
            ("{}", "no choices"),
            ("{\"choices\": null}", "no choices"),
            ("{\"choices\": [{}]}", "no chat completion"),
            ("[1]", "no chat completion"),
        ] {
            match Answer::read(body.as_bytes()) {
                Err(NoAnswer::Broken(why)) => assert!(why.contains(reason), "{body}: {why}"),
                other => panic!("{body}: {other:?}"),
            }
        }
        let error = Answer::read(br#"{"error": {"message": "busy", "code": 429}}"#);
        assert!(matches!(error, Err(NoAnswer::Error(error)) if error.status() == Some(429)));
    }

    #[test]
    fn an_endpoint_that_counts_nothing_is_no_error() {
        let body =
            br#"{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": -1}}"#;
        let answer = Answer::read(body).unwrap();
        assert_eq!((answer.tokens, answer.finish), (None, Finish::Other));
    }
}
