//! Settings and problems of a small run, for tests.

use super::Config;
use super::training_set::TrainingSet;
use crate::data::problem::Problem;
use crate::tasks::Task;
use crate::tasks::tests::Given;

/// Returns the demo's settings with `num_prompts` prompts a step.
pub(crate) fn config(num_prompts: usize) -> Config {
    let mut config: Config =
        toml::from_str(include_str!("../../../configs/demo/grpo.toml")).unwrap();
    config.rollout.num_prompts = num_prompts;
    config
}

pub(crate) fn task(num_problems: usize) -> Given {
    let problem = |i: usize| -> Problem {
        serde_json::from_value(serde_json::json!({"problem_id": i, "tests": []})).unwrap()
    };
    Given((0..num_problems).map(problem).collect())
}

pub(crate) fn training_set<'t>(config: &Config, task: &'t Given) -> TrainingSet<'t> {
    let problems = (0..task.num_problems()).collect();
    TrainingSet { task, problems, num_prompts: config.rollout.num_prompts, seed: config.seed }
}
