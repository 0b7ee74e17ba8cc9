//! The clipped policy loss with optional KL and entropy terms.

use crate::base::limits::{LARGE, refuse_outside};
use crate::objective::Aggregation;
use crate::ops::logprob::{ScoreGradient, TokenScores};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Bounds and coefficients of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// The ratio may fall to 1 minus this.
    pub clip_low: f64,
    /// The ratio may rise to 1 plus this.
    pub clip_high: f64,
    /// Dual clip: with a negative advantage the loss is at most this times its size.
    pub clip_dual: f64,
    /// Log-ratios are clamped to plus or minus this.
    pub log_ratio_clamp: f64,
    /// Weight of the k3 estimate of the divergence from the reference model, the one that training
    /// starts from.
    pub kl_coef: f64,
    /// Measure that divergence even where its weight is 0.
    pub log_kl: bool,
    /// Weight of the entropy bonus.
    pub entropy_coef: f64,
    /// Truncated importance sampling (verl's `rollout_is = token`): the trainer computes old
    /// log-probabilities itself, and tokens weigh min(exp(old - sampler's), this). For devices where
    /// sampler and trainer differ; off where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_sampling_cap: Option<f64>,
    /// How token losses become one number.
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
    /// Refuses bounds and coefficients under which nothing would be learnt; `table` is where they stand.
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

    /// Whether a reference model has to be kept.
    pub fn needs_reference(&self) -> bool {
        self.kl_coef != 0.0 || self.log_kl
    }
}

/// The k3 estimate is clamped to plus or minus this (verl).
const KL_CLAMP: f64 = 10.0;

/// Learnt tokens: their scores, and what is known of them besides. All slices have one entry per token.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// Scores under the weights being trained.
    pub scores: &'a [TokenScores],
    /// Log-probabilities under the weights that the tokens were sampled with.
    pub old_logp: &'a [f32],
    /// Weights of the policy terms ([`super::importance_weights`]), where the sampler may have been off.
    pub importance: Option<&'a [f32]>,
    /// Log-probabilities under the reference model, where one is kept.
    pub reference_logp: Option<&'a [f32]>,
    /// Advantages of the tokens' responses.
    pub advantage: &'a [f32],
    /// Weights in the sum ([`Aggregation::token_weights`]).
    pub weight: &'a [f32],
}

/// Sums over tokens; add those of micro-batches and ranks, then divide.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Metrics {
    /// Weighted loss, all terms.
    pub loss: f64,
    /// Weighted policy term.
    pub policy_loss: f64,
    /// Weighted k3 divergence from the reference model.
    pub kl: f64,
    /// Weighted entropy.
    pub entropy: f64,
    pub tokens: usize,
    /// Tokens where the clipped loss was the larger one.
    pub clipped: usize,
    /// Tokens where the dual clip was in force.
    pub clipped_dual: usize,
    /// Sum of old minus new log-probability: estimates the divergence from the sampler.
    pub approx_kl: f64,
    /// Largest distance of a ratio from 1.
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

/// Sums the loss over `tokens`, and writes its gradients by log-probability and entropy.
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

/// One token's policy loss and its derivative by logp.
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

/// The k3 estimate exp(d) - d - 1 for d = reference - logp, and its derivative by logp.
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
        // 2.0 * -1.2 (clipped) and 0.5 * exp(0.1).
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
            // At a corner of the clipped loss the two sides differ and no derivative exists.
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
