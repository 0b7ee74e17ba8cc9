//! GTG, general-term generation: pass@k over rollouts, with intervals, families and quadrants.
//!
//! Paper section 4 and Table 8: 32 rollouts for each problem, pass@1 is the mean share that
//! passes all tests. Intervals are bootstraps over problems. Infrastructure failures are left out
//! of a problem's rollouts and counted.

use super::attempts::{Attempt, AttemptCost, AttemptSettings, ProblemAttempts, attempt};
use super::quadrants::{CaseRecord, Quadrants, quadrants};
use super::stats::{Interval, bootstrap_mean, pass_at_k};
use crate::base::progress::Progress;
use crate::checkpoint::LanguageModel;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::sandbox::{Judge, VerdictKind};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;

/// A score with everything a table or a page needs; shares are fractions from 0 to 1.
#[derive(Debug, Clone, Serialize)]
pub struct GtgScore {
    /// Mean over problems of the share of rollouts that pass.
    pub pass_at_1: f64,
    /// 95 % bootstrap interval of `pass_at_1` over problems.
    pub ci95: [f64; 2],
    /// Unbiased pass@k for k = 1, 2, 4, ... up to the number of rollouts.
    pub pass_at_k: BTreeMap<usize, f64>,
    /// pass@1 and number of problems by family.
    pub families: BTreeMap<String, FamilyScore>,
    /// Case analysis over all rollouts that made a case.
    pub quadrants: Quadrants,
    /// Share of responses in the wrong format.
    pub format_errors: f64,
    /// Mean length of a response, in tokens.
    pub mean_response_tokens: f64,
    /// Verdicts that were infrastructure failures.
    pub num_infra: usize,
    /// Problems and rollouts for each.
    pub num_problems: usize,
    /// Rollouts for each problem.
    pub num_rollouts: usize,
    /// SHA-256 of the prompt file.
    pub prompt_sha256: String,
    /// Sampled tokens a second, judging not counted.
    pub tokens_per_sec: f64,
    /// Wall seconds of generation.
    pub generation_secs: f64,
    /// Wall seconds of judging.
    pub judging_secs: f64,
    /// Each problem's result, in input order.
    pub problems: Vec<ProblemScore>,
}

/// pass@1 of a family.
#[derive(Debug, Clone, Serialize)]
pub struct FamilyScore {
    /// Problems of the family.
    pub num_problems: usize,
    /// Mean share of rollouts that pass.
    pub pass_at_1: f64,
}

/// One problem's result.
#[derive(Debug, Clone, Serialize)]
pub struct ProblemScore {
    /// Its id.
    pub problem_id: String,
    /// Rollouts that passed.
    pub num_passed: usize,
    /// Rollouts judged.
    pub num_judged: usize,
}

impl ProblemScore {
    /// Share of judged rollouts that passed.
    pub fn pass_rate(&self) -> f64 {
        self.num_passed as f64 / self.num_judged.max(1) as f64
    }
}

/// Attempts every problem and scores the answers. Problems of equal order get equal randomness,
/// so two models are compared on the same draws.
pub fn evaluate(
    model: &LanguageModel,
    judge: &Judge,
    problems: &[Problem],
    settings: &AttemptSettings,
    label: &str,
) -> Result<GtgScore> {
    let prompt = GtgPrompt::default();
    let progress = Progress::new(label, (problems.len() * settings.num_samples) as u64, "rollout");
    let borrowed: Vec<&Problem> = problems.iter().collect();
    let (groups, cost) = attempt(model, judge, &prompt, &borrowed, settings, &progress)?;
    progress.finish();
    Ok(score(problems, &groups, &cost, settings, prompt.hash()))
}

/// Scores attempts that were made; `problems` and `groups` correspond by place.
pub fn score(
    problems: &[Problem],
    groups: &[ProblemAttempts],
    cost: &AttemptCost,
    settings: &AttemptSettings,
    prompt_sha256: String,
) -> GtgScore {
    let problem_scores: Vec<ProblemScore> = problems.iter().zip(groups).map(score_problem).collect();
    let rates: Vec<f64> = problem_scores.iter().map(ProblemScore::pass_rate).collect();
    let Interval { mean, low, high } = bootstrap_mean(&rates, settings.key);
    let attempts = || groups.iter().flat_map(|g| &g.attempts);
    let num_attempts = attempts().count().max(1) as f64;
    let count = |f: &dyn Fn(&Attempt) -> bool| attempts().filter(|a| f(a)).count();
    let num_tokens: usize = attempts().map(|a| a.rollout.tokens.len()).sum();
    let generation_secs = cost.generation.as_secs_f64();
    GtgScore {
        pass_at_1: mean,
        ci95: [low, high],
        pass_at_k: pass_at_powers_of_two(&problem_scores, settings.num_samples),
        families: by_family(problems, &problem_scores),
        quadrants: quadrants(
            problems.iter().zip(groups).flat_map(|(p, g)| g.attempts.iter().map(|a| case_record(p, a))),
        ),
        format_errors: count(&|a| !a.parsed.format_ok) as f64 / num_attempts,
        mean_response_tokens: num_tokens as f64 / num_attempts,
        num_infra: count(&|a| a.verdict.kind == VerdictKind::Infra),
        num_problems: problems.len(),
        num_rollouts: settings.num_samples,
        prompt_sha256,
        tokens_per_sec: num_tokens as f64 / generation_secs,
        generation_secs,
        judging_secs: cost.judging.as_secs_f64(),
        problems: problem_scores,
    }
}

fn score_problem((problem, group): (&Problem, &ProblemAttempts)) -> ProblemScore {
    let count = |kind: VerdictKind| group.attempts.iter().filter(|a| a.verdict.kind == kind).count();
    ProblemScore {
        problem_id: problem.problem_id.clone(),
        num_passed: count(VerdictKind::Pass),
        num_judged: group.attempts.len() - count(VerdictKind::Infra),
    }
}

fn pass_at_powers_of_two(problems: &[ProblemScore], num_rollouts: usize) -> BTreeMap<usize, f64> {
    std::iter::successors(Some(1), |k| Some(k * 2))
        .take_while(|&k| k <= num_rollouts)
        .map(|k| {
            let each = problems.iter().filter(|p| p.num_judged >= k);
            let values: Vec<f64> =
                each.map(|p| pass_at_k(p.num_judged, p.num_passed, k)).collect();
            (k, values.iter().sum::<f64>() / values.len().max(1) as f64)
        })
        .collect()
}

fn by_family(problems: &[Problem], scores: &[ProblemScore]) -> BTreeMap<String, FamilyScore> {
    let mut families: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (problem, score) in problems.iter().zip(scores) {
        let family = problem.family.clone().unwrap_or_else(|| "none".into());
        families.entry(family).or_default().push(score.pass_rate());
    }
    families
        .into_iter()
        .map(|(family, rates)| {
            let pass_at_1 = rates.iter().sum::<f64>() / rates.len() as f64;
            (family, FamilyScore { num_problems: rates.len(), pass_at_1 })
        })
        .collect()
}
