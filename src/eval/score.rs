//! The score of a model on a task: pass@k over rollouts, with intervals, families and quadrants.
//!
//! Paper section 4 and Table 8: 32 rollouts for each problem, pass@1 is the mean share that
//! passes. Intervals are those of `stats`. Infrastructure failures are left out of a problem's rollouts and
//! counted.

use super::answers::{self, Exam};
use super::journal::Journal;
use super::quadrants::Quadrants;
use super::stats::{
    Estimate, MIN_FOR_BOOTSTRAP, mean_of_groups, mean_share, pass_at_k, weighted_share,
};
use crate::agents::Account;
use crate::base::error::usage;
use crate::base::progress::Progress;
use crate::rollout::AttemptSettings;
use crate::rollout::attempt::{Answer, AttemptCost};
use crate::rollout::candidate::Candidate;
use crate::tasks::{About, Grade, Task};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;

/// A score with everything a table or a page needs; shares are fractions from 0 to 1.
#[derive(Debug, Clone, Serialize)]
pub struct Score {
    /// Mean over problems, by their weights, of the share of rollouts that pass; where answers can be right in
    /// part, of what they are worth.
    pub pass_at_1: f64,
    /// 95 % interval of `pass_at_1`.
    pub ci95: [f64; 2],
    /// Mean over families of their `pass_at_1`; absent with one family, or with one of fewer than two problems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_of_families: Option<Estimate>,
    /// Unbiased pass@k for each k from 1 to the number of rollouts, over the problems with as many
    /// judged rollouts.
    pub pass_at_k: BTreeMap<usize, Estimate>,
    /// pass@1 and number of problems by family.
    pub families: BTreeMap<String, FamilyScore>,
    /// Case analysis over all rollouts that made a case; absent where no problem has terms to check cases with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quadrants: Option<Quadrants>,
    /// Rollouts that did not pass, by the reason.
    pub failures: BTreeMap<String, usize>,
    /// Share of responses in the wrong format.
    pub format_errors: f64,
    /// Share of responses that the limit of tokens cut.
    pub cut: f64,
    /// Mean length of a response, in tokens; absent where nobody counted them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_response_tokens: Option<f64>,
    /// Verdicts that were infrastructure failures.
    pub num_infra: usize,
    /// Programs that came to half a limit of the judge or more, whatever their verdict.
    pub num_near_limit: usize,
    pub num_problems: usize,
    /// Most rollouts of a problem.
    pub num_rollouts: usize,
    /// SHA-256 of the prompt file.
    pub prompt_sha256: String,
    /// Who answered; absent where it was a model of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<Account>,
    /// Sampled tokens a second; as the other times, of the last run where it was resumed.
    pub tokens_per_sec: f64,
    /// Wall seconds of generation.
    pub generation_secs: f64,
    /// Wall seconds of judging after the last response.
    pub judging_secs: f64,
    /// Each problem's result, in input order.
    pub problems: Vec<ProblemScore>,
}

/// A score and the answers it rests on.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The score.
    pub score: Score,
    /// The answers, by problem.
    pub answers: Vec<Vec<Answer>>,
}

/// pass@1 of a family.
#[derive(Debug, Clone, Serialize)]
pub struct FamilyScore {
    /// Problems of the family.
    pub num_problems: usize,
    /// As the score's, over the family's problems.
    pub pass_at_1: f64,
    /// 95 % interval, where the family has [`MIN_FOR_BOOTSTRAP`] problems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
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
    /// Mean worth of the judged rollouts, where answers can be right in part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit: Option<f64>,
}

impl ProblemScore {
    /// Share of judged rollouts that passed.
    pub fn pass_rate(&self) -> f64 {
        self.num_passed as f64 / self.num_judged.max(1) as f64
    }

    /// Mean worth of the judged rollouts.
    pub fn worth(&self) -> f64 {
        self.credit.unwrap_or_else(|| self.pass_rate())
    }
}

/// Attempts every problem of the task, or takes what `journal` has of it, and scores the answers. Problems of
/// equal order get equal randomness, so two models are compared on the same draws.
pub fn evaluate(
    candidate: &mut dyn Candidate,
    task: &dyn Task,
    settings: &AttemptSettings,
    label: &str,
    journal: Option<&mut Journal>,
) -> Result<Evaluation> {
    let num_responses = task.num_problems() * settings.num_samples;
    let progress = Progress::new(label, num_responses as u64, "rollouts");
    let evaluation = run(candidate, task, settings, &progress, journal)?;
    progress.finish();
    Ok(evaluation)
}

/// pass@1 on problems kept for validation, for training loops: shows no progress.
pub fn validate(
    candidate: &mut dyn Candidate,
    task: &dyn Task,
    settings: &AttemptSettings,
) -> Result<f64> {
    let evaluation = run(candidate, task, settings, &Progress::hidden(), None)?;
    Ok(evaluation.score.pass_at_1)
}

