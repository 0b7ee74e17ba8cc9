//! The function that computes each kind of reward.
//!
//! A rule is a function from a grade and a response to named parts. To add one, add a variant to
//! `RewardKind`, a line to `rule`, and the function.

use super::config::{RewardConfig, RewardKind};
use super::cssr;
use super::reward::{Response, Reward};
use crate::tasks::Grade;

type Rule = fn(&RewardConfig, &Grade, &Response<'_>) -> Reward;

fn rule(kind: RewardKind) -> Rule {
    match kind {
        RewardKind::Cssr => cssr::with_both_terms,
        RewardKind::CssrWithoutSolvability => cssr::without_solvability,
        RewardKind::CssrWithoutCases => cssr::without_cases,
        RewardKind::NoLog => cssr::without_logarithm,
        RewardKind::Binary => binary,
        RewardKind::TestShare => test_share,
        RewardKind::PassRate => cssr::pass_rate,
        RewardKind::PassRateLiteral => cssr::literal_pass_rate,
    }
}

impl RewardConfig {
    /// Returns the reward of a response; `None` where the grade has no verdict. A wrong format needs no
    /// verdict.
    pub fn reward(&self, grade: &Grade, response: &Response<'_>) -> Option<Reward> {
        if grade.format_ok() && !grade.is_judged() {
            return None;
        }
        let (num_cases, num_true_cases) = grade.count_own_cases(self.count_example_copies);
        let reward = rule(self.kind)(self, grade, response);
        let reward = reward.fact("num_cases", num_cases as f64);
        Some(reward.fact("num_true_cases", num_true_cases as f64))
    }
}

/// Returns 1 for a pass, otherwise 0.
fn binary(_: &RewardConfig, grade: &Grade, _: &Response<'_>) -> Reward {
    Reward::default().part("pass_term", f64::from(u8::from(grade.passed())))
}

fn test_share(_: &RewardConfig, grade: &Grade, _: &Response<'_>) -> Reward {
    Reward::of_format(grade).part("test_share", grade.share_passed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{CaseVerdict, Reason, Verdict, VerdictKind};
    use crate::tasks::{FormatError, OwnCase};

    const PASS: VerdictKind = VerdictKind::Pass;
    const FAIL: VerdictKind = VerdictKind::Fail(Reason::WrongAnswer);

    /// Two own cases count, one true and one false; a copy of an example does not.
    fn grade(format_error: Option<FormatError>, kind: VerdictKind) -> Grade {
        let case = |is_true, is_copy| OwnCase { is_true, is_copy };
        let own_cases = vec![case(true, false), case(false, false), case(true, true)];
        let verdict =
            Verdict { kind, cases: Vec::new(), cpu_ms: 0.0, failure: None, near_limit: false };
        Grade { format_error, verdict, own_cases, credit: None }
    }

    /// Returns the reward on a problem for which solvability 0.24 + eps 0.01 is 1/4.
    fn reward(config: RewardConfig, grade: &Grade) -> Option<Reward> {
        let response = Response { text: "", num_tokens: 0, solvability: Some(0.24) };
        config.reward(grade, &response)
    }

    fn of_kind(kind: RewardKind) -> RewardConfig {
        RewardConfig { kind, ..RewardConfig::default() }
    }

    #[test]
    fn every_reward_is_as_the_paper_says() {
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
            for (grade, expected) in [
                (grade(None, PASS), passed),
                (grade(None, FAIL), failed),
                (grade(Some(FormatError::NoCode), FAIL), misformed),
            ] {
                let total = reward(of_kind(kind), &grade).unwrap().total;
                assert!((total - expected).abs() < 1e-12, "{kind:?} {grade:?}: {total}");
            }
        }
    }

    #[test]
    fn the_share_of_tests_counts_each_of_them() {
        let mut some = grade(None, FAIL);
        let case = |kind| CaseVerdict { input: String::new(), kind, output: None, cpu_ms: 0.0 };
        some.verdict.cases = [PASS, FAIL, PASS, PASS].map(case).to_vec();
        assert_eq!(reward(of_kind(RewardKind::TestShare), &some).unwrap().total, 0.75);
        let misformed = grade(Some(FormatError::NoCode), FAIL);
        assert_eq!(reward(of_kind(RewardKind::TestShare), &misformed).unwrap().total, -1.0);
    }

    #[test]
    fn no_verdict_gives_no_reward_but_a_wrong_format_needs_none() {
        let cssr = RewardConfig::default();
        assert_eq!(reward(cssr, &grade(None, VerdictKind::Infra)), None);
        let misformed = grade(Some(FormatError::NoCode), VerdictKind::Infra);
        assert_eq!(reward(cssr, &misformed).unwrap().total, -1.0);
    }

    #[test]
    fn own_cases_are_counted_also_where_they_earn_nothing() {
        let config = RewardConfig { count_example_copies: true, ..RewardConfig::default() };
        let failed = reward(config, &grade(None, FAIL)).unwrap();
        assert_eq!((failed.facts["num_cases"], failed.facts["num_true_cases"]), (3.0, 2.0));
        assert_eq!(failed.parts["case_term"], 0.0);
        let none = Grade { own_cases: Vec::new(), ..grade(None, PASS) };
        let passed = reward(config, &none).unwrap();
        assert_eq!((passed.facts["num_cases"], passed.parts["case_term"]), (0.0, 0.0));
    }
}
