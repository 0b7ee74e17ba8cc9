//! The decoder as a whole: gradients against differences, and the bits it promises.

use codeseq::base::rng;
use codeseq::model::layout::init;
use codeseq::model::{
    BatchSize, DecodeWorkspace, Decoder, KvCache, ModelConfig, Packed, Recompute, Row,
    ScoreGradient, Target, TokenScores, Workspace,
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

/// A loss with a weight on each score of each target.
fn weights(index: usize) -> ScoreGradient {
    let index = index as f32;
    ScoreGradient {
        logp: (index * 0.7).sin(),
        entropy: 0.2 * (index * 0.3).cos(),
        mean_logp: 0.1 * (index * 1.1).sin(),
    }
}

fn loss(scores: &[TokenScores]) -> f64 {
    let term = |(index, score): (usize, &TokenScores)| {
        let weight = weights(index);
        f64::from(weight.logp) * f64::from(score.logp)
            + f64::from(weight.entropy) * f64::from(score.entropy)
            + f64::from(weight.mean_logp) * f64::from(score.mean_logp)
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
    let mut objective = |first: usize, scores: &[TokenScores], gradients: &mut [ScoreGradient]| {
        all[first..first + scores.len()].copy_from_slice(scores);
        for (i, gradient) in gradients.iter_mut().enumerate() {
            *gradient = weights(first + i);
        }
    };
    decoder.forward_backward(params, &packed, &targets, 0.9, &mut objective, grads, ws);
    all
}

#[test]
fn every_tensor_has_the_gradient_that_differences_show() {
    let lens = [9, 1, 30, 17];
    for (kind, tied) in [("llama", true), ("qwen2", false), ("qwen3", true)] {
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
fn recomputing_does_not_change_a_bit() {
    let lens = [9, 1, 130, 17];
    for (kind, tied) in [("llama", true), ("llama", false), ("qwen2", false), ("qwen3", false)] {
        let decoder = decoder(kind, tied);
        let params = parameters(&decoder);
        let results = [Recompute::None, Recompute::Selective, Recompute::Layer].map(|recompute| {
            let ws = &mut Workspace::with_recompute(recompute);
            let mut grads = vec![0.0; params.len()];
            let first = accumulate(&decoder, &params, &lens, &mut grads, ws);
            let (packed, targets) = batch(&lens);
            let scored = decoder.score(&params, &packed, &targets, 0.9, ws);
            assert_eq!(first, scored, "{recompute:?}");
            accumulate(&decoder, &params, &[40, 8], &mut grads, ws);
            grads
        });
        for other in &results[1..] {
            assert!(other.iter().zip(&results[0]).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

#[test]
fn the_memory_of_training_is_known_before() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for (kind, tied) in [("llama", true), ("qwen2", false), ("qwen3", false)] {
        for recompute in [Recompute::None, Recompute::Selective, Recompute::Layer] {
            let decoder = decoder(kind, tied);
            let params = parameters(&decoder);
            let mut ws = Workspace::with_recompute(recompute);
            let mut grads = vec![0.0; params.len()];
            for lens in [[30, 9, 1], [150, 3, 77], [20, 8, 1]] {
                pool.install(|| accumulate(&decoder, &params, &lens, &mut grads, &mut ws));
            }
            let batch = BatchSize { tokens: 230, longest: 150, targets: 227 };
            let planned = decoder.training_memory(batch, recompute, 1);
            assert_eq!(ws.memory(), planned, "{kind}, {recompute:?}");
        }
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
    // Blocks are dealt out in turn, so that those of a sequence do not lie side by side.
    let most = KvCache::blocks_for(*lens.iter().max().expect("sequences")) as u32;
    let count = lens.len() as u32;
    let mut cache = KvCache::new(decoder.config(), (most * count) as usize);
    let tables: Vec<Vec<u32>> =
        (0..count).map(|i| (0..most).rev().map(|block| block * count + i).collect()).collect();
    let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
    let mut ws = DecodeWorkspace::new();
    let mut done = vec![0; lens.len()];
    let mut logps: Vec<Vec<f32>> = vec![Vec::new(); lens.len()];
    let mut round = 0;
    while done != lens {
        let mut rows = Vec::new();
        for (sequence, (done, &len)) in done.iter_mut().zip(&lens).enumerate() {
            let count = if round < 3 { piece + sequence } else { 1 };
            for position in *done..len.min(*done + count) {
                rows.push(Row {
                    token: packed.tokens[packed.cu_seqlens[sequence] + position],
                    sequence: sequence as u32,
                    position: position as u32,
                    wants_logits: position + 1 < len,
                    is_prompt: false,
                });
                *done = position + 1;
            }
        }
        let logits = decoder.extend(&weights, &mut cache, &tables, &rows, &mut ws);
        let wanted = rows.iter().filter(|row| row.wants_logits);
        for (row, logits) in wanted.zip(logits.chunks_exact(decoder.config().vocab_size)) {
            let sequence = row.sequence as usize;
            let next = packed.tokens[packed.cu_seqlens[sequence] + row.position as usize + 1];
            let statistics = codeseq::ops::logprob::statistics(logits, 0.8);
            logps[sequence].push(statistics.logp(logits[next as usize]));
        }
        round += 1;
    }
    logps.concat()
}

#[test]
fn generation_has_the_bits_of_training() {
    for (kind, tied) in [("llama", true), ("qwen2", false), ("qwen3", false)] {
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
fn one_long_sequence_that_threads_share_by_columns_has_the_bits_of_training() {
    // As many weights as make a piece of a hundred rows worth sharing.
    let text = r#"{"model_type": "qwen2", "vocab_size": 700, "hidden_size": 96,
        "intermediate_size": 300, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "initializer_range": 0.2}"#;
    let decoder = Decoder::new(ModelConfig::from_json(text).expect("a valid configuration"));
    let params = parameters(&decoder);
    let (packed, targets) = batch(&[330]);
    let scores = decoder.score(&params, &packed, &targets, 0.8, &mut Workspace::new());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let generated = pool.install(|| generated_scores(&decoder, &params, &packed, 110));
    let bits = |logps: Vec<f32>| logps.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(generated), bits(scores.iter().map(|score| score.logp).collect()));
}

#[test]
fn sequences_that_share_a_prompt_continue_with_the_same_bits() {
    let decoder = decoder("llama", true);
    let params = parameters(&decoder);
    let weights = decoder.pack(&params);
    let mut cache = KvCache::new(decoder.config(), 4);
    let mut ws = DecodeWorkspace::new();
    let row = |sequence, position, wants_logits| Row {
        token: position * 3 % 70,
        sequence,
        position,
        wants_logits,
        is_prompt: !wants_logits,
    };
    let prompt: Vec<Row> = (0..45).map(|position| row(0, position, false)).collect();
    decoder.extend(&weights, &mut cache, &[&[2, 0]], &prompt, &mut ws);
    // The full block is shared, the one that grows is copied.
    cache.copy_block(0, 3);
    let both = [row(0, 45, true), row(1, 45, true)];
    let tables: [&[u32]; 2] = [&[2, 0], &[2, 3]];
    let logits = decoder.extend(&weights, &mut cache, &tables, &both, &mut ws);
    let (first, second) = logits.split_at(70);
    assert_eq!(first, second);
}

#[test]
#[should_panic(expected = "block 1 is written and shared")]
fn a_block_of_two_sequences_is_never_written() {
    let decoder = decoder("llama", true);
    let params = parameters(&decoder);
    let mut cache = KvCache::new(decoder.config(), 2);
    let rows = [0, 1].map(|sequence| Row {
        token: 1,
        sequence,
        position: 0,
        wants_logits: true,
        is_prompt: true,
    });
    let weights = decoder.pack(&params);
    let tables: [&[u32]; 2] = [&[1], &[1]];
    decoder.extend(&weights, &mut cache, &tables, &rows, &mut DecodeWorkspace::new());
}
