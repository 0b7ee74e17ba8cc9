//! What responses are worth: by the rule of `[reward]`, or by an external program.

use super::config::Config;
use super::reward_process::{Question, RewardProcess};
use crate::rewards::{Overlong, Response, Reward, RewardConfig};
use crate::rollout::attempt::{Attempt, ProblemAttempts};
use crate::tasks::Task;
use anyhow::Result;

/// The rewards of one group; `None` for a response without a verdict.
pub(crate) type GroupRewards = Vec<Option<Reward>>;

/// The rule, what is added to it, and the external program that replaces it, if there is one.
pub(crate) struct Rewarder {
    rule: RewardConfig,
    overlong: Option<Overlong>,
    max_new_tokens: usize,
    process: Option<RewardProcess>,
}

impl Rewarder {
    /// Starts the external program, if there is one.
    pub(crate) fn start(config: &Config) -> Result<Self> {
        let process = config.external_reward.as_ref().map(RewardProcess::start).transpose()?;
        Ok(Self {
            rule: config.reward_rule(),
            overlong: config.overlong,
            max_new_tokens: config.rollout.max_new_tokens,
            process,
        })
    }

    /// Returns what each response is worth. `recorded` holds what was found earlier for the same responses;
    /// the external program is not asked about them again.
    pub(crate) fn rewards(
        &mut self,
        task: &dyn Task,
        problems: &[usize],
        groups: &[ProblemAttempts],
        recorded: &[GroupRewards],
    ) -> Result<Vec<GroupRewards>> {
        let asked = problems.iter().zip(groups);
        let mut rewards: Vec<GroupRewards> = asked
            .map(|(&problem, group)| by_rule(&self.rule, task.about(problem).solvability, group))
            .collect();
        if let Some(process) = &mut self.process {
            ask(&mut rewards, process, task, (problems, groups), recorded)?;
        }
        if let Some(overlong) = self.overlong {
            let attempts = groups.iter().flat_map(|group| &group.attempts);
            for (reward, attempt) in rewards.iter_mut().flatten().zip(attempts) {
                let length = attempt.rollout.tokens.len();
                let penalty = overlong.penalty(length, self.max_new_tokens);
                *reward = reward.take().map(|reward| reward.part("overlong_penalty", penalty));
            }
        }
        Ok(rewards)
    }
}

/// Computes the reward by the rule alone, for a problem of this solvability.
pub(crate) fn by_rule(
    rule: &RewardConfig,
    solvability: Option<f64>,
    group: &ProblemAttempts,
) -> GroupRewards {
    let of_attempt = |Attempt { rollout, text, grade }: &Attempt| {
        rule.reward(grade, &Response { text, num_tokens: rollout.tokens.len(), solvability })
    };
    group.attempts.iter().map(of_attempt).collect()
}

/// Replaces the rule's rewards by the program's.
fn ask(
    rewards: &mut [GroupRewards],
    process: &mut RewardProcess,
    task: &dyn Task,
    (problems, groups): (&[usize], &[ProblemAttempts]),
    recorded: &[GroupRewards],
) -> Result<()> {
    let (mut questions, mut asked) = (Vec::new(), Vec::new());
    for (index, group) in groups.iter().enumerate() {
        let problem = task.problem_json(problems[index])?;
        for (sample, attempt) in group.attempts.iter().enumerate() {
            let Some(found) = rewards[index][sample].take() else { continue };
            let known = recorded[index][sample].as_ref().and_then(|reward| reward.external());
            rewards[index][sample] = Some(match known {
                Some(known) => found.replaced_by(known),
                None => {
                    questions.push(Question::new(problem.clone(), attempt));
                    asked.push((index, sample));
                    found
                }
            });
        }
    }
    for ((index, sample), answer) in asked.into_iter().zip(process.ask(&questions)?) {
        let found = rewards[index][sample].take();
        rewards[index][sample] = found.map(|reward| reward.replaced_by(answer));
    }
    Ok(())
}
