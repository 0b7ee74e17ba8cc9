//! Case analysis: are a response's own cases right, and is its program (paper figure 5, A.6.8)?
//!
//! A response must make at least one case that can be checked; it is asked again until it does, a
//! limited number of times. A case is right if it is a term of the sequence. Copies of the examples
//! count: the analysis asks whether what the model believes is true.

use super::answers::{self, Answer, Exam};
use super::journal::Journal;
use super::problems;
use super::quadrants::Quadrants;
use crate::base::progress::Progress;
use crate::base::rng;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::engine::generator::Generator;
use crate::rewards::Reference;
use crate::rollout::attempts::{AttemptSettings, Task};
use crate::sandbox::Judge;
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
}

/// Keeps the draws of later tries apart from those of the first, which are GTG's.
const ASKED_AGAIN: u64 = 0x6167_6169;

/// Asks for `settings.num_samples` responses with cases to each problem, each at most `max_tries`
/// times. Problems need terms.
pub fn analyse(
    generator: &mut Generator<'_>,
    judge: &Judge,
    problems: &[Problem],
    settings: &AttemptSettings,
    max_tries: usize,
    mut journal: Option<&mut Journal>,
) -> Result<CaseAnalysis> {
    problems::check_with_terms(problems)?;
    let prompt = &GtgPrompt::bundled()?;
    let references: Vec<Reference> =
        problems.iter().map(problems::reference).collect::<Result<_>>()?;
    let mut tally =
        Tally { num_missing: vec![settings.num_samples; problems.len()], ..Tally::default() };
    for round in 0..max_tries {
        let tasks = tally.tasks(round, problems, settings);
        if tasks.is_empty() {
            break;
        }
        let num_asked = tasks.iter().map(|(_, task)| task.num_samples).sum();
        tally.num_asked.push(num_asked);
        let label = if round == 0 { "cases".to_owned() } else { format!("try {}", round + 1) };
        let progress = Progress::new(&label, num_asked as u64, "rollouts");
        let exam = Exam { generator: &mut *generator, judge, prompt, settings };
        let (answers, _) =
            answers::collect(exam, round, &tasks, &progress, journal.as_deref_mut())?;
        progress.finish();
        for (&(place, _), answers) in tasks.iter().zip(&answers) {
            tally.add(place, &references[place], answers);
        }
    }
    let Tally { mut quadrants, num_missing, num_asked, num_infra } = tally;
    quadrants.without_cases = num_missing.iter().sum();
    Ok(CaseAnalysis {
        quadrants,
        shares: quadrants.shares(),
        num_asked,
        num_infra,
        num_problems: problems.len(),
        num_rollouts: settings.num_samples,
        prompt_sha256: prompt.hash().to_owned(),
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
    /// What is asked in a round, with the problems' places.
    fn tasks<'a>(
        &self,
        round: usize,
        problems: &'a [Problem],
        settings: &AttemptSettings,
    ) -> Vec<(usize, Task<'a>)> {
        let task = |(place, (problem, &num_samples)): (usize, (&'a Problem, &usize))| {
            let first = settings.task(place, problem);
            let key = match round {
                0 => first.key,
                _ => rng::key(settings.key, &[place as u64, ASKED_AGAIN, round as u64]),
            };
            (place, Task { key, num_samples, ..first })
        };
        let all = problems.iter().zip(&self.num_missing).enumerate().map(task);
        all.filter(|(_, task)| task.num_samples > 0).collect()
    }

    fn add(&mut self, place: usize, reference: &Reference, answers: &[Answer]) {
        for answer in answers {
            let (num_cases, num_true) = reference.count_cases(&answer.parsed().cases, true);
            if num_cases == 0 {
                continue;
            }
            self.num_missing[place] -= 1;
            if answer.is_judged() {
                self.quadrants.add(num_cases, num_true, answer.passed());
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

    fn answer(thought: &str, verdict: VerdictKind) -> Answer {
        Answer { text: format!("{thought}\n```python\nx\n```"), num_tokens: 1, verdict }
    }

    #[test]
    fn only_responses_without_a_case_are_asked_again_with_other_draws() {
        let problems: Vec<Problem> = ["a", "b"]
            .map(|id| {
                let tests = serde_json::json!([{"input": 1, "output": 2}]);
                let problem =
                    serde_json::json!({"problem_id": id, "tests": tests, "terms": ["0", "2"]});
                serde_json::from_value(problem).unwrap()
            })
            .to_vec();
        let settings = AttemptSettings {
            num_samples: 3,
            temperature: 1.0,
            max_new_tokens: 1,
            max_sequences: 1,
            key: 5,
            ..AttemptSettings::default()
        };
        let mut tally = Tally { num_missing: vec![3, 3], ..Tally::default() };
        let first = tally.tasks(0, &problems, &settings);
        assert_eq!(first[1].1.key, settings.task(1, &problems[1]).key, "the first try is GTG's");

        let reference = problems::reference(&problems[0]).unwrap();
        let wrong = VerdictKind::Fail(Reason::WrongAnswer);
        let with_case = "case: 1 -> 2";
        let all = [with_case; 3].map(|thought| answer(thought, VerdictKind::Pass));
        tally.add(0, &reference, &all);
        let some = [("none", wrong), ("case: 1 -> 3", wrong), (with_case, VerdictKind::Infra)];
        tally.add(1, &reference, &some.map(|(thought, verdict)| answer(thought, verdict)));
        assert_eq!(tally.quadrants.cases_right_program_right, 3);
        assert_eq!(tally.quadrants.cases_wrong_program_wrong, 1);
        assert_eq!(tally.num_infra, 1);

        let second = tally.tasks(1, &problems, &settings);
        let places: Vec<(usize, usize)> =
            second.iter().map(|(place, task)| (*place, task.num_samples)).collect();
        assert_eq!(places, [(1, 1)]);
        let third = tally.tasks(2, &problems, &settings);
        assert!(second[0].1.key != first[1].1.key && second[0].1.key != third[0].1.key);
    }
}
