//! What is minimised, as pure functions of a few scalars per token.
//!
//! Contract: no model, no device, no I/O. Each loss reads log-probabilities (and what else it needs)
//! of the target tokens and writes dL/dlogp for them; the model's head carries that on. Losses and
//! gradients are unnormalised sums, to be divided once by [`Aggregation::divisor`] of the global
//! mini-batch, so neither packing nor micro-batches nor ranks change them.

mod aggregation;
pub mod grpo;
pub mod sft;

pub use aggregation::{Aggregation, Totals};
