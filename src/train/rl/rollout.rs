//! The responses of a step: which problems, what was sampled, what it is worth.
//!
//! Problems come in portions of `rollout.num_prompts`, in a new order for each pass over the data.
//! With dynamic sampling (DAPO) groups that teach nothing, because all or none of their responses pass,
//! are replaced by groups of the next portions. A step takes no problem twice.

use super::config::{Config, FilterMetric, OverlongPrompts};
use super::rewarder::{GroupRewards, Rewarder};
use crate::base::error::usage;
use crate::base::progress::Progress;
use crate::base::rng;
use crate::checkpoint::LanguageModel;
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::engine::generator::Generator;
use crate::eval::problems;
use crate::objective::grpo::{Advantages, advantages};
use crate::rewards::{Breakdown, Reference};
use crate::rollout::attempts::{
    AttemptCost, AttemptSettings, ProblemAttempts, attempt, prompt_tokens,
};
use crate::run::samples::{self, Recorded};
use anyhow::Result;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::Path;

/// A problem and what its reward is computed from.
pub(crate) struct Task {
    pub(crate) problem: Problem,
    pub(crate) reference: Reference,
}

/// Which portion of problems comes next; portions are numbered through all passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Cursor {
    pub(crate) portion: u64,
    /// Checksum of all problems: portions of others are other portions.
    pub(crate) problems: u32,
}

impl Cursor {
    /// Goes on where `saved` stopped, or begins with the first portion of `tasks`.
    pub(crate) fn go_on(saved: Option<Self>, tasks: &[Task]) -> Result<Self> {
        let mut hasher = crc32fast::Hasher::new();
        for task in tasks {
            hasher.update(&serde_json::to_vec(&task.problem)?);
        }
        let start = Self { portion: 0, problems: hasher.finalize() };
        let cursor = saved.unwrap_or(start);
        if cursor.problems != start.problems {
            return Err(usage(
                "data.files hold other problems than when this run began: give it those, or begin another",
            ));
        }
        Ok(cursor)
    }
}

/// A problem's responses with their rewards and advantages.
pub(crate) struct Group<'t> {
    pub(crate) task: &'t Task,
    pub(crate) attempts: ProblemAttempts,
    /// `None` where the judge failed.
    pub(crate) rewards: GroupRewards,
    pub(crate) advantages: Advantages,
}

/// All groups of a step.
#[derive(Default)]
pub(crate) struct Rollouts<'t> {
    /// Those to learn from.
    pub(crate) groups: Vec<Group<'t>>,
    /// Those that dynamic sampling replaced.
    pub(crate) replaced: Vec<Group<'t>>,
    pub(crate) cost: AttemptCost,
}

/// The problems that can be trained on; what is missing in one is an error that names it.
pub(crate) fn read_tasks(
    config: &Config,
    model: &LanguageModel,
    prompt: &GtgPrompt,
) -> Result<Vec<Task>> {
    let limit = config.data.max_prompt_tokens;
    let positions = model.decoder.config().max_position_embeddings;
    if config.longest() > positions {
        return Err(usage(format!(
            "data.max_prompt_tokens + rollout.max_new_tokens = {}, but the model was made for \
             {positions} positions (max_position_embeddings)",
            config.longest()
        )));
    }
    let (mut tasks, mut ids, mut num_long) = (Vec::new(), HashSet::new(), 0);
    for file in &config.data.files {
        for problem in jsonl::read::<Problem>(file)? {
            let reference = problems::check_next(&problem, &mut ids)
                .and_then(|()| Reference::new(&problem, &config.reward_rule()))
                .map_err(|e| e.context(format!("reading {}", file.display())))?;
            let length = prompt_tokens(&model.tokenizer, prompt, &problem)?.len();
            if length <= limit {
                tasks.push(Task { problem, reference });
            } else if config.data.overlong_prompts == OverlongPrompts::Refuse {
                return Err(usage(format!(
                    "{}: the prompt of problem {} has {length} tokens, more than \
                     data.max_prompt_tokens = {limit}",
                    file.display(),
                    problem.problem_id
                )));
            } else {
                num_long += 1;
            }
        }
    }
    if num_long > 0 {
        tracing::warn!("left out {num_long} problems longer than data.max_prompt_tokens = {limit}");
    }
    if tasks.len() < config.rollout.num_prompts {
        return Err(usage(format!(
            "data.files hold {} problems within data.max_prompt_tokens = {limit}, fewer than \
             rollout.num_prompts = {}",
            tasks.len(),
            config.rollout.num_prompts
        )));
    }
    Ok(tasks)
}

