//! Supervised fine-tuning: the negative log-likelihood of the learnt tokens, with or without label
//! smoothing.

use super::{BatchSums, Chunk, Objective};
use crate::ops::logprob::{ScoreGradient, TokenScores};

/// The negative log-likelihood of all targets of a step, in nats.
///
/// With label smoothing, `1 - smoothing` of a target is on its token, and `smoothing` is spread evenly over
/// the whole vocabulary, as in PyTorch's `cross_entropy`.
#[derive(Debug)]
pub struct NegativeLogLikelihood {
    smoothing: f32,
    sums: BatchSums<Losses>,
}

/// Sums over targets, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    /// The negative log-likelihood of the tokens themselves.
    pub nll: f64,
    /// The loss that is minimised: `nll` with smoothed labels.
    pub loss: f64,
}

impl NegativeLogLikelihood {
    /// Creates the objective of a step of `num_batches` micro-batches.
    pub fn new(smoothing: f32, num_batches: usize) -> Self {
        Self { smoothing, sums: BatchSums::new(num_batches) }
    }

    /// Returns the sums over all micro-batches.
    pub fn into_losses(self) -> Losses {
        let add = |a: Losses, b: Losses| Losses { nll: a.nll + b.nll, loss: a.loss + b.loss };
        self.sums.into_iter().fold(Losses::default(), add)
    }
}

impl Objective for NegativeLogLikelihood {
    fn learn(&self, chunk: Chunk<'_>, gradients: &mut [ScoreGradient]) {
        let sum = |score: fn(&TokenScores) -> f32| {
            chunk.scores.iter().map(|scores| f64::from(score(scores))).sum::<f64>()
        };
        let nll = -sum(|scores| scores.logp);
        let on_vocabulary = -sum(|scores| scores.mean_logp);
        let on_token = 1.0 - self.smoothing;
        let loss = f64::from(on_token) * nll + f64::from(self.smoothing) * on_vocabulary;
        self.sums.update(chunk.batch, |losses| {
            losses.nll += nll;
            losses.loss += loss;
        });
        for gradient in gradients {
            (gradient.logp, gradient.mean_logp) = (-on_token, -self.smoothing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Learns from chunks of (micro-batch, log-probabilities, mean log-probabilities), and returns the
    /// losses and the gradient with respect to each target.
    fn learn(smoothing: f32, chunks: &[(usize, &[f32], &[f32])]) -> (Losses, Vec<ScoreGradient>) {
        let objective = NegativeLogLikelihood::new(smoothing, chunks.len());
        let mut all = Vec::new();
        for &(batch, logp, mean_logp) in chunks {
            let score = |(&logp, &mean_logp)| TokenScores { logp, mean_logp, entropy: 0.0 };
            let scores: Vec<TokenScores> = logp.iter().zip(mean_logp).map(score).collect();
            let mut gradients = vec![ScoreGradient::default(); scores.len()];
            objective.learn(Chunk { batch, first: 0, scores: &scores }, &mut gradients);
            all.extend(gradients);
        }
        (objective.into_losses(), all)
    }

    #[test]
    fn the_loss_is_the_sum_and_every_token_pulls_alike() {
        let (losses, gradients) = learn(0.0, &[(1, &[-1.5], &[-9.0]), (0, &[-0.25], &[-9.0])]);
        assert_eq!(losses, Losses { nll: 1.75, loss: 1.75 });
        assert!(gradients.iter().all(|g| (g.logp, g.mean_logp, g.entropy) == (-1.0, 0.0, 0.0)));
    }

    #[test]
    fn smoothing_moves_its_share_to_all_tokens() {
        let (losses, gradients) = learn(0.25, &[(0, &[-1.0, -3.0], &[-4.0, -8.0])]);
        assert_eq!(losses, Losses { nll: 4.0, loss: 0.75 * 4.0 + 0.25 * 12.0 });
        assert!(gradients.iter().all(|g| (g.logp, g.mean_logp) == (-0.75, -0.25)));
    }
}
