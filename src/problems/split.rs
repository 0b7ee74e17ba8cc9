//! Splits patterns so that nothing leaks.
//!
//! No pattern is in two splits, no two patterns are the same sequence, and no run of
//! [`WINDOW`] consecutive terms of a test sequence occurs in any training sequence. Test patterns
//! are chosen first; training patterns that would give them away are dropped.

use super::family::{Family, Pattern};
use super::keys::stream;
use super::story;
use crate::base::error::{Interrupted, usage};
use crate::base::interrupt;
use anyhow::Result;
use num_bigint::BigInt;
use rand::seq::SliceRandom;
use std::collections::{HashMap, HashSet};

/// The number of consecutive terms that no training and test sequence may share.
pub const WINDOW: usize = 8;

/// The most choices of numbers that a family contributes.
const PATTERNS_PER_FAMILY: usize = 130;

/// The fewest patterns with which a family gives test problems.
const ENOUGH_FOR_TESTS: usize = 24;

/// The most training patterns that a test pattern may cost.
const MOST_DROPPED: usize = 6;

/// The number of patterns that each split wants.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub sft: usize,
    pub rl: usize,
    /// Patterns of test problems whose families are known.
    pub test: usize,
    /// Patterns of test problems whose families are unseen.
    pub unseen: usize,
}

/// The patterns of each split.
pub struct Splits<'f> {
    pub sft: Vec<Pattern<'f>>,
    pub rl: Vec<Pattern<'f>>,
    /// Patterns of test problems whose families are known.
    pub test: Vec<Pattern<'f>>,
    /// Patterns of test problems whose families are unseen.
    pub unseen: Vec<Pattern<'f>>,
    /// The patterns that are left, for the starting checkpoint.
    pub rest: Vec<Pattern<'f>>,
    /// The number of distinct patterns before the split.
    pub distinct: usize,
    /// The number of training patterns that were dropped because they share a run of terms with a test pattern.
    pub dropped: usize,
}

/// Enumerates the patterns of `families` and splits them.
pub fn split<'f>(families: &'f [Family], wanted: Wanted, seed: u64) -> Result<Splits<'f>> {
    let patterns = distinct_patterns(families, seed)?;
    let distinct = patterns.len();
    let (unseen, known): (Vec<_>, Vec<_>) = patterns.into_iter().partition(|p| p.family.unseen);
    let unseen: Vec<Pattern> =
        by_turns(unseen, seed, "unseen").into_iter().take(wanted.unseen).collect();

    let mut known = by_turns(known, seed, "known");
    let chosen = choose_test(&known, &unseen, wanted.test);
    let mut test = Vec::new();
    let mut training = Vec::new();
    for (i, pattern) in known.drain(..).enumerate() {
        if chosen.contains(&i) { test.push(pattern) } else { training.push(pattern) }
    }
    let before = training.len();
    let protected: HashSet<&[BigInt]> = test.iter().chain(&unseen).flat_map(windows).collect();
    training.retain(|p| windows(p).all(|w| !protected.contains(w)));
    let dropped = before - training.len();

    check_enough("unseen test problems", "--unseen", wanted.unseen, unseen.len())?;
    check_enough("test problems", "--test", wanted.test, test.len())?;
    let available = training.len();
    if wanted.sft + wanted.rl > available {
        return Err(usage(format!(
            "{} SFT patterns and {} RL problems are more than the {available} training patterns \
             there are: lower --sft, --sft-patterns or --rl",
            wanted.sft, wanted.rl
        )));
    }
    let mut training = training.into_iter();
    let sft = training.by_ref().take(wanted.sft).collect();
    let rl = training.by_ref().take(wanted.rl).collect();
    Ok(Splits { sft, rl, test, unseen, rest: training.collect(), distinct, dropped })
}

fn check_enough(what: &str, flag: &str, wanted: usize, got: usize) -> Result<()> {
    if got < wanted {
        return Err(usage(format!("only {got} {what} can be made, not {wanted}: lower {flag}")));
    }
    Ok(())
}

/// Lists every pattern whose early terms can carry a problem, each sequence once, unless the user interrupts.
fn distinct_patterns<'f>(families: &'f [Family], seed: u64) -> Result<Vec<Pattern<'f>>> {
    let mut seen = HashSet::new();
    let mut patterns = Vec::new();
    for family in families {
        if interrupt::requested() {
            return Err(Interrupted.into());
        }
        let mut random = stream(seed, "choices", family.name, 0);
        for numbers in family.choices(PATTERNS_PER_FAMILY, &mut random) {
            let pattern = Pattern::new(family, numbers);
            let usable = story::inputs(&pattern, seed).is_some();
            if usable && seen.insert(pattern.terms[..Pattern::TERMS / 2].to_vec()) {
                patterns.push(pattern);
            }
        }
    }
    Ok(patterns)
}

