//! What the page at `/` asks for: problems, their prompts, and the judge's verdict on an answer.
//!
//! Contract: the page is one file, which loads nothing from anywhere else. A verdict is that of
//! `train eval gtg`; cases that an answer made itself are right or wrong where the problem has their terms.

use super::error::ApiError;
use super::fields::Fields;
use crate::data::problem::Problem;
use crate::sandbox::Judge;
use crate::tasks::{NumberSequences, Task, program};
use anyhow::Result;
use serde_json::{Value, json};

pub(crate) const PAGE: &str = include_str!("playground.html");

pub(crate) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
     style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'";

/// The page's problems and its judge.
#[derive(Default)]
pub struct Playground {
    /// The page offers these problems.
    pub problems: Vec<Problem>,
    /// Answers are judged here, or only shown where there is no judge.
    pub judge: Option<Judge>,
}

impl Playground {
    /// Returns the problems that the page offers, and whether there is a judge.
    pub(crate) fn problems(&self) -> Value {
        json!({"problems": self.problems, "has_judge": self.judge.is_some()})
    }

    /// Returns the conversation that asks a problem.
    pub(crate) fn prompt(&self, body: &[u8]) -> Result<Value, ApiError> {
        let problem = problem(&mut Fields::parse(body)?)?;
        let prompt = crate::data::prompt::GtgPrompt::bundled();
        let text = prompt.and_then(|prompt| prompt.render(&problem));
        let text = text.map_err(|e| ApiError::of("problem", &e))?;
        Ok(json!({"messages": [{"role": "user", "content": text}]}))
    }

    /// Judges an answer.
    pub(crate) fn judge(&self, body: &[u8]) -> Result<Value, ApiError> {
        let mut fields = Fields::parse(body)?;
        let problem = problem(&mut fields)?;
        let response = fields.text("response")?.unwrap_or_default();
        let judge = self.judge.as_ref().ok_or_else(|| {
            ApiError::bad("this server has no judge: train doctor says what it lacks")
        })?;
        let of = |error: anyhow::Error| ApiError::of("problem", &error);
        let task = NumberSequences::open(vec![problem], None, judge).map_err(of)?;
        let grade = task.grade(0, &response, &|| false).map_err(of)?;
        let own_cases = task
            .own_cases(0, &response)
            .into_iter()
            .map(|case| json!({"input": case.input, "value": case.value, "term": case.term}));
        Ok(json!({
            "program": program(&response).ok(),
            "passed": grade.passed(),
            "failure": grade.failure(),
            "verdict": grade.verdict,
            "tests": task.problems()[0].tests,
            "own_cases": own_cases.collect::<Value>(),
        }))
    }
}

fn problem(fields: &mut Fields) -> Result<Problem, ApiError> {
    let problem = fields.take("problem").unwrap_or_default();
    // From text, since a problem keeps its other keys as they are written.
    serde_json::from_str(&problem.to_string())
        .map_err(|e| ApiError::field("problem", e.to_string()))
}
