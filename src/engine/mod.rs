//! The engine generates: it samples responses to prompts, many sequences in one forward pass, with a
//! paged key-value cache (as vLLM, Kwon et al. 2023).
//!
//! A rollout depends only on the weights, the prompt, the sampling parameters, the key and the index of the
//! sample: never on the other sequences of a pass, on the order of requests or on the number of threads. On
//! the CPU its log-probabilities equal those of [`crate::model::Decoder::score`] on the same tokens to the
//! bit.
//!
//! Requests are submitted and cancelled at any time, each with its own sampling parameters, and each
//! [`Engine::step`] is one pass over all that are present. A prompt is computed once for all its samples,
//! and its full blocks are kept for later prompts that begin alike. A finished sequence is replaced at
//! once. When the cache is full, the youngest sequence gives up its blocks and is computed again later.
//!
//! A [`Sampler`] works off a [`Queue`] of requests: threads, a GPU, a rank on another node, or a [`Team`]
//! of these. The engine knows tokens only; [`text`] turns them into text and finds stop strings.

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
pub use opened::{OpenModel, Rank};
#[cfg(feature = "cuda")]
pub(crate) use queue::Numbered;
pub use queue::{Queue, Sampler, Team};
pub use request::{
    FinishReason, Next, Observer, Request, RequestId, Rollout, SamplingParams, check_temperature,
};
pub use scheduler::Engine;
pub use scorer::Scorer;
pub use threads::Threads;
