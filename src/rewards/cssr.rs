//! The case-synergy solvability reward of the paper (formula 2), its variants and ablations.
//!
//! The reward is -1 for a wrong format, 0 if a test fails, and otherwise `-lambda ln(Sov + eps) + (1 -
//! lambda) N_tc / N_c`. So hard problems and true self-made cases are worth more. The paper gives neither
//! eps, nor the base of the logarithm, nor the second term at `N_c = 0`. Here eps is a setting, the
//! logarithm is natural, and the term is then 0.

use super::config::RewardConfig;
use super::reward::{Response, Reward};
use crate::tasks::Grade;

pub(crate) fn with_both_terms(
    config: &RewardConfig,
    grade: &Grade,
    response: &Response<'_>,
) -> Reward {
    formula(grade, log_term(config, response), case_term(config, grade))
}

pub(crate) fn without_solvability(
    config: &RewardConfig,
    grade: &Grade,
    _: &Response<'_>,
) -> Reward {
    formula(grade, 0.0, case_term(config, grade))
}

pub(crate) fn without_cases(
    config: &RewardConfig,
    grade: &Grade,
    response: &Response<'_>,
) -> Reward {
    formula(grade, log_term(config, response), 0.0)
}

pub(crate) fn without_logarithm(
    config: &RewardConfig,
    grade: &Grade,
    response: &Response<'_>,
) -> Reward {
    formula(grade, config.lambda * unsolved(response), case_term(config, grade))
}

pub(crate) fn pass_rate(_: &RewardConfig, grade: &Grade, response: &Response<'_>) -> Reward {
    formula(grade, unsolved(response), 0.0)
}

pub(crate) fn literal_pass_rate(_: &RewardConfig, _: &Grade, response: &Response<'_>) -> Reward {
    Reward::default().part("solvability_term", unsolved(response))
}

/// Returns both terms for a pass, and neither otherwise.
fn formula(grade: &Grade, solvability_term: f64, case_term: f64) -> Reward {
    let of_pass = |term: f64| if grade.passed() { term } else { 0.0 };
    Reward::of_format(grade)
        .part("solvability_term", of_pass(solvability_term))
        .part("case_term", of_pass(case_term))
}

fn solvability(response: &Response<'_>) -> f64 {
    response.solvability.expect("invariant: problems were checked to have what the reward needs")
}

fn unsolved(response: &Response<'_>) -> f64 {
    1.0 - solvability(response)
}

fn log_term(config: &RewardConfig, response: &Response<'_>) -> f64 {
    -config.lambda * (solvability(response) + config.eps).ln()
}

fn case_term(config: &RewardConfig, grade: &Grade) -> f64 {
    let (num_cases, num_true_cases) = grade.count_own_cases(config.count_example_copies);
    let share = if num_cases == 0 { 0.0 } else { num_true_cases as f64 / num_cases as f64 };
    (1.0 - config.lambda) * share
}
