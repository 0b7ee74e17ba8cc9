//! The dynamic loss scale of fp16 training, as a state machine.
//!
//! The loss, a mean over a rank's tokens, is multiplied by the scale before the backward, so that small
//! gradients do not become 0 in half precision. The gradients are divided by the scale before they are
//! used. The state is part of a checkpoint. With hysteresis 1 the scale moves as in `torch.amp.GradScaler`,
//! with more as in InternEvo's `DynamicGradScaler`, with which the paper's model was trained.

use crate::base::error::usage;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// How the loss scale moves. The defaults are the paper's (Table 6); it does not give the hysteresis, whose
/// default is InternEvo's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossScaleConfig {
    /// The scale of the first step.
    pub initial: f64,
    /// The scale never falls below this.
    pub min: f64,
    /// The scale never rises above this.
    pub max: f64,
    /// The scale rises after this many steps without overflow.
    pub growth_interval: u64,
    /// The scale is multiplied by this when it rises.
    pub growth_factor: f64,
    /// The scale is multiplied by this when it falls.
    pub backoff_factor: f64,
    /// The scale falls at an overflow if there were this many since the last rise, that one included.
    pub hysteresis: u64,
}

impl Default for LossScaleConfig {
    fn default() -> Self {
        Self {
            initial: f64::from(1 << 14),
            min: 1.0,
            max: f64::from(1 << 24),
            growth_interval: 1000,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            hysteresis: 2,
        }
    }
}

impl LossScaleConfig {
    /// Refuses numbers with which the scale could not move as described; `table` is the table's name in
    /// errors.
    pub fn check(&self, table: &str) -> Result<()> {
        let wrong = |name: &str, value: f64, rule: &str| {
            Err(usage(format!("{table}.{name} is {value}: it must be {rule}")))
        };
        match *self {
            Self { min, .. } if !(min > 0.0 && min.is_finite()) => wrong("min", min, "above 0"),
            Self { max, min, .. } if !(max >= min && max.is_finite()) => {
                wrong("max", max, "at least the minimum")
            }
            Self { initial, min, max, .. } if !(min..=max).contains(&initial) => {
                wrong("initial", initial, "between the minimum and the maximum")
            }
            Self { growth_factor, .. } if !(growth_factor >= 1.0 && growth_factor.is_finite()) => {
                wrong("growth_factor", growth_factor, "at least 1")
            }
            Self { backoff_factor, .. } if !(backoff_factor > 0.0 && backoff_factor <= 1.0) => {
                wrong("backoff_factor", backoff_factor, "above 0 and at most 1")
            }
            Self { growth_interval: 0, .. } => wrong("growth_interval", 0.0, "at least 1"),
            Self { hysteresis: 0, .. } => wrong("hysteresis", 0.0, "at least 1"),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    scale: f64,
    /// The steps without overflow since the last overflow or rise.
    good_steps: u64,
    /// The overflows since the last rise.
    overflows: u64,
}

impl LossScale {
    pub fn new(config: &LossScaleConfig) -> Self {
        Self { scale: config.initial, good_steps: 0, overflows: 0 }
    }

    /// Returns the factor of the loss in the next step.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Returns whether the scale cannot fall any further.
    pub fn is_at_minimum(&self, config: &LossScaleConfig) -> bool {
        self.scale <= config.min
    }

    /// Moves the scale after a step, whose scaled gradients were finite or not (`overflowed`).
    pub fn update(&mut self, config: &LossScaleConfig, overflowed: bool) {
        if overflowed {
            self.good_steps = 0;
            self.overflows += 1;
            if self.overflows >= config.hysteresis {
                self.scale = (self.scale * config.backoff_factor).max(config.min);
            }
            return;
        }
        self.good_steps += 1;
        if self.good_steps == config.growth_interval {
            self.good_steps = 0;
            self.overflows = 0;
            self.scale = (self.scale * config.growth_factor).min(config.max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the scale after each step of a sequence, in which `x` is a step that overflows.
    fn scales(config: &LossScaleConfig, steps: &str) -> Vec<f64> {
        let mut scale = LossScale::new(config);
        let after = |step: char| {
            scale.update(config, step == 'x');
            scale.scale()
        };
        steps.chars().map(after).collect()
    }

    fn small(hysteresis: u64) -> LossScaleConfig {
        LossScaleConfig {
            initial: 8.0,
            max: 32.0,
            growth_interval: 3,
            hysteresis,
            ..LossScaleConfig::default()
        }
    }

    #[test]
    fn without_hysteresis_it_moves_as_torch_does() {
        // By hand from torch.amp.GradScaler(8, 2, 0.5, 3): an overflow halves and restarts the
        // count, three good steps in a row double.
        let expected = [8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 16.0, 8.0, 4.0];
        assert_eq!(scales(&small(1), "..x......xx"), expected);
    }

    #[test]
    fn with_hysteresis_the_first_overflow_after_a_rise_is_forgiven() {
        // By hand from InternEvo's DynamicGradScaler with hysteresis 2: overflows are counted
        // until the next rise, which forgets them.
        let expected = [8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 8.0, 4.0, 4.0, 2.0];
        assert_eq!(scales(&small(2), "x.x...xx.x"), expected);
    }

    #[test]
    fn it_stays_between_its_minimum_and_maximum() {
        assert_eq!(scales(&small(1), "xxxxx"), [4.0, 2.0, 1.0, 1.0, 1.0]);
        assert_eq!(scales(&small(1), &".".repeat(12))[8..], [32.0; 4]);
        let mut scale = LossScale::new(&small(1));
        assert!(!scale.is_at_minimum(&small(1)));
        (0..3).for_each(|_| scale.update(&small(1), true));
        assert!(scale.is_at_minimum(&small(1)));
    }

    #[test]
    fn the_defaults_are_the_papers() {
        let config: LossScaleConfig = toml::from_str("").unwrap();
        assert_eq!((config.initial, config.max), (16_384.0, 16_777_216.0));
        assert_eq!((config.growth_interval, config.hysteresis), (1000, 2));
    }

    #[test]
    fn numbers_that_cannot_work_are_named() {
        let error = |text: &str| {
            let config: LossScaleConfig = toml::from_str(text).unwrap();
            config.check("train.loss_scale").unwrap_err().to_string()
        };
        assert!(error("growth_interval = 0").contains("train.loss_scale.growth_interval"));
        assert!(error("initial = 0.5").contains("train.loss_scale.initial is 0.5"));
        assert!(error("backoff_factor = 2.0").contains("backoff_factor"));
        assert!(LossScaleConfig::default().check("x").is_ok());
    }
}
