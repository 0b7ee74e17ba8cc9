//! The problems from which a run learns, and which of them come next.
//!
//! Problems come in portions of `rollout.num_prompts`, in a new order for each pass over the data.

use super::config::{Config, OverlongPrompts};
use crate::base::error::usage;
use crate::base::rng;
use crate::checkpoint::LanguageModel;
use crate::rollout::attempts::Prompt;
use crate::tasks::Task;
use anyhow::{Context, Result};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// The problems of a task whose prompts are short enough.
pub(crate) struct TrainingSet<'t> {
    pub(crate) task: &'t dyn Task,
    pub(crate) problems: Vec<usize>,
    /// The number of problems in one portion.
    pub(crate) num_prompts: usize,
    pub(crate) seed: u64,
}

/// Which portion of problems comes next. Portions are numbered through all passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Cursor {
    pub(crate) portion: u64,
    /// The checksum of all problems: with other problems, a portion's number means other problems.
    pub(crate) problems: u32,
    /// The checksum of the prompt. Checkpoints of older versions, which had only one prompt, lack it.
    #[serde(default)]
    pub(crate) prompt: Option<u32>,
}

/// Labels one use of the run's seed.
const PROMPT_ORDER: u64 = 1;

impl<'t> TrainingSet<'t> {
    /// Selects the problems of `task` that can be trained on. If a problem lacks something that is needed,
    /// the error names it.
    pub(crate) fn new(config: &Config, task: &'t dyn Task, model: &LanguageModel) -> Result<Self> {
        let limit = config.data.max_prompt_tokens;
        let longest = model.decoder.config().check_length(config.longest());
        longest.context("data.max_prompt_tokens + rollout.max_new_tokens")?;
        let rule = config.reward_rule();
        let (mut problems, mut num_long) = (Vec::new(), 0);
        for problem in 0..task.num_problems() {
            let about = task.about(problem);
            rule.check_problem(&about).context("data.files")?;
            let length = Prompt::new(&model.tokenizer, task, problem)?.tokens.len();
            if length <= limit {
                problems.push(problem);
            } else if config.data.overlong_prompts == OverlongPrompts::Refuse {
                return Err(usage(format!(
                    "data.files: the prompt of problem {} has {length} tokens, more than \
                     data.max_prompt_tokens = {limit}",
                    about.id
                )));
            } else {
                num_long += 1;
            }
        }
        if num_long > 0 {
            tracing::warn!(
                "left out {num_long} problems longer than data.max_prompt_tokens = {limit}"
            );
        }
        let num_prompts = config.rollout.num_prompts;
        let set = Self { task, problems, num_prompts, seed: config.seed };
        if set.len() < set.num_prompts {
            return Err(usage(format!(
                "data.files hold {} problems within data.max_prompt_tokens = {limit}, fewer than \
                 rollout.num_prompts = {}",
                set.len(),
                set.num_prompts
            )));
        }
        Ok(set)
    }

    pub(crate) fn len(&self) -> usize {
        self.problems.len()
    }

    /// Returns the cursor before the first portion.
    pub(crate) fn start(&self) -> Result<Cursor> {
        let mut hasher = crc32fast::Hasher::new();
        for &problem in &self.problems {
            hasher.update(self.task.problem_json(problem)?.get().as_bytes());
        }
        let prompt = Some(crc32fast::hash(self.task.prompt_sha256().as_bytes()));
        Ok(Cursor { portion: 0, problems: hasher.finalize(), prompt })
    }

    /// Returns the cursor that continues where `saved` stopped, or that starts with the first portion.
    pub(crate) fn go_on(&self, saved: Option<Cursor>) -> Result<Cursor> {
        let start = self.start()?;
        let cursor = saved.unwrap_or(start);
        if cursor.problems != start.problems {
            return Err(usage(
                "data.files hold other problems than when this run began: give it those, or begin another",
            ));
        }
        if cursor.prompt.is_some_and(|prompt| Some(prompt) != start.prompt) {
            return Err(usage(
                "the prompt template is another than when this run began: give it that, or begin another",
            ));
        }
        Ok(Cursor { prompt: start.prompt, ..cursor })
    }

    /// Returns the problems of a portion: each pass over the data is a new shuffle, cut into portions.
    pub(crate) fn portion(&self, portion: u64) -> Vec<usize> {
        let per_epoch = (self.len() / self.num_prompts) as u64;
        let (epoch, index) = (portion / per_epoch, (portion % per_epoch) as usize);
        let mut order = self.problems.clone();
        order.shuffle(&mut rng::Stream::new(self.seed, &[PROMPT_ORDER, epoch]));
        order[index * self.num_prompts..][..self.num_prompts].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{config, task, training_set};
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_pass_over_the_data_has_no_problem_twice_and_each_pass_its_own_order() {
        let (config, task) = (config(3), task(10));
        let set = training_set(&config, &task);
        let passes = [0..3, 3..6, 0..3].map(|portions| -> Vec<usize> {
            portions.flat_map(|portion| set.portion(portion)).collect()
        });
        for pass in &passes {
            assert_eq!(pass.iter().collect::<HashSet<_>>().len(), 9);
        }
        assert_ne!(passes[0], passes[1]);
        assert_eq!(passes[0], passes[2]);
    }

    #[test]
    fn a_run_goes_on_only_with_the_problems_and_the_prompt_that_it_began_with() {
        let config = config(3);
        let (few, more) = (task(10), task(11));
        let set = training_set(&config, &few);
        let saved = Cursor { portion: 2, ..set.start().unwrap() };
        assert_eq!(set.go_on(None).unwrap().portion, 0);
        assert_eq!(set.go_on(Some(saved)).unwrap(), saved);
        let older = Cursor { prompt: None, ..saved };
        assert_eq!(set.go_on(Some(older)).unwrap(), saved);
        let refusal =
            |set: &TrainingSet<'_>, saved| set.go_on(Some(saved)).unwrap_err().to_string();
        assert!(refusal(&training_set(&config, &more), saved).contains("other problems"));
        let reworded = Cursor { prompt: Some(1), ..saved };
        assert!(refusal(&set, reworded).contains("prompt template"));
    }
}
