//! Pass rates and their uncertainty.
//!
//! Problems are the unit of chance: intervals come from drawing problems anew (bootstrap), and two
//! models are compared on the same problems. Draws are keyed, so equal inputs give equal intervals.
//!
//! Drawing anew knows only the problems that were drawn: of a few problems, or of problems that are all alike
//! (all solved, none solved), it would say too much. There the interval allows for problems of another kind that
//! no draw has met: their share is at most the upper bound of Wilson's score interval for 0 of `n`, and they may
//! lie anywhere between the least and the largest value. For `n` of `n` problems solved this is Wilson's own
//! interval.

use crate::base::rng::Stream;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean over problems.
    pub mean: f64,
    /// The bounds of its 95 % interval.
    pub ci95: [f64; 2],
}

/// With fewer problems drawing anew alone says little.
pub const MIN_FOR_BOOTSTRAP: usize = 8;
/// So many standard deviations each side hold 95 % of a normal law.
const Z: f64 = 1.959_963_984_540_054;
/// How often problems are drawn anew.
const RESAMPLES: usize = 10_000;
/// Keeps these draws apart from other uses of the same seed.
const BOOTSTRAP: u64 = 0x626f_6f74;

/// The chance that at least one of `k` rollouts passes, unbiased, from `passed` of `rollouts`
/// (Chen et al., "Evaluating Large Language Models Trained on Code", 2021).
///
/// `None` unless `k` is between 1 and `rollouts`.
pub fn pass_at_k(rollouts: usize, passed: usize, k: usize) -> Option<f64> {
    if k == 0 || k > rollouts || passed > rollouts {
        return None;
    }
    let failed = rollouts - passed;
    if failed < k {
        return Some(1.0);
    }
    // The chance that k draws without replacement all fail.
    let all_fail: f64 = (0..k).map(|i| (failed - i) as f64 / (rollouts - i) as f64).product();
    Some(1.0 - all_fail)
}

/// Between which values a mean over problems can lie.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    least: f64,
    most: f64,
}

/// The mean of a share from 0 to 1 of each problem, with its interval; `None` without problems.
pub fn mean_share(shares: &[f64], seed: u64) -> Option<Estimate> {
    weighted_share(shares, &vec![1.0; shares.len()], seed)
}

/// The same where problems weigh differently. Weights are above zero, and as many as shares.
pub fn weighted_share(shares: &[f64], weights: &[f64], seed: u64) -> Option<Estimate> {
    mean_within(shares, weights, Bounds { least: 0.0, most: 1.0 }, seed)
}

/// The mean of the weighted means of groups, each of which counts alike, with the interval of the normal law:
/// problems are drawn within their group, groups are given. A group holds shares with their weights. `None` without
/// groups, or with one of fewer than two problems.
pub fn mean_of_groups(groups: &[Vec<(f64, f64)>]) -> Option<Estimate> {
    let (mut sum, mut variance) = (0.0, 0.0);
    for group in groups {
        let n = group.len() as f64;
        let total: f64 = group.iter().map(|(_, weight)| weight).sum();
        let mean = group.iter().map(|(share, weight)| share * weight).sum::<f64>() / total;
        let squares = group.iter().map(|(share, weight)| (weight * (share - mean)).powi(2));
        sum += mean;
        variance += squares.sum::<f64>() / (total * total) * n / (n - 1.0);
    }
    let count = groups.len() as f64;
    let (mean, half) = (sum / count, Z * variance.sqrt() / count);
    half.is_finite()
        .then(|| Estimate { mean, ci95: [(mean - half).max(0.0), (mean + half).min(1.0)] })
}

/// The mean gain of a share from `before` to `after`, problem by problem, with its interval; `None` unless
/// there are as many of both.
pub fn paired_gain(before: &[f64], after: &[f64], seed: u64) -> Option<Estimate> {
    if before.len() != after.len() {
        return None;
    }
    let gains: Vec<f64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
    mean_within(&gains, &vec![1.0; gains.len()], Bounds { least: -1.0, most: 1.0 }, seed)
}

fn mean_within(values: &[f64], weights: &[f64], bounds: Bounds, seed: u64) -> Option<Estimate> {
    if values.is_empty() {
        return None;
    }
    let n = values.len();
    let mut stream = Stream::new(seed, &[BOOTSTRAP]);
    let mean_of = |draw: &mut dyn FnMut(usize) -> usize| {
        let (mut sum, mut total) = (0.0, 0.0);
        for place in 0..n {
            let index = draw(place);
            sum += weights[index] * values[index];
            total += weights[index];
        }
        sum / total
    };
    let mut means: Vec<f64> =
        (0..RESAMPLES).map(|_| mean_of(&mut |_| stream.random_range(0..n))).collect();
    means.sort_unstable_by(f64::total_cmp);
    let mean = mean_of(&mut |place| place);
    let mut ci95 = [quantile(&means, 0.025), quantile(&means, 0.975)];
    if n < MIN_FOR_BOOTSTRAP || values.iter().all(|&value| value == values[0]) {
        let unseen = most_unseen(n);
        ci95[0] -= unseen * (ci95[0] - bounds.least);
        ci95[1] += unseen * (bounds.most - ci95[1]);
    }
    Some(Estimate { mean, ci95 })
}

/// The largest share of a population that `n` draws without a member of it allow, by Wilson's score
/// interval at 95 %.
fn most_unseen(n: usize) -> f64 {
    Z * Z / (n as f64 + Z * Z)
}

