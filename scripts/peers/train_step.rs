//! Times training steps and cached generation of the demo's model; prints one JSON line.
//!
//! `scripts/peers/train_step.py` runs it in turn with PyTorch on the same shapes.
//! Usage: `peer_train_step [train STEPS | decode SEQUENCES]`

use anyhow::{Context, Result};
use codeseq::base::rng;
use codeseq::model::layout::init;
use codeseq::model::{
    DecodeWorkspace, Decoder, KvCache, ModelConfig, Packed, Row, ScoreGradient, Target, TensorSpec,
    TokenScores, Workspace,
};
use codeseq::ops::adamw::AdamW;
use codeseq::ops::reduce::sum_of_squares;
use codeseq::ops::sample::{Sampling, sample};
use rayon::prelude::*;
use std::io::Write;
use std::time::Instant;

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 1536, "hidden_size": 192,
    "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 2, "tie_word_embeddings": true}"#;
const SEQUENCES: usize = 14;
const LENGTH: usize = 292;
const PROMPT: usize = 150;
const RESPONSE: usize = 150;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mode = args.next().unwrap_or_else(|| "train".into());
    let count = args.next().map(|count| count.parse()).transpose().context("a number")?;
    let decoder = Decoder::new(ModelConfig::from_json(CONFIG)?);
    let line = match mode.as_str() {
        "decode" => decode(&decoder, count.unwrap_or(64)),
        _ => train(&decoder, count.unwrap_or(8)),
    };
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// Returns the token at `index` of the made-up text.
fn token(index: usize) -> u32 {
    (rng::uniform(1, index as u64) * 1536.0) as u32
}

/// Times whole steps (gradients, norm, AdamW) on a batch of equal sequences; the best step counts.
fn train(decoder: &Decoder, steps: usize) -> String {
    let mut params = init(decoder.config(), 0);
    let len = params.len();
    let (mut grads, mut m, mut v) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
    let tokens: Vec<u32> = (0..SEQUENCES * LENGTH).map(token).collect();
    let batch = Packed::from_sequences(tokens.chunks(LENGTH));
    let targets: Vec<Target> =
        (0..tokens.len()).map(|row| Target { row, token: token(row + 1) }).collect();
    let decays = decoder.layout().ranges(TensorSpec::decays);
    let mut ws = Workspace::new();
    let mut seconds = Vec::new();
    let mut loss = 0.0;
    for step in 1..=steps {
        let start = Instant::now();
        grads.fill(0.0);
        loss = 0.0;
        let mut objective = |_: usize, scores: &[TokenScores], gradients: &mut [ScoreGradient]| {
            loss -= scores.iter().map(|score| f64::from(score.logp)).sum::<f64>();
            gradients.iter_mut().for_each(|gradient| gradient.logp = -1.0);
        };
        decoder.forward_backward(
            &params,
            &batch,
            &targets,
            1.0,
            &mut objective,
            &mut grads,
            &mut ws,
        );
        let scale = 1.0 / targets.len() as f64;
        let clip = (1.0 / (sum_of_squares(&grads).sqrt() * scale)).min(1.0);
        let adamw = AdamW {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            gradient_scale: (scale * clip) as f32,
            step: step as u64,
        };
        adamw.step(&mut params, &grads, &mut m, &mut v, &decays);
        seconds.push(start.elapsed().as_secs_f64());
    }
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let speed = tokens.len() as f64 / best;
    let loss = loss / targets.len() as f64;
    format!(
        r#"{{"tokens_per_second": {speed:.0}, "best_step_seconds": {best:.4}, "loss": {loss:.4}}}"#
    )
}

/// Times single steps of all sequences with sampling, after a prompt for each.
fn decode(decoder: &Decoder, sequences: usize) -> String {
    let params = init(decoder.config(), 0);
    let packed = decoder.pack(&params);
    let blocks = KvCache::blocks_for(PROMPT + RESPONSE);
    let mut cache = KvCache::new(decoder.config(), sequences * blocks);
    let tables: Vec<u32> = (0..(sequences * blocks) as u32).collect();
    let tables: Vec<&[u32]> = tables.chunks(blocks).collect();
    let mut ws = DecodeWorkspace::new();
    let row = |token, sequence: usize, position: usize, wants_logits| Row {
        token,
        sequence: sequence as u32,
        position: position as u32,
        wants_logits,
        is_prompt: position < PROMPT,
    };
    let mut rows: Vec<Row> = (0..sequences)
        .flat_map(|slot| (0..PROMPT).map(move |i| (slot, i)))
        .map(|(slot, i)| row(token(slot * PROMPT + i), slot, i, i + 1 == PROMPT))
        .collect();
    let start = Instant::now();
    let mut prefill = 0.0;
    let vocab = decoder.config().vocab_size;
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    for step in 0..RESPONSE {
        let logits = decoder.extend(&packed, &mut cache, &tables, &rows, &mut ws);
        rows = logits
            .par_chunks_exact(vocab)
            .with_min_len(8)
            .enumerate()
            .map(|(slot, logits)| {
                let u = rng::uniform(slot as u64, step as u64);
                row(sample(logits, vocab, sampling, u).0, slot, PROMPT + step, true)
            })
            .collect();
        if step == 0 {
            prefill = start.elapsed().as_secs_f64();
        }
    }
    let decode = start.elapsed().as_secs_f64() - prefill;
    let prefill_speed = (sequences * PROMPT) as f64 / prefill;
    let speed = (sequences * (RESPONSE - 1)) as f64 / decode;
    format!(
        r#"{{"prefill_tokens_per_second": {prefill_speed:.0}, "decode_tokens_per_second": {speed:.0}}}"#
    )
}
