//! Direct preference optimisation: of two answers to one prompt the preferred one shall become likelier,
//! beside the other and beside a reference model.
//!
//! Semantics follow TRL, whose values are tests. A loss is a function of whole sequences, so their
//! log-probabilities are computed before ([`pair_loss`]); what is left for the scores of a chunk is one
//! factor for each answer ([`PreferenceObjective`]).

use super::{Chunk, Objective};
use crate::base::error::usage;
use crate::base::limits::{LARGE, refuse_outside};
use crate::ops::logprob::ScoreGradient;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The loss of a pair of answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    pub kind: LossKind,
    /// How strongly the reference model holds the trained one back.
    pub beta: f64,
    /// The probability that a pair is the wrong way round (conservative DPO), with `sigmoid`.
    pub label_smoothing: f64,
}

/// What is minimised of the margin, by which a pair's log-ratio (trained over reference model) is larger for
/// the chosen than for the rejected answer.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// DPO: the negative log of the sigmoid of beta times the margin.
    #[default]
    Sigmoid,
    /// IPO: the square of the margin of means over tokens, minus 1 / (2 beta).
    Ipo,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { kind: LossKind::Sigmoid, beta: 0.1, label_smoothing: 0.0 }
    }
}

impl LossConfig {
    /// Refuses numbers under which nothing would be learnt; `table` is where they stand.
    pub fn check(&self, table: &str) -> Result<()> {
        refuse_outside(
            table,
            &[
                ("beta", self.beta, f64::MIN_POSITIVE..=LARGE),
                ("label_smoothing", self.label_smoothing, 0.0..=0.5),
            ],
        )?;
        if self.kind == LossKind::Ipo && self.label_smoothing != 0.0 {
            return Err(usage(format!(
                "{table}.label_smoothing is {}: {table}.kind = \"ipo\" has no labels to smooth, leave it out",
                self.label_smoothing
            )));
        }
        Ok(())
    }
}

/// What is known of an answer as a whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// The sum of its tokens' log-probabilities under the weights being trained.
    pub logp: f64,
    /// The same under the reference model.
    pub reference_logp: f64,
    /// At least one.
    pub num_tokens: usize,
}

impl Answer {
    /// How much likelier it is than under the reference model, in nats.
    pub fn log_ratio(&self) -> f64 {
        self.logp - self.reference_logp
    }
}

/// The loss of a pair, and its derivative by the log-probability of each token of either answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairLoss {
    pub loss: f64,
    pub by_chosen: f64,
    pub by_rejected: f64,
}

/// Computes the loss of a pair.
pub fn pair_loss(config: &LossConfig, chosen: &Answer, rejected: &Answer) -> PairLoss {
    let LossConfig { kind, beta, label_smoothing } = *config;
    let weight = |answer: &Answer| match kind {
        LossKind::Sigmoid => 1.0,
        LossKind::Ipo => 1.0 / answer.num_tokens as f64,
    };
    let [of_chosen, of_rejected] = [chosen, rejected].map(weight);
    let margin = of_chosen * chosen.log_ratio() - of_rejected * rejected.log_ratio();
    let (loss, by_margin) = match kind {
        LossKind::Sigmoid => {
            let z = beta * margin;
            let loss = (1.0 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z);
            (loss, beta * (sigmoid(z) - (1.0 - label_smoothing)))
        }
        LossKind::Ipo => {
            let distance = margin - 1.0 / (2.0 * beta);
            (distance * distance, 2.0 * distance)
        }
    };
    PairLoss { loss, by_chosen: by_margin * of_chosen, by_rejected: -by_margin * of_rejected }
}

/// ln(1 + exp(x)), which is -ln(sigmoid(-x)).
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The gradient of all pairs of a step, in rows: for each target of each row the derivative of the loss by its
/// log-probability, which is the same for all tokens of an answer.
#[derive(Debug)]
pub struct PreferenceObjective(pub Vec<Vec<f32>>);

impl Objective for PreferenceObjective {
    fn learn(&self, chunk: Chunk<'_>, gradients: &mut [ScoreGradient]) {
        let factors = &self.0[chunk.batch][chunk.range()];
        gradients.iter_mut().zip(factors).for_each(|(gradient, &factor)| gradient.logp = factor);
    }
}

/// Sums over the pairs of a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Metrics {
    pub pairs: usize,
    pub loss: f64,
    /// Rewards: beta times the log-ratio.
    pub chosen_reward: f64,
    pub rejected_reward: f64,
    /// Pairs whose chosen answer has the larger reward.
    pub right_way: usize,
    pub chosen_logp: f64,
    pub rejected_logp: f64,
}

