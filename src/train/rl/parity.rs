//! Ten steps of the real update code against plain PyTorch, on given responses and rewards
//! (`scripts/golden/grpo.py` made the files and compares its loss with TRL's).

use super::config::Config;
use super::rollout::Group;
use super::update::improve;
use crate::checkpoint::LanguageModel;
use crate::engine::FinishReason;
use crate::model::{Packed, Target, Workspace};
use crate::objective::advantage::Outcome;
use crate::rollout::test_support::group;
use crate::sandbox::VerdictKind;
use crate::train::golden::{Golden, TOLERANCE, relative};
use crate::trainer::Trainer;
use serde::Deserialize;
use std::collections::HashMap;

/// A prompt, its responses and their rewards.
#[derive(Deserialize)]
struct Given {
    prompt: Vec<u32>,
    responses: Vec<Vec<u32>>,
    rewards: Vec<f64>,
}

/// One update as PyTorch makes it.
#[derive(Deserialize)]
struct Expected {
    step: f64,
    loss: f64,
    grad_norm: f64,
    lr: f64,
}

/// What a sampler with the trainer's weights would say of a response.
fn logprobs(trainer: &Trainer, prompt: &[u32], response: &[u32], temperature: f32) -> Vec<f32> {
    let tokens = [prompt, response].concat();
    let rows = prompt.len() - 1..tokens.len() - 1;
    let targets: Vec<Target> = rows.map(|row| Target { row, token: tokens[row + 1] }).collect();
    let packed = Packed::from_sequences([tokens.as_slice()]);
    let LanguageModel { decoder, params, .. } = &trainer.model;
    let scores = decoder.score(params, &packed, &targets, temperature, &mut Workspace::new());
    scores.iter().map(|score| score.logp).collect()
}

fn sampled(config: &Config, trainer: &Trainer, given: &Given) -> Group {
    let mut attempts = group(&vec![("", VerdictKind::Pass); given.responses.len()]);
    attempts.prompt.clone_from(&given.prompt);
    for (attempt, response) in attempts.attempts.iter_mut().zip(&given.responses) {
        let rollout = &mut attempt.rollout;
        let temperature = config.rollout.temperature as f32;
        rollout.logprobs = logprobs(trainer, &given.prompt, response, temperature);
        rollout.tokens.clone_from(response);
        rollout.finish_reason = FinishReason::Length;
    }
    let outcome = |(&reward, response): (&f64, &Vec<u32>)| Outcome {
        reward: Some(reward),
        num_tokens: response.len(),
    };
    let outcomes = given.rewards.iter().zip(&given.responses).map(outcome).collect();
    let advantages = config.advantage.advantages(&[outcomes]).remove(0);
    Group { problem: 0, attempts, rewards: Vec::new(), is_uniform: false, advantages }
}

fn check(case: &str, set: &[&str]) {
    let sets: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
    let golden = Golden::of("grpo");
    let config = Config::load(&[golden.path(&format!("{case}.toml"))], &sets).unwrap().value;
    config.check().unwrap();
    let rollouts: Vec<Vec<Given>> = golden.json("rollouts.json");
    let mut expected: HashMap<String, Vec<Expected>> = golden.json("expected.json");
    let mut expected = expected.remove(case).unwrap().into_iter();
    let weights = golden.weights();
    let (optim, schedule, steps) = (config.optim, config.schedule, config.train.total_steps);
    let mut trainer = weights.trainer(optim, schedule, steps, config.execution());
    trainer.keep_reference(weights.of("initial")).unwrap();
    let mut worst = [0f64; 3];
    for (step, given) in rollouts.iter().enumerate() {
        let groups: Vec<Group> =
            given.iter().map(|given| sampled(&config, &trainer, given)).collect();
        let updates = improve(&mut trainer, &config, &groups).unwrap();
        assert_eq!(updates[0].metrics.ratio_max_deviation, 0.0, "on policy at first");
        for (updated, expected) in updates.iter().zip(&mut expected) {
            assert_eq!(step as f64, expected.step);
            // A loss near 0 is a difference of larger numbers.
            let loss = (updated.metrics.loss - expected.loss).abs() / expected.loss.abs().max(0.1);
            worst[0] = worst[0].max(loss);
            worst[1] = worst[1].max(relative(updated.update.grad_norm, expected.grad_norm));
            assert!((updated.update.lr - expected.lr).abs() <= 1e-9, "{case}, step {step}");
        }
        let of_step = weights.distance(&format!("{case}.{step}"), &trainer.model.params);
        worst[2] = worst[2].max(of_step);
        let [loss, norm, apart] = worst;
        let text = format!("{case} {set:?} to step {step}: {loss:.1e}, {norm:.1e}, {apart:.1e}");
        assert!(worst.iter().all(|&worst| worst < TOLERANCE), "{text}");
        if step + 1 == rollouts.len() {
            println!("{text} (loss, norm of the gradient, weights)");
        }
    }
    assert_eq!(expected.count(), 0, "as many updates");
    assert_eq!(rollouts.len(), 10);
}

#[test]
fn ten_steps_with_the_mean_over_all_tokens_follow_pytorch() {
    check("verl-0.9", &[]);
}

#[test]
fn ten_steps_with_means_of_micro_batches_a_reference_and_entropy_follow_pytorch() {
    check("verl-0.5", &[]);
}

#[test]
fn ranks_rows_shared_prompts_and_importance_sampling_follow_the_same_ten_steps() {
    for case in ["verl-0.9", "verl-0.5"] {
        for set in ["train.ranks=3", "train.seq_len=21", "policy.importance_sampling_cap=2.0"] {
            check(case, &[set]);
        }
        check(case, &["train.share_prompts=true"]);
        check(case, &["train.share_prompts=true", "train.recompute=layer", "train.ranks=2"]);
    }
}
