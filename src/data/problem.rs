//! A number-sequence problem as it is stored in a file (JSON Lines).
//!
//! Three spellings are read: ours, that of the paper's authors (`input requirement`, `example`, `test`;
//! github.com/141forever/CodeSeq), and ids that are strings or integers. Inputs and outputs may be JSON
//! numbers or strings, and keep every digit. Unknown keys are kept as they were written, for prompts, for
//! reward programs, and for files to which problems are copied.

use super::columns::Columns;
use crate::base::json::text;
use crate::sandbox::Case;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

/// One problem: a story that asks for a term of a sequence, examples, and hidden tests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Problem {
    /// The problem's name, unique in its file.
    #[serde(deserialize_with = "text")]
    pub problem_id: String,
    /// The story, which determines the sequence without naming it.
    #[serde(default)]
    pub description: String,
    #[serde(default, alias = "input requirement")]
    pub input_requirement: String,
    #[serde(default, alias = "output requirement")]
    pub output_requirement: String,
    /// Examples that the model sees.
    #[serde(default, alias = "example")]
    pub examples: Vec<Example>,
    /// Tests that the model never sees; the verdict depends on them.
    #[serde(alias = "test")]
    pub tests: Vec<Case>,
    /// Consecutive terms in decimal; `terms[i]` belongs to problem input `offset + i`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<String>,
    /// The problem input of `terms[0]`.
    #[serde(default)]
    pub offset: i64,
    /// The share of rollouts that passed, if it was estimated (formula 1 of the paper).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solvability: Option<f64>,
    /// The generator's family, by which tables of scores are grouped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// The other keys of the row.
    #[serde(flatten, skip_deserializing)]
    pub columns: Columns,
}

/// The keys of a problem in all spellings.
const KEYS: [&str; 14] = [
    "problem_id",
    "description",
    "input_requirement",
    "input requirement",
    "output_requirement",
    "output requirement",
    "examples",
    "example",
    "tests",
    "test",
    "terms",
    "offset",
    "solvability",
    "family",
];

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Problem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let row = Box::<RawValue>::deserialize(deserializer)?;
        let mut known = serde_json::Deserializer::from_str(row.get());
        let mut problem = Self::deserialize(&mut known).map_err(de::Error::custom)?;
        problem.columns = Columns::other_than(&KEYS, &row)?;
        Ok(problem)
    }
}

/// An example with the reason for its output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    #[serde(deserialize_with = "text")]
    pub input: String,
    #[serde(deserialize_with = "text")]
    pub output: String,
    #[serde(default)]
    pub explanation: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_and_the_authors_key_names_are_read_exactly() {
        let line = r#"{"problem_id": 45, "description": "d", "input requirement": "i",
            "example": [{"input": 1, "output": 1, "explanation": "e"}],
            "test": [{"input": "2", "output": 123456789012345678901234567890}]}"#;
        let problem: Problem = serde_json::from_str(line).unwrap();
        assert_eq!(problem.problem_id, "45");
        assert_eq!(problem.input_requirement, "i");
        assert_eq!(problem.tests[0].output, "123456789012345678901234567890");
    }

    #[test]
    fn keys_that_are_not_known_are_written_as_they_were_read() {
        let line = r#"{"problem_id":"a","description":"","input_requirement":"","output_requirement":"","examples":[],"tests":[],"offset":0,"answer_key":{"gold": 12345678901234567890123},"level":1.50}"#;
        let problem: Problem = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&problem).unwrap(), line);
    }

    #[test]
    fn every_key_of_a_problem_is_known() {
        let line = r#"{"problem_id":"a","tests":[],"terms":["1"],"solvability":0.5,"family":"f"}"#;
        let problem: Problem = serde_json::from_str(line).unwrap();
        let written = serde_json::to_value(&problem).unwrap();
        assert!(written.as_object().unwrap().keys().all(|key| KEYS.contains(&key.as_str())));
        assert_eq!(written.as_object().unwrap().len(), 10);
    }

    #[test]
    fn an_output_that_is_neither_text_nor_number_is_refused() {
        let line = r#"{"problem_id": "a", "tests": [{"input": 1, "output": [2]}]}"#;
        assert!(serde_json::from_str::<Problem>(line).is_err());
    }
}
