//! A supervised sample as it lies in a file: a conversation and where it came from.

pub use crate::tokenizer::Message;
use serde::{Deserialize, Deserializer, Serialize};

/// A conversation to learn from; loss falls on assistant turns only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Unique in its data set.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "any_text")]
    pub id: Option<String>,
    /// The turns.
    pub messages: Vec<Message>,
    /// The data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The problem it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem_id: Option<String>,
    /// Reflection rounds in the response (0: right at once).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u32>,
}

/// Data sets spell ids as strings or as numbers.
pub(crate) fn any_text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(d)? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text),
        other => Some(other.to_string()),
    })
}
