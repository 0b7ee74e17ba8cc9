//! Advantages: how much better than expected a response is. What is expected, an estimator says.
//!
//! Semantics follow verl 0.9, whose values are tests. An estimator sees the rewards of a whole step, group by
//! group. A response without a reward has no part in any mean or deviation, and an advantage of 0.

use crate::base::limits::refuse_outside;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// How rewards become advantages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdvantageConfig {
    pub estimator: Estimator,
    /// With `grpo`: divide by the group's standard deviation (verl's `norm_adv_by_std_in_grpo`).
    pub norm_by_std: bool,
    /// Added to that standard deviation.
    pub eps: f64,
    /// Groups whose rewards are all equal do not count in the mean of the loss either.
    pub drop_zero_variance: bool,
}

/// What a reward is compared with (verl's `adv_estimator`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// The mean of the response's group.
    #[default]
    Grpo,
    /// The mean of the others of its group (leave one out).
    Rloo,
    /// The mean of the whole step over tokens, in units of the standard deviation over them.
    #[serde(rename = "reinforce++")]
    ReinforcePlusPlus,
}

impl Default for AdvantageConfig {
    fn default() -> Self {
        Self { estimator: Estimator::Grpo, norm_by_std: true, eps: 1e-6, drop_zero_variance: false }
    }
}

/// A response as an estimator sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Nothing where the judge failed.
    pub reward: Option<f64>,
    pub num_tokens: usize,
}

/// Added to a variance over tokens before its root (verl).
const WHITEN_EPS: f64 = 1e-8;

impl AdvantageConfig {
    /// Refuses numbers that make no advantage; `table` is where they stand.
    pub fn check(&self, table: &str) -> Result<()> {
        refuse_outside(table, &[("eps", self.eps, 0.0..=1.0)])
    }

    /// The advantages of the responses of all groups of a step.
    pub fn advantages(&self, groups: &[Vec<Outcome>]) -> Vec<Vec<f32>> {
        match self.estimator {
            Estimator::Grpo => groups.iter().map(|group| self.within_group(group)).collect(),
            Estimator::Rloo => groups.iter().map(|group| leave_one_out(group)).collect(),
            Estimator::ReinforcePlusPlus => whitened(groups),
        }
    }

    /// Rewards minus their mean, over their unbiased standard deviation plus `eps` if that is asked for.
    fn within_group(&self, group: &[Outcome]) -> Vec<f32> {
        let scale = |deviation: f64| if self.norm_by_std { deviation + self.eps } else { 1.0 };
        if let [Outcome { reward: Some(reward), .. }] = group {
            // As in verl, a group of one has mean 0 and deviation 1.
            return vec![(reward / scale(1.0)) as f32];
        }
        if is_uniform(group) {
            return vec![0.0; group.len()];
        }
        let rewards: Vec<f64> = group.iter().filter_map(|outcome| outcome.reward).collect();
        let n = rewards.len() as f64;
        let mean = rewards.iter().sum::<f64>() / n;
        let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let scale = scale(variance.sqrt());
        each(group, |reward| (reward - mean) / scale)
    }
}

/// Whether a group teaches nothing by itself: all its rewards are equal, or masking left at most one of several.
pub fn is_uniform(group: &[Outcome]) -> bool {
    let rewards: Vec<f64> = group.iter().filter_map(|outcome| outcome.reward).collect();
    let is_one_alone = group.len() == 1 && rewards.len() == 1;
    !is_one_alone && rewards.windows(2).all(|pair| pair[0] == pair[1])
}

/// Rewards minus the mean of the others; a group of one keeps its reward.
fn leave_one_out(group: &[Outcome]) -> Vec<f32> {
    if is_uniform(group) {
        return vec![0.0; group.len()];
    }
    let rewards: Vec<f64> = group.iter().filter_map(|outcome| outcome.reward).collect();
    let (n, sum) = (rewards.len() as f64, rewards.iter().sum::<f64>());
    each(group, |reward| if n == 1.0 { reward } else { reward - (sum - reward) / (n - 1.0) })
}

