//! Ten steps of the real update code against PyTorch with TRL's loss, on given pairs
//! (`scripts/golden/dpo.py` made the files).

use super::config::Config;
use super::reference::compute;
use super::step;
use crate::config::load;
use crate::data::pair::{AnsweredPrompt, TokenPair};
use crate::train::golden::{Golden, TOLERANCE, relative};
use serde::Deserialize;
use std::collections::HashMap;

#[derive(Deserialize)]
struct Given {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

impl From<Given> for TokenPair {
    fn from(Given { prompt, chosen, rejected }: Given) -> Self {
        let behind = |answer| AnsweredPrompt { prompt: prompt.clone(), answer };
        Self { chosen: behind(chosen), rejected: behind(rejected) }
    }
}

/// One update as PyTorch makes it.
#[derive(Deserialize)]
struct Expected {
    loss: f64,
    grad_norm: f64,
    lr: f64,
    chosen_reward: f64,
    rejected_reward: f64,
    accuracy: f64,
    chosen_logp: f64,
    rejected_logp: f64,
}

fn check(case: &str, set: &[&str]) {
    let golden = Golden::of("dpo");
    let sets: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
    let config = load::<Config>(&[golden.path(&format!("{case}.toml"))], &sets).unwrap().value;
    config.check().unwrap();
    let given: Vec<Vec<Given>> = golden.json("pairs.json");
    let expected: HashMap<String, Vec<Expected>> = golden.json("expected.json");
    let weights = golden.weights();
    let (optim, schedule, steps) = (config.optim, config.schedule, config.train.total_steps);
    let mut trainer = weights.trainer(optim, schedule, steps, config.execution());
    let pairs: Vec<TokenPair> = given.into_iter().flatten().map(TokenPair::from).collect();
    let reference = compute(&mut trainer, &config, &pairs).unwrap();
    let all: Vec<_> = pairs.iter().zip(reference).collect();
    let mut worst = [0f64; 3];
    for (number, (drawn, expected)) in
        all.chunks(config.train.pairs_per_step).zip(&expected[case]).enumerate()
    {
        let result = step(&mut trainer, &config, drawn).unwrap();
        let mean = |sum: f64| sum / result.metrics.pairs as f64;
        for (actual, expected) in [
            (mean(result.metrics.loss), expected.loss),
            (mean(result.metrics.chosen_logp), expected.chosen_logp),
            (mean(result.metrics.rejected_logp), expected.rejected_logp),
        ] {
            worst[0] = worst[0].max(relative(actual, expected));
        }
        // Rewards are differences of larger numbers; at first they are 0.
        for (actual, expected) in [
            (mean(result.metrics.chosen_reward), expected.chosen_reward),
            (mean(result.metrics.rejected_reward), expected.rejected_reward),
        ] {
            assert!(
                (actual - expected).abs() < TOLERANCE * expected.abs().max(1.0),
                "{case} {number}"
            );
        }
        assert_eq!(mean(result.metrics.right_way as f64) as f32, expected.accuracy as f32);
        worst[1] = worst[1].max(relative(result.update.grad_norm, expected.grad_norm));
        assert!((result.update.lr - expected.lr).abs() <= 1e-9, "{case}, step {number}");
        let of_step = weights.distance(&format!("{case}.{number}"), &trainer.model.params);
        worst[2] = worst[2].max(of_step);
    }
    let [loss, norm, apart] = worst;
    println!(
        "{case} {set:?}: {loss:.1e}, {norm:.1e}, {apart:.1e} (loss, norm of the gradient, weights)"
    );
    assert!(worst.iter().all(|&worst| worst < TOLERANCE), "{case} {set:?}: {worst:?}");
    assert_eq!(trainer.step, 10);
}

#[test]
fn ten_steps_of_dpo_follow_trl() {
    check("sigmoid", &[]);
}

#[test]
fn ten_steps_of_ipo_follow_trl() {
    check("ipo", &[]);
}

#[test]
fn ranks_rows_and_prompts_of_their_own_follow_the_same_ten_steps() {
    for case in ["sigmoid", "ipo"] {
        for set in ["train.ranks=3", "train.seq_len=20", "train.share_prompts=false"] {
            check(case, &[set]);
        }
        check(case, &["train.recompute=layer", "train.ranks=2"]);
    }
}
