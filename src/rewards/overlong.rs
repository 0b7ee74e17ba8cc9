//! DAPO's soft penalty for responses whose length comes close to the limit (Yu et al. 2025, formula 13).

use crate::base::error::usage;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Where the penalty begins, and how large it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overlong {
    /// The penalty begins this many tokens before the limit.
    pub buffer: usize,
    /// A response of the limit's length loses this much reward.
    pub factor: f64,
}

impl Overlong {
    /// Refuses a penalty that cannot apply to responses of at most `limit` tokens; `table` is the table's
    /// name in errors.
    pub fn check(&self, table: &str, limit: usize) -> Result<()> {
        let Self { buffer, factor } = *self;
        if (1..=limit).contains(&buffer) && factor >= 0.0 && factor.is_finite() {
            return Ok(());
        }
        Err(usage(format!(
            "{table}.buffer is {buffer} and {table}.factor {factor}: the buffer must be from 1 to the \
             longest response, {limit} tokens, the factor 0 or more"
        )))
    }

    /// Returns what is added to the reward of a response of `length` tokens: 0 up to the buffer, then
    /// linearly down to -`factor` at `limit`.
    pub fn penalty(&self, length: usize, limit: usize) -> f64 {
        let over = length as f64 - (limit as f64 - self.buffer as f64);
        (-over / self.buffer as f64 * self.factor).min(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_penalty_gives_the_published_values() {
        for (length, expected) in
            [(100, 0.0), (16_384, 0.0), (17_000, -0.150_391), (18_432, -0.5), (20_480, -1.0)]
        {
            let penalty = Overlong { buffer: 4096, factor: 1.0 }.penalty(length, 20_480);
            assert!((penalty - expected).abs() < 1e-6, "{length}: {penalty}");
        }
    }
}
