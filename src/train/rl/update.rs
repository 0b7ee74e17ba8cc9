//! From groups of responses to updates of the weights.
//!
//! A step's groups are cut into mini-batches of prompts, one update each, and gone over
//! `train.epochs` times. Old log-probabilities are the sampler's, which on the CPU are the trainer's
//! to the bit: the first update's ratios are exactly 1, and a run in which they are not is stopped. On
//! GPUs the two differ by rounding. With `policy.importance_sampling_cap` the trainer computes them
//! itself before the first update, and the loss corrects for the difference.

use super::config::Config;
use super::rollout::Group;
use crate::data::pack::first_fit;
use crate::objective::policy::{
    LossConfig, Metrics, Mismatch, PolicyObjective, PolicySums, SampledTokens,
};
use crate::objective::{Aggregation, Totals};
use crate::trainer::device::DeviceKind;
use crate::trainer::{MicroBatch, Parameters, Trainer, Update};
use anyhow::{Result, ensure};

/// What an update learnt from and did.
pub(crate) struct Updated {
    pub(crate) metrics: Metrics,
    /// Sampler against trainer; of the same weights only in a step's first update.
    pub(crate) mismatch: Mismatch,
    pub(crate) update: Update,
}

/// All updates of a step; the trainer keeps a reference model where the loss or its metric asks for one.
pub(crate) fn improve(
    trainer: &mut Trainer,
    config: &Config,
    groups: &[Group],
) -> Result<Vec<Updated>> {
    let mut mini_batches: Vec<MiniBatch> = groups
        .chunks(config.mini_batch_prompts())
        .map(|groups| MiniBatch::new(config, groups))
        .collect();
    for mini_batch in &mut mini_batches {
        mini_batch.score(trainer, config)?;
    }
    let mut updates = Vec::new();
    for _ in 0..config.train.epochs {
        for mini_batch in &mini_batches {
            updates.push(mini_batch.update(trainer, config)?);
        }
    }
    if let Some(first) = updates.first() {
        check_on_policy(config, first)?;
    }
    trainer.end_step();
    Ok(updates)
}

/// Refuses a sampler that is not the trainer on a CPU, unless the loss corrects for it. On GPUs the two
/// differ by rounding, which is logged.
fn check_on_policy(config: &Config, first: &Updated) -> Result<()> {
    let Updated { metrics, mismatch, .. } = first;
    ensure!(
        config.train.device == DeviceKind::Cuda
            || config.policy.importance_sampling_cap.is_some()
            || (metrics.ratio_max_deviation == 0.0 && mismatch.max_distance == 0.0),
        "a token's log-probability is {:e} off between sampler and trainer, which must agree to the \
         bit on a CPU: please report this; policy.importance_sampling_cap corrects for differences",
        mismatch.max_distance
    );
    Ok(())
}

/// One response as the update sees it.
struct Learnt<'g> {
    /// Which group of the mini-batch.
    group: usize,
    prompt: &'g [u32],
    response: &'g [u32],
    sampler_logp: &'g [f32],
    advantage: f32,
}

/// The responses of some prompts, packed into rows, and what the loss needs to know of their tokens.
struct MiniBatch {
    rows: Vec<MicroBatch>,
    /// The targets of each row.
    sampled: Vec<SampledTokens>,
    divisor: f64,
}

impl MiniBatch {
    /// A row holds responses of one micro-batch; how many rows a micro-batch needs changes nothing.
    fn new(config: &Config, groups: &[Group]) -> Self {
        let aggregation = config.policy.aggregation;
        let learnt = learnt(config, groups);
        let (mut rows, mut sampled) = (Vec::new(), Vec::new());
        for micro_batch in learnt.chunks(config.train.micro_batch_size.unwrap_or(usize::MAX)) {
            let totals = Totals::count(micro_batch.iter().map(|learnt| learnt.response.len()));
            let families = families(config, micro_batch);
            let lengths: Vec<usize> = families.iter().map(|family| length(family)).collect();
            let packs = first_fit(&lengths, config.train.seq_len).expect(
                "invariant: the configuration gives a row room for any prompt and response",
            );
            for pack in packs {
                let mut row = MicroBatch::empty();
                for family in pack.iter().map(|&index| families[index]) {
                    let responses: Vec<&[u32]> = family.iter().map(|l| l.response).collect();
                    row.push(family[0].prompt, &responses);
                }
                let members = pack.iter().flat_map(|&index| families[index]);
                sampled.push(sampled_tokens(&members.collect::<Vec<_>>(), aggregation, totals));
                rows.push(row);
            }
        }
        Self { rows, sampled, divisor: aggregation.divisor(totals(config, groups)) }
    }

