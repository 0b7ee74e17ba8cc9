//! The corpus of the starting checkpoint: parts of the task, never a problem with its response.
//!
//! Problem texts alone, responses alone, and drills (reading numbers out of a text, putting
//! numbers into a program, evaluating, making cases of a program, continuing, repairing a program
//! from a failing case). All patterns are foreign to SFT, RL and tests.

use super::family::Pattern;
use super::keys::stream;
use super::reflect::{self, Failure};
use super::{Config, Judged, Run, inputs_of, judge, story, turns};
use crate::base::error::usage;
use crate::base::rng::Stream;
use crate::data::prompt::GtgPrompt;
use crate::data::sample::Sample;
use anyhow::Result;
use rand::Rng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::seq::IndexedRandom;

/// The attempts of at most this many patterns are judged, for responses and repairs.
const MOST_JUDGED: usize = 1500;

/// There is one judged pattern for this many samples.
const SAMPLES_PER_JUDGED: usize = 4;

/// The kind of thing that a sample shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Problem,
    Response,
    ReadNumbers,
    FillIn,
    Evaluate,
    Cases,
    Continue,
    Repair,
}

impl Kind {
    /// Every kind, with its share in per cent.
    const SHARES: [(Self, u32); 8] = [
        (Self::Problem, 25),
        (Self::Response, 30),
        (Self::ReadNumbers, 8),
        (Self::FillIn, 10),
        (Self::Evaluate, 7),
        (Self::Cases, 8),
        (Self::Continue, 5),
        (Self::Repair, 7),
    ];

    fn source(self) -> &'static str {
        match self {
            Self::Problem => "pretrain-problem",
            Self::Response => "pretrain-response",
            Self::ReadNumbers => "pretrain-read-numbers",
            Self::FillIn => "pretrain-fill-in",
            Self::Evaluate => "pretrain-evaluate",
            Self::Cases => "pretrain-cases",
            Self::Continue => "pretrain-continue",
            Self::Repair => "pretrain-repair",
        }
    }
}

/// Makes the corpus of patterns that no other split has.
pub fn samples(
    config: &Config,
    patterns: &[Pattern],
    prompt: &GtgPrompt,
    run: &mut Run,
) -> Result<Vec<Sample>> {
    if config.pretrain == 0 {
        return Ok(Vec::new());
    }
    if patterns.is_empty() {
        return Err(usage("no patterns are left for pretraining: lower --sft-patterns or --rl"));
    }
    let most = config.pretrain.div_ceil(SAMPLES_PER_JUDGED).min(MOST_JUDGED);
    let judged = judge(&patterns[..patterns.len().min(most)], config.seed, run)?;
    let shares =
        WeightedIndex::new(Kind::SHARES.map(|(_, share)| share)).expect("the shares are positive");
    let mut samples = Vec::with_capacity(config.pretrain);
    for i in 0..config.pretrain {
        let mut random = stream(config.seed, "pretrain", "", i as u64);
        let kind = Kind::SHARES[shares.sample(&mut random)].0;
        let (cue, answer) = match kind {
            Kind::Response | Kind::Repair => {
                let judged = judged.choose(&mut random).expect("there are patterns");
                match (kind, judged.failures.choose(&mut random)) {
                    (Kind::Repair, Some(failure)) => repair(judged.pattern, failure),
                    _ => response(config, judged, &mut random),
                }
            }
            _ => {
                let pattern = patterns.choose(&mut random).expect("there are patterns");
                without_judge(kind, config, pattern, prompt, &mut random)?
            }
        };
        samples.push(Sample {
            id: None,
            messages: turns(cue, answer),
            source: Some(kind.source().to_owned()),
            problem_id: None,
            rounds: None,
        });
    }
    Ok(samples)
}

fn response(config: &Config, judged: &Judged, random: &mut Stream) -> (String, String) {
    let Judged { pattern, inputs, failures } = judged;
    let weights = WeightedIndex::new(&config.rounds).expect("checked on the command line");
    let rounds = weights.sample(random);
    let cases = reflect::own_cases(pattern, inputs, random);
    let failures = reflect::choose_failures(failures, rounds, random);
    let answer = reflect::response(pattern, &cases, &failures);
    ("Write a program with its reasoning.".to_owned(), answer)
}

fn repair(pattern: &Pattern, failure: &Failure) -> (String, String) {
    let fails = reflect::fails_line(pattern, failure);
    let cue = format!("Repair this program.\n{}\n{fails}", failure.attempt.code);
    (cue, reflect::fenced(&pattern.family.solution(pattern.numbers)))
}

fn without_judge(
    kind: Kind,
    config: &Config,
    pattern: &Pattern,
    prompt: &GtgPrompt,
    random: &mut Stream,
) -> Result<(String, String)> {
    let family = pattern.family;
    let solution = family.solution(pattern.numbers);
    let inputs = inputs_of(pattern, config.seed);
    let problem = story::problem(pattern, &inputs, config.seed, random.random_range(0..12));
    Ok(match kind {
        Kind::Problem => ("Write a problem.".to_owned(), prompt.render(&problem)?),
        Kind::ReadNumbers => {
            let cue = format!("Which numbers does this text tell?\n{}", problem.description);
            (cue, integers(&problem.description).join(", "))
        }
        Kind::FillIn => {
            let names = ["A", "B", "C", "D"];
            let given: Vec<String> = pattern
                .values()
                .iter()
                .zip(names)
                .map(|(value, name)| format!("{name} = {value}"))
                .collect();
            let open = names.iter().fold(family.body().to_owned(), |body, name| {
                body.replace(&format!("{{{}", name.to_lowercase()), &format!("{{{name}"))
            });
            let open = open.replace(['{', '}'], "");
            (format!("Put in {}.\n{open}", given.join(", ")), solution)
        }
        Kind::Evaluate => {
            let n = family.start + random.random_range(0..8);
            (format!("What does this print for {n}?\n{solution}"), pattern.term(n).to_string())
        }
        Kind::Cases => {
            let cases: Vec<String> = reflect::own_cases(pattern, &inputs, random)
                .iter()
                .map(|&n| format!("case: {n} -> {}", pattern.term(n)))
                .collect();
            (format!("Make cases of this program.\n{solution}"), cases.join("\n"))
        }
        Kind::Continue => {
            let shown = random.random_range(4..=6);
            let list: Vec<String> = pattern.terms[..shown].iter().map(|t| t.to_string()).collect();
            (format!("Continue: {}", list.join(", ")), pattern.terms[shown].to_string())
        }
        Kind::Response | Kind::Repair => unreachable!("these need the judge"),
    })
}

/// Returns the integers of a text, in its order.
fn integers(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_integers_of_a_text_are_read_in_order() {
        assert_eq!(integers("Mia has 5 beads, then 2 * 13."), ["5", "2", "13"]);
    }

    #[test]
    fn the_shares_sum_to_a_hundred() {
        assert_eq!(Kind::SHARES.iter().map(|(_, share)| share).sum::<u32>(), 100);
    }
}
