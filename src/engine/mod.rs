//! Generation: cached, continuously batched, keyed sampling.
//!
//! Contract: a rollout depends only on (weights, prompt, sampling settings, key, sample index),
//! never on what else is in the batch, on arrival order or on the number of threads; its
//! log-probabilities are bit-equal to [`crate::model::Decoder::score`] on the same tokens.
//! Requests, each with its own sampling settings, are submitted and cancelled at any time, and each
//! [`Engine::step`] is one pass over all that are there. A prompt is computed once for all its samples and
//! its full blocks are kept for later prompts that begin alike; a finished sequence is replaced at once;
//! when the cache is full the youngest sequence gives up its blocks and is computed again later.
//! Whoever can work off a [`Queue`] of requests is a [`Sampler`]: threads, a GPU, another node's rank, or a
//! [`Team`] of them. Tokens become [`text`] beside the engine, which knows none.

mod backend;
mod blocks;
mod config;
#[cfg_attr(not(feature = "cuda"), path = "no_device.rs")]
pub mod device;
pub mod generator;
mod opened;
mod queue;
mod request;
mod scheduler;
mod scorer;
mod sequence;
pub mod text;
mod threads;

pub use config::{EngineConfig, Stats};
pub use opened::OpenModel;
#[cfg(feature = "cuda")]
pub(crate) use queue::Numbered;
pub use queue::{Queue, Sampler, Team};
pub use request::{
    FinishReason, Next, Observer, Request, RequestId, Rollout, SamplingParams, check_temperature,
};
pub use scheduler::Engine;
pub use scorer::Scorer;
pub use threads::Threads;
