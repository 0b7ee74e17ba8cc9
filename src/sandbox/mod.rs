//! The judge: runs untrusted Python safely, fast and exactly.
//!
//! In: programs and the inputs of their cases. Out: what each case printed or why it failed, with
//! CPU time. Comparing with expected outputs happens here in Rust; they never enter the sandbox.
//! Knows nothing of rewards. `docs/judge.md` states layers, semantics, limits and the threat model.
//!
//! How it hangs together, in reading order: [`Judge`] hands programs to workers; each worker owns a
//! `server` (a fork server, or a launcher that starts one process a program) and watches the child
//! through `supervise`; the child's side is `runner.py`, confined by `launcher`, `policy` and itself.

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
