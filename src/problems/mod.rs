//! Procedural CodeSeq: number-sequence problems and reflection samples without network or model.
//!
//! Contract: equal [`Config`] and equal verdicts give equal bytes, on any number of threads. The
//! judge is a closure here ([`Run`]), so tests need no sandbox. Left out: telling
//! stories by a model, and estimating solvability, which needs one.

pub mod attempt;
pub mod card;
pub mod families;
pub mod family;
mod keys;
pub mod pretrain;
pub mod reflect;
pub mod split;
pub mod story;
mod template;

use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::data::sample::{Message, Sample};
pub use crate::sandbox::Program;
use anyhow::{Result, ensure};
use attempt::attempts;
use family::Pattern;
use keys::stream;
use rand::Rng;
use rand::seq::SliceRandom;
use reflect::Failure;
use split::{Splits, Wanted};
use story::Inputs;

/// Runs programs. For each program and input it returns what the program printed, trimmed, or `None` if it
/// failed.
pub type Run<'a> = dyn FnMut(&[Program]) -> Result<Vec<Vec<Option<String>>>> + 'a;

/// The sizes of the data set to generate.
#[derive(Debug, Clone)]
pub struct Config {
    /// The seed determines the whole data set.
    pub seed: u64,
    /// The number of SFT samples.
    pub sft: usize,
    /// The number of patterns that the SFT samples share.
    pub sft_patterns: usize,
    /// The number of RL problems.
    pub rl: usize,
    /// The number of test problems of known families.
    pub test: usize,
    /// The number of test problems of unseen families.
    pub unseen: usize,
    /// The number of samples for the starting checkpoint.
    pub pretrain: usize,
    /// The weights of 0, 1, 2, ... reflection rounds.
    pub rounds: Vec<u32>,
}

impl Config {
    /// The paper's Table 13: SFT samples with 0 to 5 reflection rounds.
    pub const PAPER_ROUNDS: [u32; 6] = [1045, 1151, 742, 630, 1110, 819];

    /// Returns the number of patterns for `sft` samples, in the ratio of the paper's Table 1: 1,271 for 5,487.
    pub fn paper_patterns(sft: usize) -> usize {
        (sft * 1271).div_ceil(5487)
    }
}

/// A generated data set.
pub struct Dataset {
    /// Conversations with reflection.
    pub sft: Vec<Sample>,
    /// Problems to reinforce on.
    pub rl: Vec<Problem>,
    /// Held-out problems of known families.
    pub test: Vec<Problem>,
    /// Held-out problems of unseen families.
    pub test_unseen: Vec<Problem>,
    /// The corpus of the starting checkpoint: problems and responses, never together, and drills.
    pub pretrain: Vec<Sample>,
    /// The card says what the data set holds.
    pub card: card::Card,
}

/// A pattern with its inputs and the wrong programs that the judge saw fail.
pub struct Judged<'p, 'f> {
    pub pattern: &'p Pattern<'f>,
    /// The inputs of its examples and tests.
    pub inputs: Inputs,
    /// The attempts that failed, each with a failing case.
    pub failures: Vec<Failure>,
}

/// Generates a data set. `run` is the judge.
pub fn generate(config: &Config, prompt: &GtgPrompt, run: &mut Run) -> Result<Dataset> {
    let families = families::all();
    let wanted = Wanted {
        sft: config.sft_patterns.min(config.sft),
        rl: config.rl,
        test: config.test,
        unseen: config.unseen,
    };
    let splits = split::split(&families, wanted, config.seed)?;
    let judged = judge(&splits.sft, config.seed, run)?;
    let sft = sft_samples(config, &judged, prompt)?;
    let mut problems = |patterns: &[Pattern]| problems(patterns, config.seed, run);
    let rl = problems(&splits.rl)?;
    let test = problems(&splits.test)?;
    let test_unseen = problems(&splits.unseen)?;
    let pretrain = pretrain::samples(config, &splits.rest, prompt, run)?;
    let card = card::Card::new(config, &families, &splits, &sft, &pretrain, prompt);
    Ok(Dataset { sft, rl, test, test_unseen, pretrain, card })
}

fn inputs_of(pattern: &Pattern, seed: u64) -> Inputs {
    story::inputs(pattern, seed).expect("splits hold usable patterns only")
}

/// Tells a problem for each of `patterns`; the judge checks its solution.
fn problems(patterns: &[Pattern], seed: u64, run: &mut Run) -> Result<Vec<Problem>> {
    let mut made = Vec::with_capacity(patterns.len());
    let mut programs = Vec::with_capacity(patterns.len());
    for pattern in patterns {
        let inputs = inputs_of(pattern, seed);
        let tellings = pattern.family.stories.len() as u64;
        let telling = stream(seed, "telling", &pattern.id(), 0).random_range(0..tellings);
        let code = pattern.family.solution(pattern.numbers);
        programs.push(Program { code, inputs: texts(&inputs.tests) });
        made.push(story::problem(pattern, &inputs, seed, telling));
    }
    for (problem, outputs) in made.iter().zip(run(&programs)?) {
        let right = outputs.len() == problem.tests.len()
            && problem.tests.iter().zip(&outputs).all(|(t, o)| o.as_ref() == Some(&t.output));
        ensure!(right, "the solution of {} printed {outputs:?}", problem.problem_id);
    }
    Ok(made)
}

fn texts(inputs: &[i64]) -> Vec<String> {
    inputs.iter().map(i64::to_string).collect()
}

