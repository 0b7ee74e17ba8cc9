//! A number-sequence problem as it lies in a file (JSON Lines).
//!
//! Reads three spellings of the same thing: ours, the authors' (`input requirement`, `example`,
//! `test`; github.com/141forever/CodeSeq) and, for ids, strings or integers. Inputs and outputs may be JSON
//! numbers or strings and keep every digit.

use crate::base::json::text;
use crate::sandbox::Case;
use serde::{Deserialize, Serialize};

/// One problem: a story that asks for a term of a sequence, examples, and hidden tests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Unique in its file.
    #[serde(deserialize_with = "text")]
    pub problem_id: String,
    /// The story; determines the sequence without naming it.
    #[serde(default)]
    pub description: String,
    /// What the program reads.
    #[serde(default, alias = "input requirement")]
    pub input_requirement: String,
    /// What the program prints.
    #[serde(default, alias = "output requirement")]
    pub output_requirement: String,
    /// Shown to the model.
    #[serde(default, alias = "example")]
    pub examples: Vec<Example>,
    /// Never shown to the model; the verdict rests on them.
    #[serde(alias = "test")]
    pub tests: Vec<Case>,
    /// Consecutive terms in decimal; `terms[i]` belongs to problem input `offset + i`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<String>,
    /// The problem input of `terms[0]`.
    #[serde(default)]
    pub offset: i64,
    /// Share of rollouts that passed, where it was estimated (formula 1 of the paper).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solvability: Option<f64>,
    /// The generator's family, for per-family tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
}

/// An example with the reason for its output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// What the program reads.
    #[serde(deserialize_with = "text")]
    pub input: String,
    /// What it prints.
    #[serde(deserialize_with = "text")]
    pub output: String,
    /// Why.
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
    fn an_output_that_is_neither_text_nor_number_is_refused() {
        let line = r#"{"problem_id": "a", "tests": [{"input": 1, "output": [2]}]}"#;
        assert!(serde_json::from_str::<Problem>(line).is_err());
    }
}
