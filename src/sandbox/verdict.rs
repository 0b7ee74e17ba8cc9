//! Verdicts: the outputs of programs, compared with the expected ones.

use super::compare::same_output;
use super::options::{Case, Program};
use super::outcome::{CaseOutcome, Ending, Outcome, ProgramError, Reason};
use super::pool::{Judge, Watch};
use serde::{Deserialize, Serialize};

/// Whether a program passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "reason", rename_all = "snake_case")]
pub enum VerdictKind {
    /// It is right on every case.
    Pass,
    /// It is wrong on some case.
    Fail(Reason),
    /// The judge failed, twice. This says nothing about the program.
    Infra,
}

/// The verdict on one program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// A pass, or the reason of the first failing case.
    #[serde(flatten)]
    pub kind: VerdictKind,
    /// The verdict on each case, in order.
    pub cases: Vec<CaseVerdict>,
    /// The CPU time of all cases, in milliseconds.
    pub cpu_ms: f64,
    /// The first failing case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Whether half of a limit or more was used.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub near_limit: bool,
}

/// The verdict on one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseVerdict {
    /// What the program read.
    pub input: String,
    /// Whether the program passes the case.
    #[serde(flatten)]
    pub kind: VerdictKind,
    /// What the program printed, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The CPU time, in milliseconds.
    #[serde(default)]
    pub cpu_ms: f64,
}

/// A failing case, as it is shown to a person or to a model; long texts are shortened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The index of the case.
    pub case: usize,
    /// What the program read.
    pub input: String,
    /// What the program should have printed.
    pub expected: String,
    /// What the program printed.
    pub got: String,
    /// The line of the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A program to judge on cases.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// Its code; without any, the verdict is `no_code`.
    pub code: Option<String>,
    /// The inputs and expected outputs.
    pub cases: &'a [Case],
    /// How far numbers that are not integers may differ.
    pub tolerance: Option<f64>,
}

const SHOWN_CHARS: usize = 200;
const OUTPUT_CHARS: usize = 4_000;

/// Judges programs on cases; `None` is a response without code.
pub fn verdicts(judge: &Judge, jobs: &[(Option<String>, &[Case])]) -> Vec<Verdict> {
    let jobs: Vec<Job<'_>> = jobs
        .iter()
        .map(|(code, cases)| Job { code: code.clone(), cases, tolerance: None })
        .collect();
    verdicts_with(judge, &jobs, Watch::default())
}

