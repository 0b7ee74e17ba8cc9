//! From groups of responses to updates of the weights.
//!
//! A step's groups are cut into mini-batches of prompts, one update each, and gone over
//! `train.epochs` times. Old log-probabilities are the sampler's, which on the CPU are the trainer's
//! to the bit: the first update's ratios are exactly 1.

use super::config::Config;
use super::rollout::Group;
use crate::data::pack::{Batch, first_fit};
use crate::model::{Decoder, Workspace};
use crate::objective::grpo::{LossConfig, Metrics, Tokens, policy_loss};
use crate::objective::{Aggregation, Totals};
use crate::tokenizer::Tokenized;
use crate::train::trainer::{Trainer, Update};
use crate::train::{Chunk, MicroBatch};
use anyhow::Result;

/// The model that responses should stay close to, where the loss or its metric asks for one.
pub(super) struct Reference {
    params: Vec<f32>,
    workspace: Workspace,
}

impl Reference {
    pub(super) fn new(params: Vec<f32>) -> Self {
        Self { params, workspace: Workspace::new() }
    }

    /// Log-probabilities of the targets of a batch.
    fn logp(&mut self, decoder: &Decoder, batch: &MicroBatch, temperature: f32) -> Vec<f32> {
        let scores = batch.score(decoder, &self.params, temperature, &mut self.workspace);
        scores.iter().map(|score| score.logp).collect()
    }
}

/// One response as the update sees it.
struct Learnt<'g> {
    sequence: Tokenized,
    old_logp: &'g [f32],
    advantage: f32,
}