/// Runs the solution and the attempts of every pattern on its tests; keeps attempts that fail
/// with a number.
pub fn judge<'p, 'f>(
    patterns: &'p [Pattern<'f>],
    seed: u64,
    run: &mut Run,
) -> Result<Vec<Judged<'p, 'f>>> {
    let mut judged = Vec::with_capacity(patterns.len());
    let mut programs = Vec::new();
    let mut tried = Vec::with_capacity(patterns.len());
    for pattern in patterns {
        let inputs = inputs_of(pattern, seed);
        let tests = texts(&inputs.tests);
        let attempts = attempts(pattern);
        let solution = pattern.family.solution(pattern.numbers);
        let codes = std::iter::once(solution).chain(attempts.iter().map(|a| a.code.clone()));
        programs.extend(codes.map(|code| Program { code, inputs: tests.clone() }));
        tried.push(attempts);
        judged.push(Judged { pattern, inputs, failures: Vec::new() });
    }
    let mut outputs = run(&programs)?.into_iter();
    for (judged, attempts) in judged.iter_mut().zip(tried) {
        let tests = &judged.inputs.tests;
        let solved = outputs.next().unwrap_or_default();
        let right = tests
            .iter()
            .zip(&solved)
            .all(|(&n, output)| output.as_ref() == Some(&judged.pattern.term(n).to_string()));
        ensure!(right, "the solution of {} printed {solved:?}", judged.pattern.id());
        for attempt in attempts {
            let outputs = outputs.next().unwrap_or_default();
            let failing = tests.iter().zip(outputs).find_map(|(&input, output)| {
                let got = output?;
                let wrong = got != judged.pattern.term(input).to_string();
                (wrong && is_short_integer(&got)).then_some((input, got))
            });
            if let Some((input, got)) = failing {
                judged.failures.push(Failure { attempt, input, got });
            }
        }
    }
    Ok(judged)
}

fn is_short_integer(text: &str) -> bool {
    const LONGEST: usize = 16;
    text.len() <= LONGEST && text.parse::<i64>().is_ok()
}

fn sft_samples(config: &Config, judged: &[Judged], prompt: &GtgPrompt) -> Result<Vec<Sample>> {
    let most: Vec<usize> =
        (0..config.sft).map(|i| judged[i % judged.len()].failures.len()).collect();
    let rounds = assign_rounds(&config.rounds, &most, config.seed);
    let mut samples = Vec::with_capacity(config.sft);
    for (i, &rounds) in rounds.iter().enumerate() {
        let Judged { pattern, inputs, failures } = &judged[i % judged.len()];
        let repeat = (i / judged.len()) as u64;
        let problem = story::problem(pattern, inputs, config.seed, repeat);
        let mut random = stream(config.seed, "response", &pattern.id(), repeat);
        let cases = reflect::own_cases(pattern, inputs, &mut random);
        let failures = reflect::choose_failures(failures, rounds, &mut random);
        let response = reflect::response(pattern, &cases, &failures);
        samples.push(Sample {
            id: None,
            messages: turns(prompt.render(&problem)?, response),
            source: Some("procedural".to_owned()),
            problem_id: Some(problem.problem_id),
            rounds: Some(rounds as u32),
        });
    }
    samples.shuffle(&mut stream(config.seed, "order", "sft", 0));
    Ok(samples)
}

/// Makes a conversation of a user's turn and its answer.
fn turns(user: String, assistant: String) -> Vec<Message> {
    [("user", user), ("assistant", assistant)]
        .map(|(role, content)| Message::new(role, content))
        .to_vec()
}

/// Chooses the rounds of each sample. All together follow `weights`; none has more than `most` allows.
fn assign_rounds(weights: &[u32], most: &[usize], seed: u64) -> Vec<usize> {
    let quotas = quotas(weights, most.len());
    let mut order: Vec<usize> = (0..most.len()).collect();
    order.shuffle(&mut stream(seed, "rounds", "sft", 0));
    let mut rounds = vec![0; most.len()];
    let mut left = 0;
    for (round, quota) in quotas.iter().enumerate().skip(1).rev() {
        left += quota;
        order.retain(|&i| {
            let take = left > 0 && most[i] >= round;
            if take {
                rounds[i] = round;
                left -= 1;
            }
            !take
        });
    }
    rounds
}

/// Divides `total` in proportion to `weights`, by largest remainder.
fn quotas(weights: &[u32], total: usize) -> Vec<usize> {
    let sum: u64 = weights.iter().map(|&w| u64::from(w)).sum();
    let share = |w: u32| u64::from(w) * total as u64;
    let mut quotas: Vec<usize> = weights.iter().map(|&w| (share(w) / sum) as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(share(weights[i]) % sum));
    let missing = total - quotas.iter().sum::<usize>();
    for &i in order.iter().take(missing) {
        quotas[i] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_follow_the_weights_exactly_where_attempts_allow() {
        let most = vec![9; 5497];
        let rounds = assign_rounds(&Config::PAPER_ROUNDS, &most, 1);
        let count = |r| rounds.iter().filter(|&&x| x == r).count() as u32;
        assert_eq!([0, 1, 2, 3, 4, 5].map(count), Config::PAPER_ROUNDS);
    }

    #[test]
    fn no_sample_gets_more_rounds_than_it_has_failures() {
        let most: Vec<usize> = (0..100).map(|i| i % 4).collect();
        let rounds = assign_rounds(&[1, 1, 1, 1, 1, 1], &most, 1);
        assert!(rounds.iter().zip(&most).all(|(r, m)| r <= m));
        assert_eq!(rounds.iter().filter(|&&r| r == 3).count(), 25);
    }

    #[test]
    fn quotas_sum_to_the_total() {
        assert_eq!(quotas(&[1, 1, 1], 10), [4, 3, 3]);
        assert_eq!(quotas(&[0, 5], 7), [0, 7]);
    }
}
