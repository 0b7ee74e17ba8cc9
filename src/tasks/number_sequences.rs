//! General-term generation: a story asks for a term of a sequence, the response is a program for every term.
//!
//! A response is graded by running its program on the problem's hidden tests, and by comparing the cases that it
//! made itself with the terms of the sequence, where the problem has them.

use super::grade::{Grade, OwnCase};
use super::response::{self, canonical_integer};
use super::{About, Task, problems};
use crate::base::error::usage;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::sandbox::{Job, Judge, Watch, verdicts_with};
use crate::tokenizer::Message;
use anyhow::{Context, Result};
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::path::Path;

/// Problems, their prompt, and the judge of the programs that solve them.
pub struct NumberSequences<'j> {
    problems: Vec<Problem>,
    /// What own cases are compared with, a problem each.
    terms: Vec<Terms>,
    prompt: GtgPrompt,
    judge: &'j Judge,
}

/// A case that a response made itself, in decimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedCase {
    /// What it is about.
    pub input: String,
    /// What the response says.
    pub value: String,
    /// What is right, where it is known.
    pub term: Option<String>,
}

impl<'j> NumberSequences<'j> {
    /// The task with the prompt of a user's file, or else its own. A problem that no program can be judged or no
    /// case compared on is refused and named.
    pub fn open(problems: Vec<Problem>, prompt: Option<&Path>, judge: &'j Judge) -> Result<Self> {
        let prompt = GtgPrompt::open(prompt)?;
        problems::check(&problems)?;
        if let Some(untested) = problems.iter().find(|problem| problem.tests.is_empty()) {
            return Err(usage(format!("problem {:?} has no tests", untested.problem_id)));
        }
        let terms = problems.iter().map(Terms::of).collect::<Result<_>>()?;
        Ok(Self { problems, terms, prompt, judge })
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The cases that a response to a problem made itself, with what is right.
    pub fn own_cases(&self, problem: usize, response: &str) -> Vec<StatedCase> {
        let stated = |(input, value): (String, String)| {
            let term = self.terms[problem].at(&input).map(str::to_owned);
            StatedCase { input, value, term }
        };
        response::read(response).cases.into_iter().map(stated).collect()
    }

    /// The prompt as text.
    pub fn prompt(&self, problem: usize) -> Result<String> {
        self.prompt.render(&self.problems[problem])
    }
}

impl Task for NumberSequences<'_> {
    fn name(&self) -> &'static str {
        "gtg"
    }

    fn num_problems(&self) -> usize {
        self.problems.len()
    }

    fn about(&self, problem: usize) -> About<'_> {
        let problem = &self.problems[problem];
        About { checks_own_cases: !problem.terms.is_empty(), ..About::of(problem) }
    }

    fn messages(&self, problem: usize) -> Result<Vec<Message>> {
        Ok(vec![Message::new("user", self.prompt(problem)?)])
    }

    fn grade(
        &self,
        problem: usize,
        response: &str,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Grade> {
        let read = response::read(response);
        let format_error = read.program.as_ref().err().copied();
        let cases = &self.problems[problem].tests;
        let job = Job { code: read.program.ok(), cases, tolerance: None };
        let watch = Watch { progress: None, cancel: Some(is_cancelled) };
        let verdict = verdicts_with(self.judge, &[job], watch).pop();
        let verdict = verdict.context("the judge gave no verdict")?;
        let own_cases = self.terms[problem].check(&read.cases);
        Ok(Grade { own_cases, ..Grade::of_verdict(format_error, verdict) })
    }

    fn num_graders(&self) -> usize {
        self.judge.num_workers()
    }

    fn problem_json(&self, problem: usize) -> Result<Box<RawValue>> {
        serde_json::value::to_raw_value(&self.problems[problem]).context("encoding a problem")
    }

    fn prompt_sha256(&self) -> &str {
        self.prompt.hash()
    }

    fn grading(&self) -> Result<String> {
        let (limits, profile) = self.judge.limits();
        serde_json::to_string(&(limits, profile)).context("encoding the judge's limits")
    }
}

/// The terms of a sequence, and which of them a prompt shows.
struct Terms {
    /// Canonical; `terms[i]` belongs to input `offset + i`.
    terms: Vec<String>,
    offset: i64,
    examples: HashSet<(String, String)>,
}

impl Terms {
    fn of(problem: &Problem) -> Result<Self> {
        let canonical = |term: &String| {
            canonical_integer(term).ok_or_else(|| {
                usage(format!("problem {:?}: bad term {term:?}", problem.problem_id))
            })
        };
        let examples = problem.examples.iter();
        let examples = examples
            .filter_map(|e| Some((canonical_integer(&e.input)?, canonical_integer(&e.output)?)));
        Ok(Self {
            terms: problem.terms.iter().map(canonical).collect::<Result<_>>()?,
            offset: problem.offset,
            examples: examples.collect(),
        })
    }

    /// The term at a problem input, if it is known.
    fn at(&self, input: &str) -> Option<&str> {
        let index = input.parse::<i64>().ok()?.checked_sub(self.offset)?;
        self.terms.get(usize::try_from(index).ok()?).map(String::as_str)
    }

    /// Those of `cases` whose term is known.
    fn check(&self, cases: &[(String, String)]) -> Vec<OwnCase> {
        let check = |case: &(String, String)| {
            let is_true = self.at(&case.0)? == case.1;
            Some(OwnCase { is_true, is_copy: self.examples.contains(case) })
        };
        cases.iter().filter_map(check).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn own_cases_are_checked_where_the_term_is_known() {
        let problem = serde_json::from_value(json!({
            "problem_id": "p7", "tests": [{"input": 5, "output": 25}], "offset": 0,
            "examples": [{"input": 1, "output": 1}, {"input": 2, "output": "4"}],
            "terms": ["0", "1", "4", "9", "16", "25"],
        }));
        let terms = Terms::of(&problem.unwrap()).unwrap();
        let cases = [("3", "9"), ("4", "15"), ("2", "4"), ("77", "1"), ("-1", "1")]
            .map(|(input, value)| (input.to_owned(), value.to_owned()));
        let case = |is_true, is_copy| OwnCase { is_true, is_copy };
        assert_eq!(terms.check(&cases), [case(true, false), case(false, false), case(true, true)]);
    }

    #[test]
    fn a_term_that_is_no_integer_is_named_with_its_problem() {
        let problem = json!({"problem_id": "p7", "tests": [], "terms": ["1", "one"]});
        let error = Terms::of(&serde_json::from_value(problem).unwrap()).err().unwrap();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert_eq!(error.to_string(), "problem \"p7\": bad term \"one\"");
    }
}
