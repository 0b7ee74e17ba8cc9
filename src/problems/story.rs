//! Turns a pattern into a problem: telling, nouns, examples and tests.
//!
//! Examples and tests depend on the pattern alone; a telling changes only the words. The first
//! test is the term right after the second example, and no test input occurs in an example.

use super::family::Pattern;
use super::keys::stream;
use crate::data::columns::Columns;
use crate::data::problem::{Example, Problem};
use crate::sandbox::Case;
use num_bigint::BigInt;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::HashSet;

const NAMES: [&str; 12] =
    ["Mia", "Tom", "Ana", "Leo", "Eva", "Max", "Zoe", "Ben", "Ida", "Jon", "Liv", "Sam"];
const THINGS: [&str; 16] = [
    "coins", "stamps", "shells", "beads", "cards", "books", "apples", "pearls", "bricks", "seeds",
    "lamps", "flowers", "marbles", "tickets", "stones", "cups",
];
const UNITS: [&str; 5] = ["day", "week", "month", "year", "hour"];

/// The number of digits beyond which outputs are avoided where fewer tests suffice.
const LONG_DIGITS: usize = 12;

/// The problem inputs of the two examples and of the tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// Two consecutive inputs, for examples.
    pub examples: [i64; 2],
    /// Five to seven inputs after them, for tests.
    pub tests: Vec<i64>,
}

/// Chooses the inputs of `pattern`; `None` if its early terms say too little.
pub fn inputs(pattern: &Pattern, seed: u64) -> Option<Inputs> {
    let mut random = stream(seed, "inputs", &pattern.id(), 0);
    let informative = |i: usize| {
        let (first, second) = (&pattern.terms[i], &pattern.terms[i + 1]);
        let flat = pattern.terms[i + 1..i + 7].iter().collect::<HashSet<_>>().len() < 3;
        first != second && !flat
    };
    let usable: Vec<usize> = (0..4).filter(|&i| informative(i)).collect();
    let skip = match usable.choose(&mut random) {
        Some(&skip) => skip,
        None => (4..12).find(|&i| informative(i))?,
    };
    let first = pattern.family.start + skip as i64;
    let count = random.random_range(5..=7);
    let mut tests = vec![first + 2];
    let mut gap = 1;
    while tests.len() < count {
        let last = tests[tests.len() - 1];
        if tests.len() >= 4 {
            gap += 1;
        }
        let far = last + gap;
        tests.push(if digits(pattern.term(far)) > LONG_DIGITS { last + 1 } else { far });
    }
    Some(Inputs { examples: [first, first + 1], tests })
}

fn digits(value: &BigInt) -> usize {
    value.to_string().len()
}

/// Tells the problem of `pattern` in its `telling`-th wording; equal tellings give equal text.
pub fn problem(pattern: &Pattern, inputs: &Inputs, seed: u64, telling: u64) -> Problem {
    let mut random = stream(seed, "story", &pattern.id(), telling);
    let family = pattern.family;
    let story = family.stories[telling as usize % family.stories.len()];
    let name = pick(&NAMES, &mut random);
    let things = pick(&THINGS, &mut random);
    let unit = pick(&UNITS, &mut random);
    let description = pattern.fill(story, |key| match key {
        "name" => Some(name.to_owned()),
        "things" => Some(things.to_owned()),
        "unit" => Some(unit.to_owned()),
        _ => None,
    });
    let last = *inputs.tests.last().expect("there are tests");
    let known = (last - family.start + 1) as usize;
    Problem {
        problem_id: pattern.id(),
        description,
        input_requirement: format!("One integer n, at least {}.", family.start),
        output_requirement: "One integer, the answer.".to_owned(),
        examples: inputs
            .examples
            .iter()
            .map(|&n| Example {
                input: n.to_string(),
                output: pattern.term(n).to_string(),
                explanation: pattern.explanation(n),
            })
            .collect(),
        tests: inputs.tests.iter().map(|&n| case(pattern, n)).collect(),
        terms: pattern.terms[..known].iter().map(BigInt::to_string).collect(),
        offset: family.start,
        solvability: None,
        family: Some(family.name.to_owned()),
        columns: Columns::default(),
    }
}

fn case(pattern: &Pattern, n: i64) -> Case {
    Case { input: n.to_string(), output: pattern.term(n).to_string() }
}

fn pick(words: &[&'static str], random: &mut impl Rng) -> &'static str {
    words.choose(random).expect("word lists are not empty")
}