impl Metrics {
    /// Adds a pair.
    pub fn add(&mut self, beta: f64, loss: &PairLoss, chosen: &Answer, rejected: &Answer) {
        let rewards = [chosen, rejected].map(|answer| beta * answer.log_ratio());
        self.pairs += 1;
        self.loss += loss.loss;
        self.chosen_reward += rewards[0];
        self.rejected_reward += rewards[1];
        self.right_way += usize::from(rewards[0] > rewards[1]);
        self.chosen_logp += chosen.logp;
        self.rejected_logp += rejected.logp;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::logprob::TokenScores;
    use proptest::prelude::*;

    const SIGMOID: LossConfig =
        LossConfig { kind: LossKind::Sigmoid, beta: 0.1, label_smoothing: 0.0 };
    const IPO: LossConfig = LossConfig { kind: LossKind::Ipo, ..SIGMOID };

    fn answer(logp: f64, reference_logp: f64, num_tokens: usize) -> Answer {
        Answer { logp, reference_logp, num_tokens }
    }

    #[test]
    fn losses_are_those_of_a_calculation_by_hand() {
        // Log-ratios of 2 and -1: a margin of 3.
        let (chosen, rejected) = (answer(-10.0, -12.0, 4), answer(-9.0, -8.0, 2));
        let loss = |config: LossConfig| pair_loss(&config, &chosen, &rejected).loss;
        let ln = f64::ln;
        for (config, expected) in [
            (SIGMOID, ln(1.0 + (-0.3f64).exp())),
            (LossConfig { beta: 1.0, ..SIGMOID }, ln(1.0 + (-3f64).exp())),
            (
                LossConfig { label_smoothing: 0.25, ..SIGMOID },
                0.75 * ln(1.0 + (-0.3f64).exp()) + 0.25 * ln(1.0 + 0.3f64.exp()),
            ),
            // Means of 0.5 and -0.5: 1 - 5.
            (IPO, 16.0),
        ] {
            assert!((loss(config) - expected).abs() < 1e-12, "{config:?}: {}", loss(config));
        }
    }

    #[test]
    fn a_model_that_is_its_reference_has_the_loss_of_a_coin() {
        let same = answer(-7.0, -7.0, 3);
        let found = pair_loss(&SIGMOID, &same, &same);
        assert_eq!((found.loss, found.by_chosen), (2f64.ln(), -0.05));
        assert_eq!(found.by_rejected, 0.05);
    }

    #[test]
    fn a_margin_of_any_size_has_a_finite_loss() {
        for logp in [-1e6, 1e6] {
            let found = pair_loss(&SIGMOID, &answer(logp, 0.0, 1), &answer(0.0, 0.0, 1));
            assert!(found.loss.is_finite() && found.by_chosen.is_finite(), "{found:?}");
        }
    }

    #[test]
    fn every_token_of_an_answer_is_pulled_alike_wherever_a_chunk_ends() {
        let objective = PreferenceObjective(vec![vec![], vec![-0.5, -0.5, 0.25]]);
        let scores = [TokenScores::default(); 2];
        let mut gradients = vec![ScoreGradient::default(); 2];
        objective.learn(Chunk { batch: 1, first: 1, scores: &scores }, &mut gradients);
        let pulled: Vec<f32> = gradients.iter().map(|gradient| gradient.logp).collect();
        assert_eq!(pulled, [-0.5, 0.25]);
    }

    #[test]
    fn rewards_are_beta_times_log_ratios() {
        let (chosen, rejected) = (answer(-10.0, -12.0, 4), answer(-9.0, -8.0, 2));
        let mut metrics = Metrics::default();
        for (chosen, rejected) in [(chosen, rejected), (rejected, chosen)] {
            metrics.add(0.5, &pair_loss(&SIGMOID, &chosen, &rejected), &chosen, &rejected);
        }
        assert_eq!((metrics.pairs, metrics.right_way), (2, 1));
        assert_eq!((metrics.chosen_reward, metrics.rejected_reward), (0.5, 0.5));
        assert_eq!((metrics.chosen_logp, metrics.rejected_logp), (-19.0, -19.0));
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        for (config, key) in [
            (LossConfig { beta: 0.0, ..SIGMOID }, "loss.beta"),
            (LossConfig { label_smoothing: 0.6, ..SIGMOID }, "loss.label_smoothing"),
            (LossConfig { label_smoothing: 0.1, ..IPO }, "has no labels to smooth"),
        ] {
            let error = config.check("loss").unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    proptest! {
        #[test]
        fn the_gradient_is_the_slope_of_the_loss(
            logp in [-50.0..-1.0, -50.0..-1.0],
            reference in [-50.0..-1.0, -50.0..-1.0],
            tokens in [1usize..9, 1usize..9],
            is_ipo: bool,
            smoothing in 0.0..0.5,
        ) {
            let config = if is_ipo { IPO } else { LossConfig { label_smoothing: smoothing, ..SIGMOID } };
            let at = |moved: [f64; 2]| {
                let of = |i: usize| answer(logp[i] + moved[i], reference[i], tokens[i]);
                pair_loss(&config, &of(0), &of(1))
            };
            let step = 1e-4;
            let found = at([0.0, 0.0]);
            for (moved, gradient) in [([step, 0.0], found.by_chosen), ([0.0, step], found.by_rejected)] {
                let slope = (at(moved).loss - at(moved.map(|x| -x)).loss) / (2.0 * step);
                prop_assert!((slope - gradient).abs() < 1e-5 * (1.0 + gradient.abs()), "{slope} {gradient}");
            }
        }
    }
}
