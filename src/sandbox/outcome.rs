//! What a program did, before anybody compares it with an expected output.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a program failed. The list is closed and documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It printed something else than expected.
    WrongAnswer,
    /// An exception nobody caught, or an exit code other than 0.
    RuntimeError,
    /// Python cannot compile it.
    SyntaxError,
    /// The response has no code.
    NoCode,
    /// It used its CPU time up.
    CpuTime,
    /// It slept or waited for too long.
    WallTime,
    /// It asked for more memory than allowed.
    Memory,
    /// It printed more than allowed.
    OutputLimit,
    /// It tried what no program may: a refused import, file, process or system call.
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
    /// By itself; its output is complete.
    Finished,
    /// It failed.
    Failed(Reason),
    /// The judge failed, not the program: never count it as a wrong answer.
    Infra,
}

/// What a program's own error said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramError {
    /// Line in the program.
    pub line: Option<u32>,
    /// Type and text, as in a traceback's last line.
    pub message: String,
}

/// One case.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseOutcome {
    /// How it ended.
    pub ending: Ending,
    /// What it printed.
    pub output: Vec<u8>,
    /// Its error, or the judge's.
    pub error: Option<ProgramError>,
    /// CPU time it used.
    pub cpu_ms: f64,
}

/// One program on all its cases.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// In the order of the inputs; as many as there were inputs.
    pub cases: Vec<CaseOutcome>,
    /// CPU time of all cases.
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
