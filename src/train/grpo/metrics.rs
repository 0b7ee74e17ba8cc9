//! What a step logs, under slash-separated names.

use super::rollout::Group;
use super::update::Updated;
use crate::eval::attempts::AttemptCost;
use crate::objective::grpo::{LossConfig, Metrics};
use crate::rewards::Breakdown;
use crate::train::metrics::{Row, row};

/// Of the groups that were learnt from.
pub(super) fn rollout_metrics(groups: &[Group<'_>]) -> Row {
    let rewards: Vec<&Breakdown> = groups.iter().flat_map(|g| &g.rewards).flatten().collect();
    let attempts: Vec<_> = groups.iter().flat_map(|g| &g.attempts.attempts).collect();
    let mean = |sum: f64, n: usize| sum / n.max(1) as f64;
    let reward_mean =
        |f: &dyn Fn(&Breakdown) -> f64| mean(rewards.iter().map(|r| f(r)).sum(), rewards.len());
    let lengths = attempts.iter().map(|a| a.rollout.tokens.len() as f64);
    let is_true = |b: bool| f64::from(u8::from(b));
    row([
        ("reward/mean", reward_mean(&|r| r.total)),
        ("reward/pass_rate", reward_mean(&|r| is_true(r.passed))),
        ("reward/format_errors", reward_mean(&|r| is_true(!r.format))),
        ("reward/solvability_term", reward_mean(&|r| r.solvability_term)),
        ("reward/case_term", reward_mean(&|r| r.case_term)),
        ("reward/infra", (attempts.len() - rewards.len()) as f64),
        (
            "reward/zero_variance_groups",
            mean(groups.iter().filter(|g| g.advantages.zero_variance).count() as f64, groups.len()),
        ),
        ("response/mean_tokens", mean(lengths.clone().sum(), attempts.len())),
        ("response/max_tokens", lengths.fold(0.0, f64::max)),
    ])
}

/// Of all updates of a step: means over their tokens, the first update's ratios, the largest norm.
pub(super) fn policy_metrics(updates: &[Updated]) -> Row {
    let mut all = Metrics::default();
    updates.iter().for_each(|updated| all.merge(&updated.metrics));
    let per_token = |sum: f64| sum / all.tokens.max(1) as f64;
    let first_deviation = updates.first().map_or(0.0, |first| first.metrics.ratio_max_deviation);
    let largest = |f: fn(&Updated) -> f64| updates.iter().map(f).fold(0.0, f64::max);
    let num_skipped = updates.iter().filter(|updated| updated.update.skipped.is_some()).count();
    row([
        ("loss/policy", all.loss / updates.len().max(1) as f64),
        ("policy/entropy", per_token(all.entropy)),
        ("policy/approx_kl", per_token(all.approx_kl)),
        ("policy/reference_kl", per_token(all.kl)),
        ("policy/clip_fraction", per_token(all.clipped as f64)),
        ("policy/dual_clip_fraction", per_token(all.clipped_dual as f64)),
        ("policy/ratio_max_deviation", all.ratio_max_deviation),
        ("policy/first_ratio_max_deviation", first_deviation),
        ("policy/learnt_tokens", all.tokens as f64),
        ("optim/updates", updates.len() as f64),
        ("optim/grad_norm", largest(|updated| updated.update.grad_norm)),
        ("optim/lr", largest(|updated| updated.update.lr)),
        ("optim/skipped", num_skipped as f64),
    ])
}

/// How far the sampler's log-probabilities are from the trainer's: known from the first update,
/// which still has the sampler's weights. On a CPU the difference is 0 and the ratio 1.
pub(super) fn mismatch_metrics(loss: &LossConfig, updates: &[Updated]) -> Row {
    let Some(mismatch) = updates.first().map(|first| first.mismatch).filter(|m| m.tokens > 0)
    else {
        return Row::new();
    };
    let mean = |sum: f64| sum / mismatch.tokens as f64;
    let mut found = row([
        ("rollout/logprob_diff_mean", mean(mismatch.distance)),
        ("rollout/logprob_diff_max", mismatch.max_distance),
        ("rollout/ratio_mean", mean(mismatch.ratio)),
        ("rollout/ratio_max", mismatch.max_ratio),
    ]);
    if loss.importance_sampling_cap.is_some() {
        found.extend(row([("rollout/truncated_fraction", mean(mismatch.truncated as f64))]));
    }
    found
}

pub(super) fn time_metrics(cost: &AttemptCost, update_secs: f64) -> Row {
    let generation_secs = cost.generation.as_secs_f64();
    row([
        ("time/generation_secs", generation_secs),
        ("time/judging_secs", cost.judging.as_secs_f64()),
        ("time/update_secs", update_secs),
        ("time/generated_tokens_per_sec", cost.engine.generated_tokens as f64 / generation_secs),
        ("time/batch_occupancy", cost.engine.occupancy),
        ("time/peak_cache_use", cost.engine.peak_cache_use),
        ("time/preemptions", cost.engine.preemptions as f64),
    ])
}
