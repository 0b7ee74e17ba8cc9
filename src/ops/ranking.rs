//! Ranks the tokens of a row from the most likely on, without sorting all of them.
//!
//! Tokens are ordered by their logits, and equal logits by token id. A token's weight is exp((logit - max)
//! / temperature) as an integer, 2^40 for the most likely. Sums of integers do not depend on their order,
//! so a GPU finds the same places in the ranking ([`Ranking::reach`] is `descend` in `kernels/sample.cu`).
//! Tokens are put into buckets by their logits, and only the bucket in which a sum is reached is sorted.

use super::logprob::Statistics;
use super::simd::{LANES, Simd, exp, load_partial, simd_fn, store_partial};

/// So many buckets are few enough for the first-level cache, and each is small even for a large vocabulary.
const BUCKETS: usize = 2048;

/// A token's weight is 0 if (max - logit) / temperature exceeds this: it is below ln(2^-40).
const WEIGHTLESS: f32 = 28.0;

/// The number of tokens up to a place in the ranking, that place included, and the sum of their weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) count: usize,
    pub(crate) weight: u64,
}

impl Sum {
    fn add(self, count: usize, weight: u64) -> Self {
        Self { count: self.count + count, weight: self.weight + weight }
    }
}

/// The buffers of a ranking. They are kept, so that a thread allocates them once.
#[derive(Default)]
pub(crate) struct Buffers {
    weights: Vec<f32>,
    /// The bucket of each token.
    bucket_of: Vec<u16>,
    buckets: Vec<Sum>,
    /// The tokens of one bucket.
    tokens: Vec<u32>,
}

/// The ranking of one row of logits.
pub(crate) struct Ranking<'a> {
    logits: &'a [f32],
    buffers: &'a mut Buffers,
}

impl<'a> Ranking<'a> {
    /// Ranks all tokens with `logits`; `row` has their maximum and the temperature.
    pub(crate) fn new(logits: &'a [f32], row: Statistics, buffers: &'a mut Buffers) -> Self {
        let Buffers { weights, bucket_of, buckets, .. } = buffers;
        weights.resize(logits.len(), 0.0);
        weigh(logits, row, weights);
        let span = row.max - logits.iter().copied().fold(f32::INFINITY, f32::min);
        let span = span.min(WEIGHTLESS / row.inverse_temperature);
        // Rounding keeps the order: a token never gets an earlier bucket than one with a larger logit.
        let scale = if span > 0.0 { BUCKETS as f32 / span } else { 0.0 };
        let bucket = |logit: f32| (((row.max - logit) * scale) as usize).min(BUCKETS - 1);
        bucket_of.clear();
        bucket_of.extend(logits.iter().map(|&logit| bucket(logit) as u16));
        buckets.clear();
        buckets.resize(BUCKETS, Sum::default());
        for (&bucket, &weight) in bucket_of.iter().zip(&*weights) {
            let sum = &mut buckets[usize::from(bucket)];
            *sum = sum.add(1, fixed(weight));
        }
        Self { logits, buffers }
    }

    /// Returns the count and the weight of all tokens.
    pub(crate) fn all(&self) -> Sum {
        let add = |all: Sum, bucket: &Sum| all.add(bucket.count, bucket.weight);
        self.buffers.buckets.iter().fold(Sum::default(), add)
    }

    /// Returns the count and the weight of those tokens whose weight is at least this share of the largest.
    pub(crate) fn at_least(&self, share: f32) -> Sum {
        let likely = self.buffers.weights.iter().filter(|&&weight| weight >= share);
        likely.fold(Sum::default(), |all, &weight| all.add(1, fixed(weight)))
    }

    /// Returns the first token up to which the sum is enough, and that sum. Where no sum is enough, it
    /// returns the last token.
    pub(crate) fn reach(&mut self, is_enough: impl Fn(Sum) -> bool) -> (u32, Sum) {
        let Buffers { weights, bucket_of, buckets, tokens } = &mut *self.buffers;
        let (mut before, mut chosen) = (Sum::default(), 0);
        let mut sum = before;
        for (index, bucket) in buckets.iter().enumerate().filter(|(_, bucket)| bucket.count > 0) {
            (before, chosen) = (sum, index);
            sum = before.add(bucket.count, bucket.weight);
            if is_enough(sum) {
                break;
            }
        }
        tokens.clear();
        let of_bucket = bucket_of.iter().enumerate().filter(|&(_, &b)| usize::from(b) == chosen);
        tokens.extend(of_bucket.map(|(token, _)| token as u32));
        let logits = self.logits;
        tokens.sort_unstable_by(|&a, &b| {
            logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
        });
        let mut found = (0, before);
        for &token in &*tokens {
            found = (token, found.1.add(1, fixed(weights[token as usize])));
            if is_enough(found.1) {
                break;
            }
        }
        found
    }
}

/// Returns a weight as an integer, 2^40 for a weight of 1.
fn fixed(weight: f32) -> u64 {
    (f64::from(weight) * (1u64 << 40) as f64) as u64
}

simd_fn!(fn weigh(logits: &[f32], row: Statistics, weights: &mut [f32]) = weigh_generic);

#[inline(always)]
fn weigh_generic<S: Simd>(s: S, logits: &[f32], row: Statistics, weights: &mut [f32]) {
    let (shift, factor) = (s.splat(row.max), s.splat(row.inverse_temperature));
    for (logits, weights) in logits.chunks(LANES).zip(weights.chunks_mut(LANES)) {
        let z = s.mul(s.sub(load_partial(s, logits, f32::NEG_INFINITY), shift), factor);
        store_partial(s, exp(s, z), weights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng;
    use crate::ops::logprob::statistics;

    #[test]
    fn places_are_those_of_the_sorted_row() {
        let uniform = |seed, i| rng::uniform(seed, i as u64) - 0.5;
        let rows: [Vec<f32>; 5] = [
            (0..3000).map(|i| 20.0 * uniform(1, i)).collect(),
            (0..3000).map(|i| (8.0 * uniform(2, i)).round()).collect(),
            (0..777).map(|i| 1e-3 * uniform(3, i)).collect(),
            (0..777).map(|i| 200.0 * uniform(4, i)).collect(),
            vec![2.5; 50],
        ];
        let mut buffers = Buffers::default();
        for logits in rows {
            let row = statistics(&logits, 0.9);
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
            let mut ranking = Ranking::new(&logits, row, &mut buffers);
            let all = ranking.all();
            assert_eq!(all.count, logits.len());
            for step in 0..50 {
                let (count, share) = (1 + step * logits.len() / 50, all.weight / 50 * step as u64);
                let (token, sum) = ranking.reach(|sum| sum.count >= count);
                assert_eq!((token, sum.count), (order[count - 1], count));
                let (token, by_weight) = ranking.reach(|sum| sum.weight > share);
                assert_eq!(token, order[by_weight.count - 1]);
                let (_, before) = match by_weight.count {
                    1 => (0, Sum::default()),
                    count => ranking.reach(|sum| sum.count >= count - 1),
                };
                assert!(before.weight <= share && share < by_weight.weight);
            }
            assert_eq!(ranking.reach(|_| false), (order[order.len() - 1], all));
        }
    }

    #[test]
    fn logits_that_are_no_numbers_panic_nowhere() {
        for logits in [[f32::NAN; 9], [f32::NEG_INFINITY; 9], [f32::INFINITY; 9]] {
            let mut buffers = Buffers::default();
            let mut ranking = Ranking::new(&logits, statistics(&logits, 1.0), &mut buffers);
            let (token, _) = ranking.reach(|sum| sum.weight > 5);
            assert!(token < 9);
        }
    }
}
