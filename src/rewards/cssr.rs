//! The case-synergy solvability reward of the paper (formula 2), its variants and ablations.
//!
//! With a wrong format the reward is -1, with a failed test 0, otherwise
//! `-lambda ln(Sov + eps) + (1 - lambda) N_tc / N_c`: harder problems and true self-made cases are
//! worth more. The paper gives neither eps, nor the base of the logarithm, nor the second term at
//! `N_c = 0`; here eps is a key, the logarithm natural, and the term then 0.

use super::response::{ParsedResponse, canonical_integer};
use crate::base::error::usage;
use crate::base::limits::refuse_outside;
use crate::data::problem::Problem;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Which reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewardKind {
    /// Formula 2.
    #[default]
    Cssr,
    /// Formula 2 without its first term.
    CssrWithoutSolvability,
    /// Formula 2 without its second term.
    CssrWithoutCases,
    /// Formula 2 with `1 - Sov` in place of `-ln(Sov + eps)`.
    NoLog,
    /// 1 if every test passes, else 0.
    Binary,
    /// `1 - Sov` if every test passes, -1 and 0 as in formula 2.
    PassRate,
    /// `1 - Sov` whatever the response: as the paper prints it, constant in a group.
    PassRateLiteral,
}

/// The reward and its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// Which reward.
    pub kind: RewardKind,
    /// Share of the solvability term.
    pub lambda: f64,
    /// Keeps the logarithm finite at solvability 0; not given by the paper.
    pub eps: f64,
    /// Whether a case copied from the prompt's examples counts as self-made; not given by the paper.
    pub count_example_copies: bool,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self { kind: RewardKind::Cssr, lambda: 0.9, eps: 0.01, count_example_copies: false }
    }
}

impl RewardConfig {
    /// Refuses numbers that formula 2 has no meaning with; `table` is where they stand.
    pub fn check(&self, table: &str) -> Result<()> {
        let (lambda, eps) = (self.lambda, self.eps);
        refuse_outside(
            table,
            &[("lambda", lambda, 0.0..=1.0), ("eps", eps, f64::MIN_POSITIVE..=1.0)],
        )
    }
}

impl RewardKind {
    fn uses_solvability(self) -> bool {
        !matches!(self, Self::CssrWithoutSolvability | Self::Binary)
    }

    fn uses_cases(self) -> bool {
        matches!(self, Self::Cssr | Self::CssrWithoutSolvability | Self::NoLog)
    }
}

/// What the judge found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every test passed.
    Pass,
    /// Some test failed.
    Fail,
    /// The judge itself failed; nothing is known.
    Infra,
}

/// What rewards need of a problem.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Canonical; `terms[i]` belongs to input `offset + i`.
    terms: Vec<String>,
    offset: i64,
    examples: HashSet<(String, String)>,
    solvability: f64,
}

impl Reference {
    /// Takes what `config` needs from `problem`; what is missing is named.
    pub fn new(problem: &Problem, config: &RewardConfig) -> Result<Self> {
        let lacks = |what: &str| {
            usage(format!("problem {}: {what} (needed by this reward)", problem.problem_id))
        };
        let solvability = match problem.solvability {
            Some(share) if (0.0..=1.0).contains(&share) => share,
            Some(share) => return Err(lacks(&format!("solvability {share} is not a share"))),
            None if config.kind.uses_solvability() => {
                return Err(lacks("no solvability: run `train data solvability` first"));
            }
            None => 0.0,
        };
        if problem.terms.is_empty() && config.kind.uses_cases() {
            return Err(lacks("no terms to check self-made cases against"));
        }
        let terms = problem
            .terms
            .iter()
            .map(|term| canonical_integer(term).ok_or_else(|| lacks(&format!("bad term {term:?}"))))
            .collect::<Result<_>>()?;
        let examples = problem
            .examples
            .iter()
            .filter_map(|e| Some((canonical_integer(&e.input)?, canonical_integer(&e.output)?)))
            .collect();
        Ok(Self { terms, offset: problem.offset, examples, solvability })
    }

