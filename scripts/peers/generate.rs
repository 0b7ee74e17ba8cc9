//! Times generation of given numbers of tokens after given prompts, with the model's most likely tokens.
//!
//! `scripts/peers/generate.py` runs it in turn with other engines. It takes jobs as lines of
//! `{"prompts": [[id, ...], ...], "new_tokens": [count, ...]}` and answers each with
//! `{"seconds": wall time, "tokens": [[id, ...], ...]}`. The engine is made anew for each job, within the
//! time, so that nothing is known of the prompts.
//! Usage: `peer_generate MODEL`

use anyhow::{Context, Result, ensure};
use codeseq::checkpoint::LanguageModel;
use codeseq::engine::{Engine, EngineConfig, Request, RequestId, Rollout, SamplingParams};
use serde::Deserialize;
use serde_json::json;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

#[derive(Deserialize)]
struct Job {
    prompts: Vec<Vec<u32>>,
    new_tokens: Vec<usize>,
}

fn main() -> Result<()> {
    let model = std::env::args().nth(1).context("usage: peer_generate MODEL")?;
    let model = LanguageModel::open(Path::new(&model))?;
    for line in std::io::stdin().lock().lines() {
        let job: Job = serde_json::from_str(&line?).context("reading a job")?;
        ensure!(
            job.prompts.len() == job.new_tokens.len(),
            "prompts and new_tokens differ in number"
        );
        let started = Instant::now();
        let tokens = generate(&model, &job)?;
        let seconds = started.elapsed().as_secs_f64();
        writeln!(std::io::stdout(), "{}", json!({ "seconds": seconds, "tokens": tokens }))?;
    }
    Ok(())
}

fn generate(model: &LanguageModel, job: &Job) -> Result<Vec<Vec<u32>>> {
    let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(1);
    let prompt = longest(&mut job.prompts.iter().map(Vec::len));
    let response = longest(&mut job.new_tokens.iter().copied());
    let config = EngineConfig::roomy(job.prompts.len(), prompt + response);
    let request = |(prompt, &max_new_tokens): (&Vec<u32>, &usize)| Request {
        prompt: prompt.clone(),
        sampling: SamplingParams { temperature: 0.0, max_new_tokens, ..SamplingParams::default() },
        num_samples: 1,
        key: 0,
    };
    let requests: Vec<Request> = job.prompts.iter().zip(&job.new_tokens).map(request).collect();
    let mut tokens = vec![Vec::new(); requests.len()];
    let mut keep = |RequestId(request): RequestId, _sample: usize, rollout: Rollout| {
        tokens[request] = rollout.tokens;
    };
    Engine::new(&model.decoder, &model.params, config).generate(&requests, &mut keep)?;
    Ok(tokens)
}
