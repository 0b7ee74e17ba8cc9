//! Problems whose answers are programs, and how those are judged.
//!
//! Contract: a program never sees what is expected of it. Tests of functions are taken apart beforehand: the program
//! only evaluates calls (`call.py`), and gives values; a process without untrusted code (`check.py`) runs the tests on
//! these values. So nothing that a program prints, patches, or ends early can stand for success. Programs that
//! read standard input are compared here. A thought is no answer. Left out: reading the problems (a file for each
//! benchmark).

mod humaneval;
mod livecodebench;
mod mbpp;
mod pickle;
mod printed;

pub use humaneval::{HumanEvalPreset, humaneval};
pub use livecodebench::{LiveCodeBenchPreset, Window, livecodebench};
pub use mbpp::{MbppPreset, mbpp};

use super::benchmark::{Preset, Settings, Words};
use super::grade::{FormatError, Grade};
use super::response::{final_answer, program};
use super::{About, Sampling, Task};
use crate::base::error::usage;
use crate::base::hex::hex;
use crate::sandbox::{
    Case, CaseOutcome, CaseVerdict, Ending, Failure, Judge, Limits, Program, Reason, Verdict,
    VerdictKind, Watch,
};
use crate::tokenizer::Message;
use anyhow::{Context, Result};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const CALL: &str = include_str!("call.py");
const CHECK: &str = include_str!("check.py");
/// Begins each line that holds a value.
const MARK: char = '\u{1e}';
/// So many cases run before it is looked whether one failed.
const CASES_AT_ONCE: usize = 16;
const SHOWN_CHARS: usize = 200;

/// A problem.
pub(crate) struct CodingProblem {
    /// Unique within the benchmark.
    pub(crate) id: String,
    pub(crate) family: Option<String>,
    /// What a prompt shows, by the names that a template uses.
    pub(crate) shown: minijinja::Value,
    /// What stands before a program, and the function that it has to define; empty where there is none.
    pub(crate) stub: String,
    pub(crate) entry: String,
    pub(crate) tests: Tests,
    /// The problem as its file has it.
    pub(crate) row: Box<RawValue>,
}

/// What a program has to do.
pub(crate) enum Tests {
    /// To give values for calls: the input of `call.py` for each case, and what `check.py` is asked of the values.
    Calls { cases: Vec<String>, check: Value },
    /// To print: decoded when they are needed, since they may be large.
    Printed(Box<dyn Fn() -> Result<Vec<Case>> + Send + Sync>),
}

/// The program in an answer to a problem.
type Extract = fn(&str, &CodingProblem) -> Result<String, FormatError>;

/// A benchmark of programs.
pub struct Coding<'j> {
    name: &'static str,
    preset: String,
    sampling: Sampling,
    problems: Vec<CodingProblem>,
    words: Words,
    extract: Extract,
    judge: &'j Judge,
    prompt_sha256: String,
}

impl<'j> Coding<'j> {
    fn new<P: Preset>(
        name: &'static str,
        settings: &Settings<P>,
        problems: Vec<CodingProblem>,
        (words, sampling): (Words, Sampling),
        extract: Extract,
        judge: &'j Judge,
    ) -> Result<Self> {
        let mut prompts = Sha256::new();
        if words.are_there() {
            for problem in &problems {
                prompts.update(words.render(&problem.id, problem.shown.clone())?);
                prompts.update("\0");
            }
        }
        let prompt_sha256 = hex(prompts.finalize());
        let preset = settings.preset_name();
        Ok(Self { name, preset, sampling, problems, words, extract, judge, prompt_sha256 })
    }

    fn judge(&self, problem: &CodingProblem, code: &str, watch: Watch<'_>) -> Result<Verdict> {
        match &problem.tests {
            Tests::Calls { cases, check } => {
                let text = serde_json::to_string(code).context("encoding a program")?;
                let ran = self.run(&format!("PROGRAM = {text}\n{CALL}"), cases, watch);
                self.check_values(ran, check, watch)
            }
            Tests::Printed(cases) => {
                let cases = cases()?;
                let inputs: Vec<String> = cases.iter().map(|case| case.input.clone()).collect();
                Ok(printed::verdict(self.run(code, &inputs, watch), &cases))
            }
        }
    }

