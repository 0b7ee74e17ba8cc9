//! This module measures the program on a GPU: single operations, and whole steps.
//!
//! Contract: what is timed runs a few times before, and the median of several runs counts. A step
//! of GRPO, which takes long, runs once after a short one. Weights are random, so only a model's
//! `config.json` is needed. On the emulated driver everything runs but no time means anything; the
//! measurement says so first. None of this has run on a GPU yet. Left out: what a profiler shows
//! within a kernel.

pub mod clock;
pub mod decode;
pub mod families;
pub mod grpo_step;
pub mod limits;
pub mod measurement;
pub mod ops;
pub(crate) mod optimizer;
pub(crate) mod random;
pub mod shapes;
pub mod step;

pub use measurement::Measurement;
