//! Times generation of given numbers of tokens after given prompts, with the model's most likely tokens.
//!
//! `scripts/peers/generate.py` runs it in turn with other engines. It takes jobs as lines of
//! `{"prompts": [[id, ...], ...], "new_tokens": [count, ...]}` and answers each with
//! `{"seconds": wall time, "tokens": [[id, ...], ...]}`. The engine is made anew for each job, within the
//! time, so that nothing is known of the prompts.
//! Usage: `generate MODEL`

use anyhow::{Context, Result, ensure};
use codeseq::checkpoint::LanguageModel;
use codeseq::engine::{Engine, EngineConfig, Next, Observer, Request, Rollout, SamplingParams};
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

/// Ends each rollout at its own length.
struct Lengths<'a> {
    wanted: &'a [usize],
    tokens: Vec<Vec<u32>>,
}

impl Observer for Lengths<'_> {
    fn token(&mut self, request: usize, _sample: usize, rollout: &Rollout) -> Next {
        if rollout.tokens.len() < self.wanted[request] { Next::Continue } else { Next::Stop }
    }

    fn finished(&mut self, request: usize, _sample: usize, rollout: Rollout) {
        self.tokens[request] = rollout.tokens;
    }
}

fn main() -> Result<()> {
    let model = std::env::args().nth(1).context("usage: generate MODEL")?;
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
    let requests: Vec<Request> = (0u64..)
        .zip(&job.prompts)
        .map(|(key, prompt)| Request { prompt: prompt.clone(), num_samples: 1, key })
        .collect();
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let mut lengths = Lengths { wanted: &job.new_tokens, tokens: vec![Vec::new(); requests.len()] };
    Engine::new(&model.decoder, &model.params, config).generate(
        &requests,
        &sampling,
        &mut lengths,
    )?;
    Ok(lengths.tokens)
}
