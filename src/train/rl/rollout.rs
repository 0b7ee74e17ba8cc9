//! The responses of a step: which problems, what was sampled, what it is worth.
//!
//! With dynamic sampling (DAPO) groups that teach nothing, because all or none of their responses pass,
//! are replaced by groups of the next portions. A step takes no problem twice.

use super::config::{Config, FilterMetric};
use super::rewarder::{GroupRewards, Rewarder};
use super::training_set::{Cursor, TrainingSet};
use crate::base::progress::Progress;
use crate::base::rng;
use crate::engine::generator::Generator;
use crate::objective::advantage::{Outcome, is_uniform};
use crate::rewards::Reward;
use crate::rollout::attempt::{Attempt, AttemptCost, ProblemAttempts, Query};
use crate::rollout::attempts::attempt;
use crate::run::samples::{self, Recorded};
use anyhow::Result;
use std::collections::HashSet;
use std::path::Path;

/// A problem's responses with their rewards and advantages.
pub(crate) struct Group {
    /// Its number in the task.
    pub(crate) problem: usize,
    pub(crate) attempts: ProblemAttempts,
    pub(crate) rewards: GroupRewards,
    /// Whether its rewards are all equal.
    pub(crate) is_uniform: bool,
    /// One for each response, 0 for one without a reward; known once the step has all its groups.
    pub(crate) advantages: Vec<f32>,
}

/// All groups of a step.
#[derive(Default)]
pub(crate) struct Rollouts {
    /// Those to learn from.
    pub(crate) groups: Vec<Group>,
    /// Those that dynamic sampling replaced.
    pub(crate) replaced: Vec<Group>,
    pub(crate) cost: AttemptCost,
}

/// Label of one use of the run's seed.
const SAMPLING: u64 = 2;

