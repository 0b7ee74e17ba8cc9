//! What a step logs, under slash-separated names.

use super::rollout::Group;
use crate::eval::attempts::AttemptCost;
use crate::objective::grpo;
use crate::rewards::Breakdown;
use crate::train::metrics::{Row, row};
use crate::train::trainer::Update;

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
pub(super) fn policy_metrics(updates: &[(grpo::Metrics, Update)]) -> Row {
    let mut all = grpo::Metrics::default();
    updates.iter().for_each(|(of_update, _)| all.merge(of_update));
    let per_token = |sum: f64| sum / all.tokens.max(1) as f64;
    let first_deviation = updates.first().map_or(0.0, |(first, _)| first.ratio_max_deviation);
    let largest = |f: fn(&Update) -> f64| updates.iter().map(|(_, u)| f(u)).fold(0.0, f64::max);
    row([
        ("loss/policy", all.loss / updates.len().max(1) as f64),
        ("policy/entropy", per_token(all.entropy)),
        ("policy/approx_kl", per_token(all.approx_kl)),
        ("policy/reference_kl", per_token(all.kl)),
        ("policy/clip_fraction", per_token(all.clipped as f64)),
        ("policy/ratio_max_deviation", all.ratio_max_deviation),
        ("policy/first_ratio_max_deviation", first_deviation),
        ("policy/learnt_tokens", all.tokens as f64),
        ("optim/updates", updates.len() as f64),
        ("optim/grad_norm", largest(|u| u.grad_norm)),
        ("optim/lr", largest(|u| u.lr)),
        ("optim/skipped", updates.iter().filter(|(_, u)| u.skipped.is_some()).count() as f64),
    ])
}

pub(super) fn time_metrics(cost: &AttemptCost, update_secs: f64) -> Row {
    let generation_secs = cost.generation.as_secs_f64();
    row([
        ("time/generation_secs", generation_secs),
        ("time/judging_secs", cost.judging.as_secs_f64()),
        ("time/update_secs", update_secs),
        ("time/generated_tokens_per_sec", cost.engine.generated_tokens as f64 / generation_secs),
    ])
}