/// The problems of a portion: consecutive parts of a new shuffle for each pass over the data.
fn tasks_of_portion<'t>(config: &Config, tasks: &'t [Task], portion: u64) -> Vec<&'t Task> {
    let per_epoch = (tasks.len() / config.rollout.num_prompts) as u64;
    let (epoch, index) = (portion / per_epoch, (portion % per_epoch) as usize);
    let mut order: Vec<&Task> = tasks.iter().collect();
    order.shuffle(&mut rng::Stream::new(config.seed, &[PROMPT_ORDER, epoch]));
    order[index * config.rollout.num_prompts..][..config.rollout.num_prompts].to_vec()
}

/// Labels of the two uses of the run's seed.
const PROMPT_ORDER: u64 = 1;
const SAMPLING: u64 = 2;

/// Samples, judges and rewards until there are enough groups to learn from, no round is left or every
/// problem was taken, and moves the cursor past the portions used. Verdicts and the rewards of a user's
/// program are written to `journal` before they are used, and taken from there if this step was begun
/// before.
pub(crate) fn collect<'t>(
    config: &Config,
    (generator, rewarder): (&mut Generator<'_>, &mut Rewarder<'_>),
    prompt: &GtgPrompt,
    tasks: &'t [Task],
    cursor: &mut Cursor,
    journal: &Path,
) -> Result<Rollouts<'t>> {
    let recorded = Recorded::read(journal)?;
    let mut rollouts = Rollouts::default();
    for _ in 0..config.rollout.max_rounds {
        if rollouts.is_enough(config) || rollouts.num_groups() == tasks.len() {
            break;
        }
        let portion = rollouts.untaken(tasks_of_portion(config, tasks, cursor.portion));
        let key = rng::key(config.seed, &[SAMPLING, cursor.portion]);
        cursor.portion += 1;
        if portion.is_empty() {
            continue;
        }
        let problems: Vec<&Problem> = portion.iter().map(|task| &task.problem).collect();
        let settings = AttemptSettings {
            num_samples: config.rollout.n,
            temperature: config.rollout.temperature as f32,
            max_new_tokens: config.rollout.max_new_tokens,
            max_prompt_tokens: Some(config.data.max_prompt_tokens),
            max_sequences: config.rollout.max_sequences,
            kv_cache_tokens: config.rollout.kv_cache_tokens,
            key,
        };
        let (mut attempts, cost) =
            attempt(generator, rewarder.judge, prompt, &problems, &settings, &Progress::hidden())?;
        let replayed = recorded.replay(&problems, &mut attempts);
        let rewards = rewarder.rewards(config, &portion, &attempts, &replayed.rewards)?;
        let groups: Vec<Group<'_>> = portion
            .into_iter()
            .zip(attempts.into_iter().zip(rewards))
            .map(|(task, (attempts, rewards))| Group::new(config, task, attempts, rewards))
            .collect();
        rollouts.add(groups, &cost, config);
        // What holds this round may hold later ones too.
        if !replayed.is_whole {
            samples::record(
                journal,
                rollouts.replaced.iter().chain(&rollouts.groups).map(Group::recorded),
            )?;
        }
    }
    if !rollouts.is_enough(config) {
        tracing::warn!(
            "only {} of {} groups are left to learn from, after {} groups of {} problems \
             (rollout.max_rounds = {})",
            rollouts.groups.len(),
            config.rollout.num_prompts,
            rollouts.num_groups(),
            tasks.len(),
            config.rollout.max_rounds
        );
    }
    Ok(rollouts)
}

impl<'t> Rollouts<'t> {
    fn is_enough(&self, config: &Config) -> bool {
        self.groups.len() == config.rollout.num_prompts
    }

    /// Each of another problem.
    fn num_groups(&self) -> usize {
        self.groups.len() + self.replaced.len()
    }

