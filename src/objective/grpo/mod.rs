//! Group-relative policy optimisation: advantages within groups, and a clipped policy loss.
//!
//! Semantics follow verl 0.9, whose values are tests: unbiased standard deviation plus eps, separate
//! clip bounds, dual clip, clamped log-ratios, k3 KL. DAPO is the same with other numbers.

mod advantage;
mod loss;
mod mismatch;
mod sampled;

pub use advantage::{Advantages, advantages};
pub use loss::{LossConfig, Metrics, Tokens, policy_loss};
pub use mismatch::{Mismatch, importance_weights};
pub use sampled::{PolicyObjective, PolicySums, SampledTokens};
