//! A supervised sample as it lies in a file (JSON Lines): a conversation and where it came from.

pub use crate::tokenizer::Message;
use serde::{Deserialize, Serialize};

/// A conversation to learn from; loss falls on assistant turns only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
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