    /// The term at a problem input, if it is known.
    fn term(&self, input: &str) -> Option<&str> {
        let index = input.parse::<i64>().ok()?.checked_sub(self.offset)?;
        self.terms.get(usize::try_from(index).ok()?).map(String::as_str)
    }

    /// How many of `cases` count, and how many of those are terms of the sequence.
    ///
    /// Cases at inputs whose term is unknown do not count.
    pub fn count_cases(&self, cases: &[(String, String)], count_copies: bool) -> (usize, usize) {
        cases
            .iter()
            .filter(|case| count_copies || !self.examples.contains(case))
            .filter_map(|(input, value)| Some(self.term(input)? == value))
            .fold((0, 0), |(all, right), is_right| (all + 1, right + usize::from(is_right)))
    }
}

/// A reward and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Breakdown {
    /// The reward.
    pub total: f64,
    /// Whether the format rule is kept.
    pub format: bool,
    /// Whether every test passed.
    pub passed: bool,
    /// The part that rests on solvability, as it enters the total.
    pub solvability_term: f64,
    /// The part that rests on self-made cases, as it enters the total.
    pub case_term: f64,
    /// What a program of the user's gave, in place of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<f64>,
    /// What the total lost because the response came close to the length limit (0 or less), where that
    /// is punished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlong: Option<f64>,
    /// Self-made cases that count (N_c).
    pub num_cases: usize,
    /// Those of them that are terms of the sequence (N_tc).
    pub num_true_cases: usize,
}

impl Breakdown {
    /// With the reward that a program of the user's gave, of which the rule's terms are no part.
    pub fn with_external(self, reward: f64) -> Self {
        let external = Some(reward);
        Self { total: reward, solvability_term: 0.0, case_term: 0.0, external, ..self }
    }

    /// With what a response close to the length limit loses, 0 or less.
    pub fn with_overlong(self, penalty: f64) -> Self {
        Self { total: self.total + penalty, overlong: Some(penalty), ..self }
    }
}

