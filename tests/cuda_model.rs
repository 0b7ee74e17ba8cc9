//! This file tests the decoder on a GPU against the decoder on the CPU, on the same 16-bit weights.
//! It runs on a GPU if there is one, else on the emulated driver.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]
#![expect(clippy::print_stdout, reason = "says where it runs, and when it is skipped")]

mod cuda_support;
#[path = "cuda_support/models.rs"]
mod models;

use codeseq::cuda::{DeviceSliceMut, Half, HalfFormat};
use codeseq::model::cuda::{DeviceModel, TrainingMemory};
use codeseq::model::{BatchSize, Packed, Recompute, Target};
use models::*;

#[test]
fn cuda_scores_and_every_gradient_are_those_of_the_cpu_within_the_error_of_bf16() {
    for kind in MODELS {
        assert_close(BF16, kind, (2e-2, 4e-3, 3e-2));
    }
}

#[test]
fn cuda_scores_and_every_gradient_in_fp16_are_eight_times_closer() {
    for kind in MODELS {
        assert_close(HalfFormat::Fp16, kind, (2.5e-3, 6e-4, 2.5e-3));
    }
}

#[test]
fn cuda_scores_alone_are_those_of_training() {
    let decoder = decoder(MODELS[0]);
    let params = parameters(&decoder);
    let Some(mut model) = model(&decoder, &params) else { return };
    let batch = batch(&LENGTHS);
    let trained = pass(&mut model, (SIZE, Recompute::Layer), &batch).scores;
    let mut training = model.training(SIZE, Recompute::Layer).unwrap();
    assert!(training.score(&batch.0, &batch.1, 0.8).unwrap() == trained);
    assert!(training.score(&batch.0, &batch.1, 0.8).unwrap() == trained);
    assert!(training.score(&Packed::default(), &[], 0.8).unwrap().is_empty());
}

#[test]
fn cuda_gradients_have_the_same_bits_every_time_whatever_is_recomputed() {
    for kind in [MODELS[0], MODELS[1], MODELS[3]] {
        let decoder = decoder(kind);
        let params = parameters(&decoder);
        let Some(mut model) = model(&decoder, &params) else { return };
        let batch = batch(&LENGTHS);
        let first = pass(&mut model, (SIZE, Recompute::Selective), &batch);
        for recompute in [Recompute::Selective, Recompute::None, Recompute::Layer] {
            let again = pass(&mut model, (SIZE, recompute), &batch);
            assert!(again == first, "{kind:?}, {recompute:?}");
        }
    }
}

#[test]
fn cuda_targets_in_two_chunks_of_the_head_give_the_same_scores_and_nearly_the_same_gradients() {
    for kind in [MODELS[0], MODELS[2]] {
        let decoder = decoder(kind);
        let params = parameters(&decoder);
        let Some(mut model) = model(&decoder, &params) else { return };
        let batch = batch(&LENGTHS);
        let whole = pass(&mut model, (SIZE, Recompute::Selective), &batch);
        let size = BatchSize { targets: 128, ..SIZE };
        let chunked = pass(&mut model, (size, Recompute::Selective), &batch);
        let largest = differences(&whole.scores, &chunked.scores, |score| score.logp).0;
        assert!(largest < 1e-5, "{largest}");
        let (cosine, error) = closeness(&chunked.gradients, &whole.gradients);
        assert!(cosine > 0.9999 && error < 1e-2, "cosine {cosine}, error {error}");
    }
}

#[test]
fn cuda_a_batch_without_targets_or_tokens_has_gradients_of_zero() {
    let decoder = decoder(MODELS[1]);
    let params = parameters(&decoder);
    let Some(mut model) = model(&decoder, &params) else { return };
    for lengths in [&[1, 1][..], &[]] {
        let pass = pass(&mut model, (SIZE, Recompute::Selective), &batch(lengths));
        assert!(pass.gradients.iter().all(|&gradient| gradient == 0.0), "{lengths:?}");
    }
}

