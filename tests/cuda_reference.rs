//! This file tests policy updates with a reference model on GPUs against the same on the CPU. It
//! runs on GPUs if there are any, else on emulated ones.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]
#![expect(clippy::print_stdout, reason = "says what was measured, and when it is skipped")]

mod cuda_support;
mod support;

use codeseq::checkpoint::LanguageModel;
use codeseq::cuda::device;
use codeseq::data::pack::Batch;
use codeseq::model::{BatchSize, Precision};
use codeseq::objective::policy::{LossConfig, Metrics, PolicyObjective, SampledTokens};
use codeseq::optim::Schedule;
use codeseq::tokenizer::Tokenized;
use codeseq::trainer::device::{GpuConfig, Gpus};
use codeseq::trainer::{Execution, MicroBatch, Parameters, Trainer};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use support::{VOCAB, gpu_shape, inputs};

/// Each micro-batch has two responses, with as many tokens each, after prompts of four tokens.
const MICRO_BATCHES: usize = 2;
const LENGTH: usize = 20;

static INPUTS: LazyLock<PathBuf> = LazyLock::new(|| inputs("cuda-reference", &gpu_shape()));

/// Makes a trainer, on GPUs or on the CPU, that keeps the model it starts from as its reference.
fn trainer(gpus: usize) -> Trainer {
    let model =
        LanguageModel::init(&INPUTS.join("model.json"), &INPUTS.join("tokenizer"), 3).unwrap();
    let tokens = 2 * (4 + LENGTH);
    let largest = BatchSize { tokens, longest: tokens, targets: tokens };
    let execution = Execution {
        ranks: gpus.max(1),
        gpus: (gpus > 0).then_some(Gpus {
            config: GpuConfig::default(),
            precision: Precision::Bf16,
            largest,
        }),
        ..Execution::default()
    };
    let optim = toml::from_str("lr = 1e-3\nweight_decay = 0.0").unwrap();
    let params = model.params.clone();
    let mut trainer = Trainer::new(model, optim, Schedule::default(), 100, execution).unwrap();
    trainer.keep_reference(params).unwrap();
    trainer
}

/// Gives two GPUs of any kind to one test at a time, because a trainer takes all of their memory.
fn gpus() -> Option<MutexGuard<'static, ()>> {
    static IN_TURN: Mutex<()> = Mutex::new(());
    if cuda_support::driver().is_none() || device::count().unwrap_or(0) < 2 {
        println!("SKIPPED: neither two GPUs nor a C++ compiler");
        return None;
    }
    Some(IN_TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Returns the prompts with their responses, by micro-batch.
fn rows() -> Vec<MicroBatch> {
    let row = |i: usize| {
        let token = |at: usize| ((37 * at + 11 * i * at + 5 * i) % VOCAB) as u32;
        let sample = Tokenized {
            input_ids: (0..4 + LENGTH).map(token).collect(),
            loss_mask: (0..4 + LENGTH).map(|at| at >= 4).collect(),
        };
        Batch::new(&[sample], &[0])
    };
    (0..MICRO_BATCHES).map(|i| MicroBatch::join(&[row(2 * i), row(2 * i + 1)])).collect()
}

/// Makes one step: the trainer's old log-probabilities, the reference's, and an update.
fn step(trainer: &mut Trainer) -> (Metrics, f64) {
    let rows = rows();
    let config = LossConfig { kl_coef: 0.3, ..LossConfig::default() };
    let old = trainer.score(Parameters::Trained, &rows, 1.0).unwrap();
    let reference = trainer.score(Parameters::Reference, &rows, 1.0).unwrap();
    let sampled: Vec<SampledTokens> = old
        .into_iter()
        .zip(reference)
        .enumerate()
        .map(|(batch, (sampler_logp, reference_logp))| SampledTokens {
            advantage: vec![if batch.is_multiple_of(2) { 1.0 } else { -1.0 }; sampler_logp.len()],
            weight: vec![1.0; sampler_logp.len()],
            sampler_logp,
            reference_logp: Some(reference_logp),
            ..SampledTokens::default()
        })
        .collect();
    let objective = PolicyObjective::new(&config, &sampled);
    trainer.accumulate(&rows, 1.0, &objective).unwrap();
    let metrics = objective.into_sums().metrics;
    let tokens = (MICRO_BATCHES * 2 * LENGTH) as f64;
    let update = trainer.update(tokens, metrics.loss / tokens).unwrap();
    trainer.end_step();
    (metrics, update.grad_norm)
}

#[test]
fn cuda_the_reference_stays_what_it_was_and_scores_as_on_the_cpu() {
    let Some(_turn) = gpus() else { return };
    let expected = trainer(0).score(Parameters::Reference, &rows(), 1.0).unwrap().concat();
    let mut of_one = Vec::new();
    for gpus in [1, 2] {
        let mut trainer = trainer(gpus);
        let before = trainer.score(Parameters::Reference, &rows(), 1.0).unwrap().concat();
        assert_eq!(
            before,
            trainer.score(Parameters::Trained, &rows(), 1.0).unwrap().concat(),
            "equal weights"
        );
        step(&mut trainer);
        assert_eq!(before, trainer.score(Parameters::Reference, &rows(), 1.0).unwrap().concat());
        assert_ne!(before, trainer.score(Parameters::Trained, &rows(), 1.0).unwrap().concat());
        let apart = before.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{gpus} GPUs: log-probabilities of the reference at most {apart:.1e} off");
        assert!(apart < 2e-2);
        match gpus {
            1 => of_one = before,
            _ => assert_eq!(of_one, before, "each rank scores its rows"),
        }
    }
}

#[test]
fn cuda_steps_held_to_a_reference_follow_the_cpu_within_bf16() {
    let Some(_turn) = gpus() else { return };
    let steps = |gpus| {
        let mut trainer = trainer(gpus);
        (0..4).map(|_| step(&mut trainer)).collect::<Vec<_>>()
    };
    let (cpu, gpu) = (steps(0), steps(2));
    let tokens = (MICRO_BATCHES * 2 * LENGTH) as f64;
    for (number, ((on_cpu, norm), (on_gpu, gpu_norm))) in cpu.iter().zip(&gpu).enumerate() {
        let [kl, gpu_kl] = [on_cpu.kl, on_gpu.kl].map(|sum| sum / tokens);
        let loss = (on_cpu.loss - on_gpu.loss).abs() / tokens;
        let norms = (gpu_norm / norm - 1.0).abs();
        println!(
            "step {number}: KL {kl:.4} and {gpu_kl:.4}, losses {loss:.1e}, norms {norms:.1e} apart"
        );
        assert!((kl - gpu_kl).abs() < 1e-3 + 5e-2 * kl && loss < 1e-2 && norms < 5e-2);
    }
    assert!(gpu.last().unwrap().0.kl / tokens > 0.02, "too little has moved to tell");
}
