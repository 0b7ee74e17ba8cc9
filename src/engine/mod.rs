//! Generation from the trainer's own weights: cached, continuously batched, keyed sampling.
//!
//! Contract: a rollout depends only on (weights, prompt, sampling settings, key, sample index),
//! never on what else is in the batch, on arrival order or on the number of threads; its
//! log-probabilities are bit-equal to [`crate::model::Decoder::score`] on the same tokens.
//! A prompt is computed once for all its samples and its full blocks are kept for later prompts that
//! begin alike; a finished sequence is replaced at once; when the cache is full the youngest sequence
//! gives up its blocks and is computed again later. Several engines, one for each rank, [`share`] a
//! workload.
//!
//! Left out here: stop strings and anything else that needs text (an [`Observer`] decides).

mod backend;
mod blocks;
mod config;
#[cfg_attr(not(feature = "cuda"), path = "no_device.rs")]
pub mod device;
pub mod generator;
mod request;
mod scheduler;
mod scorer;
mod sequence;
mod share;

pub use config::{EngineConfig, Stats};
pub use request::{
    FinishReason, Next, Observer, Request, Rollout, SamplingParams, check_temperature,
};
pub use scheduler::Engine;
pub use scorer::Scorer;
pub use share::{Elsewhere, Queue, Worker, share};
