//! A grade: all that was found out about a response.

use crate::sandbox::{CaseVerdict, Failure, Reason, Verdict, VerdictKind};
use serde::{Deserialize, Serialize};
use std::fmt;

/// All that was found out about a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grade {
    /// What breaks the format that the prompt asks for, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_error: Option<FormatError>,
    /// The verdict on the answer, case by case. An answer that is compared with the right one is a single case.
    pub verdict: Verdict,
    /// The cases that the response made itself, as far as they can be checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_cases: Vec<OwnCase>,
    /// What an answer is worth that is neither right nor wrong as a whole, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit: Option<f64>,
}

/// What breaks the format rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormatError {
    /// A thought begins and does not end.
    UnclosedThink,
    /// There is no python block.
    NoCode,
    /// The last python block does not end.
    UnclosedCode,
    /// The last python block holds nothing.
    EmptyCode,
    /// Nothing is given as the answer.
    NoAnswer,
}

/// A case that a response made itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCase {
    pub is_true: bool,
    /// Whether the prompt shows the same case.
    pub is_copy: bool,
}

impl Grade {
    /// The grade of an answer that is right or wrong as a whole.
    pub fn of_answer(
        answer: Result<&str, FormatError>,
        expected: &str,
        is_right: impl FnOnce(&str) -> bool,
    ) -> Self {
        let kind = match answer {
            Ok(answer) if is_right(answer) => VerdictKind::Pass,
            _ => VerdictKind::Fail(Reason::WrongAnswer),
        };
        let got = answer.unwrap_or_default();
        let failure = (kind != VerdictKind::Pass).then(|| Failure {
            case: 0,
            input: String::new(),
            expected: expected.to_owned(),
            got: got.to_owned(),
            line: None,
            error: None,
        });
        let output = answer.ok().map(str::to_owned);
        let case = CaseVerdict { input: String::new(), kind, output, cpu_ms: 0.0 };
        let verdict = Verdict { kind, cases: vec![case], cpu_ms: 0.0, failure, near_limit: false };
        Self::of_verdict(answer.err(), verdict)
    }

    /// The grade of a response that made no cases of its own.
    pub(crate) fn of_verdict(format_error: Option<FormatError>, verdict: Verdict) -> Self {
        Self { format_error, verdict, own_cases: Vec::new(), credit: None }
    }

    /// Whether the format rule is kept.
    pub fn format_ok(&self) -> bool {
        self.format_error.is_none()
    }

    /// Whether the answer's worth is known: the judge may have failed on it.
    pub fn is_judged(&self) -> bool {
        self.verdict.kind != VerdictKind::Infra
    }

    /// Whether the format is kept and the answer is right in every case.
    pub fn passed(&self) -> bool {
        self.format_ok() && self.verdict.kind == VerdictKind::Pass
    }

    /// What the answer is worth, from 0 to 1.
    pub fn credit(&self) -> f64 {
        match self.credit {
            Some(credit) if self.format_ok() && self.is_judged() => credit,
            _ => f64::from(u8::from(self.passed())),
        }
    }

    /// The share of cases in which the answer is right.
    pub fn share_passed(&self) -> f64 {
        let passed = self.verdict.cases.iter().filter(|case| case.kind == VerdictKind::Pass);
        passed.count() as f64 / self.verdict.cases.len().max(1) as f64
    }

    /// Why the response did not pass, in one word; `None` if it passed or nothing is known.
    pub fn failure(&self) -> Option<String> {
        match (self.format_error, self.verdict.kind) {
            (Some(error), _) => Some(error.to_string()),
            (None, VerdictKind::Fail(reason)) => Some(reason.to_string()),
            (None, VerdictKind::Pass | VerdictKind::Infra) => None,
        }
    }

    /// How many own cases there are, and how many of them are true, with or without copies of the prompt's.
    pub fn count_own_cases(&self, with_copies: bool) -> (usize, usize) {
        let counted = self.own_cases.iter().filter(|case| with_copies || !case.is_copy);
        counted.fold((0, 0), |(all, right), case| (all + 1, right + usize::from(case.is_true)))
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnclosedThink => "unclosed_think",
            Self::NoCode => "no_code",
            Self::UnclosedCode => "unclosed_code",
            Self::EmptyCode => "empty_code",
            Self::NoAnswer => "no_answer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_case_with_what_was_expected() {
        let right = Grade::of_answer(Ok("7"), "7", |answer| answer == "7");
        assert!(right.passed() && right.failure().is_none() && right.verdict.failure.is_none());
        let wrong = Grade::of_answer(Ok("8"), "7", |answer| answer == "7");
        assert_eq!(wrong.failure().as_deref(), Some("wrong_answer"));
        assert_eq!(wrong.verdict.cases[0].output.as_deref(), Some("8"));
        assert_eq!(wrong.verdict.failure.unwrap().expected, "7");
        let none = Grade::of_answer(Err(FormatError::NoAnswer), "7", |_| true);
        assert!(!none.passed());
        assert_eq!(none.failure().as_deref(), Some("no_answer"));
    }

    #[test]
    fn a_grade_is_written_and_read_back() {
        let mut grade = Grade::of_answer(Err(FormatError::UnclosedThink), "7", |_| true);
        grade.own_cases = vec![OwnCase { is_true: true, is_copy: false }];
        let text = serde_json::to_string(&grade).unwrap();
        assert!(text.starts_with(r#"{"format_error":"unclosed_think","verdict":{"#), "{text}");
        assert_eq!(serde_json::from_str::<Grade>(&text).unwrap(), grade);
    }
}
