//! Pairs of a passed and a failed response to one problem, out of responses that were judged before.
//!
//! Contract: a response is in one pair at most, and the pairs of a problem whose lengths differ least are taken,
//! so that an answer is not preferred for its length. Equal responses count once. A response on which the judge
//! failed is in no pair. Equal responses and rules give equal pairs.

use crate::sandbox::{Verdict, VerdictKind};
use crate::tasks::FormatError;
use serde::Deserialize;
use std::collections::HashSet;

/// A response with its grade, as samples of a run and responses of an evaluation have it.
#[derive(Debug, Clone, Deserialize)]
pub struct JudgedResponse {
    pub problem_id: String,
    pub response: String,
    pub num_tokens: usize,
    verdict: Verdict,
    #[serde(default)]
    format_error: Option<FormatError>,
}

impl JudgedResponse {
    /// Whether it keeps the format and passes; none where the judge failed.
    fn passed(&self) -> Option<bool> {
        match self.verdict.kind {
            VerdictKind::Infra => None,
            kind => Some(self.format_error.is_none() && kind == VerdictKind::Pass),
        }
    }
}

/// Which pairs are taken.
#[derive(Debug, Clone, Copy)]
pub struct PairRule {
    /// Most pairs of one problem.
    pub per_problem: usize,
    /// Most tokens of a response.
    pub max_tokens: usize,
    /// The longer response has at most this many times the tokens of the shorter.
    pub max_length_ratio: f64,
}

/// A passed and a failed response.
#[derive(Debug, Clone, Copy)]
pub struct ResponsePair<'r> {
    pub chosen: &'r JudgedResponse,
    pub rejected: &'r JudgedResponse,
}

impl ResponsePair<'_> {
    /// Tokens of the longer response over those of the shorter.
    pub fn length_ratio(&self) -> f64 {
        let [a, b] = [self.chosen, self.rejected].map(|response| response.num_tokens.max(1));
        a.max(b) as f64 / a.min(b) as f64
    }
}

impl PairRule {
    /// The pairs of responses to one problem, those of the most equal lengths first.
    pub fn pairs<'r>(&self, responses: &[&'r JudgedResponse]) -> Vec<ResponsePair<'r>> {
        let mut seen = HashSet::new();
        let kept = responses.iter().copied().filter(|response| {
            response.num_tokens <= self.max_tokens && seen.insert(response.response.as_str())
        });
        let (passed, others): (Vec<_>, Vec<_>) =
            kept.partition(|response| response.passed() == Some(true));
        let failed = others.into_iter().filter(|response| response.passed() == Some(false));
        let failed: Vec<_> = failed.collect();
        let mut candidates: Vec<ResponsePair<'r>> = passed
            .iter()
            .flat_map(|&chosen| {
                failed.iter().map(move |&rejected| ResponsePair { chosen, rejected })
            })
            .filter(|pair| pair.length_ratio() <= self.max_length_ratio)
            .collect();
        candidates.sort_by(|a, b| a.length_ratio().total_cmp(&b.length_ratio()));
        let mut taken = HashSet::new();
        candidates.retain(|ResponsePair { chosen, rejected }| {
            let texts = [chosen, rejected].map(|response| response.response.as_str());
            let is_free = texts.iter().all(|text| !taken.contains(text));
            if is_free {
                taken.extend(texts);
            }
            is_free
        });
        candidates.truncate(self.per_problem);
        candidates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Reason;
    use crate::tasks::tests::graded;

    const ANY: PairRule =
        PairRule { per_problem: 9, max_tokens: usize::MAX, max_length_ratio: f64::INFINITY };
    const PASS: VerdictKind = VerdictKind::Pass;
    const FAIL: VerdictKind = VerdictKind::Fail(Reason::WrongAnswer);

    fn response(text: &str, num_tokens: usize, kind: VerdictKind) -> JudgedResponse {
        JudgedResponse {
            problem_id: "p".to_owned(),
            response: text.to_owned(),
            num_tokens,
            verdict: graded(kind, &[]).verdict,
            format_error: None,
        }
    }

    fn pairs(rule: PairRule, responses: &[JudgedResponse]) -> Vec<(&str, &str)> {
        let pairs = rule.pairs(&responses.iter().collect::<Vec<_>>()).into_iter();
        pairs.map(|pair| (&*pair.chosen.response, &*pair.rejected.response)).collect()
    }

    #[test]
    fn each_response_is_in_one_pair_and_those_of_equal_length_come_first() {
        let responses = [
            response("a", 10, PASS),
            response("b", 40, PASS),
            response("c", 44, FAIL),
            response("d", 30, FAIL),
            response("e", 31, FAIL),
        ];
        assert_eq!(pairs(ANY, &responses), [("b", "c"), ("a", "d")]);
        assert_eq!(pairs(PairRule { per_problem: 1, ..ANY }, &responses), [("b", "c")]);
        assert_eq!(pairs(PairRule { max_length_ratio: 2.0, ..ANY }, &responses), [("b", "c")]);
        assert_eq!(pairs(PairRule { max_tokens: 39, ..ANY }, &responses), [("a", "d")]);
    }

    #[test]
    fn equal_responses_count_once_and_those_without_a_verdict_never() {
        let infra = response("c", 5, VerdictKind::Infra);
        let same = [response("a", 5, PASS), response("a", 5, PASS), response("b", 5, FAIL), infra];
        assert_eq!(pairs(ANY, &same), [("a", "b")]);
        assert!(pairs(ANY, &same[..2]).is_empty());
    }

    #[test]
    fn a_response_in_the_wrong_format_has_failed_whatever_its_program_does() {
        let mut wrong = response("b", 5, PASS);
        wrong.format_error = Some(FormatError::UnclosedThink);
        assert_eq!(pairs(ANY, &[response("a", 5, PASS), wrong]), [("a", "b")]);
    }

    #[test]
    fn samples_of_a_run_are_read_whatever_else_they_say() {
        let verdict = serde_json::to_string(&graded(PASS, &[]).verdict).unwrap();
        let line = format!(
            r#"{{"problem_id": "p", "sample": 0, "response": "r", "num_tokens": 3, "token_ids": [1],
                "verdict": {verdict}, "reward": null}}"#
        );
        let read: JudgedResponse = serde_json::from_str(&line).unwrap();
        assert_eq!(read.passed(), Some(true));
    }
}
