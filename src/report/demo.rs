//! The results of `train demo`, ready to be shown; `html` and `text` render them.
//!
//! This is plain data and measures nothing. All scores are from 0 to 1.

use super::curve::Curve;
use crate::eval::stats::Estimate;
use serde_json::{Value, json};

/// The data of the demo's report.
#[derive(Debug, Clone)]
pub struct DemoReport {
    /// A warning to the reader, if the numbers are not those of a whole demo.
    pub caveat: Option<String>,
    /// The data, described in names and texts.
    pub data: Vec<(String, String)>,
    /// The score of the untrained model.
    pub base: Score,
    /// The score after supervised fine-tuning.
    pub sft: Score,
    /// The score after reinforcement.
    pub grpo: Score,
    /// pass@1 after reinforcement minus pass@1 before it, paired by problem.
    pub gain: Estimate,
    /// The cases and solutions after supervised fine-tuning.
    pub sft_cases: Cases,
    /// The cases and solutions after reinforcement.
    pub grpo_cases: Cases,
    /// The curves of supervised fine-tuning.
    pub sft_curves: Vec<Curve>,
    /// The curves of reinforcement.
    pub grpo_curves: Vec<Curve>,
    /// One test problem with the response of each model.
    pub example: Example,
    /// The seconds of each stage.
    pub seconds: Vec<(String, f64)>,
    /// The resolved configurations, by name, as TOML.
    pub configs: Vec<(String, String)>,
    /// The machine and the program, as names and texts.
    pub environment: Vec<(String, String)>,
}

/// A model's score on the held-out problems.
#[derive(Debug, Clone)]
pub struct Score {
    /// The number of problems.
    pub problems: usize,
    /// The number of responses to each problem.
    pub rollouts: usize,
    /// The mean over problems of the share of right responses.
    pub pass_at_1: Estimate,
    /// Each k with pass@k.
    pub pass_at_k: Vec<(usize, f64)>,
    /// pass@1 by problem family.
    pub families: Vec<(String, f64)>,
    /// pass@1 on problems of families that no training problem has.
    pub unseen_families: Option<Estimate>,
}

/// The shares of responses by two questions: are all own cases right, and is the program right (paper,
/// figure 5)?
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cases {
    /// The share with right cases and a right program (C-C).
    pub c_c: f64,
    /// The share with right cases and a wrong program (C-F).
    pub c_f: f64,
    /// The share with a wrong case and a right program (No-C).
    pub no_c: f64,
    /// The share with a wrong case and a wrong program (No-F).
    pub no_f: f64,
}

/// A problem and the responses to it.
#[derive(Debug, Clone)]
pub struct Example {
    pub prompt: String,
    pub responses: Vec<Response>,
}

/// A model's response, and whether it was right.
#[derive(Debug, Clone)]
pub struct Response {
    pub model: String,
    pub text: String,
    pub is_right: bool,
}

/// The names of the three models, in order; their colours are 0, 1, 2.
pub(crate) const MODELS: [&str; 3] = ["base", "SFT", "SFT + RL"];
pub(crate) const CASES: [(&str, &str); 4] = [
    ("C-C: cases right, solution right", "q0"),
    ("C-F: cases right, solution wrong", "q1"),
    ("No-C: a case wrong, solution right", "q2"),
    ("No-F: a case wrong, solution wrong", "q3"),
];

impl Cases {
    pub(crate) fn shares(&self) -> Vec<f64> {
        vec![self.c_c, self.c_f, self.no_c, self.no_f]
    }
}

impl DemoReport {
    pub(crate) fn scores(&self) -> [&Score; 3] {
        [&self.base, &self.sft, &self.grpo]
    }

    pub(crate) fn total_seconds(&self) -> f64 {
        self.seconds.iter().map(|(_, seconds)| seconds).sum()
    }

    /// Writes the results as `summary.json` holds them.
    pub fn summary(&self) -> Value {
        let score = |score: &Score| {
            let estimate = |e: &Estimate| json!({"pass_at_1": e.mean, "ci95": e.ci95});
            let mut value = estimate(&score.pass_at_1);
            value["problems"] = json!(score.problems);
            value["rollouts"] = json!(score.rollouts);
            value["pass_at_k"] = score.pass_at_k.iter().map(|(k, v)| (k.to_string(), *v)).collect();
            if let Some(unseen) = &score.unseen_families {
                value["unseen_families"] = estimate(unseen);
            }
            value
        };
        let cases = |c: &Cases| json!({"c_c": c.c_c, "c_f": c.c_f, "no_c": c.no_c, "no_f": c.no_f});
        json!({
            "gtg": {
                "base": score(&self.base),
                "sft": score(&self.sft),
                "grpo": score(&self.grpo),
                "gain": {"grpo_minus_sft": self.gain.mean, "ci95": self.gain.ci95},
            },
            "cases": {"sft": cases(&self.sft_cases), "grpo": cases(&self.grpo_cases)},
            "seconds": self.total_seconds(),
            "seconds_by_stage": self.seconds.iter().cloned().collect::<Value>(),
        })
    }
}

/// Writes an interval: `20.1 to 24.9 %`.
pub(crate) fn interval(estimate: Estimate) -> String {
    format!("{:.1} to {:.1} %", estimate.ci95[0] * 100.0, estimate.ci95[1] * 100.0)
}

/// Writes a difference of fractions in percentage points, with its sign.
pub(crate) fn points(difference: f64) -> String {
    format!("{:+.1}", difference * 100.0)
}

/// Writes the interval of a difference in percentage points.
pub(crate) fn points_interval(estimate: Estimate) -> String {
    format!("{} to {}", points(estimate.ci95[0]), points(estimate.ci95[1]))
}
