//! The answers of some pairs, packed into rows.
//!
//! Contract: an answer lies in one row, behind its prompt; the answers of a pair may lie in two rows, since
//! a loss takes sums over whole answers and not rows. Rows change no sum.

use super::config::TrainConfig;
use crate::data::pack::first_fit;
use crate::data::pair::{AnsweredPrompt, TokenPair};
use crate::trainer::MicroBatch;

/// The rows, each a micro-batch.
pub(crate) struct Rows {
    pub(crate) batches: Vec<MicroBatch>,
    /// Which answers the targets of each row are.
    places: Vec<Vec<Place>>,
    num_pairs: usize,
}

/// An answer's place among all answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    pair: usize,
    /// 0 for the chosen answer, 1 for the rejected.
    side: usize,
    num_tokens: usize,
}

/// Answers that are computed behind one copy of their prompt.
struct Family<'p> {
    prompt: &'p [u32],
    answers: Vec<(Place, &'p [u32])>,
}

impl Family<'_> {
    /// An upper bound on the rows that it takes.
    fn len(&self) -> usize {
        self.prompt.len() + self.answers.iter().map(|(_, answer)| answer.len()).sum::<usize>()
    }
}

impl Rows {
    /// Packs the answers of `pairs`; each fits a row by itself.
    pub(crate) fn pack(pairs: &[&TokenPair], config: &TrainConfig) -> Self {
        let families: Vec<Family<'_>> = pairs
            .iter()
            .enumerate()
            .flat_map(|(index, pair)| families(index, pair, config))
            .collect();
        let lengths: Vec<usize> = families.iter().map(Family::len).collect();
        let packs = first_fit(&lengths, config.seq_len)
            .expect("invariant: pairs within data.max_length, which a row holds");
        let mut rows = Self { batches: Vec::new(), places: Vec::new(), num_pairs: pairs.len() };
        for pack in packs {
            let (mut batch, mut places) = (MicroBatch::empty(), Vec::new());
            for Family { prompt, answers } in pack.into_iter().map(|index| &families[index]) {
                let texts: Vec<&[u32]> = answers.iter().map(|&(_, answer)| answer).collect();
                batch.push(prompt, &texts);
                places.extend(answers.iter().map(|&(place, _)| place));
            }
            rows.batches.push(batch);
            rows.places.push(places);
        }
        rows
    }

    /// The sum over each answer of a pair, chosen and rejected, of what `scores` says of every target.
    pub(crate) fn sums(&self, scores: &[Vec<f32>]) -> Vec<[f64; 2]> {
        let mut sums = vec![[0.0; 2]; self.num_pairs];
        for (places, mut scores) in self.places.iter().zip(scores.iter().map(Vec::as_slice)) {
            for &Place { pair, side, num_tokens } in places {
                let (of_answer, rest) = scores.split_at(num_tokens);
                sums[pair][side] = of_answer.iter().map(|&score| f64::from(score)).sum();
                scores = rest;
            }
        }
        sums
    }

    /// For every target of each row the value of its answer.
    pub(crate) fn spread(&self, values: &[[f64; 2]]) -> Vec<Vec<f32>> {
        let of_answer = |&Place { pair, side, num_tokens }: &Place| {
            std::iter::repeat_n(values[pair][side] as f32, num_tokens)
        };
        self.places.iter().map(|places| places.iter().flat_map(of_answer).collect()).collect()
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.batches.iter().map(MicroBatch::num_tokens).sum()
    }

    pub(crate) fn num_targets(&self) -> usize {
        self.places.iter().flatten().map(|place| place.num_tokens).sum()
    }
}

/// The answers of a pair: behind one copy of their prompt where a row holds both, or each behind its own.
fn families<'p>(index: usize, pair: &'p TokenPair, config: &TrainConfig) -> Vec<Family<'p>> {
    let family = |sides: &[(usize, &'p AnsweredPrompt)]| Family {
        prompt: &sides[0].1.prompt,
        answers: sides
            .iter()
            .map(|&(side, AnsweredPrompt { answer, .. })| {
                (Place { pair: index, side, num_tokens: answer.len() }, answer.as_slice())
            })
            .collect(),
    };
    let sides = [(0, &pair.chosen), (1, &pair.rejected)];
    let together = family(&sides);
    let is_shared =
        config.shares_prompts() && pair.shares_prompt() && together.len() <= config.seq_len;
    if is_shared { vec![together] } else { sides.map(|side| family(&[side])).into() }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::config;
    use super::*;

    fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> TokenPair {
        let behind =
            |answer: &[u32]| AnsweredPrompt { prompt: prompt.to_vec(), answer: answer.to_vec() };
        TokenPair { chosen: behind(chosen), rejected: behind(rejected) }
    }

    /// The sum of the targets' ids over each answer, and the number of rows.
    fn ids(seq_len: usize, more: &str) -> (Vec<[f64; 2]>, usize) {
        let pairs = [pair(&[1, 2], &[10, 11, 12], &[20]), pair(&[3], &[30, 31], &[40, 41])];
        let config = config(seq_len, more).train;
        let rows = Rows::pack(&pairs.iter().collect::<Vec<_>>(), &config);
        let scores: Vec<Vec<f32>> = rows
            .batches
            .iter()
            .map(|batch| batch.targets.iter().map(|target| target.token as f32).collect())
            .collect();
        assert_eq!(rows.num_targets(), 8);
        let spread = rows.spread(&rows.sums(&scores));
        assert!(spread.iter().zip(&scores).all(|(a, b)| a.len() == b.len()));
        (rows.sums(&scores), rows.batches.len())
    }

    #[test]
    fn sums_over_answers_do_not_depend_on_rows_or_shared_prompts() {
        let expected = vec![[33.0, 20.0], [61.0, 81.0]];
        for (seq_len, more, num_rows) in [
            (64, "", 1),
            (64, "share_prompts = false", 1),
            // A pair fits no row, so its answers lie in two.
            (5, "", 3),
            (5, "share_prompts = false", 4),
        ] {
            assert_eq!(ids(seq_len, more), (expected.clone(), num_rows), "{seq_len} {more}");
        }
    }

    #[test]
    fn a_shared_prompt_is_computed_once() {
        let pairs = [pair(&[1, 2, 3], &[10, 11], &[20, 21])];
        let tokens = |more| {
            Rows::pack(&pairs.iter().collect::<Vec<_>>(), &config(64, more).train).num_tokens()
        };
        // Nothing is read of the last tokens of answers that share a prompt.
        assert_eq!((tokens("share_prompts = false"), tokens("")), (10, 5));
    }
}
