//! Writes responses: self-made cases, attempts with the case that really failed, the solution.
//!
//! The grammar is that of the rewards' parser: `case: INPUT -> VALUE` lines, then rounds of
//! `attempt:`, unfenced code and `fails: INPUT -> GOT, expected VALUE. REASON`, all inside
//! `<think>`, then one python block.

use super::attempt::Attempt;
use super::family::Pattern;
use super::story::Inputs;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};

/// An attempt with a case on which the judge saw it fail.
#[derive(Debug, Clone)]
pub struct Failure {
    pub attempt: Attempt,
    /// The input on which it failed.
    pub input: i64,
    /// The output of the program there.
    pub got: String,
}

/// The distance from the first term within which self-made cases lie.
const CASE_REACH: i64 = 6;

/// Chooses two or three small inputs that the examples do not use, in ascending order.
pub fn own_cases(pattern: &Pattern, inputs: &Inputs, random: &mut impl Rng) -> Vec<i64> {
    let start = pattern.family.start;
    let small: Vec<i64> =
        (start..start + CASE_REACH).filter(|n| !inputs.examples.contains(n)).collect();
    let count = random.random_range(2..=3);
    let mut cases: Vec<i64> = small.choose_multiple(random, count).copied().collect();
    cases.sort_unstable();
    cases
}

/// Chooses `rounds` of the failures and their order.
pub fn choose_failures<'a>(
    failures: &'a [Failure],
    rounds: usize,
    random: &mut impl Rng,
) -> Vec<&'a Failure> {
    let mut order: Vec<&Failure> = failures.iter().collect();
    order.shuffle(random);
    order.truncate(rounds);
    order
}

/// Writes the whole response.
pub fn response(pattern: &Pattern, cases: &[i64], failures: &[&Failure]) -> String {
    let mut text = String::from("<think>\n");
    for &n in cases {
        text.push_str(&format!("case: {n} -> {}\n", pattern.term(n)));
    }
    for failure in failures {
        text.push_str(&format!("attempt:\n{}\n", failure.attempt.code));
        text.push_str(&fails_line(pattern, failure));
        text.push('\n');
    }
    text.push_str("</think>\n");
    text.push_str(&fenced(&pattern.family.solution(pattern.numbers)));
    text
}

/// Writes the line that says where and why an attempt fails.
pub fn fails_line(pattern: &Pattern, failure: &Failure) -> String {
    let Failure { attempt, input, got } = failure;
    format!("fails: {input} -> {got}, expected {}. {}", pattern.term(*input), attempt.reason)
}

/// Writes a python block.
pub fn fenced(code: &str) -> String {
    format!("```python\n{code}\n```")
}
