//! What everything else stands on: errors with exit codes, atomic files, keyed randomness.
//!
//! Knows nothing of models, problems or runs.

pub mod error;
pub mod fs;
pub mod rng;
