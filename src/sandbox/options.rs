//! What the caller chooses: programs, limits, and how programs run.

use crate::base::json::text;
use crate::base::limits::refuse_outside;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A program and the inputs of its cases. Expected outputs never come this far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub code: String,
    /// The standard input of each case.
    pub inputs: Vec<String>,
}

/// A test of a program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// What the program reads.
    #[serde(deserialize_with = "text")]
    pub input: String,
    /// What the program must print.
    #[serde(deserialize_with = "text")]
    pub output: String,
}

/// What a judged program may use. The defaults suit programs for general terms, which are short and compute
/// with integers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The limit on the CPU time of one case, in milliseconds. That of the first case includes compiling.
    pub cpu_ms_per_case: u64,
    /// The limit on the CPU time of all cases of a program together, in milliseconds.
    pub cpu_ms_per_program: u64,
    /// The limit on the time of one case, in seconds, not counting waits for a free core. It is for
    /// programs that sleep.
    pub wall_secs_per_case: u64,
    /// The limit on the address space of a program with its interpreter, in MB.
    pub memory_mb: u64,
    /// The limit on the output of one case, in bytes.
    pub output_bytes: usize,
    /// Python's recursion limit at the start of a case. A program may raise its own.
    pub recursion: u32,
    /// Whether a case's input is passed unchanged. Otherwise it always ends with a line break, as from a
    /// terminal.
    pub raw_input: bool,
}

impl Limits {
    /// Returns the CPU time in whole seconds after which the kernel ends a program that the supervisor
    /// could not end.
    pub(crate) fn cpu_secs(&self) -> u64 {
        self.cpu_ms_per_program.div_ceil(1000) + 1
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_ms_per_case: 1_000,
            cpu_ms_per_program: 3_000,
            wall_secs_per_case: 5,
            memory_mb: 512,
            output_bytes: 1 << 18,
            recursion: 1_000,
            raw_input: false,
        }
    }
}

impl Limits {
    /// Refuses limits within which no program can run; `table` is the table's name in errors.
    pub fn check(&self, table: &str) -> Result<()> {
        refuse_outside(
            table,
            &[
                ("cpu_ms_per_case", self.cpu_ms_per_case as f64, 1.0..=1e9),
                ("cpu_ms_per_program", self.cpu_ms_per_program as f64, 1.0..=1e9),
                ("wall_secs_per_case", self.wall_secs_per_case as f64, 1.0..=1e6),
                ("output_bytes", self.output_bytes as f64, 1.0..=4e9),
                ("memory_mb", self.memory_mb as f64, 64.0..=1e6),
                ("recursion", f64::from(self.recursion), 50.0..=1e6),
            ],
        )
    }
}

/// Which builtins a program finds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// All builtins of Python.
    #[default]
    Default,
    /// All but `open`, `eval` and `exec`, as in the paper's sandbox.
    Paper,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The fork server; one process a program where it cannot start.
    #[default]
    Auto,
    /// Forked from a prepared interpreter.
    ForkServer,
    /// A new interpreter for each program: several times slower, same verdicts.
    OneShot,
}

/// How a [`super::Judge`] runs programs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The number of programs that run at the same time.
    pub workers: usize,
    pub limits: Limits,
    pub profile: Profile,
    pub mode: Mode,
    /// Whether every case runs in a process of its own, so that no state passes between cases.
    pub isolate_cases: bool,
    /// The interpreter; by default the one on `PATH`.
    pub python: Option<PathBuf>,
    /// The number of outcomes that are kept for equal programs and inputs; 0 keeps none.
    pub cache_entries: usize,
    /// Whether to use namespaces where the kernel allows them.
    pub namespaces: bool,
    /// Whether to run even if neither Landlock nor seccomp is available.
    pub allow_unsafe: bool,
    /// The binary that confines programs (`train`); by default it is found.
    pub launcher: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: default_workers(),
            limits: Limits::default(),
            profile: Profile::default(),
            mode: Mode::default(),
            isolate_cases: false,
            python: None,
            cache_entries: 0,
            namespaces: true,
            allow_unsafe: false,
            launcher: None,
        }
    }
}

/// Returns one and a half times the number of cores: while one program starts or ends, another computes.
fn default_workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores + cores.div_ceil(2)
}