/// All updates of a step: what each learnt and did.
pub(super) fn improve(
    trainer: &mut Trainer,
    config: &Config,
    groups: &[Group<'_>],
    mut reference: Option<&mut Reference>,
) -> Result<Vec<(Metrics, Update)>> {
    let mut updates = Vec::new();
    for _ in 0..config.train.epochs {
        for groups in groups.chunks(config.mini_batch_prompts()) {
            updates.push(update(trainer, config, groups, reference.as_deref_mut())?);
        }
    }
    trainer.end_step();
    Ok(updates)
}

/// What the loss needs to know of the targets of a micro-batch besides their scores.
struct Known {
    old_logp: Vec<f32>,
    reference_logp: Option<Vec<f32>>,
    advantage: Vec<f32>,
    weight: Vec<f32>,
}

/// One update from the responses of a mini-batch.
fn update(
    trainer: &mut Trainer,
    config: &Config,
    groups: &[Group<'_>],
    mut reference: Option<&mut Reference>,
) -> Result<(Metrics, Update)> {
    let loss = &config.policy;
    let temperature = config.rollout.temperature as f32;
    let divisor = loss.aggregation.divisor(totals(config, groups));
    let learnt = learnt(config, groups);
    let sequences: Vec<Tokenized> = learnt.iter().map(|l| l.sequence.clone()).collect();
    let (mut batches, mut known) = (Vec::new(), Vec::new());
    for indices in packs(config, &sequences) {
        let batch = MicroBatch::of(&[Batch::new(&sequences, &indices)]);
        let members = || indices.iter().map(|&i| &learnt[i]);
        let lengths: Vec<usize> = members().map(|l| l.old_logp.len()).collect();
        let advantage = members().flat_map(|l| std::iter::repeat_n(l.advantage, l.old_logp.len()));
        known.push(Known {
            old_logp: members().map(|l| l.old_logp).collect::<Vec<_>>().concat(),
            reference_logp: reference
                .as_deref_mut()
                .map(|reference| reference.logp(&trainer.model.decoder, &batch, temperature)),
            advantage: advantage.collect(),
            weight: loss.aggregation.token_weights(&lengths),
        });
        batches.push(batch);
    }
    let sums =
        trainer.accumulate(&batches, temperature, |chunk, gradients, sums: &mut Metrics| {
            let (mut dlogp, mut dentropy) =
                (vec![0.0; gradients.len()], vec![0.0; gradients.len()]);
            sums.merge(&chunk_loss(loss, &chunk, &known[chunk.batch], &mut dlogp, &mut dentropy));
            for (gradient, (logp, entropy)) in gradients.iter_mut().zip(dlogp.iter().zip(dentropy))
            {
                (gradient.logp, gradient.entropy) = (*logp, entropy);
            }
        })?;
    let mut metrics = Metrics::default();
    sums.iter().for_each(|of_batch| metrics.merge(of_batch));
    metrics.loss /= divisor;
    let update = trainer.update(divisor, metrics.loss)?;
    Ok((metrics, update))
}

/// The loss of some of a micro-batch's targets, and its gradients.
fn chunk_loss(
    loss: &LossConfig,
    chunk: &Chunk<'_>,
    known: &Known,
    dlogp: &mut [f32],
    dentropy: &mut [f32],
) -> Metrics {
    let part = chunk.first..chunk.first + chunk.scores.len();
    let tokens = Tokens {
        logp: &chunk.scores.iter().map(|s| s.logp).collect::<Vec<_>>(),
        old_logp: &known.old_logp[part.clone()],
        reference_logp: known.reference_logp.as_ref().map(|logp| &logp[part.clone()]),
        entropy: Some(&chunk.scores.iter().map(|s| s.entropy).collect::<Vec<_>>()),
        advantage: &known.advantage[part.clone()],
        weight: &known.weight[part],
    };
    policy_loss(loss, &tokens, 1.0, dlogp, Some(dentropy))
}

/// The tokens and sequences that the loss is a mean over.
fn totals(config: &Config, groups: &[Group<'_>]) -> Totals {
    let counted = groups
        .iter()
        .filter(|g| !(config.advantage.drop_zero_variance && g.advantages.zero_variance));
    let judged = counted.flat_map(|g| &g.attempts.attempts).filter(|a| a.is_judged());
    Totals::of(judged.map(|a| a.rollout.tokens.len()))
}

/// Which sequences share a packed row.
fn packs(config: &Config, sequences: &[Tokenized]) -> Vec<Vec<usize>> {
    let most = config.train.micro_batch_size.unwrap_or(usize::MAX).min(sequences.len().max(1));
    let mut packs = Vec::new();
    for (chunk, part) in sequences.chunks(most).enumerate() {
        let lengths: Vec<usize> = part.iter().map(|s| s.input_ids.len()).collect();
        let of_part = first_fit(&lengths, config.train.seq_len)
            .expect("invariant: the configuration gives a row room for any prompt and response");
        let first = chunk * most;
        packs.extend(of_part.into_iter().map(|pack| pack.iter().map(|i| first + i).collect()));
    }
    packs
}

/// The responses to learn from. Without KL and entropy terms a response whose advantage is 0 has
/// a gradient of exactly 0: it counts in the divisor, but is not computed.
fn learnt<'g>(config: &Config, groups: &'g [Group<'_>]) -> Vec<Learnt<'g>> {
    let LossConfig { kl_coef, entropy_coef, aggregation, .. } = config.policy;
    let needs_all =
        kl_coef != 0.0 || entropy_coef != 0.0 || aggregation == Aggregation::MicroTokenMean;
    let mut learnt = Vec::new();
    for Group { attempts: group, advantages, .. } in groups {
        if config.advantage.drop_zero_variance && advantages.zero_variance {
            continue;
        }
        for (attempt, &advantage) in group.attempts.iter().zip(&advantages.values) {
            if attempt.is_judged() && (needs_all || advantage != 0.0) {
                let response = &attempt.rollout.tokens;
                let mut loss_mask = vec![false; group.prompt.len()];
                loss_mask.resize(group.prompt.len() + response.len(), true);
                learnt.push(Learnt {
                    sequence: Tokenized {
                        input_ids: [group.prompt.as_slice(), response].concat(),
                        loss_mask,
                    },
                    old_logp: &attempt.rollout.logprobs,
                    advantage,
                });
            }
        }
    }
    learnt
}

#[cfg(test)]
mod tests {
    use super::super::rollout::tests::{config, tasks};
    use super::*;
    use crate::objective::grpo::Advantages;
    use crate::sandbox::{Reason, VerdictKind};
    use crate::train::samples::tests::group;

    #[test]
    fn responses_without_an_advantage_or_a_verdict_are_not_computed() {
        let wrong = VerdictKind::Fail(Reason::WrongAnswer);
        let tasks = tasks(1);
        let groups = [Group {
            task: &tasks[0],
            attempts: group(&[("a", VerdictKind::Pass), ("b", wrong), ("c", VerdictKind::Infra)]),
            rewards: Vec::new(),
            advantages: Advantages { values: vec![0.0, -1.0, 0.0], zero_variance: false },
        }];
        let mut config = config(1);
        let taken = learnt(&config, &groups);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].advantage, -1.0);
        assert_eq!(taken[0].sequence.input_ids, [5, 6, 7, 8]);
        assert_eq!(taken[0].sequence.loss_mask, [false, false, true, true]);
        config.policy.entropy_coef = 0.1;
        assert_eq!(learnt(&config, &groups).len(), 2);
    }

    #[test]
    fn groups_without_variance_leave_the_mean_only_when_asked() {
        let tasks = tasks(1);
        let of = |zero_variance, values: Vec<f32>| Group {
            task: &tasks[0],
            attempts: group(&[("a", VerdictKind::Pass), ("b", VerdictKind::Pass)]),
            rewards: Vec::new(),
            advantages: Advantages { values, zero_variance },
        };
        let groups = [of(true, vec![0.0; 2]), of(false, vec![1.0, -1.0])];
        let mut config = config(2);
        assert_eq!(totals(&config, &groups).sequences, 4);
        config.advantage.drop_zero_variance = true;
        assert_eq!(totals(&config, &groups).sequences, 2);
    }

    #[test]
    fn a_row_holds_at_most_the_micro_batch_in_order() {
        let mut config = config(1);
        config.train.seq_len = 10;
        let sequences = [4usize, 4, 4, 9, 1]
            .map(|length| Tokenized { input_ids: vec![0; length], loss_mask: vec![true; length] });
        assert_eq!(packs(&config, &sequences), [vec![0, 1, 4], vec![2], vec![3]]);
        config.train.micro_batch_size = Some(2);
        assert_eq!(packs(&config, &sequences), [vec![0, 1], vec![2], vec![3], vec![4]]);
    }
}
