//! Solvability: which share of a model's rollouts solves a problem, and which problems that selects.
//!
//! Paper section 3, step 8 and formula 1: of N rollouts N_p pass all tests, Sov = N_p / N; with
//! N = 32 problems with 1 to 15 are kept. A rollout that the judge failed on counts in neither.

use super::score::{Evaluation, ProblemScore};
use crate::data::problem::Problem;
use crate::rollout::attempt::Answer;
use std::ops::RangeInclusive;

/// The problems that are kept and what Table 1 of the paper says of them.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The kept problems, in input order, with their solvability.
    pub kept: Vec<Problem>,
    /// Problems by how often they were solved.
    pub counts: Counts,
    /// Tokens of the longest response to a kept problem.
    pub longest_response: usize,
}

/// Where problems lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Solved less often than the range.
    pub below: usize,
    /// Within the range, kept or not.
    pub within: usize,
    /// Solved more often than the range.
    pub above: usize,
    /// The judge failed on every rollout.
    pub unknown: usize,
}

impl Selection {
    /// Keeps the first `most` problems that `passed` of `rollouts` rollouts solve.
    pub fn new(
        problems: &[Problem],
        evaluation: &Evaluation,
        passed: &RangeInclusive<usize>,
        rollouts: usize,
        most: usize,
    ) -> Self {
        let mut selection =
            Self { kept: Vec::new(), counts: Counts::default(), longest_response: 0 };
        let results = evaluation.score.problems.iter().zip(&evaluation.answers);
        for (problem, (score, answers)) in problems.iter().zip(results) {
            if selection.counts.add(score, passed, rollouts) && selection.kept.len() < most {
                selection.keep(problem, score, answers);
            }
        }
        selection
    }

    fn keep(&mut self, problem: &Problem, score: &ProblemScore, answers: &[Answer]) {
        let solvability = Some(score.pass_rate());
        let longest = answers.iter().map(|answer| answer.num_tokens).max().unwrap_or(0);
        self.longest_response = self.longest_response.max(longest);
        self.kept.push(Problem { solvability, ..problem.clone() });
    }

    /// Least, largest and mean solvability of what was kept; `None` if nothing was.
    pub fn solvability(&self) -> Option<[f64; 3]> {
        let shares: Vec<f64> = self.kept.iter().filter_map(|p| p.solvability).collect();
        let min = shares.iter().copied().reduce(f64::min)?;
        let max = shares.iter().copied().reduce(f64::max)?;
        Some([min, max, shares.iter().sum::<f64>() / shares.len() as f64])
    }
}

impl Counts {
    /// Counts a problem; says whether it lies within. Where the judge failed on some rollouts, the
    /// share of the others decides.
    fn add(
        &mut self,
        score: &ProblemScore,
        passed: &RangeInclusive<usize>,
        rollouts: usize,
    ) -> bool {
        let scaled = score.num_passed * rollouts;
        let is_below = scaled < passed.start() * score.num_judged;
        let is_above = scaled > passed.end() * score.num_judged;
        let count = match score.num_judged {
            0 => &mut self.unknown,
            _ if is_below => &mut self.below,
            _ if is_above => &mut self.above,
            _ => &mut self.within,
        };
        *count += 1;
        score.num_judged > 0 && !is_below && !is_above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(counts: &mut Counts, num_passed: usize, num_judged: usize) -> bool {
        let score =
            ProblemScore { problem_id: String::new(), num_passed, num_judged, credit: None };
        counts.add(&score, &(1..=15), 32)
    }

    #[test]
    fn the_papers_range_keeps_1_to_15_of_32() {
        let mut counts = Counts::default();
        let kept: Vec<usize> = (0..=32).filter(|&n| count(&mut counts, n, 32)).collect();
        assert_eq!(kept, (1..=15).collect::<Vec<_>>());
        assert_eq!(counts, Counts { below: 1, within: 15, above: 17, unknown: 0 });
    }

    #[test]
    fn rollouts_without_a_verdict_do_not_make_a_problem_harder() {
        let mut counts = Counts::default();
        assert!(count(&mut counts, 7, 16));
        assert!(!count(&mut counts, 8, 16), "half of those judged is more than 15 of 32");
        assert!(!count(&mut counts, 0, 16) && !count(&mut counts, 0, 0));
        assert_eq!(counts, Counts { below: 1, within: 1, above: 1, unknown: 1 });
    }
}
