//! The clipped policy loss of reinforcement: each sampled token is made more or less likely by its advantage,
//! within bounds.
//!
//! The definitions are those of verl 0.9, whose values are in tests: separate clip bounds, dual clip, clamped
//! log-ratios, k3 KL. DAPO uses the same with other numbers.

mod loss;
mod mismatch;
mod sampled;

pub use loss::{LossConfig, Metrics, Tokens, policy_loss};
pub use mismatch::{Mismatch, importance_weights};
pub use sampled::{PolicyObjective, PolicySums, SampledTokens};
