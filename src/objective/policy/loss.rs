//! The clipped policy loss with optional KL and entropy terms.

use crate::base::limits::{LARGE, refuse_outside};
use crate::objective::Aggregation;
use crate::ops::logprob::{ScoreGradient, TokenScores};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The bounds and coefficients of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// A ratio is clipped below at 1 minus this.
    pub clip_low: f64,
    /// A ratio is clipped above at 1 plus this.
    pub clip_high: f64,
    /// Dual clip (Ye et al. 2020): with a negative advantage, the loss is at most this times the
    /// advantage's size.
    pub clip_dual: f64,
    /// Log-ratios are clamped to plus or minus this.
    pub log_ratio_clamp: f64,
    /// The weight of the k3 estimate of the divergence from the reference model, which is the model that
    /// training starts from.
    pub kl_coef: f64,
    /// Whether that divergence is measured even if its weight is 0.
    pub log_kl: bool,
    /// The weight of the entropy bonus.
    pub entropy_coef: f64,
    /// Truncated importance sampling (verl's `rollout_is = token`): the trainer computes old
    /// log-probabilities itself, and a token has the weight min(exp(old - sampler's), this). It is for
    /// devices on which sampler and trainer differ, and off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_sampling_cap: Option<f64>,
    /// How the losses of tokens become one number.
    pub aggregation: Aggregation,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            clip_dual: 3.0,
            log_ratio_clamp: 20.0,
            kl_coef: 0.0,
            log_kl: false,
            entropy_coef: 0.0,
            importance_sampling_cap: None,
            aggregation: Aggregation::TokenMean,
        }
    }
}

impl LossConfig {
    /// Refuses bounds and coefficients with which nothing would be learnt; `table` is the table's name in
    /// errors.
    pub fn check(&self, table: &str) -> Result<()> {
        let length = match self.aggregation {
            Aggregation::SeqMeanTokenSumNorm { length } => length,
            _ => 1.0,
        };
        refuse_outside(
            table,
            &[
                ("clip_low", self.clip_low, 0.0..=1.0),
                ("clip_high", self.clip_high, 0.0..=LARGE),
                ("clip_dual", self.clip_dual, 1.0..=LARGE),
                ("log_ratio_clamp", self.log_ratio_clamp, f64::MIN_POSITIVE..=LARGE),
                ("kl_coef", self.kl_coef, 0.0..=LARGE),
                ("entropy_coef", self.entropy_coef, -LARGE..=LARGE),
                ("aggregation.length", length, 1.0..=LARGE),
                (
                    "importance_sampling_cap",
                    self.importance_sampling_cap.unwrap_or(1.0),
                    1.0..=LARGE,
                ),
            ],
        )
    }

    /// Returns whether a reference model must be kept.
    pub fn needs_reference(&self) -> bool {
        self.kl_coef != 0.0 || self.log_kl
    }
}

/// The k3 estimate is clamped to plus or minus this, as in verl.
const KL_CLAMP: f64 = 10.0;

/// Learnt tokens with their scores and what else the loss needs. Every slice has one entry for each token.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// The scores under the weights that are trained.
    pub scores: &'a [TokenScores],
    /// The log-probabilities under the weights with which the tokens were sampled.
    pub old_logp: &'a [f32],
    /// The weights of the policy terms ([`super::importance_weights`]), if sampler and trainer may differ.
    pub importance: Option<&'a [f32]>,
    /// The log-probabilities under the reference model, if one is kept.
    pub reference_logp: Option<&'a [f32]>,
    /// The advantage of each token's response.
    pub advantage: &'a [f32],
    /// The weights in the sum ([`Aggregation::token_weights`]).
    pub weight: &'a [f32],
}

/// Sums over tokens. Those of micro-batches and ranks are added up, then divided.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Metrics {
    /// The weighted loss with all terms.
    pub loss: f64,
    /// The weighted policy term.
    pub policy_loss: f64,
    /// The weighted k3 divergence from the reference model.
    pub kl: f64,
    /// The weighted entropy.
    pub entropy: f64,
    pub tokens: usize,
    /// The number of tokens whose clipped loss was the larger one.
    pub clipped: usize,
    /// The number of tokens on which the dual clip acted.
    pub clipped_dual: usize,
    /// The sum of old minus new log-probabilities, which estimates the divergence from the sampler.
    pub approx_kl: f64,
    /// The largest distance of a ratio from 1.
    pub ratio_max_deviation: f64,
}

