//! Runs as a user makes them: fine-tuned, reinforced, scored, and mistaken.
//!
//! A tiny model learns from random weights to answer with one of two programs, a right and a wrong
//! one; reinforcement goes on from there, so that its groups have something to tell apart.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod dpo;
mod grpo;
mod mistakes;
mod scores;
mod sft;
#[path = "../support/mod.rs"]
mod support;

use codeseq::base::rng;
use codeseq::tokenizer::{Message, Tokenizer};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use support::{
    PROGRAMS, Place, SFT_STEPS, VOCAB, assert_nothing_is_half_made, done, everything_below,
    expect_mistake, gpu_shape, inputs, interrupt, kill, lines, problem, shape, start, stderr,
    train,
};

const GRPO_STEPS: u64 = 4;

/// Inputs of all tests.
static INPUTS: LazyLock<PathBuf> = LazyLock::new(|| inputs("runs", &shape(VOCAB)));

/// A fine-tuning run that nothing disturbed.
static SFT: LazyLock<PathBuf> = LazyLock::new(|| undisturbed("sft", &sft_config()));

/// A reinforcement run that nothing disturbed.
static GRPO: LazyLock<PathBuf> = LazyLock::new(|| undisturbed("grpo", &grpo_config()));

fn sft_config() -> String {
    support::sft_config(&INPUTS) + "[checkpoint]\nevery = 8\nkeep_last = 2\n"
}

fn grpo_config() -> String {
    let model = model();
    let (inputs, model) = (INPUTS.display(), model.display());
    format!(
        "seed = 5
[model]
path = '{model}'
[data]
files = ['{inputs}/problems.jsonl']
max_prompt_tokens = 160
[rollout]
num_prompts = 2
n = 6
temperature = 0.9
max_new_tokens = 32
max_sequences = 5
[reward]
kind = 'cssr'
[optim]
lr = 1e-3
betas = [0.9, 0.95]
weight_decay = 0.0
max_grad_norm = 1.0
[schedule]
kind = 'constant'
[train]
total_steps = {GRPO_STEPS}
seq_len = 400
[checkpoint]
every = 1
"
    )
}

fn undisturbed(command: &str, config: &str) -> PathBuf {
    let dir = &*INPUTS;
    let file = dir.join(format!("{command}.toml"));
    fs::write(&file, config).unwrap();
    let run = dir.join(command);
    done(train(dir).arg(command).arg("--config").arg(file).arg("--out").arg(&run));
    run
}

/// The directory of the fine-tuned model.
fn model() -> PathBuf {
    checkpoint(&SFT, SFT_STEPS)
}

fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:06}"))
}

/// The complete rows of a run's metrics.
fn rows(run: &Path) -> Vec<serde_json::Map<String, Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The rows without times, after checking that no step is missing or repeated.
fn metrics(run: &Path, steps: u64) -> Vec<serde_json::Map<String, Value>> {
    let mut rows = rows(run);
    let found: Vec<u64> = rows.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(found, (1..=steps).collect::<Vec<_>>());
    rows.iter_mut().for_each(|row| row.retain(|key, _| !key.starts_with("time/")));
    rows
}

/// Expects equal metrics, weights, moments and state at the end.
fn assert_equal_runs(run: &Path, other: &Path, steps: u64) {
    assert_eq!(metrics(run, steps), metrics(other, steps));
    assert_equal_checkpoints(run, other, steps);
}

fn assert_equal_checkpoints(run: &Path, other: &Path, steps: u64) {
    let content = |run: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let dir = checkpoint(run, steps);
        let files = everything_below(&dir).into_iter().filter(|path| path.is_file());
        files
            .map(|file| (file.strip_prefix(&dir).unwrap().to_owned(), fs::read(&file).unwrap()))
            .collect()
    };
    let (content, other) = (content(run), content(other));
    assert!(content.contains_key(Path::new("model.safetensors")));
    assert_eq!(content.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (file, bytes) in &content {
        assert!(*bytes == other[file], "{} differs", file.display());
    }
}

/// Whether a checkpoint is being written.
fn is_saving(run: &Path) -> bool {
    fs::read_dir(run.join("checkpoints")).is_ok_and(|mut entries| {
        entries.any(|e| e.unwrap().file_name().to_string_lossy().starts_with("codeseq-"))
    })
}
