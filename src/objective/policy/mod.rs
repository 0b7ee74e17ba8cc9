//! The clipped policy loss of reinforcement: advantages pull on sampled tokens, within bounds.
//!
//! Semantics follow verl 0.9, whose values are tests: separate
//! clip bounds, dual clip, clamped log-ratios, k3 KL. DAPO is the same with other numbers.

mod loss;
mod mismatch;
mod sampled;

pub use loss::{LossConfig, Metrics, Tokens, policy_loss};
pub use mismatch::{Mismatch, importance_weights};
pub use sampled::{PolicyObjective, PolicySums, SampledTokens};
