//! The decoder as a whole: gradients against differences, and the bits it promises.

use codeseq::base::rng;
use codeseq::model::layout::init;
use codeseq::model::{
    DecodeWorkspace, Decoder, KvCache, ModelConfig, Packed, Row, Target, TokenScores, Workspace,
};
use rand::RngCore;

fn decoder(kind: &str, tied: bool) -> Decoder {
    let text = format!(
        r#"{{"model_type": "{kind}", "vocab_size": 70, "hidden_size": 24, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "initializer_range": 0.2, "tie_word_embeddings": {tied}}}"#
    );
    Decoder::new(ModelConfig::from_json(&text).expect("a valid configuration"))
}

/// Fresh parameters with norms and biases that are not all alike.
fn parameters(decoder: &Decoder) -> Vec<f32> {
    let mut params = init(decoder.config(), 1);
    for tensor in decoder.layout().tensors.iter().filter(|tensor| !tensor.decays()) {
        for i in tensor.range.clone() {
            params[i] += 0.3 * (rng::uniform(9, i as u64) - 0.5);
        }
    }
    params
}

/// Sequences of the given lengths with a target in all rows but each last.
fn batch(lens: &[usize]) -> (Packed, Vec<Target>) {
    let mut stream = rng::Stream::new(4, &[]);
    let sequences: Vec<Vec<u32>> =
        lens.iter().map(|&len| (0..len).map(|_| stream.next_u32() % 70).collect()).collect();
    let packed = Packed::from_sequences(sequences.iter().map(Vec::as_slice));
    let targets = packed
        .cu_seqlens
        .windows(2)
        .flat_map(|ends| (ends[0]..ends[1] - 1).map(|row| (row, packed.tokens[row + 1])))
        .map(|(row, token)| Target { row, token })
        .collect();
    (packed, targets)
}

/// A loss with a weight on each target's log-probability and entropy.
fn weights(index: usize) -> (f32, f32) {
    ((index as f32 * 0.7).sin(), 0.2 * (index as f32 * 0.3).cos())
}

fn loss(scores: &[TokenScores]) -> f64 {
    let term = |(index, score): (usize, &TokenScores)| {
        let (logp, entropy) = weights(index);
        f64::from(logp) * f64::from(score.logp) + f64::from(entropy) * f64::from(score.entropy)
    };
    scores.iter().enumerate().map(term).sum()
}

/// Adds the gradients of the loss to `grads` and returns the scores.
fn accumulate(
    decoder: &Decoder,
    params: &[f32],
    lens: &[usize],
    grads: &mut [f32],
    ws: &mut Workspace,
) -> Vec<TokenScores> {
    let (packed, targets) = batch(lens);
    let mut all = vec![TokenScores::default(); targets.len()];
    let mut objective =
        |first: usize, scores: &[TokenScores], d_logp: &mut [f32], d_entropy: &mut [f32]| {
            all[first..first + scores.len()].copy_from_slice(scores);
            for (i, (d_logp, d_entropy)) in d_logp.iter_mut().zip(d_entropy).enumerate() {
                (*d_logp, *d_entropy) = weights(first + i);
            }
        };
    decoder.forward_backward(params, &packed, &targets, 0.9, &mut objective, grads, ws);
    all
}

#[test]
fn every_tensor_has_the_gradient_that_differences_show() {
    let lens = [9, 1, 30, 17];
    for (kind, tied) in [("llama", true), ("qwen2", false)] {
        let decoder = decoder(kind, tied);
        let params = parameters(&decoder);
        let (packed, targets) = batch(&lens);
        let ws = &mut Workspace::new();
        let mut grads = vec![0.0; params.len()];
        accumulate(&decoder, &params, &lens, &mut grads, ws);
        for tensor in &decoder.layout().tensors {
            let gradient = &grads[tensor.range.clone()];
            let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            assert!(norm > 1e-3, "{} receives no gradient", tensor.name);
            let step = 1e-3 / norm;
            let mut at = |sign: f64| {
                let mut moved = params.clone();
                for (p, &g) in moved[tensor.range.clone()].iter_mut().zip(gradient) {
                    *p += (sign * step * f64::from(g)) as f32;
                }
                loss(&decoder.score(&moved, &packed, &targets, 0.9, ws))
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step * norm);
            assert!((slope - norm).abs() < 5e-3 * norm, "{}: {slope} is not {norm}", tensor.name);
        }
    }
}