    /// Runs a program on inputs until one of them ends it.
    fn run(&self, code: &str, inputs: &[String], watch: Watch<'_>) -> Ran {
        let mut ran = Ran::default();
        for inputs in inputs.chunks(CASES_AT_ONCE) {
            let program = Program { code: code.to_owned(), inputs: inputs.to_vec() };
            for outcome in self.judge.run_watched(&[program], watch) {
                ran.cpu_ms += outcome.cpu_ms;
                ran.near_limit |= outcome.near_limit;
                ran.cases.extend(outcome.cases);
            }
            if ran.cases.iter().any(|case| case.ending != Ending::Finished) {
                break;
            }
        }
        ran
    }

    fn check_values(&self, ran: Ran, check: &Value, watch: Watch<'_>) -> Result<Verdict> {
        if ran.cases.iter().any(|case| case.ending != Ending::Finished) {
            return Ok(ran.verdict(None));
        }
        let values: Vec<String> = ran.cases.iter().flat_map(|case| values(&case.output)).collect();
        let mut asked = check.clone();
        asked["values"] = values.into();
        let program = Program { code: CHECK.to_owned(), inputs: vec![asked.to_string()] };
        let outcome = self.judge.run_watched(&[program], watch).pop();
        let case = outcome.and_then(|mut outcome| outcome.cases.pop());
        let case = case.context("the judge gave no outcome")?;
        if case.ending == Ending::Infra {
            return Ok(ran.verdict(Some((VerdictKind::Infra, "the check failed".to_owned()))));
        }
        // Whatever else becomes of the check is the values' doing.
        let answer: Value = serde_json::from_slice(&case.output).unwrap_or_default();
        if answer["passed"] == true {
            return Ok(ran.verdict(Some((VerdictKind::Pass, String::new()))));
        }
        let reason = match answer["raised"] == true {
            true => Reason::RuntimeError,
            false => Reason::WrongAnswer,
        };
        let error = answer["error"].as_str().unwrap_or("the values cannot be checked").to_owned();
        Ok(ran.verdict(Some((VerdictKind::Fail(reason), error))))
    }
}

/// What became of a program.
#[derive(Default)]
pub(crate) struct Ran {
    cases: Vec<CaseOutcome>,
    cpu_ms: f64,
    near_limit: bool,
}

impl Ran {
    /// The verdict that a check of the values gave, or else that of the first case that did not end well.
    fn verdict(self, checked: Option<(VerdictKind, String)>) -> Verdict {
        let kind = |case: &CaseOutcome| match case.ending {
            Ending::Infra => VerdictKind::Infra,
            Ending::Failed(reason) => VerdictKind::Fail(reason),
            Ending::Finished => VerdictKind::Pass,
        };
        let ended = || {
            let infra = self.cases.iter().find(|case| case.ending == Ending::Infra);
            let bad = infra.or_else(|| self.cases.iter().find(|c| c.ending != Ending::Finished));
            let why = |case: &CaseOutcome| {
                (kind(case), case.error.as_ref().map_or_else(String::new, |e| e.message.clone()))
            };
            bad.map_or((VerdictKind::Infra, "nothing was run".to_owned()), why)
        };
        let (whole, error) = checked.unwrap_or_else(ended);
        let mut cases: Vec<CaseVerdict> = self
            .cases
            .iter()
            .map(|case| CaseVerdict {
                input: String::new(),
                kind: kind(case),
                output: None,
                cpu_ms: case.cpu_ms,
            })
            .collect();
        // One call's value does not say which: all fail together.
        if !cases.iter().any(|case| case.kind == whole) {
            cases.iter_mut().for_each(|case| case.kind = whole);
        }
        let failure = (whole != VerdictKind::Pass).then(|| Failure {
            case: 0,
            input: String::new(),
            expected: String::new(),
            got: String::new(),
            line: self.cases.iter().find_map(|case| case.error.as_ref()?.line),
            error: Some(error.chars().take(SHOWN_CHARS).collect()),
        });
        let Self { cpu_ms, near_limit, .. } = self;
        Verdict { kind: whole, cases, cpu_ms, failure, near_limit }
    }
}

/// Returns the values that `call.py` wrote, as their texts, because integers have any size. A line that is none ends
/// them.
fn values(output: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(output);
    let lines = text.split('\n').filter_map(|line| line.strip_prefix(MARK));
    let is_value = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        value.get("value").is_some() || value.get("raised").is_some()
    };
    lines.take_while(|line| is_value(line)).map(str::to_owned).collect()
}

