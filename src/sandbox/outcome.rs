//! What a program did, before anybody compares it with an expected output.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a program failed. The list is closed and documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The program printed something else than expected.
    WrongAnswer,
    /// An exception nobody caught, or an exit code other than 0.
    RuntimeError,
    /// Python cannot compile it.
    SyntaxError,
    NoCode,
    /// The program used its CPU time up.
    CpuTime,
    /// The program slept or waited for too long.
    WallTime,
    Memory,
    OutputLimit,
    /// The program tried what none may: a refused import, file, process or system call.
    Forbidden,
    /// A signal ended it.
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
    /// The judge failed, not the program: never count it as a wrong answer.
    Infra,
}

/// What a program's own error said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramError {
    pub line: Option<u32>,
    /// Type and text, as in a traceback's last line.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CaseOutcome {
    /// How it ended.
    pub ending: Ending,
    pub output: Vec<u8>,
    /// Its error, or the judge's.
    pub error: Option<ProgramError>,
    pub cpu_ms: f64,
}

/// One program on all its cases.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// In the order of the inputs; as many as there were inputs.
    pub cases: Vec<CaseOutcome>,
    pub cpu_ms: f64,
    /// Some use came to half a limit or more: the verdict might differ on another machine.
    pub near_limit: bool,
}

impl Outcome {
    /// The outcome of a program that the judge could not run.
    pub(crate) fn infra(cases: usize, why: &str) -> Self {
        Self {
            cases: vec![CaseOutcome::failed(Ending::Infra, None, why); cases],
            cpu_ms: 0.0,
            near_limit: false,
        }
    }

    /// Whether the judge failed on any case.
    pub fn is_infra(&self) -> bool {
        self.cases.iter().any(|case| case.ending == Ending::Infra)
    }
}

impl CaseOutcome {
    /// A case without output.
    pub(crate) fn failed(ending: Ending, line: Option<u32>, message: &str) -> Self {
        let error = Some(ProgramError { line, message: message.to_owned() });
        Self { ending, output: Vec::new(), error, cpu_ms: 0.0 }
    }
}
