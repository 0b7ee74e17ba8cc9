//! Case analysis: are a response's own cases right, and is its program (paper figure 5, A.6.8)?
//!
//! A response must make at least one case that can be checked; it is asked again until it does, a
//! limited number of times. A case is right if it is a term of the sequence. Copies of the examples
//! count: the analysis asks whether what the model believes is true.

use super::answers::{self, Exam};
use super::journal::Journal;
use super::quadrants::Quadrants;
use crate::agents::Account;
use crate::base::error::usage;
use crate::base::progress::Progress;
use crate::base::rng;
use crate::rollout::AttemptSettings;
use crate::rollout::attempt::{Answer, Query};
use crate::rollout::candidate::Candidate;
use crate::tasks::Task;
use anyhow::Result;
use serde::Serialize;

/// The four quadrants and how they came about.
#[derive(Debug, Clone, Serialize)]
pub struct CaseAnalysis {
    /// Responses by cases and program. Those that made no case at any try are in no quadrant.
    pub quadrants: Quadrants,
    /// Shares C-C, C-F, No-C, No-F of the responses in a quadrant; absent without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<[f64; 4]>,
    /// Responses asked for at each try; those after the first were asked again.
    pub num_asked: Vec<usize>,
    /// Responses with a case whose verdict was an infrastructure failure; in no quadrant.
    pub num_infra: usize,
    /// Problems.
    pub num_problems: usize,
    /// Responses for each problem.
    pub num_rollouts: usize,
    /// SHA-256 of the prompt file.
    pub prompt_sha256: String,
    /// Who answered; absent where it was a model of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<Account>,
}

/// Keeps the draws of later tries apart from those of the first, which are GTG's.
const ASKED_AGAIN: u64 = 0x6167_6169;

/// Refuses a problem without terms to check a model's own cases against.
pub fn check(task: &dyn Task) -> Result<()> {
    let mut problems = (0..task.num_problems()).map(|problem| task.about(problem));
    match problems.find(|problem| !problem.checks_own_cases) {
        None => Ok(()),
        Some(problem) => Err(usage(format!(
            "problem {:?} has no terms to check the model's own cases against",
            problem.id
        ))),
    }
}

/// Asks for `settings.num_samples` responses with cases to each problem, each at most `max_tries`
/// times.
pub fn analyse(
    candidate: &mut dyn Candidate,
    task: &dyn Task,
    settings: &AttemptSettings,
    max_tries: usize,
    mut journal: Option<&mut Journal>,
) -> Result<CaseAnalysis> {
    check(task)?;
    let num_problems = task.num_problems();
    let mut tally =
        Tally { num_missing: vec![settings.num_samples; num_problems], ..Tally::default() };
    for round in 0..max_tries {
        let queries = tally.queries(round, settings);
        if queries.is_empty() {
            break;
        }
        let num_asked = queries.iter().map(|query| query.num_samples).sum();
        tally.num_asked.push(num_asked);
        let label = if round == 0 { "cases".to_owned() } else { format!("try {}", round + 1) };
        let progress = Progress::new(&label, num_asked as u64, "rollouts");
        let exam = Exam { candidate: &mut *candidate, task, settings };
        let (answers, _) =
            answers::collect(exam, round, &queries, &progress, journal.as_deref_mut())?;
        progress.finish();
        for (query, answers) in queries.iter().zip(&answers) {
            tally.add(query.problem, answers);
        }
    }
    let Tally { mut quadrants, num_missing, num_asked, num_infra } = tally;
    quadrants.without_cases = num_missing.iter().sum();
    Ok(CaseAnalysis {
        quadrants,
        shares: quadrants.shares(),
        num_asked,
        num_infra,
        num_problems,
        num_rollouts: settings.num_samples,
        prompt_sha256: task.prompt_sha256().to_owned(),
        answered_by: candidate.answered_by(),
    })
}

/// What has been found so far.
#[derive(Default)]
struct Tally {
    quadrants: Quadrants,
    /// Responses that still lack a case, by problem.
    num_missing: Vec<usize>,
    num_asked: Vec<usize>,
    num_infra: usize,
}

impl Tally {
    /// What is asked in a round: as many responses as are missing.
    fn queries(&self, round: usize, settings: &AttemptSettings) -> Vec<Query> {
        let query = |(problem, &num_samples): (usize, &usize)| {
            let first = settings.query(problem, problem);
            let key = match round {
                0 => first.key,
                _ => rng::key(settings.key, &[problem as u64, ASKED_AGAIN, round as u64]),
            };
            Query { key, num_samples, ..first }
        };
        let all = self.num_missing.iter().enumerate().map(query);
        all.filter(|query| query.num_samples > 0).collect()
    }

    fn add(&mut self, problem: usize, answers: &[Answer]) {
        for Answer { grade, .. } in answers {
            let (num_cases, num_true) = grade.count_own_cases(true);
            if num_cases == 0 {
                continue;
            }
            self.num_missing[problem] -= 1;
            if grade.is_judged() {
                self.quadrants.add(num_cases, num_true, grade.passed());
            } else {
                self.num_infra += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{Reason, VerdictKind};
    use crate::tasks::tests::{Given, graded};

    fn answer(own_cases: &[bool], kind: VerdictKind) -> Answer {
        let grade = graded(kind, own_cases);
        Answer { text: String::new(), num_tokens: 1, is_cut: false, grade }
    }

    #[test]
    fn only_responses_without_a_case_are_asked_again_with_other_draws() {
        let settings = AttemptSettings { num_samples: 3, key: 5, ..AttemptSettings::default() };
        let mut tally = Tally { num_missing: vec![3, 3], ..Tally::default() };
        let first = tally.queries(0, &settings);
        assert_eq!(first[1].key, settings.query(1, 1).key, "the first try is GTG's");

        let wrong = VerdictKind::Fail(Reason::WrongAnswer);
        tally.add(0, &[true; 3].map(|is_true| answer(&[is_true], VerdictKind::Pass)));
        let some = [(&[][..], wrong), (&[false], wrong), (&[true], VerdictKind::Infra)];
        tally.add(1, &some.map(|(own_cases, kind)| answer(own_cases, kind)));
        assert_eq!(tally.quadrants.cases_right_program_right, 3);
        assert_eq!(tally.quadrants.cases_wrong_program_wrong, 1);
        assert_eq!(tally.num_infra, 1);

        let second = tally.queries(1, &settings);
        let missing: Vec<(usize, usize)> =
            second.iter().map(|query| (query.problem, query.num_samples)).collect();
        assert_eq!(missing, [(1, 1)]);
        let third = tally.queries(2, &settings);
        assert!(second[0].key != first[1].key && second[0].key != third[0].key);
    }

    #[test]
    fn a_problem_without_terms_is_named() {
        let problem = serde_json::json!({"problem_id": "a", "tests": []});
        let error = check(&Given(vec![serde_json::from_value(problem).unwrap()])).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(error.to_string().contains("\"a\" has no terms"), "{error}");
    }
}
