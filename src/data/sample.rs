//! A supervised sample as it is stored in a file: a conversation and where it came from.
//!
//! Ids keep every digit, whether they are text or numbers. A sample whose template would need more than its
//! turns (`tools`, `documents`) is refused. Other keys are the row's own notes and are not read.

pub use crate::tokenizer::Message;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// A conversation to learn from; loss falls on assistant turns only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Row")]
pub struct Sample {
    /// The sample's id, unique in its data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub messages: Vec<Message>,
    /// The data set that it is from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The problem that it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem_id: Option<String>,
    /// The number of reflection rounds in the response; 0 if it was right at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u32>,
}

/// The keys of a sample that have a meaning.
#[derive(Deserialize)]
struct Row {
    messages: Option<Vec<Message>>,
    #[serde(default, deserialize_with = "any_text")]
    id: Option<String>,
    #[serde(default, deserialize_with = "any_text")]
    source: Option<String>,
    #[serde(default, deserialize_with = "any_text")]
    problem_id: Option<String>,
    rounds: Option<u32>,
    tools: Option<Box<RawValue>>,
    functions: Option<Box<RawValue>>,
    documents: Option<Box<RawValue>>,
}

impl Sample {
    /// The keys that are read of a sample's row.
    pub const KEYS: [&str; 8] =
        ["messages", "id", "source", "problem_id", "rounds", "tools", "functions", "documents"];
}

impl TryFrom<Row> for Sample {
    type Error = String;

    fn try_from(row: Row) -> Result<Self, String> {
        let Row { messages, id, source, problem_id, rounds, tools, functions, documents } = row;
        let needed = [("tools", tools), ("functions", functions), ("documents", documents)];
        let is_empty = |value: &RawValue| ["[]", "{}", "\"\"", "\"[]\""].contains(&value.get());
        if let Some((key, _)) =
            needed.iter().find(|(_, value)| value.as_deref().is_some_and(|value| !is_empty(value)))
        {
            return Err(format!(
                "the sample has `{key}`, which chat templates are not given here: write them into a \
                 system turn, or leave the sample out"
            ));
        }
        let messages = messages.ok_or(
            "the row has no `messages`, a list of turns with `role` and `content` (docs/sft.md shows \
             how to convert other layouts)",
        )?;
        Ok(Self { id, messages, source, problem_id, rounds })
    }
}

/// Reads an id, which data sets write as a string or as a number.
pub(crate) fn any_text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let Some(written) = Option::<Box<RawValue>>::deserialize(d)? else { return Ok(None) };
    Ok(Some(serde_json::from_str(written.get()).unwrap_or_else(|_| written.get().to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_every_digit() {
        for (id, text) in [
            ("\"a\"", Some("a")),
            ("123456789012345678901234567890", Some("123456789012345678901234567890")),
            ("1.50", Some("1.50")),
            ("null", None),
        ] {
            let line = format!("{{\"id\": {id}, \"messages\": []}}");
            let sample: Sample = serde_json::from_str(&line).unwrap();
            assert_eq!(sample.id.as_deref(), text);
        }
    }

    #[test]
    fn a_sample_without_turns_or_with_tools_is_refused_by_name() {
        let refused = |line| serde_json::from_str::<Sample>(line).unwrap_err().to_string();
        assert!(refused(r#"{"instruction": "q", "output": "a"}"#).contains("no `messages`"));
        assert!(refused(r#"{"messages": [], "tools": [{"name": "f"}]}"#).contains("`tools`"));
        serde_json::from_str::<Sample>(r#"{"messages": [], "tools": [], "documents": null}"#)
            .unwrap();
    }
}
