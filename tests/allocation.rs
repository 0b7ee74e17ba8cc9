//! Steps of a workspace that has seen its largest batch allocate nothing, counted by the allocator.
//!
//! Rayon's share is counted too: it allocates while a pool warms up (queues grow), then no more. What
//! a step allocates by contract stays outside: the loops of training and the engine gather rows.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

use codeseq::model::layout::init;
use codeseq::model::{
    DecodeWorkspace, Decoder, KvCache, ModelConfig, Packed, Recompute, Row, ScoreGradient, Target,
    TokenScores, Workspace,
};
use codeseq::ops::adamw::AdamW;
use codeseq::ops::reduce::sum_of_squares;
use codeseq::ops::sample::{Sampling, penalize_repetition, sample};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    /// Whose allocations those of this thread are.
    static COUNTER: Cell<Option<&'static AtomicUsize>> = const { Cell::new(None) };
}

/// The system's allocator, and a count for threads that have a counter.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(counter) = COUNTER.get() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `step` on a pool of so many threads until it has allocated nothing for once, and says how
/// often that took. The first times warm up.
fn steps_until_none_allocates(threads: usize, mut step: impl FnMut() + Send) -> Option<usize> {
    const MOST: usize = 50;
    let counter: &'static AtomicUsize = Box::leak(Box::default());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    let pool = pool.start_handler(|_| COUNTER.set(Some(counter))).build().unwrap();
    pool.install(|| {
        (1..=MOST).find(|_| {
            let before = counter.load(Ordering::Relaxed);
            step();
            counter.load(Ordering::Relaxed) == before
        })
    })
}

fn decoder() -> Decoder {
    let text = r#"{"model_type": "qwen2", "vocab_size": 300, "hidden_size": 64,
        "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2}"#;
    Decoder::new(ModelConfig::from_json(text).unwrap())
}

fn tokens(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i * 7 % 300).collect()
}

#[test]
fn a_counted_allocation_is_noticed() {
    assert_eq!(steps_until_none_allocates(1, || drop(std::hint::black_box(Box::new(1)))), None);
    assert_eq!(steps_until_none_allocates(1, || {}), Some(1));
}

#[test]
fn a_training_step_allocates_nothing_once_warm() {
    let decoder = decoder();
    for (recompute, threads) in [
        (Recompute::None, 1),
        (Recompute::Selective, 1),
        (Recompute::Layer, 1),
        (Recompute::Selective, 2),
    ] {
        let mut params = init(decoder.config(), 1);
        let zeros = vec![0.0; params.len()];
        let [mut grads, mut first, mut second] = [zeros.clone(), zeros.clone(), zeros];
        let mut ws = Workspace::with_recompute(recompute);
        let decays = decoder.layout().ranges(|tensor| tensor.decays());
        // The largest batch, and one that has more sequences and is smaller.
        let batches = [&[150usize, 90][..], &[40; 5]].map(|lens| {
            let sequences: Vec<Vec<u32>> = lens.iter().map(|&len| tokens(len)).collect();
            let packed = Packed::from_sequences(sequences.iter().map(Vec::as_slice));
            let rows = 0..packed.tokens.len() - 1;
            let targets: Vec<Target> = rows.map(|row| Target { row, token: 5 }).collect();
            (packed, targets)
        });
        let mut step = 0;
        let took = steps_until_none_allocates(threads, || {
            step += 1;
            grads.fill(0.0);
            for (packed, targets) in &batches {
                let objective = &mut |_: usize, _: &[TokenScores], by: &mut [ScoreGradient]| {
                    by.iter_mut().for_each(|gradient| gradient.logp = -1.0);
                };
                decoder.forward_backward(
                    &params, packed, targets, 1.0, objective, &mut grads, &mut ws,
                );
            }
            let norm = sum_of_squares(&grads).sqrt();
            let adamw = AdamW {
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                weight_decay: 0.1,
                gradient_scale: (1.0 / norm) as f32,
                step,
            };
            adamw.step(&mut params, &grads, &mut first, &mut second, &decays);
        });
        assert!(took.is_some(), "every step allocates with {recompute:?} on {threads} threads");
    }
}

#[test]
fn a_decoding_step_allocates_nothing_once_warm() {
    let decoder = decoder();
    let params = init(decoder.config(), 1);
    let weights = decoder.pack(&params);
    let (sequences, length) = (6, 80);
    let blocks = KvCache::blocks_for(length) as u32;
    let mut cache = KvCache::new(decoder.config(), (blocks * sequences) as usize);
    let tables: Vec<Vec<u32>> =
        (0..sequences).map(|i| (i * blocks..(i + 1) * blocks).collect()).collect();
    let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
    let row = |sequence, position: usize, wants_logits| Row {
        token: position as u32 % 300,
        sequence,
        position: position as u32,
        wants_logits,
        is_prompt: position < 48,
    };
    // Prompts in one pass, then a token of each sequence at a time.
    let prompts = (0..sequences).flat_map(|s| (0..48).map(move |p| row(s, p, p == 47))).collect();
    let singles = (48..length).map(|p| (0..sequences).map(|s| row(s, p, true)).collect());
    let passes: Vec<Vec<Row>> = std::iter::once(prompts).chain(singles).collect();
    for threads in [1, 2] {
        let mut ws = DecodeWorkspace::new();
        let took = steps_until_none_allocates(threads, || {
            for rows in &passes {
                decoder.extend(&weights, &mut cache, &tables, rows, &mut ws);
            }
        });
        assert!(took.is_some(), "every generation allocates on {threads} threads");
    }
}

#[test]
fn drawing_a_token_allocates_nothing_once_warm() {
    let sampling = Sampling { temperature: 0.7, top_k: 50, top_p: 0.9, min_p: 0.01 };
    let mut logits: Vec<f32> = (0..300).map(|i| (i as f32 * 1.9).sin() * 6.0).collect();
    let took = steps_until_none_allocates(1, || {
        penalize_repetition(&mut logits, (0..90).map(|i| i * 3), 1.1);
        sample(&logits, 290, sampling, 0.3);
    });
    assert!(took.is_some(), "every draw allocates");
}
