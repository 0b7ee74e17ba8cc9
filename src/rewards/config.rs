//! The settings of a reward, and what it needs of a problem.

use crate::base::error::usage;
use crate::base::limits::refuse_outside;
use crate::tasks::About;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The kind of a reward.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum RewardKind {
    /// Formula 2 of the paper: the case-synergy solvability reward.
    #[default]
    Cssr,
    /// Formula 2 without its first term, the solvability.
    CssrWithoutSolvability,
    /// Formula 2 without its second term, the self-made cases.
    CssrWithoutCases,
    /// Formula 2 with `1 - Sov` in place of `-ln(Sov + eps)`.
    NoLog,
    /// 1 if every test passes, otherwise 0.
    Binary,
    /// The share of tests that pass; -1 for a wrong format.
    TestShare,
    /// `1 - Sov` if every test passes; -1 and 0 as in formula 2.
    PassRate,
    /// `1 - Sov` for every response, as the paper prints it. It is constant within a group.
    PassRateLiteral,
}

/// The reward, and the numbers in its formula.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    pub kind: RewardKind,
    /// The weight of the solvability term, from 0 to 1; the term of self-made cases has the rest.
    pub lambda: f64,
    /// Is added to the solvability, so that its logarithm is finite at 0. The paper does not give it.
    pub eps: f64,
    /// Whether a case that is copied from the prompt's examples counts as self-made. The paper does not
    /// say.
    pub count_example_copies: bool,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self { kind: RewardKind::Cssr, lambda: 0.9, eps: 0.01, count_example_copies: false }
    }
}

impl RewardKind {
    fn needs_solvability(self) -> bool {
        use RewardKind::{Cssr, CssrWithoutCases, NoLog, PassRate, PassRateLiteral};
        matches!(self, Cssr | CssrWithoutCases | NoLog | PassRate | PassRateLiteral)
    }

    /// Whether it pays for cases that a response makes itself.
    pub(crate) fn needs_own_cases(self) -> bool {
        matches!(self, Self::Cssr | Self::CssrWithoutSolvability | Self::NoLog)
    }
}

impl RewardConfig {
    /// Refuses numbers for which formula 2 is not defined; `table` is the table's name in errors.
    pub fn check(&self, table: &str) -> Result<()> {
        let (lambda, eps) = (self.lambda, self.eps);
        refuse_outside(
            table,
            &[("lambda", lambda, 0.0..=1.0), ("eps", eps, f64::MIN_POSITIVE..=1.0)],
        )
    }

    /// Refuses a problem that lacks what this reward needs; the error names both.
    pub fn check_problem(&self, problem: &About<'_>) -> Result<()> {
        let lacks = |what: &str| {
            Err(usage(format!("problem {}: {what} (needed by this reward)", problem.id)))
        };
        if self.kind.needs_solvability() && problem.solvability.is_none() {
            return lacks("no solvability: run `train data solvability` first");
        }
        if self.kind.needs_own_cases() && !problem.checks_own_cases {
            return lacks("no terms to check self-made cases against");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    #[test]
    fn what_a_reward_needs_and_a_problem_lacks_is_named() {
        let problem = About {
            id: "p7",
            family: None,
            weight: 1.0,
            solvability: Some(0.24),
            checks_own_cases: true,
        };
        let cssr = RewardConfig::default();
        let binary = RewardConfig { kind: RewardKind::Binary, ..cssr };
        cssr.check_problem(&problem).unwrap();
        let no_solvability = About { solvability: None, ..problem };
        let error = cssr.check_problem(&no_solvability).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("p7: no solvability"), "{error}");
        binary.check_problem(&no_solvability).unwrap();
        let no_terms = About { checks_own_cases: false, ..problem };
        assert!(cssr.check_problem(&no_terms).is_err());
        binary.check_problem(&no_terms).unwrap();
    }
}
