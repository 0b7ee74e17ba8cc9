//! Settings of the optimizer: the learning-rate schedule, AdamW, and the loss scale of fp16.
//!
//! This module is pure. The update itself is an operation over flat buffers (`ops`).

mod loss_scale;
mod schedule;

pub use loss_scale::{LossScale, LossScaleConfig};
pub use schedule::{Schedule, ScheduleKind, Warmup};

use crate::base::limits::refuse_outside;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The parameters to which weight decay applies. The paper does not say which.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DecayedParameters {
    /// Matrices and the embedding table, but not norms and biases, as in transformers' Trainer.
    #[default]
    Matrices,
    /// Matrices, without the embedding table, norms and biases.
    MatricesWithoutEmbeddings,
    /// All parameters, as in PyTorch's AdamW without parameter groups.
    All,
}

/// AdamW (decoupled weight decay), and the clipping before it. The defaults are those of verl's actor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// The peak learning rate.
    pub lr: f64,
    /// The decay rates of the first and of the second moment.
    pub betas: (f64, f64),
    /// Is added to the root of the second moment.
    pub eps: f64,
    /// The decoupled weight decay. It is multiplied by the learning rate.
    pub weight_decay: f64,
    pub decayed: DecayedParameters,
    /// A gradient with a larger norm is scaled down to this norm; 0 turns clipping off.
    pub max_grad_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            lr: 1e-6,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.01,
            decayed: DecayedParameters::default(),
            max_grad_norm: 1.0,
        }
    }
}

impl AdamWConfig {
    /// Refuses numbers with which no step can be made; `table` is the table's name in errors.
    pub fn check(&self, table: &str) -> Result<()> {
        let below_one = 1.0 - f64::EPSILON;
        refuse_outside(
            table,
            &[
                ("lr", self.lr, 0.0..=f64::MAX),
                ("betas[0]", self.betas.0, 0.0..=below_one),
                ("betas[1]", self.betas.1, 0.0..=below_one),
                ("eps", self.eps, f64::MIN_POSITIVE..=1e9),
                ("weight_decay", self.weight_decay, 0.0..=f64::MAX),
                ("max_grad_norm", self.max_grad_norm, 0.0..=f64::MAX),
            ],
        )
    }

    /// Returns the factor that scales a gradient of this norm down to the limit, at most 1.
    pub fn clip_factor(&self, grad_norm: f64) -> f64 {
        if self.max_grad_norm > 0.0 && grad_norm > self.max_grad_norm {
            // This is what PyTorch's clip_grad_norm_ does.
            self.max_grad_norm / (grad_norm + 1e-6)
        } else {
            1.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gradients_over_the_limit_are_cut() {
        let config = AdamWConfig::default();
        assert_eq!(config.clip_factor(0.5), 1.0);
        assert!((config.clip_factor(4.0) - 0.25).abs() < 1e-6);
        assert_eq!(AdamWConfig { max_grad_norm: 0.0, ..config }.clip_factor(9.0), 1.0);
    }
}
