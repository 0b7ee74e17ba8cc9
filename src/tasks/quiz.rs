//! Questions with known answers: what is asked, and the pure function that marks an answer.
//!
//! Contract: a thought is no answer. A response whose thought does not end has none, whatever the thought holds; no
//! rule of a preset sees it. Left out: reading the questions (a file for each benchmark).

use super::benchmark::{Preset, Settings, Words};
use super::grade::{FormatError, Grade};
use super::response::final_answer;
use super::{About, Sampling, Task};
use crate::base::hex::hex;
use crate::sandbox::{CaseVerdict, Failure, Reason, Verdict, VerdictKind};
use crate::tokenizer::Message;
use anyhow::Result;
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// A question.
pub(crate) struct Question<G> {
    /// Unique within the quiz.
    pub(crate) id: String,
    pub(crate) family: Option<String>,
    pub(crate) weight: f64,
    /// What a prompt shows, by the names that a template uses.
    pub(crate) shown: minijinja::Value,
    pub(crate) gold: G,
    /// The question as its file has it.
    pub(crate) row: Box<RawValue>,
}

/// What an answer is worth.
pub(crate) struct Mark {
    /// What was read of the answer, if anything was.
    pub(crate) read: Result<String, FormatError>,
    /// From 0 to 1.
    pub(crate) credit: f64,
    /// What would have been right.
    pub(crate) expected: String,
}

impl Mark {
    /// The mark of an answer that is right or wrong as a whole.
    pub(crate) fn of(read: Option<String>, expected: &str) -> Self {
        let credit = f64::from(u8::from(read.as_deref() == Some(expected)));
        Self { read: read.ok_or(FormatError::NoAnswer), credit, expected: expected.to_owned() }
    }
}

/// A benchmark of questions.
pub struct Quiz<G> {
    name: &'static str,
    preset: String,
    sampling: Sampling,
    questions: Vec<Question<G>>,
    words: Words,
    mark: fn(&str, &G) -> Mark,
    prompt_sha256: String,
}

impl<G> Quiz<G> {
    /// The questions of a benchmark, asked in these words.
    pub(crate) fn new<P: Preset>(
        name: &'static str,
        settings: &Settings<P>,
        questions: Vec<Question<G>>,
        (words, sampling): (Words, Sampling),
        mark: fn(&str, &G) -> Mark,
    ) -> Result<Self> {
        let questions = settings.chosen(questions)?;
        let mut prompts = Sha256::new();
        if words.are_there() {
            for question in &questions {
                prompts.update(words.render(&question.id, question.shown.clone())?);
                prompts.update("\0");
            }
        }
        let preset = settings.preset_name();
        let prompt_sha256 = hex(prompts.finalize());
        Ok(Self { name, preset, sampling, questions, words, mark, prompt_sha256 })
    }
}

impl<G: Sync> Task for Quiz<G> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn num_problems(&self) -> usize {
        self.questions.len()
    }

    fn about(&self, problem: usize) -> About<'_> {
        let Question { id, family, weight, .. } = &self.questions[problem];
        let family = family.as_deref();
        About { id, family, weight: *weight, solvability: None, checks_own_cases: false }
    }

    fn messages(&self, problem: usize) -> Result<Vec<Message>> {
        let Question { id, shown, .. } = &self.questions[problem];
        Ok(vec![Message::new("user", self.words.render(id, shown.clone())?)])
    }

    fn grade(&self, problem: usize, response: &str, _: &dyn Fn() -> bool) -> Result<Grade> {
        let gold = &self.questions[problem].gold;
        let mark = match final_answer(response) {
            Some(answer) => (self.mark)(answer, gold),
            // The mark of nothing says what would have been right.
            None => {
                Mark { read: Err(FormatError::UnclosedThink), credit: 0.0, ..(self.mark)("", gold) }
            }
        };
        Ok(grade(mark))
    }

    fn problem_json(&self, problem: usize) -> Result<Box<RawValue>> {
        Ok(self.questions[problem].row.clone())
    }

    fn prompt_sha256(&self) -> &str {
        &self.prompt_sha256
    }

    fn preset(&self) -> &str {
        &self.preset
    }

    fn sampling(&self) -> Sampling {
        self.sampling
    }
}

/// The grade of a marked answer: a single case.
fn grade(Mark { read, credit, expected }: Mark) -> Grade {
    let is_right = read.is_ok() && credit >= 1.0;
    let kind = match is_right {
        true => VerdictKind::Pass,
        false => VerdictKind::Fail(Reason::WrongAnswer),
    };
    let failure = (!is_right).then(|| Failure {
        case: 0,
        input: String::new(),
        expected,
        got: read.clone().unwrap_or_default(),
        line: None,
        error: None,
    });
    let case = CaseVerdict { input: String::new(), kind, output: read.clone().ok(), cpu_ms: 0.0 };
    let verdict = Verdict { kind, cases: vec![case], cpu_ms: 0.0, failure, near_limit: false };
    let is_partial = credit > 0.0 && credit < 1.0;
    Grade { credit: is_partial.then_some(credit), ..Grade::of_verdict(read.err(), verdict) }
}

/// A row of a file as it is kept.
pub(crate) fn raw(row: &impl Serialize) -> Result<Box<RawValue>> {
    Ok(serde_json::value::to_raw_value(row)?)
}
