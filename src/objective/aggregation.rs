//! How the losses of tokens become one number.

use serde::{Deserialize, Serialize};

/// The number of learnt tokens, and of the sequences that hold at least one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub tokens: usize,
    pub sequences: usize,
}

impl Totals {
    /// Adds up the numbers of learnt tokens of sequences.
    pub fn count(tokens_per_sequence: impl IntoIterator<Item = usize>) -> Self {
        tokens_per_sequence.into_iter().filter(|&tokens| tokens > 0).fold(
            Self::default(),
            |totals, tokens| Self {
                tokens: totals.tokens + tokens,
                sequences: totals.sequences + 1,
            },
        )
    }
}

/// The mean that is taken over token losses; names and meaning are those of verl's `loss_agg_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Aggregation {
    /// The mean over all tokens of the global mini-batch.
    #[default]
    TokenMean,
    /// The mean over the tokens of each micro-batch, then the mean over micro-batches, weighted by their
    /// sequences: what verl called `token-mean` up to 0.7. The result depends on the micro-batches.
    MicroTokenMean,
    /// The mean over the tokens of each sequence, then over sequences.
    SeqMeanTokenMean,
    /// The sum over the tokens of each sequence, then the mean over sequences.
    SeqMeanTokenSum,
    /// The sum over the tokens of each sequence, divided by a constant length, then the mean over sequences
    /// (Dr. GRPO, Liu et al. 2025).
    SeqMeanTokenSumNorm {
        /// The constant length, usually that of the longest response.
        length: f64,
    },
}

/// verl adds this to the number of tokens of a sequence before it divides by that.
const SEQUENCE_EPS: f64 = 1e-8;

impl Aggregation {
    /// Returns the weight of each token of a sequence with `tokens` learnt tokens, before the division by
    /// [`Aggregation::divisor`].
    pub fn weight(self, tokens: usize, micro_batch: Totals) -> f64 {
        match self {
            Self::TokenMean | Self::SeqMeanTokenSum | Self::SeqMeanTokenSumNorm { .. } => 1.0,
            Self::MicroTokenMean => micro_batch.sequences as f64 / micro_batch.tokens.max(1) as f64,
            Self::SeqMeanTokenMean => 1.0 / (tokens as f64 + SEQUENCE_EPS),
        }
    }

    /// Returns the divisor of the sum over the global mini-batch; it is never 0.
    pub fn divisor(self, mini_batch: Totals) -> f64 {
        let sequences = mini_batch.sequences.max(1) as f64;
        match self {
            Self::TokenMean => mini_batch.tokens.max(1) as f64,
            Self::MicroTokenMean | Self::SeqMeanTokenMean | Self::SeqMeanTokenSum => sequences,
            Self::SeqMeanTokenSumNorm { length } => sequences * length,
        }
    }

    /// Returns the weights of all tokens of some sequences of a micro-batch, one sequence after the other.
    pub fn token_weights(self, tokens_per_sequence: &[usize], micro_batch: Totals) -> Vec<f32> {
        tokens_per_sequence
            .iter()
            .flat_map(|&tokens| {
                std::iter::repeat_n(self.weight(tokens, micro_batch) as f32, tokens)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the aggregated loss of sequences of 2 and 4 tokens with losses 1 and 2 a token, in the given
    /// micro-batches.
    fn aggregate(mode: Aggregation, micro_batches: &[&[(usize, f64)]]) -> f64 {
        let mini = Totals::count(micro_batches.iter().flat_map(|m| m.iter().map(|s| s.0)));
        let sum: f64 = micro_batches
            .iter()
            .flat_map(|micro| {
                let totals = Totals::count(micro.iter().map(|s| s.0));
                micro.iter().map(move |&(n, loss)| mode.weight(n, totals) * loss * n as f64)
            })
            .sum();
        sum / mode.divisor(mini)
    }

    #[test]
    fn aggregations_give_the_published_values() {
        let whole: &[&[(usize, f64)]] = &[&[(2, 1.0), (4, 2.0)]];
        let split: &[&[(usize, f64)]] = &[&[(2, 1.0)], &[(4, 2.0)]];
        for (mode, together, apart) in [
            (Aggregation::TokenMean, 1.666_667, 1.666_667),
            (Aggregation::SeqMeanTokenMean, 1.5, 1.5),
            (Aggregation::SeqMeanTokenSum, 5.0, 5.0),
            (Aggregation::SeqMeanTokenSumNorm { length: 8.0 }, 0.625, 0.625),
            (Aggregation::MicroTokenMean, 1.666_667, 1.5),
        ] {
            assert!((aggregate(mode, whole) - together).abs() < 1e-6, "{mode:?}");
            assert!((aggregate(mode, split) - apart).abs() < 1e-6, "{mode:?}");
        }
    }

    #[test]
    fn a_sequence_without_loss_counts_nowhere() {
        assert_eq!(Totals::count([0, 3, 0]), Totals { tokens: 3, sequences: 1 });
        assert_eq!(Aggregation::TokenMean.divisor(Totals::default()), 1.0);
        assert_eq!(
            Aggregation::SeqMeanTokenSum.token_weights(&[0, 2], Totals::count([0, 2])),
            [1.0, 1.0]
        );
    }
}