    /// Those of a portion whose problems have no group yet: one that begins another pass over the data can
    /// hold problems of the portions before.
    fn untaken(&self, portion: Vec<&'t Task>) -> Vec<&'t Task> {
        let groups = self.groups.iter().chain(&self.replaced);
        let taken: HashSet<&str> =
            groups.map(|group| group.task.problem.problem_id.as_str()).collect();
        let is_untaken = |task: &&Task| !taken.contains(task.problem.problem_id.as_str());
        portion.into_iter().filter(is_untaken).collect()
    }

    /// Takes the groups of a round as far as they are wanted.
    fn add(&mut self, groups: Vec<Group<'t>>, cost: &AttemptCost, config: &Config) {
        self.cost.generation += cost.generation;
        self.cost.judging += cost.judging;
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

impl<'t> Group<'t> {
    fn new(
        config: &Config,
        task: &'t Task,
        attempts: ProblemAttempts,
        rewards: GroupRewards,
    ) -> Self {
        let totals: Vec<_> = rewards.iter().map(|r| r.as_ref().map(|r| r.total)).collect();
        let advantages = advantages(&totals, config.advantage.norm_by_std, config.advantage.eps);
        Self { task, attempts, rewards, advantages }
    }

    /// Whether its responses differ in what dynamic sampling looks at. As in verl, a group made of one
    /// response always counts.
    fn teaches(&self, metric: FilterMetric) -> bool {
        let mut passed = self.rewards.iter().flatten().map(|reward| reward.passed);
        match metric {
            FilterMetric::Reward => !self.advantages.zero_variance,
            FilterMetric::Accuracy => passed.next().is_some_and(|first| {
                self.rewards.len() == 1 || passed.any(|another| another != first)
            }),
        }
    }

    fn recorded(&self) -> (&Problem, &ProblemAttempts, &[Option<Breakdown>]) {
        (&self.task.problem, &self.attempts, &self.rewards)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::rewarder::by_rule;
    use super::*;
    use crate::rewards::{RewardConfig, RewardKind};
    use crate::run::samples::tests::{group, problem};
    use crate::sandbox::{Reason, VerdictKind};

    pub(crate) fn config(num_prompts: usize) -> Config {
        let mut config: Config =
            toml::from_str(include_str!("../../../configs/demo/grpo.toml")).unwrap();
        config.rollout.num_prompts = num_prompts;
        config
    }

    pub(crate) fn tasks(count: usize) -> Vec<Task> {
        let reward = RewardConfig { kind: RewardKind::Binary, ..Default::default() };
        let task = |i: usize| {
            let problem = problem(&i.to_string());
            Task { reference: Reference::new(&problem, &reward).unwrap(), problem }
        };
        (0..count).map(task).collect()
    }

    fn rewarded<'t>(config: &Config, task: &'t Task, attempts: ProblemAttempts) -> Group<'t> {
        let rewards = by_rule(config, task, &attempts);
        Group::new(config, task, attempts, rewards)
    }

    #[test]
    fn a_pass_over_the_data_has_no_problem_twice_and_each_pass_its_own_order() {
        let (config, tasks) = (config(3), tasks(10));
        let ids = |portions: std::ops::Range<u64>| -> Vec<String> {
            portions
                .flat_map(|portion| tasks_of_portion(&config, &tasks, portion))
                .map(|task| task.problem.problem_id.clone())
                .collect()
        };
        let [first, second] = [ids(0..3), ids(3..6)];
        for pass in [&first, &second] {
            assert_eq!(pass.iter().collect::<HashSet<_>>().len(), 9);
        }
        assert_ne!(first, second);
        assert_eq!(first, ids(0..3));
    }

    #[test]
    fn dynamic_sampling_keeps_groups_that_teach_until_there_are_enough() {
        let wrong = VerdictKind::Fail(Reason::WrongAnswer);
        let python = "```python\nx\n```";
        let teaches = [(python, VerdictKind::Pass), (python, wrong)];
        let does_not = [(python, wrong), (python, wrong)];
        let mut config = config(2);
        config.reward.kind = RewardKind::Binary;
        let tasks = tasks(1);
        let round = |kinds: &[&[(&str, VerdictKind)]], config: &Config| -> Vec<Group<'_>> {
            kinds.iter().map(|kind| rewarded(config, &tasks[0], group(kind))).collect()
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
        let tasks = tasks(1);
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
            let group = rewarded(&config, &tasks[0], group(responses));
            assert_eq!(group.teaches(FilterMetric::Accuracy), by_accuracy, "{responses:?}");
            assert_eq!(group.teaches(FilterMetric::Reward), by_reward, "{responses:?}");
        }
    }

    #[test]
    fn a_step_that_begins_another_pass_over_the_data_takes_no_problem_twice() {
        let (config, tasks) = (config(6), tasks(8));
        let mut rollouts = Rollouts::default();
        for portion in 0..20 {
            for task in rollouts.untaken(tasks_of_portion(&config, &tasks, portion)) {
                rollouts.replaced.push(rewarded(&config, task, group(&[])));
            }
        }
        let groups = rollouts.replaced.iter();
        let ids: HashSet<&str> =
            groups.map(|group| group.task.problem.problem_id.as_str()).collect();
        assert_eq!((ids.len(), rollouts.num_groups()), (8, 8));
    }

    #[test]
    fn a_failure_of_the_judge_is_neither_reward_nor_score() {
        let tasks = tasks(1);
        let attempts = group(&[("```python\nx\n```", VerdictKind::Infra)]);
        let found = rewarded(&config(1), &tasks[0], attempts);
        assert_eq!(found.rewards[0].map(|r| r.total), None);
        let row = crate::train::rl::metrics::rollout_metrics(&[found]);
        assert_eq!(row["reward/infra"], 1.0);
        assert!(!row.contains_key("reward/mean"), "nothing is known");
    }
}