    /// Scores under the reference model's weights and, where the sampler's log-probabilities are not
    /// taken for the trainer's, under the trainer's before it changes them.
    fn score(&mut self, trainer: &mut Trainer, config: &Config) -> Result<()> {
        let temperature = config.rollout.temperature as f32;
        if config.policy.needs_reference() {
            let scores = trainer.score(Parameters::Reference, &self.rows, temperature)?;
            for (tokens, logp) in self.sampled.iter_mut().zip(scores) {
                tokens.reference_logp = Some(logp);
            }
        }
        if let Some(cap) = config.policy.importance_sampling_cap {
            let scores = trainer.score(Parameters::Trained, &self.rows, temperature)?;
            for (tokens, logp) in self.sampled.iter_mut().zip(scores) {
                tokens.correct(logp, cap);
            }
        }
        Ok(())
    }

    fn update(&self, trainer: &mut Trainer, config: &Config) -> Result<Updated> {
        let objective = PolicyObjective::new(&config.policy, &self.sampled);
        trainer.accumulate(&self.rows, config.rollout.temperature as f32, &objective)?;
        let PolicySums { mut metrics, mismatch } = objective.into_sums();
        metrics.loss /= self.divisor;
        let update = trainer.update(self.divisor, metrics.loss)?;
        Ok(Updated { metrics, mismatch, update })
    }
}

/// Consecutive responses that are computed behind one copy of their prompt: those of a group, as
/// far as a row holds them, or each alone.
fn families<'l, 'g>(config: &Config, learnt: &'l [Learnt<'g>]) -> Vec<&'l [Learnt<'g>]> {
    let mut families = Vec::new();
    let mut rest = learnt;
    while let Some(first) = rest.first() {
        let mut count = 1;
        while config.train.share_prompts
            && rest.get(count).is_some_and(|next| next.group == first.group)
            && length(&rest[..=count]) <= config.train.seq_len
        {
            count += 1;
        }
        let (family, others) = rest.split_at(count);
        families.push(family);
        rest = others;
    }
    families
}

/// An upper bound on the rows that a family takes.
fn length(family: &[Learnt<'_>]) -> usize {
    family[0].prompt.len() + family.iter().map(|learnt| learnt.response.len()).sum::<usize>()
}

/// The tokens of a row that holds the responses `members` of a micro-batch.
fn sampled_tokens(
    members: &[&Learnt<'_>],
    aggregation: Aggregation,
    micro_batch: Totals,
) -> SampledTokens {
    let lengths: Vec<usize> = members.iter().map(|m| m.response.len()).collect();
    let advantages = members.iter().zip(&lengths);
    SampledTokens {
        sampler_logp: members.iter().map(|m| m.sampler_logp).collect::<Vec<_>>().concat(),
        advantage: advantages.flat_map(|(m, &n)| std::iter::repeat_n(m.advantage, n)).collect(),
        weight: aggregation.token_weights(&lengths, micro_batch),
        ..SampledTokens::default()
    }
}

/// The tokens and sequences that the loss is a mean over.
fn totals(config: &Config, groups: &[Group]) -> Totals {
    let counted = groups.iter().filter(|g| !(config.advantage.drop_zero_variance && g.is_uniform));
    let judged = counted.flat_map(|g| &g.attempts.attempts).filter(|a| a.grade.is_judged());
    Totals::count(judged.map(|a| a.rollout.tokens.len()))
}

/// The responses to learn from. Without KL and entropy terms a response whose advantage is 0 has
/// a gradient of exactly 0: it counts in the divisor, but is not computed.
fn learnt<'g>(config: &Config, groups: &'g [Group]) -> Vec<Learnt<'g>> {
    let LossConfig { kl_coef, entropy_coef, aggregation, .. } = config.policy;
    let needs_all =
        kl_coef != 0.0 || entropy_coef != 0.0 || aggregation == Aggregation::MicroTokenMean;
    let mut learnt = Vec::new();
    for (index, Group { attempts: group, is_uniform, advantages, .. }) in groups.iter().enumerate()
    {
        if config.advantage.drop_zero_variance && *is_uniform {
            continue;
        }
        for (attempt, &advantage) in group.attempts.iter().zip(advantages) {
            if attempt.grade.is_judged() && (needs_all || advantage != 0.0) {
                learnt.push(Learnt {
                    group: index,
                    prompt: &group.prompt,
                    response: &attempt.rollout.tokens,
                    sampler_logp: &attempt.rollout.logprobs,
                    advantage,
                });
            }
        }
    }
    learnt
}