/// Judges programs as [`verdicts`] does, with tolerances, progress and cancellation.
pub fn verdicts_with(judge: &Judge, jobs: &[Job<'_>], watch: Watch<'_>) -> Vec<Verdict> {
    let programs: Vec<Program> = jobs
        .iter()
        .filter_map(|job| {
            let inputs = job.cases.iter().map(|case| case.input.clone()).collect();
            Some(Program { code: job.code.clone()?, inputs })
        })
        .collect();
    let mut outcomes = judge.run_watched(&programs, watch).into_iter();
    jobs.iter()
        .map(|job| match &job.code {
            Some(_) => of(job, &outcomes.next().expect("an outcome for each program")),
            None => no_code(job),
        })
        .collect()
}

fn no_code(job: &Job<'_>) -> Verdict {
    let error = ProgramError { line: None, message: "the response has no code".into() };
    let ending = Ending::Failed(Reason::NoCode);
    let case = CaseOutcome { ending, output: Vec::new(), error: Some(error), cpu_ms: 0.0 };
    let outcome = Outcome { cases: vec![case; job.cases.len()], cpu_ms: 0.0, near_limit: false };
    Verdict { kind: VerdictKind::Fail(Reason::NoCode), ..of(job, &outcome) }
}

fn of(job: &Job<'_>, outcome: &Outcome) -> Verdict {
    let mut cases = Vec::with_capacity(job.cases.len());
    let mut failure = None;
    for (index, (case, ran)) in job.cases.iter().zip(&outcome.cases).enumerate() {
        let kind = match ran.ending {
            Ending::Infra => VerdictKind::Infra,
            Ending::Failed(reason) => VerdictKind::Fail(reason),
            Ending::Finished if same_output(&case.output, &ran.output, job.tolerance) => {
                VerdictKind::Pass
            }
            Ending::Finished => VerdictKind::Fail(Reason::WrongAnswer),
        };
        let text = String::from_utf8_lossy(&ran.output);
        if kind != VerdictKind::Pass && failure.is_none() {
            failure = Some(Failure {
                case: index,
                input: shorten(&case.input, SHOWN_CHARS),
                expected: shorten(&case.output, SHOWN_CHARS),
                got: shorten(&text, SHOWN_CHARS),
                line: ran.error.as_ref().and_then(|error| error.line),
                error: ran.error.as_ref().map(|error| shorten(&error.message, SHOWN_CHARS)),
            });
        }
        let output = (kind != VerdictKind::Infra
            && !matches!(kind, VerdictKind::Fail(Reason::NoCode)))
        .then(|| shorten(&text, OUTPUT_CHARS));
        cases.push(CaseVerdict { input: case.input.clone(), kind, output, cpu_ms: ran.cpu_ms });
    }
    // If the judge failed on any case, the program stays undecided, even if another case failed.
    let kind = if outcome.is_infra() || cases.is_empty() {
        VerdictKind::Infra
    } else {
        failure.as_ref().map_or(VerdictKind::Pass, |failure| cases[failure.case].kind)
    };
    Verdict { kind, cases, cpu_ms: outcome.cpu_ms, failure, near_limit: outcome.near_limit }
}

fn shorten(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}... ({} characters)", &text[..end], text.chars().count()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(outputs: &[&str]) -> Outcome {
        let case = |output: &&str| CaseOutcome {
            ending: Ending::Finished,
            output: output.as_bytes().to_vec(),
            error: None,
            cpu_ms: 1.0,
        };
        Outcome { cases: outputs.iter().map(case).collect(), cpu_ms: 2.0, near_limit: false }
    }

    fn cases() -> Vec<Case> {
        [("1", "2"), ("2", "4")]
            .map(|(input, output)| Case { input: input.into(), output: output.into() })
            .to_vec()
    }

    #[test]
    fn a_verdict_is_written_as_documented_and_read_back() {
        let cases = cases();
        let job = Job { code: Some("x".into()), cases: &cases, tolerance: None };
        let verdict = of(&job, &outcome(&["2", "5"]));
        let text = serde_json::to_string(&verdict).unwrap();
        assert!(text.starts_with(
            r#"{"verdict":"fail","reason":"wrong_answer","cases":[{"input":"1","verdict":"pass","output":"2""#
        ), "{text}");
        assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
        let failure = verdict.failure.unwrap();
        assert_eq!((failure.case, failure.expected.as_str(), failure.got.as_str()), (1, "4", "5"));
        let pass = serde_json::to_string(&of(&job, &outcome(&["2", "4"]))).unwrap();
        assert!(pass.starts_with(r#"{"verdict":"pass","cases""#), "{pass}");
    }

    #[test]
    fn a_failure_of_the_judge_leaves_the_program_undecided() {
        let cases = cases();
        let job = Job { code: Some("x".into()), cases: &cases, tolerance: None };
        let mut ran = outcome(&["3", "4"]);
        ran.cases[1].ending = Ending::Infra;
        assert_eq!(of(&job, &ran).kind, VerdictKind::Infra);
    }

    #[test]
    fn a_response_without_code_fails_every_case_for_that_reason() {
        let cases = cases();
        let job = Job { code: None, cases: &cases, tolerance: None };
        let verdict = no_code(&job);
        assert_eq!(verdict.kind, VerdictKind::Fail(Reason::NoCode));
        assert_eq!(verdict.cases.len(), 2);
    }
}
