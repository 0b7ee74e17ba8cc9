//! The ground floor: errors with exit codes, atomic files, keyed randomness, logs, progress,
//! interruption, memory, and repositories on the Hub.
//!
//! Nothing here knows of models, problems or runs.

pub mod error;
pub mod fs;
pub(crate) mod guard;
pub mod hash;
pub mod hex;
pub mod hub;
pub mod human;
pub mod interrupt;
pub mod json;
pub mod jsonl_log;
pub mod limits;
pub(crate) mod line_process;
pub mod log;
pub mod memory;
pub mod progress;
pub mod rng;
pub mod table;
pub mod terminal;
pub mod threads;