#[test]
fn cuda_every_parameter_gets_a_gradient() {
    for kind in MODELS {
        let decoder = decoder(kind);
        let params = parameters(&decoder);
        let Some(mut model) = model(&decoder, &params) else { return };
        // Every token of the vocabulary occurs, so each row of the embedding has a gradient.
        let tokens: Vec<u32> = (0..=VOCAB as u32).map(|i| i % VOCAB as u32).collect();
        let targets = (0..VOCAB).map(|row| Target { row, token: tokens[row + 1] }).collect();
        let batch = (Packed::from_sequences([tokens.as_slice()]), targets);
        let pass = pass(&mut model, (SIZE, Recompute::Selective), &batch);
        for tensor in &decoder.layout().tensors {
            let gradients = &pass.gradients[tensor.range.clone()];
            let rows = gradients.chunks(tensor.row_len());
            assert!(
                rows.into_iter().all(|row| row.iter().any(|&gradient| gradient != 0.0)),
                "{kind:?}: a row of {} has no gradient",
                tensor.name
            );
        }
    }
}

#[test]
fn cuda_the_memory_of_training_is_known_before() {
    for kind in MODELS {
        let decoder = decoder(kind);
        let params = parameters(&decoder);
        let Some(mut model) = model(&decoder, &params) else { return };
        for recompute in [Recompute::None, Recompute::Selective, Recompute::Layer] {
            let taken = |model: &mut DeviceModel| -> usize {
                model.split().1.arena.taken().map(|(_, bytes)| bytes).sum()
            };
            model.split().1.arena.phase();
            let before = taken(&mut model);
            let has_cudnn = model.training(SIZE, recompute).unwrap().has_cudnn();
            let planned = TrainingMemory::new(&decoder, SIZE, recompute, has_cudnn);
            assert_eq!(taken(&mut model) - before, planned.total(), "{kind:?}, {recompute:?}");
        }
    }
}

#[test]
fn cuda_a_profile_of_a_pass_counts_what_the_graph_says() {
    let decoder = decoder(MODELS[0]);
    let params = parameters(&decoder);
    let Some(mut model) = model(&decoder, &params) else { return };
    let (_, gpu) = model.split();
    let mut grads = gpu.arena.lasting::<Half>("gradients", params.len()).unwrap();
    let (packed, targets) = batch(&LENGTHS);
    let mut training = model.training(SIZE, Recompute::Selective).unwrap();
    let stream = training.stream();
    let pass = || {
        let grads = grads.slice_mut();
        let (objective, finished) =
            (&mut objective, &mut |_, _: DeviceSliceMut<'_, _>, _: &_| Ok(()));
        training.forward_backward(&packed, &targets, 1.0, objective, grads, finished)
    };
    let times = stream.profile(pass).unwrap();
    let calls = |name| times.iter().find(|time| time.name == name).map_or(0, |time| time.calls);
    // Each layer has four products in the forward and two for each in the backward; the head has
    // three.
    assert_eq!(calls("product"), 3 * 4 + 3 * 8 + 3);
    assert_eq!([calls("rms_norm"), calls("rms_norm_backward")], [1 + 3 * 2, 1 + 3 * 2]);
    assert_eq!([calls("swiglu"), calls("swiglu_backward")], [3, 3]);
    assert_eq!([calls("logprob_f32"), calls("logprob_backward_f32")], [1, 1]);
    assert!(times.iter().all(|time| time.milliseconds >= 0.0), "{times:?}");
}

#[test]
fn cuda_a_batch_beyond_what_was_declared_is_refused() {
    let decoder = decoder(MODELS[0]);
    let params = parameters(&decoder);
    let Some(mut model) = model(&decoder, &params) else { return };
    let mut training = model.training(SIZE, Recompute::Selective).unwrap();
    let mut refusal = |lengths: &[usize]| {
        let (packed, targets) = batch(lengths);
        format!("{:#}", training.score(&packed, &targets, 1.0).unwrap_err())
    };
    assert_eq!(refusal(&[150, 150, 1]), "the batch has 301 tokens; at most 300 were declared");
    assert_eq!(refusal(&[151]), "a sequence has more than the declared 150 tokens");
}
