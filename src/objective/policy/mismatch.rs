//! How far the log-probabilities of sampler and trainer are apart for the same tokens under the same
//! weights, and the importance weights that correct for it.
//!
//! On the CPU the two agree to the bit: every difference is 0 and every weight 1.

/// Log-ratios are clamped to plus or minus this, as in verl.
const LOG_RATIO_CLAMP: f64 = 20.0;

/// Returns the weights of truncated importance sampling, min(exp(trainer - sampler), `cap`) for each token
/// (verl's `rollout_is` at token level). The loss takes them as constants.
pub fn importance_weights(trainer_logp: &[f32], sampler_logp: &[f32], cap: f64) -> Vec<f32> {
    let pairs = trainer_logp.iter().zip(sampler_logp);
    pairs.map(|(&trainer, &sampler)| ratio(trainer, sampler).min(cap) as f32).collect()
}

/// Returns exp(trainer - sampler).
fn ratio(trainer: f32, sampler: f32) -> f64 {
    (f64::from(trainer) - f64::from(sampler)).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP).exp()
}

/// Sums over tokens. Those of micro-batches and ranks are added up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mismatch {
    pub tokens: usize,
    /// The sum of the distances of the two log-probabilities.
    pub distance: f64,
    pub max_distance: f64,
    /// The sum of the ratios exp(trainer - sampler).
    pub ratio: f64,
    pub max_ratio: f64,
    /// The number of ratios above the cap.
    pub truncated: usize,
}

impl Mismatch {
    /// Compares the log-probabilities that trainer and sampler give to the same tokens, and counts the
    /// ratios above `cap`.
    pub fn between(
        trainer_logp: impl IntoIterator<Item = f32>,
        sampler_logp: &[f32],
        cap: Option<f64>,
    ) -> Self {
        let mut mismatch = Self { tokens: sampler_logp.len(), ..Self::default() };
        for (trainer, &sampler) in trainer_logp.into_iter().zip(sampler_logp) {
            let distance = (f64::from(trainer) - f64::from(sampler)).abs();
            let ratio = ratio(trainer, sampler);
            mismatch.distance += distance;
            mismatch.max_distance = mismatch.max_distance.max(distance);
            mismatch.ratio += ratio;
            mismatch.max_ratio = mismatch.max_ratio.max(ratio);
            mismatch.truncated += usize::from(cap.is_some_and(|cap| ratio > cap));
        }
        mismatch
    }

    /// Adds the sums of other tokens.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.distance += other.distance;
        self.max_distance = self.max_distance.max(other.max_distance);
        self.ratio += other.ratio;
        self.max_ratio = self.max_ratio.max(other.max_ratio);
        self.truncated += other.truncated;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_ratios_up_to_the_cap() {
        let sampler = [-1.0, -1.0, -1.0, -30.0, -1.0];
        let trainer = [-1.0, -0.5, -2.0, -0.5, 0.0];
        let expected = [1.0, 1.648_721_271, 0.367_879_441, 2.0, 2.0];
        for (weight, expected) in importance_weights(&trainer, &sampler, 2.0).iter().zip(expected) {
            assert!((f64::from(*weight) - expected).abs() < 1e-6, "{weight} is not {expected}");
        }
        // The log-ratio is clamped before the cap applies.
        let huge = importance_weights(&[0.0], &[-30.0], f64::INFINITY);
        assert!((f64::from(huge[0]) / 485_165_195.41 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn equal_log_probabilities_weigh_exactly_one() {
        let logp = [-0.1, -7.3, -20.0];
        assert_eq!(importance_weights(&logp, &logp, 2.0), [1.0; 3]);
        let equal = Mismatch::between(logp, &logp, Some(2.0));
        assert_eq!(equal, Mismatch { tokens: 3, ratio: 3.0, max_ratio: 1.0, ..equal });
        assert_eq!((equal.distance, equal.max_distance, equal.truncated), (0.0, 0.0, 0));
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let (trainer, sampler) = ([-1.0, -0.5, -2.0], [-1.25, -2.5, -1.0]);
        let whole = Mismatch::between(trainer, &sampler, Some(2.0));
        assert_eq!((whole.distance, whole.max_distance, whole.truncated), (3.25, 2.0, 1));
        assert!((whole.ratio - (0.25f64.exp() + 2f64.exp() + (-1f64).exp())).abs() < 1e-12);
        let mut sum = Mismatch::between([trainer[0]], &sampler[..1], Some(2.0));
        sum.merge(&Mismatch::between([trainer[1], trainer[2]], &sampler[1..], Some(2.0)));
        assert_eq!(sum, whole);
    }
}