/// What `check.py` answers to each question, in order; a question that fails is named.
fn ask(judge: &Judge, asked: &[(String, Value)]) -> Result<Vec<Value>> {
    let program = |(_, value): &(String, Value)| Program {
        code: CHECK.to_owned(),
        inputs: vec![value.to_string()],
    };
    let programs: Vec<Program> = asked.iter().map(program).collect();
    let answers = judge.run(&programs).into_iter().zip(asked).map(|(outcome, (id, _))| {
        let case = outcome.cases.first().context("the judge gave no outcome")?;
        let answer: Value = serde_json::from_slice(&case.output).unwrap_or_default();
        if answer["calls"].is_array() {
            return Ok(answer);
        }
        let why = answer["error"].as_str().map(str::to_owned);
        let why = why.or_else(|| case.error.as_ref().map(|error| error.message.clone()));
        let why = why.unwrap_or_else(|| "they end without a word".to_owned());
        Err(usage(format!("problem {id}: its tests cannot be taken apart: {why}")))
    });
    answers.collect()
}

/// Tests that consist of calls: of a problem the code that prepares them, and what `check.py` is asked.
fn calls(judge: &Judge, problems: Vec<(String, String, Value)>) -> Result<Vec<Tests>> {
    let asked: Vec<(String, Value)> =
        problems.iter().map(|(id, _, asked)| (id.clone(), asked.clone())).collect();
    let answers = ask(judge, &asked)?;
    let tests = problems.into_iter().zip(answers).map(|((_, setup, mut check), answer)| {
        let cases = vec![json!({"setup": setup, "calls": answer["calls"]}).to_string()];
        let name = check["do"].as_str().unwrap_or_default();
        check["do"] = format!("check_{name}").into();
        Tests::Calls { cases, check }
    });
    Ok(tests.collect())
}

/// Limits that suit programs of a benchmark with so much CPU time for a case.
fn limits(cpu_secs_per_case: u64, cpu_secs_per_program: u64, memory_mb: u64) -> Limits {
    Limits {
        cpu_ms_per_case: 1_000 * cpu_secs_per_case,
        cpu_ms_per_program: 1_000 * cpu_secs_per_program,
        memory_mb,
        output_bytes: 1 << 24,
        ..Limits::default()
    }
}

/// Limits of the judge for programs of HumanEval, as all harnesses have them (3 s).
pub fn humaneval_limits() -> Limits {
    limits(3, 3, 1024)
}

/// Limits of the judge for programs of MBPP, as OpenCompass has them (9 s).
pub fn mbpp_limits() -> Limits {
    limits(9, 9, 1024)
}

/// Limits of the judge for programs of LiveCodeBench, as its authors have them (6 s a case, 4 GiB); of sixteen cases
/// together 60 s.
pub fn livecodebench_limits() -> Limits {
    limits(6, 60, 4096)
}

/// Our rule for a program: the last Python block.
fn last_block(answer: &str, _: &CodingProblem) -> Result<String, FormatError> {
    program(answer)
}

impl Task for Coding<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn num_problems(&self) -> usize {
        self.problems.len()
    }

    fn about(&self, problem: usize) -> About<'_> {
        let CodingProblem { id, family, .. } = &self.problems[problem];
        let family = family.as_deref();
        About { id, family, weight: 1.0, solvability: None, checks_own_cases: false }
    }

    fn messages(&self, problem: usize) -> Result<Vec<Message>> {
        let CodingProblem { id, shown, .. } = &self.problems[problem];
        Ok(vec![Message::new("user", self.words.render(id, shown.clone())?)])
    }

    fn grade(
        &self,
        problem: usize,
        response: &str,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Grade> {
        let problem = &self.problems[problem];
        let code = match final_answer(response) {
            Some(answer) => (self.extract)(answer, problem),
            None => Err(FormatError::UnclosedThink),
        };
        let watch = Watch { progress: None, cancel: Some(is_cancelled) };
        match code {
            Ok(code) => Ok(Grade::of_verdict(None, self.judge(problem, &code, watch)?)),
            Err(error) => {
                let kind = VerdictKind::Fail(Reason::NoCode);
                let case = CaseVerdict { input: String::new(), kind, output: None, cpu_ms: 0.0 };
                let cases = vec![case];
                let verdict =
                    Verdict { kind, cases, cpu_ms: 0.0, failure: None, near_limit: false };
                Ok(Grade::of_verdict(Some(error), verdict))
            }
        }
    }

    fn num_graders(&self) -> usize {
        self.judge.num_workers()
    }

    fn problem_json(&self, problem: usize) -> Result<Box<RawValue>> {
        Ok(self.problems[problem].row.clone())
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

    fn grading(&self) -> Result<String> {
        let (limits, profile) = self.judge.limits();
        serde_json::to_string(&(limits, profile)).context("encoding the judge's limits")
    }
}
