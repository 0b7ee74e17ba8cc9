//! A reward as a sum of named parts, and what it may depend on besides the grade.

use crate::tasks::Grade;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a reward may depend on besides the grade.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    /// The text of the response, without special tokens.
    pub text: &'a str,
    /// The tokens of the response; a stop token counts.
    pub num_tokens: usize,
    /// The share of rollouts that solve the problem, if it was estimated.
    pub solvability: Option<f64>,
}

/// What a response is worth. Every part and every fact is logged under its name, as a mean over responses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// The sum of the parts, in the order in which they were added.
    pub total: f64,
    #[serde(default)]
    pub parts: BTreeMap<String, f64>,
    /// Numbers from which the parts were computed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, f64>,
}

/// The name of the part that an external program gives.
const EXTERNAL: &str = "external";

impl Reward {
    /// Starts a reward with its part for the format: -1 if the format is wrong.
    pub fn of_format(grade: &Grade) -> Self {
        Self::default().part("format_term", if grade.format_ok() { 0.0 } else { -1.0 })
    }

    /// Adds a part. Its name must differ from those before.
    #[must_use]
    pub fn part(mut self, name: &str, value: f64) -> Self {
        self.total += value;
        self.parts.insert(name.to_owned(), value);
        self
    }

    /// Adds a number from which the parts were computed.
    #[must_use]
    pub fn fact(mut self, name: &str, value: f64) -> Self {
        self.facts.insert(name.to_owned(), value);
        self
    }

    /// Returns the reward that an external program gave, with the facts of this one.
    #[must_use]
    pub fn replaced_by(self, external: f64) -> Self {
        Self { facts: self.facts, ..Self::default() }.part(EXTERNAL, external)
    }

    /// Returns what an external program gave, if the reward is from one.
    pub fn external(&self) -> Option<f64> {
        self.parts.get(EXTERNAL).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reward_is_the_sum_of_its_parts() {
        let rule = Reward::default().part("a", 0.5).part("b", 0.25).fact("n", 3.0);
        assert_eq!(rule.total, 0.75);
        let external = rule.replaced_by(2.0).part("overlong_penalty", -0.5);
        assert_eq!((external.total, external.external()), (1.5, Some(2.0)));
        assert_eq!(external.facts["n"], 3.0);
        assert!(!external.parts.contains_key("a"));
    }

    #[test]
    fn a_reward_of_an_older_run_is_read_with_its_total() {
        let older = r#"{"total": 1.3, "format": true, "passed": true, "solvability_term": 1.3,
            "case_term": 0.0, "num_cases": 2, "num_true_cases": 1}"#;
        let reward: Reward = serde_json::from_str(older).unwrap();
        assert_eq!(reward, Reward { total: 1.3, ..Reward::default() });
    }
}