/// Rewards minus their mean over all tokens of the step, over the unbiased standard deviation over them.
fn whitened(groups: &[Vec<Outcome>]) -> Vec<Vec<f32>> {
    let outcomes = || {
        let all = groups.iter().flatten();
        all.filter_map(|outcome| Some((outcome.reward?, outcome.num_tokens as f64)))
    };
    let num_tokens: f64 = outcomes().map(|(_, tokens)| tokens).sum();
    let mean = outcomes().map(|(reward, tokens)| tokens * reward).sum::<f64>() / num_tokens;
    let squares: f64 = outcomes().map(|(reward, tokens)| tokens * (reward - mean).powi(2)).sum();
    let scale = (squares / (num_tokens - 1.0).max(1.0) + WHITEN_EPS).sqrt();
    groups.iter().map(|group| each(group, |reward| (reward - mean) / scale)).collect()
}

fn each(group: &[Outcome], advantage: impl Fn(f64) -> f64) -> Vec<f32> {
    group.iter().map(|outcome| outcome.reward.map_or(0.0, |r| advantage(r) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    fn outcome(reward: Option<f64>) -> Outcome {
        Outcome { reward, num_tokens: 3 }
    }

    fn of(estimator: Estimator) -> AdvantageConfig {
        AdvantageConfig { estimator, ..AdvantageConfig::default() }
    }

    /// The advantages of one group.
    fn advantages(config: &AdvantageConfig, rewards: &[Option<f64>]) -> Vec<f32> {
        config.advantages(&[rewards.iter().copied().map(outcome).collect()]).remove(0)
    }

    fn values(rewards: &[f64], norm_by_std: bool, eps: f64) -> Vec<f32> {
        let config = AdvantageConfig { norm_by_std, eps, ..of(Estimator::Grpo) };
        advantages(&config, &rewards.iter().copied().map(Some).collect::<Vec<_>>())
    }

    fn assert_close(values: &[f32], expected: &[f64]) {
        for (&v, e) in values.iter().zip(expected) {
            assert!((f64::from(v) - e).abs() < 1e-7, "{values:?} {expected:?}");
        }
        assert_eq!(values.len(), expected.len());
    }

    #[test]
    fn advantages_of_groups_give_the_published_values() {
        let a = 0.866_023_904;
        assert_close(&values(&[1.0, 0.0, 0.0, 1.0], true, 1e-6), &[a, -a, -a, a]);
        let a = 0.865_875_430;
        assert_close(&values(&[1.0, 0.0, 0.0, 1.0], true, 1e-4), &[a, -a, -a, a]);
        let low = -0.447_212_596;
        assert_close(
            &values(&[1.0, 0.0, 0.0, 0.0, 0.0], true, 1e-6),
            &[1.788_850_382, low, low, low, low],
        );
        assert_close(&values(&[1.0, 0.0], false, 1e-6), &[0.5, -0.5]);
    }

    #[test]
    fn leaving_one_out_compares_with_the_mean_of_the_others() {
        let rewards = [Some(3.0), None, Some(0.0), Some(1.0)];
        assert_close(&advantages(&of(Estimator::Rloo), &rewards), &[2.5, 0.0, -2.0, -0.5]);
    }

    #[test]
    fn whitening_counts_tokens_of_all_groups() {
        let outcome = |reward, num_tokens| Outcome { reward: Some(reward), num_tokens };
        // Over five tokens: mean (1 + 1 + 1 + 1 + 6) / 5 = 2, variance (4 x 1 + 16) / 4 = 5.
        let groups = [vec![outcome(1.0, 3), outcome(6.0, 1)], vec![outcome(1.0, 1)]];
        let found = of(Estimator::ReinforcePlusPlus).advantages(&groups);
        let low = -1.0 / 5f64.sqrt();
        assert_close(&found[0], &[low, 4.0 / 5f64.sqrt()]);
        assert_close(&found[1], &[low]);
    }

    #[test]
    fn a_group_of_one_keeps_its_reward_but_a_group_masked_to_one_does_not() {
        assert_close(&values(&[2.0], true, 1e-6), &[2.0 / (1.0 + 1e-6)]);
        assert_close(&values(&[2.0], false, 1e-6), &[2.0]);
        assert_close(&advantages(&of(Estimator::Rloo), &[Some(2.0)]), &[2.0]);
        for estimator in [Estimator::Grpo, Estimator::Rloo] {
            assert_eq!(advantages(&of(estimator), &[Some(2.0), None]), [0.0, 0.0]);
        }
        assert!(!is_uniform(&[outcome(Some(2.0))]));
        assert!(is_uniform(&[outcome(Some(2.0)), outcome(None)]) && is_uniform(&[outcome(None)]));
    }

    #[test]
    fn equal_rewards_teach_exactly_nothing() {
        for estimator in [Estimator::Grpo, Estimator::Rloo, Estimator::ReinforcePlusPlus] {
            assert_eq!(advantages(&of(estimator), &[Some(0.25); 3]), [0.0; 3]);
            assert!(
                advantages(&of(estimator), &[None; 2]).iter().all(|&advantage| advantage == 0.0)
            );
            assert!(of(estimator).advantages(&[]).is_empty());
        }
    }

    #[test]
    fn every_estimator_gives_the_values_of_verl() {
        #[derive(Deserialize)]
        struct Case {
            estimator: String,
            norm_by_std: bool,
            /// For each response of each group its reward and its length.
            groups: Vec<Vec<(f64, usize)>>,
            advantages: Vec<Vec<f64>>,
        }
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/golden/advantages.json")).unwrap();
        assert_eq!(cases.len(), 16);
        for Case { estimator, norm_by_std, groups, advantages } in cases {
            let config: AdvantageConfig = toml::from_str(&format!(
                "estimator = '{estimator}'\nnorm_by_std = {norm_by_std}\neps = 1e-6"
            ))
            .unwrap();
            let outcomes: Vec<Vec<Outcome>> = groups
                .iter()
                .map(|group| {
                    let outcome =
                        |&(reward, num_tokens)| Outcome { reward: Some(reward), num_tokens };
                    group.iter().map(outcome).collect()
                })
                .collect();
            for (found, expected) in config.advantages(&outcomes).iter().zip(&advantages) {
                for (&found, expected) in found.iter().zip(expected) {
                    let distance = (f64::from(found) - expected).abs();
                    assert!(
                        distance < 1e-5 * expected.abs().max(1e-2),
                        "{estimator}: {found} {expected}"
                    );
                }
                assert_eq!(found.len(), expected.len());
            }
        }
    }

    proptest! {
        #[test]
        fn advantages_of_a_group_sum_to_zero_and_do_not_see_who_has_no_verdict(
            rewards in proptest::collection::vec(proptest::option::of(-1.0f64..5.0), 2..40),
            norm_by_std: bool,
            leaves_one_out: bool,
        ) {
            let estimator = if leaves_one_out { Estimator::Rloo } else { Estimator::Grpo };
            let config = AdvantageConfig { norm_by_std, ..of(estimator) };
            let all = advantages(&config, &rewards);
            prop_assert!(all.iter().sum::<f32>().abs() < 1e-3, "{:?}", all);
            let judged: Vec<_> = rewards.iter().copied().filter(Option::is_some).collect();
            if judged.len() != 1 {
                let kept = all.iter().zip(&rewards).filter(|(_, reward)| reward.is_some());
                prop_assert!(kept.map(|(&a, _)| a).eq(advantages(&config, &judged)));
            }
        }
    }
}
