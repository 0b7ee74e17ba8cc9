//! Samples two continuations of a text:
//! `cargo run --release --example generate -- data/demo/base "Write a problem."`.

use anyhow::Result;
use codeseq::checkpoint::InferenceModel;
use codeseq::engine::{Engine, EngineConfig, Request, RequestId, Rollout, SamplingParams};
use std::io::Write;
use std::path::Path;

const NEW_TOKENS: usize = 64;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text] = &args[..] else { anyhow::bail!("usage: generate MODEL TEXT") };
    let model = InferenceModel::open(Path::new(model))?;
    let sampling = SamplingParams {
        temperature: 0.8,
        max_new_tokens: NEW_TOKENS,
        stop_ids: model.stop_ids(),
        vocab_size: model.tokenizer.vocab_size(),
        ..SamplingParams::default()
    };
    let InferenceModel { decoder, weights, tokenizer } = model;
    let prompt = tokenizer.encode(text)?;
    let config = EngineConfig::roomy(2, prompt.len() + NEW_TOKENS);
    let request = Request { prompt, sampling, num_samples: 2, key: 1 };
    let mut responses = Vec::new();
    let mut keep = |_: RequestId, _: usize, rollout: Rollout| responses.push(rollout.tokens);
    Engine::with_weights(&decoder, weights, config).generate(&[request], &mut keep)?;
    for tokens in responses {
        writeln!(std::io::stdout(), "{text}{}\n", tokenizer.decode(&tokens)?)?;
    }
    Ok(())
}
