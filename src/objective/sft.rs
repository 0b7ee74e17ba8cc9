//! Supervised fine-tuning: the negative log-likelihood of the learnt tokens.

/// Sums -logp over tokens and writes its gradient times `scale`.
///
/// With `scale` 1 the gradient belongs to the returned sum; with 1 / tokens of the global batch, to
/// the mean.
pub fn negative_log_likelihood(logp: &[f32], scale: f32, dlogp: &mut [f32]) -> f64 {
    dlogp.fill(-scale);
    -logp.iter().map(|&l| f64::from(l)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_the_sum_and_every_token_pulls_alike() {
        let mut dlogp = [0.0; 2];
        assert_eq!(negative_log_likelihood(&[-1.5, -0.25], 0.5, &mut dlogp), 1.75);
        assert_eq!(dlogp, [-0.5, -0.5]);
    }
}