/// Orders patterns so that every prefix has each family in proportion.
fn by_turns<'f>(patterns: Vec<Pattern<'f>>, seed: u64, set: &str) -> Vec<Pattern<'f>> {
    let mut sizes: HashMap<&str, usize> = HashMap::new();
    let mut ranks = Vec::with_capacity(patterns.len());
    for pattern in &patterns {
        let size = sizes.entry(pattern.family.name).or_default();
        ranks.push(*size);
        *size += 1;
    }
    let mut order: Vec<(f64, Pattern)> = patterns
        .into_iter()
        .zip(ranks)
        .map(|(pattern, rank)| ((rank as f64 + 0.5) / sizes[pattern.family.name] as f64, pattern))
        .collect();
    order.shuffle(&mut stream(seed, "turns", set, 0));
    order.sort_by(|x, y| x.0.total_cmp(&y.0));
    order.into_iter().map(|(_, pattern)| pattern).collect()
}

/// Chooses which of `known` become test patterns: by turns over the families, without those that share
/// runs with many others.
fn choose_test(known: &[Pattern], unseen: &[Pattern], wanted: usize) -> HashSet<usize> {
    let mut holders: HashMap<&[BigInt], Vec<usize>> = HashMap::new();
    let mut by_family: Vec<(&str, Vec<usize>)> = Vec::new();
    for (i, pattern) in known.iter().enumerate() {
        for window in windows(pattern) {
            holders.entry(window).or_default().push(i);
        }
        match by_family.iter_mut().find(|(name, _)| *name == pattern.family.name) {
            Some((_, members)) => members.push(i),
            None => by_family.push((pattern.family.name, vec![i])),
        }
    }
    by_family.retain(|(_, members)| members.len() >= ENOUGH_FOR_TESTS);
    let foreign: HashSet<&[BigInt]> = unseen.iter().flat_map(windows).collect();
    let mut chosen = HashSet::new();
    let mut round = 0;
    while chosen.len() < wanted && by_family.iter().any(|(_, members)| round < members.len()) {
        for (_, members) in &by_family {
            let Some(&i) = members.get(round) else { continue };
            let costs: HashSet<usize> =
                windows(&known[i]).flat_map(|w| holders[w].iter().copied()).collect();
            let free = windows(&known[i]).all(|w| !foreign.contains(w));
            if free && costs.len() <= MOST_DROPPED && chosen.len() < wanted {
                chosen.insert(i);
            }
        }
        round += 1;
    }
    chosen
}

/// Lists every run of [`WINDOW`] consecutive terms.
pub fn windows<'p>(pattern: &'p Pattern) -> impl Iterator<Item = &'p [BigInt]> {
    pattern.terms.windows(WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::families;

    const WANTED: Wanted = Wanted { sft: 1300, rl: 1500, test: 200, unseen: 60 };

    #[test]
    fn there_are_enough_families_and_patterns() {
        let families = families::all();
        assert!(families.len() >= 80);
        let distinct = distinct_patterns(&families, 0).unwrap().len();
        assert!(distinct >= 3000, "{distinct}");
    }

    #[test]
    fn no_run_of_a_test_sequence_occurs_in_training_and_no_pattern_is_in_two_splits() {
        let families = families::all();
        let splits = split(&families, WANTED, 7).unwrap();
        assert_eq!(
            (splits.sft.len(), splits.rl.len(), splits.test.len(), splits.unseen.len()),
            (1300, 1500, 200, 60)
        );
        let training = || splits.sft.iter().chain(&splits.rl).chain(&splits.rest);
        let runs: HashSet<&[BigInt]> = training().flat_map(windows).collect();
        for pattern in splits.test.iter().chain(&splits.unseen) {
            assert!(windows(pattern).all(|w| !runs.contains(w)), "{} leaks", pattern.id());
        }
        let mut ids = HashSet::new();
        for pattern in training().chain(&splits.test).chain(&splits.unseen) {
            assert!(ids.insert(pattern.id()), "{} twice", pattern.id());
        }
        let trained: HashSet<&str> = splits.sft.iter().map(|p| p.family.name).collect();
        assert!(splits.test.iter().all(|p| trained.contains(p.family.name)));
        assert!(
            training().all(|p| !p.family.unseen) && splits.unseen.iter().all(|p| p.family.unseen)
        );
    }

    #[test]
    fn asking_for_too_much_is_the_users_mistake() {
        let families = families::all();
        let error = split(&families, Wanted { rl: 100_000, ..WANTED }, 7).err().unwrap();
        assert_eq!(crate::base::error::exit_code(&error), 2);
    }
}