fn run(
    candidate: &mut dyn Candidate,
    task: &dyn Task,
    settings: &AttemptSettings,
    progress: &Progress,
    journal: Option<&mut Journal>,
) -> Result<Evaluation> {
    let queries = settings.queries(task.num_problems());
    let exam = Exam { candidate: &mut *candidate, task, settings };
    let (answers, cost) = answers::collect(exam, 0, &queries, progress, journal)?;
    let mut score = score(task, &answers, &cost)?;
    score.answered_by = candidate.answered_by();
    Ok(Evaluation { score, answers })
}

/// Scores answers to the task's problems, in their order; a problem without any is left out.
pub(crate) fn score(task: &dyn Task, answers: &[Vec<Answer>], cost: &AttemptCost) -> Result<Score> {
    let answered = answers.iter().enumerate().filter(|(_, answers)| !answers.is_empty());
    let (problems, answers): (Vec<About<'_>>, Vec<&Vec<Answer>>) =
        answered.map(|(problem, answers)| (task.about(problem), answers)).unzip();
    let scores: Vec<ProblemScore> = problems.iter().zip(&answers).map(score_problem).collect();
    let worth: Vec<f64> = scores.iter().map(ProblemScore::worth).collect();
    let weights: Vec<f64> = problems.iter().map(|problem| problem.weight).collect();
    let estimate = weighted_share(&worth, &weights, BOOTSTRAP_SEED)
        .ok_or_else(|| usage("there are no problems to score"))?;
    let num_rollouts = answers.iter().map(|answers| answers.len()).max().unwrap_or(0);
    let all: Vec<&Answer> = answers.into_iter().flatten().collect();
    let num_answers = all.len().max(1) as f64;
    let num_tokens: usize = all.iter().map(|answer| answer.num_tokens).sum();
    let count = |is: &dyn Fn(&Answer) -> bool| all.iter().filter(|answer| is(answer)).count();
    let generation_secs = cost.generation.as_secs_f64();
    let checks_cases = problems.iter().any(|problem| problem.checks_own_cases);
    let families = Families::of(&problems, &scores);
    Ok(Score {
        pass_at_1: estimate.mean,
        ci95: estimate.ci95,
        mean_of_families: families.mean(),
        pass_at_k: pass_at_each_k(&scores, num_rollouts),
        families: families.scores(),
        quadrants: checks_cases.then(|| quadrants(&all)),
        failures: failures(&all),
        format_errors: count(&|answer| !answer.grade.format_ok()) as f64 / num_answers,
        cut: count(&|answer| answer.is_cut) as f64 / num_answers,
        mean_response_tokens: (num_tokens > 0).then(|| num_tokens as f64 / num_answers),
        num_infra: count(&|answer| !answer.grade.is_judged()),
        num_near_limit: count(&|answer| answer.grade.verdict.near_limit),
        num_problems: problems.len(),
        num_rollouts,
        prompt_sha256: task.prompt_sha256().to_owned(),
        answered_by: None,
        tokens_per_sec: cost.engine.generated_tokens as f64
            / generation_secs.max(f64::MIN_POSITIVE),
        generation_secs,
        judging_secs: cost.grading.as_secs_f64(),
        problems: scores,
    })
}

/// Any fixed number: equal scores then have equal intervals.
const BOOTSTRAP_SEED: u64 = 0;

fn score_problem((problem, answers): (&About<'_>, &&Vec<Answer>)) -> ProblemScore {
    let judged = answers.iter().map(|answer| &answer.grade).filter(|grade| grade.is_judged());
    let credits: Vec<f64> = judged.clone().map(Grade::credit).collect();
    let is_partial = judged.clone().any(|grade| grade.credit.is_some());
    ProblemScore {
        problem_id: problem.id.to_owned(),
        num_passed: judged.filter(|grade| grade.passed()).count(),
        num_judged: credits.len(),
        credit: is_partial.then(|| credits.iter().sum::<f64>() / credits.len() as f64),
    }
}

/// Self-made cases against programs, over all judged answers. Copies of the examples count as
/// cases here: the analysis asks whether what the model believes is true.
fn quadrants(answers: &[&Answer]) -> Quadrants {
    let mut quadrants = Quadrants::default();
    for Answer { grade, .. } in answers.iter().filter(|answer| answer.grade.is_judged()) {
        let (num_cases, num_true) = grade.count_own_cases(true);
        quadrants.add(num_cases, num_true, grade.passed());
    }
    quadrants
}

fn failures(answers: &[&Answer]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for failure in answers.iter().filter_map(|answer| answer.grade.failure()) {
        *counts.entry(failure).or_default() += 1;
    }
    counts
}

fn pass_at_each_k(problems: &[ProblemScore], num_rollouts: usize) -> BTreeMap<usize, Estimate> {
    (1..=num_rollouts)
        .filter_map(|k| {
            let each: Vec<f64> =
                problems.iter().filter_map(|p| pass_at_k(p.num_judged, p.num_passed, k)).collect();
            Some((k, mean_share(&each, BOOTSTRAP_SEED)?))
        })
        .collect()
}

/// What problems are worth, with their weights, by family.
struct Families(BTreeMap<String, Vec<(f64, f64)>>);

impl Families {
    fn of(problems: &[About<'_>], scores: &[ProblemScore]) -> Self {
        let mut families: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for (problem, score) in problems.iter().zip(scores) {
            let family = problem.family.unwrap_or("none").to_owned();
            families.entry(family).or_default().push((score.worth(), problem.weight));
        }
        Self(families)
    }

    fn mean(&self) -> Option<Estimate> {
        let families: Vec<Vec<(f64, f64)>> = self.0.values().cloned().collect();
        (families.len() > 1).then(|| mean_of_groups(&families))?
    }

    fn scores(self) -> BTreeMap<String, FamilyScore> {
        let score = |problems: Vec<(f64, f64)>| {
            let (worth, weights): (Vec<f64>, Vec<f64>) = problems.into_iter().unzip();
            let total: f64 = weights.iter().sum();
            FamilyScore {
                num_problems: worth.len(),
                pass_at_1: worth.iter().zip(&weights).map(|(v, w)| v * w).sum::<f64>() / total,
                ci95: weighted_share(&worth, &weights, BOOTSTRAP_SEED)
                    .filter(|_| worth.len() >= MIN_FOR_BOOTSTRAP)
                    .map(|estimate| estimate.ci95),
            }
        };
        self.0.into_iter().map(|(family, problems)| (family, score(problems))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::problem::Problem;
    use crate::sandbox::{Reason, VerdictKind};
    use crate::tasks::FormatError;
    use crate::tasks::tests::{Given, graded};
    use serde_json::json;

    const WRONG: VerdictKind = VerdictKind::Fail(Reason::WrongAnswer);

    fn problem(i: usize, family: &str) -> Problem {
        serde_json::from_value(json!({
            "problem_id": format!("p{i}"), "tests": [], "terms": ["0", "2", "4"], "family": family,
        }))
        .unwrap()
    }

    fn answer(own_cases: &[bool], kind: VerdictKind) -> Answer {
        let grade = graded(kind, own_cases);
        Answer { text: String::new(), num_tokens: 10, is_cut: false, grade }
    }

    fn score(problems: Vec<Problem>, answers: &[Vec<Answer>]) -> Score {
        super::score(&Given(problems), answers, &AttemptCost::default()).unwrap()
    }

    #[test]
    fn every_k_is_scored_and_a_failure_of_the_judge_is_no_answer() {
        let problems = vec![problem(0, "a"), problem(1, "b")];
        let pass = VerdictKind::Pass;
        let answers = [
            vec![answer(&[], pass), answer(&[], WRONG), answer(&[], WRONG), answer(&[], WRONG)],
            vec![answer(&[], pass), answer(&[], WRONG), answer(&[], VerdictKind::Infra), {
                let mut misformed = answer(&[], WRONG);
                misformed.num_tokens = 30;
                misformed.grade.format_error = Some(FormatError::NoCode);
                misformed
            }],
        ];
        let score = score(problems, &answers);
        let share = |k: usize| score.pass_at_k[&k].mean;
        assert_eq!(score.pass_at_1, (1.0 / 4.0 + 1.0 / 3.0) / 2.0);
        assert!((share(1) - score.pass_at_1).abs() < 1e-12);
        assert!((share(2) - (0.5 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        assert!((share(3) - (0.75 + 1.0) / 2.0).abs() < 1e-12);
        assert_eq!(share(4), 1.0, "only one problem has four judged answers");
        assert_eq!((score.num_infra, score.format_errors), (1, 1.0 / 8.0));
        assert_eq!(score.mean_response_tokens, Some(12.5));
        let failures = [("no_code".to_owned(), 1), ("wrong_answer".to_owned(), 4)];
        assert_eq!(score.failures, failures.into());
    }

    #[test]
    fn a_family_has_an_interval_once_it_has_enough_problems() {
        let family = |i| if i < MIN_FOR_BOOTSTRAP { "many" } else { "few" };
        let problems: Vec<Problem> =
            (0..MIN_FOR_BOOTSTRAP + 2).map(|i| problem(i, family(i))).collect();
        let verdict = |i| if i % 2 == 0 { VerdictKind::Pass } else { WRONG };
        let answers: Vec<Vec<Answer>> =
            (0..problems.len()).map(|i| vec![answer(&[], verdict(i))]).collect();
        let score = score(problems, &answers);
        let [low, high] = score.families["many"].ci95.unwrap();
        assert!(low < 0.5 && 0.5 < high);
        assert!(score.families["few"].ci95.is_none());
        assert_eq!(score.families["few"].pass_at_1, 0.5);
    }

    #[test]
    fn cases_and_programs_are_compared_answer_by_answer() {
        let answers = [vec![
            answer(&[true], VerdictKind::Pass),
            answer(&[true, false], VerdictKind::Pass),
            answer(&[true], WRONG),
            answer(&[false], WRONG),
            answer(&[], VerdictKind::Pass),
            answer(&[true], VerdictKind::Infra),
        ]];
        let quadrants = score(vec![problem(0, "a")], &answers).quadrants.unwrap();
        assert_eq!(quadrants.shares(), Some([0.25; 4]));
        assert_eq!(quadrants.without_cases, 1);
    }
}
