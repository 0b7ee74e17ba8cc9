//! What is kept of a run: its directory, its checkpoints, its metrics, its samples, and the machine that it
//! used.

mod checkpoints;
mod compatibility;
mod dir;
pub mod environment;
mod inputs;
pub mod metrics;
pub mod samples;
pub mod tensorboard;

pub use checkpoints::{CheckpointConfig, Checkpoints, steps_with_samples};
pub use compatibility::RunConfig;
pub(crate) use dir::Ending;
pub use dir::{Existing, RunDir};
pub(crate) use inputs::Input;

const SAMPLES: &str = "samples";