/// The reward of a response; `None` if the judge found nothing out.
pub fn reward(
    config: &RewardConfig,
    reference: &Reference,
    response: &ParsedResponse,
    verdict: Verdict,
) -> Option<Breakdown> {
    let format = response.format_ok();
    if format && verdict == Verdict::Infra {
        return None;
    }
    let passed = format && verdict == Verdict::Pass;
    let (num_cases, num_true_cases) =
        reference.count_cases(&response.cases, config.count_example_copies);
    let RewardConfig { kind, lambda, eps, .. } = *config;
    let solvability = reference.solvability;
    let weighted_cases = || {
        let share = if num_cases == 0 { 0.0 } else { num_true_cases as f64 / num_cases as f64 };
        (1.0 - lambda) * share
    };
    let weighted_log = || -lambda * (solvability + eps).ln();
    let (solvability_term, case_term) = match kind {
        RewardKind::PassRateLiteral => (1.0 - solvability, 0.0),
        _ if !passed => (0.0, 0.0),
        RewardKind::Cssr => (weighted_log(), weighted_cases()),
        RewardKind::CssrWithoutSolvability => (0.0, weighted_cases()),
        RewardKind::CssrWithoutCases => (weighted_log(), 0.0),
        RewardKind::NoLog => (lambda * (1.0 - solvability), weighted_cases()),
        RewardKind::PassRate => (1.0 - solvability, 0.0),
        RewardKind::Binary => (0.0, 0.0),
    };
    let total = match kind {
        RewardKind::Binary => f64::from(u8::from(passed)),
        RewardKind::PassRateLiteral => solvability_term,
        _ if !format => -1.0,
        _ => solvability_term + case_term,
    };
    Some(Breakdown {
        total,
        format,
        passed,
        solvability_term,
        case_term,
        external: None,
        overlong: None,
        num_cases,
        num_true_cases,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::rewards::response::parse;

    fn problem() -> Problem {
        serde_json::from_str(
            r#"{"problem_id": "p7", "tests": [{"input": 5, "output": 25}], "solvability": 0.24,
                "examples": [{"input": 1, "output": 1}, {"input": 2, "output": "4"}],
                "terms": ["0", "1", "4", "9", "16", "25"], "offset": 0}"#,
        )
        .unwrap()
    }

    fn total(kind: RewardKind, text: &str, verdict: Verdict) -> Option<f64> {
        let config = RewardConfig { kind, ..RewardConfig::default() };
        let reference = Reference::new(&problem(), &config).unwrap();
        reward(&config, &reference, &parse(text), verdict).map(|b| b.total)
    }

    /// Counted: 3 (right) and 4 (wrong); not counted: a copy of an example, and an unknown input.
    const GOOD: &str = "<think>\ncase: 3 -> 9\ncase: 4 -> 15\ncase: 2 -> 4\ncase: 77 -> 1\n\
        </think>\n```python\nprint(int(input())**2)\n```";
    const BAD: &str = "print(1)";

    #[test]
    fn every_reward_is_as_the_paper_says() {
        // Solvability 0.24 + eps 0.01 is 1/4; half of the cases are right.
        let log = 0.9 * 4f64.ln();
        for (kind, passed, failed, misformed) in [
            (RewardKind::Cssr, log + 0.05, 0.0, -1.0),
            (RewardKind::CssrWithoutSolvability, 0.05, 0.0, -1.0),
            (RewardKind::CssrWithoutCases, log, 0.0, -1.0),
            (RewardKind::NoLog, 0.9 * 0.76 + 0.05, 0.0, -1.0),
            (RewardKind::Binary, 1.0, 0.0, 0.0),
            (RewardKind::PassRate, 0.76, 0.0, -1.0),
            (RewardKind::PassRateLiteral, 0.76, 0.76, 0.76),
        ] {
            for (text, verdict, expected) in [
                (GOOD, Verdict::Pass, passed),
                (GOOD, Verdict::Fail, failed),
                (BAD, Verdict::Fail, misformed),
            ] {
                let total = total(kind, text, verdict).unwrap();
                assert!((total - expected).abs() < 1e-12, "{kind:?} {verdict:?}: {total}");
            }
        }
    }

    #[test]
    fn no_verdict_gives_no_reward_but_a_wrong_format_needs_none() {
        assert_eq!(total(RewardKind::Cssr, GOOD, Verdict::Infra), None);
        assert_eq!(total(RewardKind::Cssr, BAD, Verdict::Infra), Some(-1.0));
    }

    #[test]
    fn the_breakdown_counts_cases_also_where_they_earn_nothing() {
        let config = RewardConfig { count_example_copies: true, ..RewardConfig::default() };
        let reference = Reference::new(&problem(), &config).unwrap();
        let failed = reward(&config, &reference, &parse(GOOD), Verdict::Fail).unwrap();
        assert_eq!((failed.num_cases, failed.num_true_cases, failed.case_term), (3, 2, 0.0));
        let none = parse("```python\n1\n```");
        let passed = reward(&config, &reference, &none, Verdict::Pass).unwrap();
        assert_eq!((passed.num_cases, passed.case_term), (0, 0.0));
    }

    #[test]
    fn what_a_reward_needs_and_a_problem_lacks_is_named() {
        let cssr = RewardConfig::default();
        let binary = RewardConfig { kind: RewardKind::Binary, ..cssr };
        let no_solvability = Problem { solvability: None, ..problem() };
        let error = Reference::new(&no_solvability, &cssr).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("p7"), "{error}");
        assert!(Reference::new(&no_solvability, &binary).is_ok());
        let no_terms = Problem { terms: Vec::new(), ..problem() };
        assert!(Reference::new(&no_terms, &cssr).is_err());
        assert!(Reference::new(&no_terms, &binary).is_ok());
        let odd = Problem { solvability: Some(1.5), ..problem() };
        assert!(Reference::new(&odd, &cssr).is_err());
    }
}
