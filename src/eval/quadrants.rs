//! Case analysis: are a response's own cases right, and is its program (figure 5 of the paper)?

use serde::{Deserialize, Serialize};

/// Responses with at least one case, by whether all their cases and their program are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Quadrants {
    /// Cases right, program right ('C-C').
    pub cases_right_program_right: usize,
    /// Cases right, program wrong ('C-F').
    pub cases_right_program_wrong: usize,
    /// Some case wrong, program right ('No-C').
    pub cases_wrong_program_right: usize,
    /// Some case wrong, program wrong ('No-F').
    pub cases_wrong_program_wrong: usize,
    /// Responses without a case that counts; in no quadrant.
    pub without_cases: usize,
}

impl Quadrants {
    /// Counts one response.
    pub fn add(&mut self, num_cases: usize, num_true_cases: usize, passed: bool) {
        let count = match (num_cases, num_true_cases == num_cases, passed) {
            (0, _, _) => &mut self.without_cases,
            (_, true, true) => &mut self.cases_right_program_right,
            (_, true, false) => &mut self.cases_right_program_wrong,
            (_, false, true) => &mut self.cases_wrong_program_right,
            (_, false, false) => &mut self.cases_wrong_program_wrong,
        };
        *count += 1;
    }

    /// The shares C-C, C-F, No-C, No-F; `None` if no response has a case.
    pub fn shares(&self) -> Option<[f64; 4]> {
        let counts = [
            self.cases_right_program_right,
            self.cases_right_program_wrong,
            self.cases_wrong_program_right,
            self.cases_wrong_program_wrong,
        ];
        let all: usize = counts.iter().sum();
        (all > 0).then(|| counts.map(|count| count as f64 / all as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_case_makes_the_cases_wrong_and_none_makes_no_share() {
        let mut quadrants = Quadrants::default();
        assert_eq!(quadrants.shares(), None);
        for (cases, right, passed) in
            [(2, 2, true), (2, 2, true), (1, 1, false), (3, 2, false), (0, 0, true)]
        {
            quadrants.add(cases, right, passed);
        }
        assert_eq!(quadrants.shares(), Some([0.5, 0.25, 0.0, 0.25]));
        assert_eq!(quadrants.without_cases, 1);
    }
}
