//! Learning-rate schedules: a linear warm-up, then a constant rate, a linear decay or a cosine decay.

use crate::base::limits::refuse_outside;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The course of the learning rate after the warm-up.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The rate stays at its peak.
    #[default]
    Constant,
    /// The rate falls along a straight line.
    Linear,
    /// The rate falls along half a cosine.
    Cosine,
}

/// The length of the warm-up, in steps or as a share of all steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    Steps(u64),
    /// A share of all steps, rounded down to whole steps.
    Ratio(f64),
}

/// The learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub warmup: Warmup,
    /// The learning rate at the end of the decay, as a share of the peak.
    pub min_lr_ratio: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { kind: ScheduleKind::Constant, warmup: Warmup::Steps(0), min_lr_ratio: 0.0 }
    }
}

impl Schedule {
    /// Refuses shares outside 0 to 1; `table` is the table's name in errors.
    pub fn check(&self, table: &str) -> Result<()> {
        let ratio = match self.warmup {
            Warmup::Ratio(ratio) => ratio,
            Warmup::Steps(_) => 0.0,
        };
        let shares = [("warmup.ratio", ratio), ("min_lr_ratio", self.min_lr_ratio)];
        refuse_outside(table, &shares.map(|(key, share)| (key, share, 0.0..=1.0)))
    }

    /// Returns the steps of the warm-up in a run of `total_steps`.
    pub fn warmup_steps(&self, total_steps: u64) -> u64 {
        match self.warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => (ratio * total_steps as f64) as u64,
        }
    }

    /// Returns the share of the peak rate at `step`, counted from 0. With a warm-up the first step has rate
    /// 0.
    ///
    /// As in transformers and verl, the decay ends one step after the last.
    pub fn factor(&self, step: u64, total_steps: u64) -> f64 {
        let warmup = self.warmup_steps(total_steps);
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let left = total_steps.saturating_sub(warmup).max(1) as f64;
        let progress = ((step - warmup) as f64 / left).min(1.0);
        let fall = match self.kind {
            ScheduleKind::Constant => return 1.0,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        };
        self.min_lr_ratio + (1.0 - self.min_lr_ratio) * fall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: Warmup) -> Schedule {
        Schedule { kind, warmup, min_lr_ratio: 0.1 }
    }

    #[test]
    fn the_rate_rises_from_zero_and_falls_to_its_minimum() {
        let cosine = schedule(ScheduleKind::Cosine, Warmup::Ratio(0.1));
        assert_eq!(cosine.factor(0, 100), 0.0);
        assert_eq!(cosine.factor(5, 100), 0.5);
        assert_eq!(cosine.factor(10, 100), 1.0);
        assert!((cosine.factor(55, 100) - 0.55).abs() < 1e-12);
        assert!((cosine.factor(100, 100) - 0.1).abs() < 1e-12);
        let linear = schedule(ScheduleKind::Linear, Warmup::Steps(10));
        assert!((linear.factor(55, 100) - 0.55).abs() < 1e-12);
        assert!((linear.factor(300, 100) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn a_constant_rate_without_warm_up_is_full_from_the_first_step() {
        assert_eq!(Schedule::default().factor(0, 100), 1.0);
        assert_eq!(Schedule::default().factor(99, 100), 1.0);
        let all_warmup = schedule(ScheduleKind::Cosine, Warmup::Steps(10));
        assert_eq!(all_warmup.factor(10, 10), 1.0);
    }

    #[test]
    fn the_factor_never_rises_after_the_warm_up() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine] {
            let schedule = schedule(kind, Warmup::Steps(7));
            let factors: Vec<f64> = (7..200).map(|step| schedule.factor(step, 150)).collect();
            assert!(factors.windows(2).all(|pair| pair[1] <= pair[0]), "{kind:?}");
        }
    }
}
