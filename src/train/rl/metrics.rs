//! What a step logs, under slash-separated names.

use super::rollout::Group;
use super::update::Updated;
use crate::objective::policy::{LossConfig, Metrics};
use crate::rewards::Reward;
use crate::rollout::attempt::{Attempt, AttemptCost};
use crate::run::metrics::{Row, row};
use crate::tasks::Grade;
use std::collections::BTreeMap;

/// Of the groups that were learnt from; means only of what there is. Parts and facts of rewards are logged under
/// their own names, as means over all rewarded responses: one without the part has 0 of it.
pub(crate) fn rollout_metrics(groups: &[Group]) -> Row {
    let rewarded: Vec<(&Attempt, &Reward)> = groups.iter().flat_map(Group::rewarded).collect();
    let lengths: Vec<f64> = groups
        .iter()
        .flat_map(|group| &group.attempts.attempts)
        .map(|attempt| attempt.rollout.tokens.len() as f64)
        .collect();
    let share = |is: fn(&Grade) -> bool| {
        mean(rewarded.iter().map(|(attempt, _)| f64::from(u8::from(is(&attempt.grade)))))
    };
    let zero_variance = groups.iter().map(|g| f64::from(u8::from(g.is_uniform)));
    let mut found = row([("reward/infra", (lengths.len() - rewarded.len()) as f64)]);
    let means = [
        ("reward/mean", mean(rewarded.iter().map(|(_, reward)| reward.total))),
        ("reward/pass_rate", share(Grade::passed)),
        ("reward/format_errors", share(|grade| !grade.format_ok())),
        ("reward/zero_variance_groups", mean(zero_variance)),
        ("response/mean_tokens", mean(lengths.iter().copied())),
        ("response/max_tokens", lengths.iter().copied().reduce(f64::max)),
    ];
    found.extend(row(means.into_iter().filter_map(|(key, mean)| Some((key, mean?)))));
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for (_, reward) in &rewarded {
        for (name, value) in reward.parts.iter().chain(&reward.facts) {
            *sums.entry(name).or_default() += value;
        }
    }
    for (name, sum) in sums {
        found.insert(format!("reward/{name}"), (sum / rewarded.len() as f64).into());
    }
    found
}

/// `None` without values.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Of all updates of a step: means over their tokens, the first update's ratios, the largest norm. Of
/// a step without updates only that it had none, of updates without tokens no means and no ratios.
pub(crate) fn policy_metrics(loss: &LossConfig, updates: &[Updated]) -> Row {
    let mut all = Metrics::default();
    updates.iter().for_each(|updated| all.merge(&updated.metrics));
    let num_skipped = updates.iter().filter(|updated| updated.update.skipped.is_some()).count();
    let mut found = row([
        ("policy/learnt_tokens", all.tokens as f64),
        ("optim/updates", updates.len() as f64),
        ("optim/skipped", num_skipped as f64),
    ]);
    let Some(first) = updates.first() else { return found };
    // One that is not a number stays.
    let larger = |a: f64, b: f64| if b.is_nan() || b > a { b } else { a };
    let largest = |f: fn(&Updated) -> f64| updates.iter().map(f).fold(0.0, larger);
    let loss_scale = updates.iter().filter_map(|updated| updated.update.loss_scale).reduce(larger);
    found.extend(row([
        ("loss/policy", all.loss / updates.len() as f64),
        ("optim/grad_norm", largest(|updated| updated.update.grad_norm)),
        ("optim/lr", largest(|updated| updated.update.lr)),
    ]));
    found.extend(row(loss_scale.map(|scale| ("optim/loss_scale", scale))));
    if all.tokens == 0 {
        return found;
    }
    let per_token = |sum: f64| sum / all.tokens as f64;
    found.extend(row([
        ("policy/entropy", per_token(all.entropy)),
        ("policy/approx_kl", per_token(all.approx_kl)),
        ("policy/clip_fraction", per_token(all.clipped as f64)),
        ("policy/dual_clip_fraction", per_token(all.clipped_dual as f64)),
        ("policy/ratio_max_deviation", all.ratio_max_deviation),
        ("policy/first_ratio_max_deviation", first.metrics.ratio_max_deviation),
    ]));
    if loss.needs_reference() {
        found.extend(row([("policy/reference_kl", per_token(all.kl))]));
    }
    found
}

