//! Advantages: how much better than its group a response is.

/// The advantages of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct Advantages {
    /// One per member; 0 for members that are masked out.
    pub values: Vec<f32>,
    /// All rewards are equal, so the group teaches nothing.
    pub zero_variance: bool,
}

/// Rewards minus their mean, over their unbiased standard deviation plus `eps` if `norm_by_std`.
///
/// `None` is a member without verdict: it has no part in mean and deviation. As in verl, a group
/// made of one member keeps its reward as advantage; one that masking reduced to a single member
/// has lost its baseline and teaches nothing.
pub fn advantages(rewards: &[Option<f64>], norm_by_std: bool, eps: f64) -> Advantages {
    let present: Vec<f64> = rewards.iter().filter_map(|&reward| reward).collect();
    let n = present.len() as f64;
    if rewards.len() == 1 && present.len() == 1 {
        let value = if norm_by_std { present[0] / (1.0 + eps) } else { present[0] };
        return Advantages { values: vec![value as f32], zero_variance: false };
    }
    if present.windows(2).all(|pair| pair[0] == pair[1]) {
        return Advantages { values: vec![0.0; rewards.len()], zero_variance: true };
    }
    let mean = present.iter().sum::<f64>() / n;
    let variance = present.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let scale = if norm_by_std { variance.sqrt() + eps } else { 1.0 };
    let values = rewards.iter().map(|r| r.map_or(0.0, |r| ((r - mean) / scale) as f32)).collect();
    Advantages { values, zero_variance: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(rewards: &[f64], norm: bool, eps: f64) -> Vec<f32> {
        advantages(&rewards.iter().map(|&r| Some(r)).collect::<Vec<_>>(), norm, eps).values
    }

    fn assert_close(values: &[f32], expected: &[f64]) {
        for (&v, e) in values.iter().zip(expected) {
            assert!((f64::from(v) - e).abs() < 1e-7, "{values:?} {expected:?}");
        }
        assert_eq!(values.len(), expected.len());
    }

    #[test]
    fn advantages_give_the_published_values() {
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
    fn a_group_of_one_keeps_its_reward_but_a_group_masked_to_one_does_not() {
        assert_close(&values(&[2.0], true, 1e-6), &[2.0 / (1.0 + 1e-6)]);
        assert_close(&values(&[2.0], false, 1e-6), &[2.0]);
        let masked = advantages(&[Some(2.0), None], true, 1e-6);
        assert_eq!(masked, Advantages { values: vec![0.0, 0.0], zero_variance: true });
    }

    #[test]
    fn members_without_verdict_change_nothing_for_the_others() {
        let with = advantages(&[Some(1.0), None, Some(0.0), Some(0.5)], true, 1e-6).values;
        let without = values(&[1.0, 0.0, 0.5], true, 1e-6);
        assert_eq!([with[0], with[2], with[3]], without[..]);
        assert_eq!(with[1], 0.0);
    }

    #[test]
    fn equal_rewards_teach_exactly_nothing() {
        let equal = advantages(&[Some(0.1); 3], true, 1e-6);
        assert_eq!(equal, Advantages { values: vec![0.0; 3], zero_variance: true });
        assert!(advantages(&[], true, 1e-6).values.is_empty());
    }

    proptest! {
        #[test]
        fn advantages_of_a_group_sum_to_zero(
            rewards in proptest::collection::vec(proptest::option::of(-1.0f64..5.0), 2..40),
            norm: bool,
        ) {
            let sum: f32 = advantages(&rewards, norm, 1e-6).values.iter().sum();
            prop_assert!(sum.abs() < 1e-3, "{}", sum);
        }
    }
}