/// Samples, grades and rewards until there are enough groups to learn from, no round is left or every
/// problem was taken, and moves the cursor past the portions used. Verdicts and the rewards of a user's
/// program are written to `journal` before they are used, and taken from there if this step was begun
/// before.
pub(crate) fn collect(
    config: &Config,
    (generator, rewarder): (&mut Generator<'_>, &mut Rewarder),
    set: &TrainingSet<'_>,
    cursor: &mut Cursor,
    journal: &Path,
) -> Result<Rollouts> {
    let task = set.task;
    let recorded = Recorded::read(journal)?;
    let mut rollouts = Rollouts::default();
    for _ in 0..config.rollout.max_rounds {
        if rollouts.is_enough(config) || rollouts.num_groups() == set.len() {
            break;
        }
        let portion = rollouts.untaken(set.portion(cursor.portion));
        let key = rng::key(config.seed, &[SAMPLING, cursor.portion]);
        cursor.portion += 1;
        if portion.is_empty() {
            continue;
        }
        let settings = config.attempts(config.rollout.n, config.rollout.temperature, key);
        let queries = portion.iter().enumerate();
        let queries: Vec<Query> =
            queries.map(|(place, &problem)| settings.query(place, problem)).collect();
        let (mut attempts, cost) =
            attempt(generator, task, &queries, &settings, &Progress::hidden())?;
        let ids: Vec<&str> = portion.iter().map(|&problem| task.about(problem).id).collect();
        let replayed = recorded.replay(&ids, &mut attempts);
        let rewards = rewarder.rewards(task, &portion, &attempts, &replayed.rewards)?;
        let groups: Vec<Group> = portion
            .into_iter()
            .zip(attempts.into_iter().zip(rewards))
            .map(|(problem, (attempts, rewards))| Group::new(problem, attempts, rewards))
            .collect();
        rollouts.add(groups, &cost, config);
        // What holds this round may hold later ones too.
        if !replayed.is_whole {
            let groups = rollouts.replaced.iter().chain(&rollouts.groups);
            let recorded =
                groups.map(|g| (task.about(g.problem).id, &g.attempts, g.rewards.as_slice()));
            samples::record(journal, recorded)?;
        }
    }
    if !rollouts.is_enough(config) {
        tracing::warn!(
            "only {} of {} groups are left to learn from, after {} groups of {} problems \
             (rollout.max_rounds = {})",
            rollouts.groups.len(),
            config.rollout.num_prompts,
            rollouts.num_groups(),
            set.len(),
            config.rollout.max_rounds
        );
    }
    rollouts.estimate_advantages(config);
    Ok(rollouts)
}

impl Rollouts {
    fn is_enough(&self, config: &Config) -> bool {
        self.groups.len() == config.rollout.num_prompts
    }

    /// The number of groups, each of another problem.
    fn num_groups(&self) -> usize {
        self.groups.len() + self.replaced.len()
    }

    /// Those of a portion whose problems have no group yet: one that begins another pass over the data can
    /// hold problems of the portions before.
    fn untaken(&self, mut portion: Vec<usize>) -> Vec<usize> {
        let groups = self.groups.iter().chain(&self.replaced);
        let taken: HashSet<usize> = groups.map(|group| group.problem).collect();
        portion.retain(|problem| !taken.contains(problem));
        portion
    }

    /// Says how much better than expected each response to learn from is.
    fn estimate_advantages(&mut self, config: &Config) {
        let outcomes: Vec<Vec<Outcome>> = self.groups.iter().map(Group::outcomes).collect();
        let advantages = config.advantage.advantages(&outcomes);
        self.groups.iter_mut().zip(advantages).for_each(|(group, a)| group.advantages = a);
    }

    /// Takes the groups of a round as far as they are wanted.
    fn add(&mut self, groups: Vec<Group>, cost: &AttemptCost, config: &Config) {
        self.cost.generation += cost.generation;
        self.cost.grading += cost.grading;
        self.cost.engine.merge(&cost.engine);
        let is_dynamic = config.rollout.max_rounds > 1;
        for group in groups {
            let is_wanted = !is_dynamic || group.teaches(config.rollout.filter_metric);
            if is_wanted && !self.is_enough(config) {
                self.groups.push(group);
            } else {
                self.replaced.push(group);
            }
        }
    }
}

impl Group {
    fn new(problem: usize, attempts: ProblemAttempts, rewards: GroupRewards) -> Self {
        let mut group =
            Self { problem, attempts, rewards, is_uniform: false, advantages: Vec::new() };
        group.is_uniform = is_uniform(&group.outcomes());
        group
    }

    /// Its responses as an estimator of advantages sees them.
    fn outcomes(&self) -> Vec<Outcome> {
        let pairs = self.attempts.attempts.iter().zip(&self.rewards);
        let outcome = |(attempt, reward): (&Attempt, &Option<Reward>)| Outcome {
            reward: reward.as_ref().map(|reward| reward.total),
            num_tokens: attempt.rollout.tokens.len(),
        };
        pairs.map(outcome).collect()
    }

    /// Its responses of which something is known, with their rewards.
    pub(crate) fn rewarded(&self) -> impl Iterator<Item = (&Attempt, &Reward)> {
        let pairs = self.attempts.attempts.iter().zip(&self.rewards);
        pairs.filter_map(|(attempt, reward)| Some((attempt, reward.as_ref()?)))
    }

    /// Whether its responses differ in what dynamic sampling looks at. As in verl, a group made of one
    /// response always counts.
    fn teaches(&self, metric: FilterMetric) -> bool {
        let mut passed = self.rewarded().map(|(attempt, _)| attempt.grade.passed());
        match metric {
            FilterMetric::Reward => !self.is_uniform,
            FilterMetric::Accuracy => passed.next().is_some_and(|first| {
                self.rewards.len() == 1 || passed.any(|another| another != first)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rewarder::by_rule;
    use super::super::test_support::config;
    use super::super::test_support::{task, training_set};
    use super::*;
    use crate::rewards::RewardKind;
    use crate::rollout::test_support::group;
    use crate::sandbox::{Reason, VerdictKind};

    fn rewarded(config: &Config, problem: usize, attempts: ProblemAttempts) -> Group {
        let rewards = by_rule(&config.reward, Some(0.5), &attempts);
        Group::new(problem, attempts, rewards)
    }

    #[test]
    fn dynamic_sampling_keeps_groups_that_teach_until_there_are_enough() {
        let wrong = VerdictKind::Fail(Reason::WrongAnswer);
        let python = "```python\nx\n```";
        let teaches = [(python, VerdictKind::Pass), (python, wrong)];
        let does_not = [(python, wrong), (python, wrong)];
        let mut config = config(2);
        config.reward.kind = RewardKind::Binary;
        let round = |kinds: &[&[(&str, VerdictKind)]], config: &Config| -> Vec<Group> {
            kinds.iter().map(|kind| rewarded(config, 0, group(kind))).collect()
        };
        for (max_rounds, kept, replaced) in [(1, [2, 2], [0, 2]), (3, [1, 2], [1, 2])] {
            config.rollout.max_rounds = max_rounds;
            let mut rollouts = Rollouts::default();
            rollouts.add(round(&[&teaches, &does_not], &config), &AttemptCost::default(), &config);
            assert_eq!((rollouts.groups.len(), rollouts.replaced.len()), (kept[0], replaced[0]));
            if max_rounds == 3 {
                let more = round(&[&teaches, &teaches], &config);
                rollouts.add(more, &AttemptCost::default(), &config);
                assert_eq!(
                    (rollouts.groups.len(), rollouts.replaced.len()),
                    (kept[1], replaced[1])
                );
            }
        }
    }

    #[test]
    fn dynamic_sampling_looks_at_accuracy_unless_told_otherwise() {
        let mut config = config(2);
        config.reward.kind = RewardKind::PassRate;
        let (pass, wrong) = (VerdictKind::Pass, VerdictKind::Fail(Reason::WrongAnswer));
        let python = "```python\nx\n```";
        for (responses, by_accuracy, by_reward) in [
            (&[(python, wrong), ("no program", wrong)][..], false, true),
            (&[(python, wrong), (python, wrong)][..], false, false),
            (&[(python, pass), (python, pass)][..], false, false),
            (&[(python, pass), (python, wrong)][..], true, true),
            (&[(python, pass), (python, VerdictKind::Infra)][..], false, false),
            (&[(python, wrong)][..], true, true),
        ] {
            let group = rewarded(&config, 0, group(responses));
            assert_eq!(group.teaches(FilterMetric::Accuracy), by_accuracy, "{responses:?}");
            assert_eq!(group.teaches(FilterMetric::Reward), by_reward, "{responses:?}");
        }
    }

    #[test]
    fn a_step_that_begins_another_pass_over_the_data_takes_no_problem_twice() {
        let (config, task) = (config(6), task(8));
        let set = training_set(&config, &task);
        let mut rollouts = Rollouts::default();
        for portion in 0..20 {
            for problem in rollouts.untaken(set.portion(portion)) {
                rollouts.replaced.push(rewarded(&config, problem, group(&[])));
            }
        }
        let problems: HashSet<usize> = rollouts.replaced.iter().map(|g| g.problem).collect();
        assert_eq!((problems.len(), rollouts.num_groups()), (8, 8));
    }

    #[test]
    fn a_failure_of_the_judge_is_neither_reward_nor_score() {
        let attempts = group(&[("```python\nx\n```", VerdictKind::Infra)]);
        let found = rewarded(&config(1), 0, attempts);
        assert_eq!(found.rewards, [None]);
        let row = crate::train::rl::metrics::rollout_metrics(&[found]);
        assert_eq!(row["reward/infra"], 1.0);
        assert!(!row.contains_key("reward/mean"), "nothing is known");
    }
}
