//! GTG, general-term generation: pass@k over rollouts, with intervals, families and quadrants.
//!
//! Paper section 4 and Table 8: 32 rollouts for each problem, pass@1 is the mean share that
//! passes all tests. Intervals are bootstraps over problems. Infrastructure failures are left out
//! of a problem's rollouts and counted.

use super::attempts::{Attempt, AttemptCost, AttemptSettings, ProblemAttempts, attempt};
use super::quadrants::Quadrants;
use super::stats::{mean_with_interval, pass_at_k};
use crate::base::error::usage;
use crate::base::progress::Progress;
use crate::checkpoint::LanguageModel;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::rewards::{Reference, RewardConfig, RewardKind};
use crate::sandbox::Judge;
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

/// A score and the attempts it rests on.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The score.
    pub score: GtgScore,
    /// The attempts, by problem.
    pub groups: Vec<ProblemAttempts>,
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
) -> Result<Evaluation> {
    let prompt = GtgPrompt::bundled()?;
    let progress = Progress::new(label, (problems.len() * settings.num_samples) as u64, "rollouts");
    let borrowed: Vec<&Problem> = problems.iter().collect();
    let (groups, cost) = attempt(model, judge, &prompt, &borrowed, settings, &progress)?;
    progress.finish();
    let score = score(problems, &groups, &cost, settings, prompt.hash())?;
    Ok(Evaluation { score, groups })
}

/// Scores attempts that were made; `problems` and `groups` correspond by place.
fn score(
    problems: &[Problem],
    groups: &[ProblemAttempts],
    cost: &AttemptCost,
    settings: &AttemptSettings,
    prompt_sha256: &str,
) -> Result<GtgScore> {
    let scores: Vec<ProblemScore> = problems.iter().zip(groups).map(score_problem).collect();
    let rates: Vec<f64> = scores.iter().map(ProblemScore::pass_rate).collect();
    let estimate = mean_with_interval(&rates, BOOTSTRAP_SEED)
        .ok_or_else(|| usage("there are no problems to score"))?;
    let attempts: Vec<&Attempt> = groups.iter().flat_map(|g| &g.attempts).collect();
    let num_tokens: usize = attempts.iter().map(|a| a.rollout.tokens.len()).sum();
    let num_attempts = attempts.len().max(1) as f64;
    let num_malformed = attempts.iter().filter(|a| !a.parsed.format_ok()).count();
    let generation_secs = cost.generation.as_secs_f64();
    Ok(GtgScore {
        pass_at_1: estimate.mean,
        ci95: estimate.ci95,
        pass_at_k: pass_at_powers_of_two(&scores, settings.num_samples),
        families: by_family(problems, &scores),
        quadrants: quadrants(problems, groups)?,
        format_errors: num_malformed as f64 / num_attempts,
        mean_response_tokens: num_tokens as f64 / num_attempts,
        num_infra: attempts.iter().filter(|a| !a.is_judged()).count(),
        num_problems: problems.len(),
        num_rollouts: settings.num_samples,
        prompt_sha256: prompt_sha256.to_owned(),
        tokens_per_sec: num_tokens as f64 / generation_secs,
        generation_secs,
        judging_secs: cost.judging.as_secs_f64(),
        problems: scores,
    })
}

/// Any fixed number: equal scores then have equal intervals.
const BOOTSTRAP_SEED: u64 = 0;

fn score_problem((problem, group): (&Problem, &ProblemAttempts)) -> ProblemScore {
    ProblemScore {
        problem_id: problem.problem_id.clone(),
        num_passed: group.attempts.iter().filter(|a| a.passed()).count(),
        num_judged: group.attempts.iter().filter(|a| a.is_judged()).count(),
    }
}

/// Self-made cases against programs, over all judged attempts. Copies of the examples count as
/// cases here: the analysis asks whether what the model believes is true.
fn quadrants(problems: &[Problem], groups: &[ProblemAttempts]) -> Result<Quadrants> {
    let config = RewardConfig { kind: RewardKind::Binary, ..RewardConfig::default() };
    let mut quadrants = Quadrants::default();
    for (problem, group) in problems.iter().zip(groups) {
        let reference = Reference::new(problem, &config)?;
        for attempt in group.attempts.iter().filter(|a| a.is_judged()) {
            let (num_cases, num_true) = reference.count_cases(&attempt.parsed.cases, true);
            quadrants.add(num_cases, num_true, attempt.passed());
        }
    }
    Ok(quadrants)
}

fn pass_at_powers_of_two(problems: &[ProblemScore], num_rollouts: usize) -> BTreeMap<usize, f64> {
    std::iter::successors(Some(1), |k| Some(k * 2))
        .take_while(|&k| k <= num_rollouts)
        .filter_map(|k| {
            let each: Vec<f64> =
                problems.iter().filter_map(|p| pass_at_k(p.num_judged, p.num_passed, k)).collect();
            (!each.is_empty()).then(|| (k, each.iter().sum::<f64>() / each.len() as f64))
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