#[test]
fn gradients_accumulate() {
    let decoder = decoder("llama", true);
    let params = parameters(&decoder);
    let ws = &mut Workspace::new();
    let mut once = vec![0.0; params.len()];
    accumulate(&decoder, &params, &[20, 5], &mut once, ws);
    let mut twice = once.clone();
    accumulate(&decoder, &params, &[20, 5], &mut twice, ws);
    for (a, b) in once.iter().zip(&twice) {
        assert!((2.0 * a - b).abs() <= 1e-5 * (1.0 + b.abs()));
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let decoder = decoder("qwen2", true);
    let params = parameters(&decoder);
    let results = [1, 2, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut grads = vec![0.0; params.len()];
        let lens = [150, 3, 77, 200, 41];
        let scores = pool
            .install(|| accumulate(&decoder, &params, &lens, &mut grads, &mut Workspace::new()));
        (grads, scores)
    });
    for (grads, scores) in &results[1..] {
        assert!(grads.iter().zip(&results[0].0).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!(scores, &results[0].1);
    }
}

#[test]
fn packing_does_not_change_a_sequence() {
    let decoder = decoder("llama", false);
    let params = parameters(&decoder);
    let (packed, targets) = batch(&[33, 120, 7]);
    let ws = &mut Workspace::new();
    let together = decoder.score(&params, &packed, &targets, 1.0, ws);
    let mut done = 0;
    for ends in packed.cu_seqlens.windows(2) {
        let alone = Packed::from_sequences([&packed.tokens[ends[0]..ends[1]]]);
        let targets: Vec<Target> =
            (1..ends[1] - ends[0]).map(|i| Target { row: i - 1, token: alone.tokens[i] }).collect();
        let scores = decoder.score(&params, &alone, &targets, 1.0, ws);
        assert_eq!(scores, together[done..done + scores.len()]);
        done += scores.len();
    }
}

/// Log-probabilities of all targets by cached generation: prompts in pieces, then single steps, all
/// sequences mixed in one batch.
fn generated_scores(decoder: &Decoder, params: &[f32], packed: &Packed, piece: usize) -> Vec<f32> {
    let weights = decoder.pack(params);
    let lens: Vec<usize> = packed.cu_seqlens.windows(2).map(|ends| ends[1] - ends[0]).collect();
    let mut cache =
        KvCache::new(decoder.config(), lens.len(), *lens.iter().max().expect("sequences"));
    let mut ws = DecodeWorkspace::new();
    let mut done = vec![0; lens.len()];
    let mut logps: Vec<Vec<f32>> = vec![Vec::new(); lens.len()];
    let mut round = 0;
    while done != lens {
        let mut rows = Vec::new();
        for (slot, (done, &len)) in done.iter_mut().zip(&lens).enumerate() {
            let count = if round < 3 { piece + slot } else { 1 };
            for position in *done..len.min(*done + count) {
                rows.push(Row {
                    token: packed.tokens[packed.cu_seqlens[slot] + position],
                    slot: slot as u32,
                    position: position as u32,
                    wants_logits: position + 1 < len,
                });
                *done = position + 1;
            }
        }
        let logits = decoder.extend(&weights, &mut cache, &rows, &mut ws);
        let wanted = rows.iter().filter(|row| row.wants_logits);
        for (row, logits) in wanted.zip(logits.chunks_exact(decoder.config().vocab_size)) {
            let slot = row.slot as usize;
            let next = packed.tokens[packed.cu_seqlens[slot] + row.position as usize + 1];
            let statistics = codeseq::ops::logprob::statistics(logits, 0.8);
            logps[slot].push(statistics.logp(logits[next as usize]));
        }
        round += 1;
    }
    logps.concat()
}

#[test]
fn generation_has_the_bits_of_training() {
    for (kind, tied) in [("llama", true), ("qwen2", false)] {
        let decoder = decoder(kind, tied);
        let params = parameters(&decoder);
        let (packed, targets) = batch(&[60, 5, 130, 33, 2, 71, 18]);
        let scores = decoder.score(&params, &packed, &targets, 0.8, &mut Workspace::new());
        for (threads, piece) in [(1, 1), (2, 13), (3, 100)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let generated = pool.install(|| generated_scores(&decoder, &params, &packed, piece));
            assert_eq!(generated.len(), scores.len());
            for (index, (score, logp)) in scores.iter().zip(&generated).enumerate() {
                assert_eq!(score.logp.to_bits(), logp.to_bits(), "target {index}, piece {piece}");
            }
        }
    }
}

#[test]
fn a_copied_prefix_continues_with_the_same_bits() {
    let decoder = decoder("llama", true);
    let params = parameters(&decoder);
    let weights = decoder.pack(&params);
    let mut cache = KvCache::new(decoder.config(), 2, 40);
    let mut ws = DecodeWorkspace::new();
    let row = |slot, position, wants_logits| Row {
        token: position * 3 % 70,
        slot,
        position,
        wants_logits,
    };
    let prompt: Vec<Row> = (0..21).map(|position| row(0, position, false)).collect();
    decoder.extend(&weights, &mut cache, &prompt, &mut ws);
    cache.copy_prefix(0, 1, 21);
    let both = [row(0, 21, true), row(1, 21, true)];
    let logits = decoder.extend(&weights, &mut cache, &both, &mut ws);
    let (first, second) = logits.split_at(70);
    assert_eq!(first, second);
}