impl Metrics {
    /// Adds the sums of another part of the mini-batch.
    pub fn merge(&mut self, other: &Self) {
        self.loss += other.loss;
        self.policy_loss += other.policy_loss;
        self.kl += other.kl;
        self.entropy += other.entropy;
        self.tokens += other.tokens;
        self.clipped += other.clipped;
        self.clipped_dual += other.clipped_dual;
        self.approx_kl += other.approx_kl;
        self.ratio_max_deviation = self.ratio_max_deviation.max(other.ratio_max_deviation);
    }
}

/// Returns the sums over `tokens`, and writes the gradients with respect to log-probability and entropy.
pub fn policy_loss(
    config: &LossConfig,
    tokens: &Tokens<'_>,
    gradients: &mut [ScoreGradient],
) -> Metrics {
    let n = tokens.scores.len();
    let lengths =
        [tokens.old_logp.len(), tokens.advantage.len(), tokens.weight.len(), gradients.len()];
    assert_eq!(lengths, [n; 4], "one entry per token");
    let mut metrics = Metrics { tokens: n, ..Metrics::default() };
    for t in 0..n {
        let logp = f64::from(tokens.scores[t].logp);
        let entropy = f64::from(tokens.scores[t].entropy);
        let weight = f64::from(tokens.weight[t]);
        let policy =
            clipped(config, logp - f64::from(tokens.old_logp[t]), f64::from(tokens.advantage[t]));
        let importance = tokens.importance.map_or(1.0, |importance| f64::from(importance[t]));
        let (mut loss, mut gradient) = (importance * policy.loss, importance * policy.gradient);
        metrics.policy_loss += weight * loss;
        metrics.clipped += usize::from(policy.clipped);
        metrics.clipped_dual += usize::from(policy.clipped_dual);
        metrics.approx_kl -= policy.log_ratio;
        metrics.ratio_max_deviation =
            metrics.ratio_max_deviation.max((policy.log_ratio.exp() - 1.0).abs());
        if let Some(reference) = tokens.reference_logp {
            let (kl, dkl) = k3(f64::from(reference[t]) - logp, config.log_ratio_clamp);
            metrics.kl += weight * kl;
            loss += config.kl_coef * kl;
            gradient += config.kl_coef * dkl;
        }
        metrics.entropy += weight * entropy;
        loss -= config.entropy_coef * entropy;
        metrics.loss += weight * loss;
        gradients[t].logp = (weight * gradient) as f32;
        gradients[t].entropy = (-config.entropy_coef * weight) as f32;
    }
    metrics
}

struct Clipped {
    loss: f64,
    gradient: f64,
    log_ratio: f64,
    clipped: bool,
    clipped_dual: bool,
}

/// Returns one token's policy loss and its derivative with respect to logp.
fn clipped(config: &LossConfig, log_ratio: f64, advantage: f64) -> Clipped {
    let clamp = config.log_ratio_clamp;
    let inside = log_ratio.abs() <= clamp;
    let log_ratio = log_ratio.clamp(-clamp, clamp);
    let ratio = log_ratio.exp();
    let free = -advantage * ratio;
    let bounded = -advantage * ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high);
    let limit = -advantage * config.clip_dual;
    let clipped = bounded > free;
    let clipped_dual = advantage < 0.0 && free.max(bounded) > limit;
    let loss = if clipped_dual { limit } else { free.max(bounded) };
    let gradient = if inside && !clipped && !clipped_dual { free } else { 0.0 };
    Clipped { loss, gradient, log_ratio, clipped, clipped_dual }
}

