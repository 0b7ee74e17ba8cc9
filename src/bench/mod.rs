//! Measurements of this program on a GPU: operations by themselves, and whole steps.
//!
//! Contract: what is timed runs a few times before, and the median of several runs counts; a step of
//! GRPO, which takes long, runs once after a short one. Weights are random, so nothing but a model's
//! `config.json` is needed. On the emulated driver everything runs and no time means anything, which the
//! measurement says first. Not yet run on a GPU. Left out: what a profiler sees within a kernel.

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