#[cfg(test)]
mod tests {
    use super::super::test_support::config;
    use super::*;
    use crate::rollout::test_support::group;
    use crate::sandbox::{Reason, VerdictKind};

    #[test]
    fn responses_without_an_advantage_or_a_verdict_are_not_computed() {
        let wrong = VerdictKind::Fail(Reason::WrongAnswer);
        let groups = [Group {
            problem: 0,
            attempts: group(&[("a", VerdictKind::Pass), ("b", wrong), ("c", VerdictKind::Infra)]),
            rewards: Vec::new(),
            is_uniform: false,
            advantages: vec![0.0, -1.0, 0.0],
        }];
        let mut config = config(1);
        let taken = learnt(&config, &groups);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].advantage, -1.0);
        assert_eq!((taken[0].prompt, taken[0].response), (&[5, 6][..], &[7, 8][..]));
        config.policy.entropy_coef = 0.1;
        assert_eq!(learnt(&config, &groups).len(), 2);
    }

    #[test]
    fn groups_without_variance_leave_the_mean_only_when_asked() {
        let group_of_two = |is_uniform, advantages: Vec<f32>| Group {
            problem: 0,
            attempts: group(&[("a", VerdictKind::Pass), ("b", VerdictKind::Pass)]),
            rewards: Vec::new(),
            is_uniform,
            advantages,
        };
        let groups = [group_of_two(true, vec![0.0; 2]), group_of_two(false, vec![1.0, -1.0])];
        let mut config = config(2);
        assert_eq!(totals(&config, &groups).sequences, 4);
        config.advantage.drop_zero_variance = true;
        assert_eq!(totals(&config, &groups).sequences, 2);
    }

    /// A group whose responses have these lengths, after a prompt of two tokens.
    fn of_lengths(lengths: &[usize]) -> Group {
        let mut attempts = group(&vec![("a", VerdictKind::Pass); lengths.len()]);
        for (attempt, &length) in attempts.attempts.iter_mut().zip(lengths) {
            attempt.rollout.tokens = vec![7; length];
            attempt.rollout.logprobs = vec![-0.5; length];
        }
        let advantages = vec![1.0; lengths.len()];
        Group { problem: 0, attempts, rewards: Vec::new(), is_uniform: false, advantages }
    }

    #[test]
    fn a_row_holds_responses_of_one_micro_batch_and_its_means_are_that_ones() {
        let groups = [of_lengths(&[2, 2, 6, 4])];
        let mut config = config(1);
        config.train.seq_len = 8;
        let targets = |config: &Config| -> Vec<usize> {
            MiniBatch::new(config, &groups).sampled.iter().map(|s| s.sampler_logp.len()).collect()
        };
        assert_eq!(targets(&config), [4, 6, 4], "two fit together");
        config.train.micro_batch_size = Some(1);
        assert_eq!(targets(&config), [2, 2, 6, 4]);

        config.train.micro_batch_size = Some(4);
        config.policy.aggregation = Aggregation::MicroTokenMean;
        for seq_len in [8, 100] {
            config.train.seq_len = seq_len;
            let batch = MiniBatch::new(&config, &groups);
            assert_eq!(batch.divisor, 4.0);
            let weights: Vec<f32> = batch.sampled.iter().flat_map(|s| s.weight.clone()).collect();
            assert_eq!(weights, [4.0 / 14.0; 14], "however many rows it takes");
        }
    }

    #[test]
    fn responses_of_a_group_share_their_prompt_as_far_as_a_row_holds_them() {
        let groups = [&[2, 2, 6, 4][..], &[3, 3]].map(of_lengths);
        let mut config = config(2);
        let sizes = |config: &Config| -> Vec<usize> {
            families(config, &learnt(config, &groups)).iter().map(|family| family.len()).collect()
        };
        config.train.seq_len = 12;
        assert_eq!(sizes(&config), [1; 6]);
        config.train.share_prompts = true;
        assert_eq!(sizes(&config), [3, 1, 2]);
        let batch = MiniBatch::new(&config, &groups);
        assert_eq!(batch.rows.len(), 3);
        config.train.seq_len = 100;
        assert_eq!(sizes(&config), [4, 2]);
        assert_eq!(MiniBatch::new(&config, &groups).rows.len(), 1);
    }
}
