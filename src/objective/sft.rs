//! Supervised fine-tuning: the negative log-likelihood of the learnt tokens, labels smoothed or not.

/// Sums -logp over tokens and writes its gradient times `scale`.
///
/// With `scale` 1 the gradient belongs to the returned sum; with 1 / tokens of the global batch, to
/// the mean.
pub fn negative_log_likelihood(logp: &[f32], scale: f32, dlogp: &mut [f32]) -> f64 {
    dlogp.fill(-scale);
    -logp.iter().map(|&l| f64::from(l)).sum::<f64>()
}

/// The same for smoothed labels: `1 - smoothing` of the target lies on the token and `smoothing`
/// evenly on the whole vocabulary, as in PyTorch's `cross_entropy`.
///
/// `mean_logp` are the mean log-probabilities over the vocabulary; both gradients are written.
pub fn smoothed_negative_log_likelihood(
    smoothing: f32,
    (logp, mean_logp): (&[f32], &[f32]),
    scale: f32,
    (dlogp, dmean_logp): (&mut [f32], &mut [f32]),
) -> f64 {
    let on_token = negative_log_likelihood(logp, (1.0 - smoothing) * scale, dlogp);
    let on_all = negative_log_likelihood(mean_logp, smoothing * scale, dmean_logp);
    f64::from(1.0 - smoothing) * on_token + f64::from(smoothing) * on_all
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

    #[test]
    fn smoothing_moves_its_share_to_all_tokens() {
        let (mut dlogp, mut dmean) = ([0.0; 2], [0.0; 2]);
        let scores: (&[f32], &[f32]) = (&[-1.0, -3.0], &[-4.0, -8.0]);
        let loss = smoothed_negative_log_likelihood(0.25, scores, 2.0, (&mut dlogp, &mut dmean));
        assert_eq!(loss, 0.75 * 4.0 + 0.25 * 12.0);
        assert_eq!((dlogp, dmean), ([-1.5, -1.5], [-0.5, -0.5]));
    }
}
