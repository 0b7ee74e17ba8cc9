//! Generation from the trainer's own weights: cached, continuously batched, keyed sampling.
//!
//! Contract: a rollout depends only on (weights, prompt, sampling settings, key, sample index),
//! never on what else is in the batch, on arrival order or on the number of threads; its
//! log-probabilities are bit-equal to [`crate::model::Decoder::score`] on the same tokens.
//! A prompt is computed once for all its samples; a finished sequence is replaced at once.
//!
//! Left out here: a paged cache, preemption and prefixes shared between requests. Every slot has
//! room for the longest sequence, so admission never has to be undone.

mod request;
mod scheduler;
mod scorer;

pub use request::{FinishReason, Request, Rollout, SamplingParams};
pub use scheduler::{Engine, EngineConfig, Stats};
pub use scorer::Scorer;