/// Returns the k3 estimate exp(d) - d - 1 for d = reference - logp (Schulman 2020), and its derivative with
/// respect to logp.
fn k3(d: f64, clamp: f64) -> (f64, f64) {
    let inside = d.abs() <= clamp;
    let d = d.clamp(-clamp, clamp);
    let kl = d.exp() - d - 1.0;
    let gradient = if inside && kl.abs() <= KL_CLAMP { 1.0 - d.exp() } else { 0.0 };
    (kl.clamp(-KL_CLAMP, KL_CLAMP), gradient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::Totals;
    use proptest::prelude::*;

    const HIGHER: LossConfig = LossConfig {
        clip_low: 0.2,
        clip_high: 0.28,
        clip_dual: 3.0,
        log_ratio_clamp: 20.0,
        kl_coef: 0.0,
        log_kl: false,
        entropy_coef: 0.0,
        importance_sampling_cap: None,
        aggregation: Aggregation::TokenMean,
    };

    #[test]
    fn the_policy_loss_gives_the_published_values() {
        let config = LossConfig::default();
        for (config, advantage, log_ratio, expected) in [
            (config, 1.0, 0.3, -1.2),
            (HIGHER, 1.0, 0.3, -1.28),
            (config, 1.0, -0.3, -0.740_818),
            (config, -1.0, 0.3, 1.349_859),
            (config, -1.0, -0.3, 0.8),
            (config, -1.0, 2.0, 3.0),
            (LossConfig { clip_dual: 1e9, ..config }, -1.0, 2.0, 7.389_056),
        ] {
            let loss = clipped(&config, log_ratio, advantage).loss;
            assert!((loss - expected).abs() < 1e-6, "{advantage} {log_ratio}: {loss}");
        }
    }

    #[test]
    fn the_divergence_gives_the_published_values() {
        for (d, expected) in
            [(0.5, 0.148_721_271), (-0.5, 0.106_530_660), (3.0, 10.0), (25.0, 10.0)]
        {
            assert!((k3(d, 20.0).0 - expected).abs() < 1e-9, "{d}");
        }
    }

    fn scores(logp: &[f32], entropy: &[f32]) -> Vec<TokenScores> {
        let score = |(&logp, &entropy)| TokenScores { logp, entropy, mean_logp: 0.0 };
        logp.iter().zip(entropy).map(score).collect()
    }

    #[test]
    fn on_policy_the_ratio_is_exactly_one_and_the_gradient_is_the_advantage() {
        let logp = [-0.7, -3.1];
        let tokens = Tokens {
            scores: &scores(&logp, &[1.0, 2.0]),
            old_logp: &logp,
            importance: None,
            reference_logp: None,
            advantage: &[1.5, -0.5],
            weight: &[1.0, 1.0],
        };
        let mut gradients = [ScoreGradient::default(); 2];
        let metrics = policy_loss(&LossConfig::default(), &tokens, &mut gradients);
        assert_eq!(metrics.ratio_max_deviation, 0.0);
        assert_eq!((metrics.clipped, metrics.approx_kl), (0, 0.0));
        assert_eq!(gradients.map(|gradient| gradient.logp), [-1.5, 0.5]);
    }

    #[test]
    fn importance_weighs_the_policy_term_alone() {
        let tokens = Tokens {
            scores: &scores(&[-1.0, -1.0], &[1.0, 2.0]),
            old_logp: &[-1.3, -1.1],
            importance: Some(&[2.0, 0.5]),
            reference_logp: Some(&[-0.5, -1.5]),
            advantage: &[1.0, -1.0],
            weight: &[1.0, 1.0],
        };
        let config = LossConfig { kl_coef: 0.1, entropy_coef: 0.01, ..LossConfig::default() };
        let mut gradients = [ScoreGradient::default(); 2];
        let metrics = policy_loss(&config, &tokens, &mut gradients);
        // The terms are 2.0 * -1.2 (clipped) and 0.5 * exp(0.1).
        assert!((metrics.policy_loss - (-2.4 + 0.552_585_459)).abs() < 1e-6, "{metrics:?}");
        let others = 0.1 * (0.148_721_271 + 0.106_530_660) - 0.01 * 3.0;
        assert!((metrics.loss - metrics.policy_loss - others).abs() < 1e-6, "{metrics:?}");
        let expected = [0.1 * (1.0 - 0.5f64.exp()), 0.552_585_459 + 0.1 * (1.0 - (-0.5f64).exp())];
        for (gradient, expected) in gradients.iter().zip(expected) {
            assert!((f64::from(gradient.logp) - expected).abs() < 1e-6, "{gradients:?}");
        }
    }

    /// A random token.
    #[derive(Debug, Clone, Copy)]
    struct Token {
        logp: f32,
        old_logp: f32,
        reference_logp: f32,
        entropy: f32,
        advantage: f32,
    }

    fn token() -> impl Strategy<Value = Token> {
        let away = || prop_oneof![8 => -1.0f32..1.0, 1 => -25.0f32..25.0];
        (-8.0f32..0.0, away(), away(), 0.0f32..3.0, -2.0f32..2.0).prop_map(
            |(logp, old, reference, entropy, advantage)| Token {
                logp,
                old_logp: logp - old,
                reference_logp: logp + reference,
                entropy,
                advantage,
            },
        )
    }

    fn run(config: &LossConfig, tokens: &[Token], weight: &[f32]) -> (Metrics, Vec<ScoreGradient>) {
        let column = |field: fn(&Token) -> f32| tokens.iter().map(field).collect::<Vec<f32>>();
        let mut gradients = vec![ScoreGradient::default(); tokens.len()];
        let inputs = Tokens {
            scores: &scores(&column(|t| t.logp), &column(|t| t.entropy)),
            old_logp: &column(|t| t.old_logp),
            importance: None,
            reference_logp: Some(&column(|t| t.reference_logp)),
            advantage: &column(|t| t.advantage),
            weight,
        };
        let metrics = policy_loss(config, &inputs, &mut gradients);
        (metrics, gradients)
    }

    const FULL: LossConfig = LossConfig { kl_coef: 0.3, entropy_coef: 0.05, ..HIGHER };

    proptest! {
        #[test]
        fn gradients_agree_with_finite_differences(token in token()) {
            let gradient = run(&FULL, &[token], &[0.7]).1[0];
            let h = 2f32.powi(-9);
            let [down, up] = [-h, h].map(|h| {
                run(&FULL, &[Token { logp: token.logp + h, ..token }], &[0.7])
            });
            let [less, more] = [&down, &up].map(|r| r.0);
            // At a corner of the clipped loss the two sides differ, and there is no derivative.
            let corner = less.clipped != more.clipped
                || less.clipped_dual != more.clipped_dual
                || (down.1[0].logp == 0.0) != (up.1[0].logp == 0.0)
                || ((token.old_logp - token.logp).abs() - 20.0).abs() < 2.0 * h
                || ((token.reference_logp - token.logp).abs() - 20.0).abs() < 2.0 * h
                || (less.kl / 0.7 > 9.9 && less.kl / 0.7 < 10.0)
                || (more.kl / 0.7 > 9.9 && more.kl / 0.7 < 10.0);
            if !corner {
                let numeric = (more.loss - less.loss) / f64::from((token.logp + h) - (token.logp - h));
                let error = (numeric - f64::from(gradient.logp)).abs();
                prop_assert!(error < 2e-3 * (1.0 + numeric.abs()), "{} {:?}", numeric, gradient);
            }
            prop_assert!((gradient.entropy + 0.05 * 0.7).abs() < 1e-7);
        }

        #[test]
        fn order_and_sharding_change_neither_the_mean_nor_any_gradient(
            sequences in proptest::collection::vec(
                proptest::collection::vec(token(), 1..6), 1..8),
            shards in 1usize..5,
        ) {
            for aggregation in [
                Aggregation::TokenMean,
                Aggregation::SeqMeanTokenMean,
                Aggregation::SeqMeanTokenSum,
                Aggregation::SeqMeanTokenSumNorm { length: 8.0 },
            ] {
                let config = LossConfig { aggregation, ..FULL };
                let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
                let divisor = aggregation.divisor(Totals::count(lengths.iter().copied()));
                let weights = |lengths: &[usize]| {
                    aggregation.token_weights(lengths, Totals::count(lengths.iter().copied()))
                };
                let (whole, gradients) = run(&config, &sequences.concat(), &weights(&lengths));

                let mut parts = Metrics::default();
                for shard in 0..shards {
                    let chosen: Vec<usize> =
                        (0..sequences.len()).rev().filter(|i| i % shards == shard).collect();
                    let tokens: Vec<_> = chosen.iter().flat_map(|&i| sequences[i].clone()).collect();
                    let lengths: Vec<usize> = chosen.iter().map(|&i| lengths[i]).collect();
                    let (part, of_part) = run(&config, &tokens, &weights(&lengths));
                    parts.merge(&part);
                    let mut at = 0;
                    for &i in &chosen {
                        let start: usize = sequences[..i].iter().map(Vec::len).sum();
                        let n = sequences[i].len();
                        prop_assert_eq!(&of_part[at..at + n], &gradients[start..start + n]);
                        at += n;
                    }
                }
                let [a, b] = [whole.loss / divisor, parts.loss / divisor];
                prop_assert!((a - b).abs() <= 1e-9 * (1.0 + a.abs()), "{} {}", a, b);
                prop_assert_eq!(whole.clipped, parts.clipped);
                prop_assert_eq!(whole.tokens, parts.tokens);
            }
        }
    }
}
