//! Measurements of this program on a GPU: operations by themselves, and whole steps.
//!
//! Contract: what is timed runs a few times before, and the median of several runs counts. Weights are
//! random, so nothing but a model's `config.json` is needed. On the emulated driver everything runs and
//! no time means anything, which the report says first. Not yet run on a GPU. Left out: kernels by
//! profiler; a step's time by family is to be read from the operations at its shapes.

pub mod check;
pub mod clock;
pub mod decode;
pub mod ops;
pub mod report;
pub mod shapes;
pub mod step;

pub use report::Report;

use crate::cuda::kernels::adamw::AdamW;

/// The optimizer of every measurement.
const ADAMW: AdamW = AdamW {
    learning_rate: 1e-6,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    gradient_scale: 1.0,
    step: 1,
};
