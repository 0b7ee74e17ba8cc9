//! The judge runs untrusted Python programs safely, fast and with exact results.
//!
//! It takes programs and the inputs of their cases. It returns what each case printed or why it failed,
//! with its CPU time. Outputs are compared with expected ones here in Rust; expected outputs never enter
//! the sandbox. The judge knows nothing of rewards. `docs/judge.md` describes layers, semantics, limits and
//! the threat model.
//!
//! The parts in reading order: [`Judge`] hands programs to workers. Each worker owns a `server` (a fork
//! server, or a launcher that starts one process for each program) and watches the child through
//! `supervise`. The child's side is `runner.py`, confined by `launcher`, `policy` and itself.

mod cache;
mod cgroup;
mod channel;
mod compare;
mod frame;
pub mod launcher;
mod layers;
mod options;
mod outcome;
mod policy;
mod pool;
mod python;
mod reply;
mod residue;
mod server;
mod supervise;
mod sys;
mod ulimits;
mod verdict;

pub use compare::same_output;
pub use layers::Layers;
pub use options::{Case, Limits, Mode, Options, Profile, Program};
pub use outcome::{CaseOutcome, Ending, Outcome, ProgramError, Reason};
pub use pool::{Judge, Watch};
pub use python::PythonInfo;
pub use verdict::{CaseVerdict, Failure, Job, Verdict, VerdictKind, verdicts, verdicts_with};