/// The quantile of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (low, share) = (place.floor() as usize, place.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + share * (sorted[high] - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Counts the k-subsets of the rollouts that hold a pass.
    fn by_enumeration(rollouts: usize, passed: usize, k: usize) -> f64 {
        let subsets = (0u32..1 << rollouts).filter(|s| s.count_ones() as usize == k);
        let (mut all, mut with_pass) = (0, 0);
        for subset in subsets {
            all += 1;
            with_pass += usize::from(subset & ((1 << passed) - 1) != 0);
        }
        with_pass as f64 / all as f64
    }

    #[test]
    fn the_estimator_is_the_share_of_subsets_with_a_pass() {
        for passed in 0..=6 {
            for k in 1..=6 {
                let exact = by_enumeration(6, passed, k);
                assert!((pass_at_k(6, passed, k).unwrap() - exact).abs() < 1e-12);
            }
        }
        assert_eq!(pass_at_k(32, 8, 1), Some(0.25));
        assert_eq!(pass_at_k(4, 1, 5), None);
        assert_eq!(pass_at_k(4, 1, 0), None);
        assert_eq!(pass_at_k(4, 5, 1), None);
    }

    #[test]
    fn the_interval_is_that_of_the_normal_law_where_it_applies() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 4 == 0)).collect();
        let estimate = mean_share(&values, 1).unwrap();
        let half = 1.96 * (0.25 * 0.75 / 200f64).sqrt();
        assert_eq!(estimate.mean, 0.25);
        assert!((estimate.ci95[0] - (0.25 - half)).abs() < 0.006, "{estimate:?}");
        assert!((estimate.ci95[1] - (0.25 + half)).abs() < 0.006, "{estimate:?}");
        assert_eq!(mean_share(&values, 1), Some(estimate));
    }

    #[test]
    fn problems_all_alike_leave_room_for_others_as_wilsons_interval_does() {
        // From statsmodels.stats.proportion.proportion_confint(n, n, method="wilson").
        for (n, least) in [(1, 0.206_549), (10, 0.722_467), (200, 0.981_155)] {
            let all = mean_share(&vec![1.0; n], 1).unwrap();
            assert_eq!((all.mean, all.ci95[1]), (1.0, 1.0));
            assert!((all.ci95[0] - least).abs() < 1e-6, "{n}: {all:?}");
            let none = mean_share(&vec![0.0; n], 1).unwrap();
            assert_eq!((none.mean, none.ci95[0]), (0.0, 0.0));
            assert!((none.ci95[1] - (1.0 - least)).abs() < 1e-6, "{n}: {none:?}");
        }
    }

    #[test]
    fn an_interval_of_a_few_problems_has_a_width() {
        let [one, two] = [&[0.5][..], &[0.5, 0.5625]].map(|few| mean_share(few, 1).unwrap());
        assert!(one.ci95[0] < 0.2 && one.ci95[1] > 0.8, "{one:?}");
        assert!(two.ci95[0] < 0.3 && two.ci95[1] > 0.7, "{two:?}");
    }

    #[test]
    fn an_equal_gain_on_some_problems_is_not_certain_for_all() {
        let before = [0.1, 0.5, 0.9];
        let gain = paired_gain(&before, &before.map(|b| b + 0.0625), 3).unwrap();
        assert!((gain.mean - 0.0625).abs() < 1e-12, "{gain:?}");
        assert!(gain.ci95[0] < 0.0 && gain.ci95[1] > 0.125, "{gain:?}");
        assert!(paired_gain(&before, &[0.5], 3).is_none());
        assert!(paired_gain(&[], &[], 3).is_none());
    }

    #[test]
    fn a_problem_that_weighs_twice_counts_twice() {
        let shares = [1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 1.0, 0.25, 0.75];
        let mut twice = shares.to_vec();
        twice.push(shares[0]);
        let mut weights = [1.0; 9];
        weights[0] = 2.0;
        let weighted = weighted_share(&shares, &weights, 5).unwrap();
        assert!((weighted.mean - mean_share(&twice, 5).unwrap().mean).abs() < 1e-12);
        assert_eq!(
            weighted_share(&shares, &[3.0; 9], 5).unwrap().ci95,
            mean_share(&shares, 5).unwrap().ci95
        );
    }

    #[test]
    fn groups_count_alike_whatever_their_size() {
        let group = |n: usize, right: usize| -> Vec<(f64, f64)> {
            (0..n).map(|i| (f64::from(u8::from(i < right)), 1.0)).collect()
        };
        let estimate = mean_of_groups(&[group(100, 50), group(400, 100)]).unwrap();
        assert!((estimate.mean - 0.375).abs() < 1e-12);
        // The standard errors of the two means, as lm-evaluation-harness computes them.
        let se = |n: f64, p: f64| (p * (1.0 - p) / (n - 1.0)).sqrt();
        let half = Z * (se(100.0, 0.5).powi(2) + se(400.0, 0.25).powi(2)).sqrt() / 2.0;
        assert!((estimate.ci95[0] - (0.375 - half)).abs() < 1e-12, "{estimate:?}");
        assert!(mean_of_groups(&[group(100, 50), group(1, 1)]).is_none());
        assert!(mean_of_groups(&[]).is_none());
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_mean_and_lies_within_the_bounds(
            values in proptest::collection::vec(0.0f64..1.0, 1..20), seed: u64,
        ) {
            let Estimate { mean, ci95: [low, high] } = mean_share(&values, seed).unwrap();
            prop_assert!(0.0 <= low && low <= mean + 1e-9 && mean <= high + 1e-9 && high <= 1.0);
        }
    }
}
