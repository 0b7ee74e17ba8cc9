//! What a program did, before its output is compared with an expected one.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a program failed. The list is complete and documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The program printed something else than expected.
    WrongAnswer,
    /// The program raised an exception that it did not catch, or exited with a code other than 0.
    RuntimeError,
    /// Python cannot compile the program.
    SyntaxError,
    NoCode,
    /// The program used up its CPU time.
    CpuTime,
    /// The program slept or waited for too long.
    WallTime,
    Memory,
    OutputLimit,
    /// The program tried what no program may: a refused import, file, process or system call.
    Forbidden,
    /// A signal ended the program.
    Killed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongAnswer => "wrong_answer",
            Self::RuntimeError => "runtime_error",
            Self::SyntaxError => "syntax_error",
            Self::NoCode => "no_code",
            Self::CpuTime => "cpu_time",
            Self::WallTime => "wall_time",
            Self::Memory => "memory",
            Self::OutputLimit => "output_limit",
            Self::Forbidden => "forbidden",
            Self::Killed => "killed",
        })
    }
}

/// How one case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The program ended by itself; its output is complete.
    Finished,
    Failed(Reason),
    /// The judge failed, not the program. This must never count as a wrong answer.
    Infra,
}

/// What a program's own error said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramError {
    pub line: Option<u32>,
    /// The type and the text, as in the last line of a traceback.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CaseOutcome {
    pub ending: Ending,
    pub output: Vec<u8>,
    /// The program's error, or the judge's.
    pub error: Option<ProgramError>,
    pub cpu_ms: f64,
}

/// The outcome of one program on all its cases.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The cases in the order of the inputs; there are as many as inputs.
    pub cases: Vec<CaseOutcome>,
    pub cpu_ms: f64,
    /// Whether half of a limit or more was used, so that the verdict might differ on another machine.
    pub near_limit: bool,
}

impl Outcome {
    /// Returns the outcome of a program that the judge could not run.
    pub(crate) fn infra(cases: usize, why: &str) -> Self {
        Self {
            cases: vec![CaseOutcome::failed(Ending::Infra, None, why); cases],
            cpu_ms: 0.0,
            near_limit: false,
        }
    }

    /// Returns whether the judge failed on any case.
    pub fn is_infra(&self) -> bool {
        self.cases.iter().any(|case| case.ending == Ending::Infra)
    }
}

impl CaseOutcome {
    /// Returns a case without output.
    pub(crate) fn failed(ending: Ending, line: Option<u32>, message: &str) -> Self {
        let error = Some(ProgramError { line, message: message.to_owned() });
        Self { ending, output: Vec::new(), error, cpu_ms: 0.0 }
    }
}
