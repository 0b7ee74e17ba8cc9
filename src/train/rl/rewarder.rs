//! What responses are worth: by the rule of `[reward]`, or by a program of the user's.

use super::config::Config;
use super::reward_process::{Question, RewardProcess};
use super::rollout::Task;
use crate::rewards::{Breakdown, reward};
use crate::rollout::attempts::{Attempt, ProblemAttempts};
use crate::sandbox::Judge;
use anyhow::Result;

/// The rewards of one group; `None` where the judge failed.
pub(crate) type GroupRewards = Vec<Option<Breakdown>>;

/// The judge, and the user's program where there is one.
pub(crate) struct Rewarder<'j> {
    pub(crate) judge: &'j Judge,
    process: Option<RewardProcess>,
}

impl<'j> Rewarder<'j> {
    /// Starts the user's program, if any.
    pub(crate) fn start(config: &Config, judge: &'j Judge) -> Result<Self> {
        let process = config.external_reward.as_ref().map(RewardProcess::start).transpose()?;
        Ok(Self { judge, process })
    }

    /// What each response is worth. `recorded` is what was found of the same responses before, which
    /// the user's program is not asked again.
    pub(crate) fn rewards(
        &mut self,
        config: &Config,
        tasks: &[&Task],
        groups: &[ProblemAttempts],
        recorded: &[GroupRewards],
    ) -> Result<Vec<GroupRewards>> {
        let mut rewards: Vec<GroupRewards> =
            tasks.iter().zip(groups).map(|(task, group)| by_rule(config, task, group)).collect();
        if let Some(process) = &mut self.process {
            replace(&mut rewards, process, (tasks, groups), recorded)?;
        }
        if let Some(overlong) = config.overlong {
            let attempts = groups.iter().flat_map(|group| &group.attempts);
            for (reward, attempt) in rewards.iter_mut().flatten().zip(attempts) {
                let length = attempt.rollout.tokens.len();
                let penalty = overlong.penalty(length, config.rollout.max_new_tokens);
                *reward = reward.map(|reward| reward.with_overlong(penalty));
            }
        }
        Ok(rewards)
    }
}

/// By the rule alone.
pub(crate) fn by_rule(config: &Config, task: &Task, group: &ProblemAttempts) -> GroupRewards {
    let rule = config.reward_rule();
    let of_attempt = |attempt: &Attempt| {
        reward(&rule, &task.reference, &attempt.parsed, attempt.verdict_for_reward())
    };
    group.attempts.iter().map(of_attempt).collect()
}

/// Puts what the program says in place of what the rule gave.
fn replace(
    rewards: &mut [GroupRewards],
    process: &mut RewardProcess,
    (tasks, groups): (&[&Task], &[ProblemAttempts]),
    recorded: &[GroupRewards],
) -> Result<()> {
    let (mut questions, mut asked) = (Vec::new(), Vec::new());
    for (index, group) in groups.iter().enumerate() {
        for (sample, attempt) in group.attempts.iter().enumerate() {
            let Some(found) = &mut rewards[index][sample] else { continue };
            if let Some(known) = recorded[index][sample].and_then(|reward| reward.external) {
                *found = found.with_external(known);
                continue;
            }
            questions.push(Question {
                problem: &tasks[index].problem,
                response: &attempt.text,
                num_tokens: attempt.rollout.tokens.len(),
                format: found.format,
                passed: found.passed,
            });
            asked.push((index, sample));
        }
    }
    for ((index, sample), answer) in asked.into_iter().zip(process.ask(&questions)?) {
        let found = &mut rewards[index][sample];
        *found = found.map(|reward| reward.with_external(answer));
    }
    Ok(())
}