/// How far the sampler's log-probabilities are from the trainer's: known from the first update,
/// which still has the sampler's weights. On a CPU the difference is 0 and the ratio 1.
pub(crate) fn mismatch_metrics(loss: &LossConfig, updates: &[Updated]) -> Row {
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

pub(crate) fn time_metrics(cost: &AttemptCost, update_secs: f64) -> Row {
    let generation_secs = cost.generation.as_secs_f64();
    row([
        ("time/generation_secs", generation_secs),
        ("time/judging_secs", cost.grading.as_secs_f64()),
        ("time/update_secs", update_secs),
        ("time/generated_tokens_per_sec", cost.engine.generated_tokens as f64 / generation_secs),
        ("time/batch_occupancy", cost.engine.occupancy),
        ("time/peak_cache_use", cost.engine.peak_cache_use),
        ("time/preemptions", cost.engine.preemptions as f64),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::policy::Mismatch;
    use crate::rollout::test_support::group;
    use crate::sandbox::VerdictKind;
    use crate::trainer::Update;

    #[test]
    fn a_step_with_nothing_to_learn_from_measures_nothing() {
        let mut found = rollout_metrics(&[]);
        found.extend(policy_metrics(&LossConfig::default(), &[]));
        assert!(found.values().all(|value| *value == 0.0), "{found:?}");
        let keys: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["reward/infra", "policy/learnt_tokens", "optim/updates", "optim/skipped"]
        );
    }

    #[test]
    fn means_over_tokens_are_logged_where_tokens_were_learnt() {
        let updated = |tokens: usize| Updated {
            metrics: Metrics { tokens, entropy: 3.0, kl: 1.5, ..Metrics::default() },
            mismatch: Mismatch::default(),
            update: Update { grad_norm: 0.0, lr: 1e-3, loss_scale: None, skipped: None },
        };
        let alone = LossConfig::default();
        let held = LossConfig { log_kl: true, ..alone };
        let none = policy_metrics(&held, &[updated(0)]);
        let is_mean = |key: &&String| key.starts_with("policy/") && *key != "policy/learnt_tokens";
        assert_eq!(none.keys().find(is_mean), None);
        assert_eq!(none["optim/lr"], 1e-3);
        let row = policy_metrics(&alone, &[updated(2)]);
        assert_eq!(row["policy/entropy"], 1.5);
        assert!(!row.contains_key("policy/reference_kl"));
        assert_eq!(policy_metrics(&held, &[updated(2)])["policy/reference_kl"], 0.75);
    }

    #[test]
    fn every_part_and_fact_of_a_reward_is_logged_under_its_name() {
        let pass = VerdictKind::Pass;
        let attempts =
            group(&[("a", pass), ("```python\nx\n```", pass), ("c", VerdictKind::Infra)]);
        let first = Reward::default().part("own_term", 0.75).fact("num_cases", 1.0);
        let second = Reward::default().part("overlong_penalty", -0.25).fact("num_cases", 4.0);
        let rewards = vec![Some(first), Some(second), None];
        let group =
            Group { problem: 0, attempts, rewards, is_uniform: true, advantages: vec![0.0; 3] };
        let row = rollout_metrics(&[group]);
        for (key, value) in [
            ("reward/mean", 0.25),
            ("reward/own_term", 0.375),
            ("reward/overlong_penalty", -0.125),
            ("reward/num_cases", 2.5),
            ("reward/pass_rate", 0.5),
            ("reward/format_errors", 0.5),
            ("reward/infra", 1.0),
        ] {
            assert_eq!(row[key], value, "{key}");
        }
    }
}
