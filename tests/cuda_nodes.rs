//! This file tests runs over several nodes, each a process with an emulated GPU of its own, against
//! one process with as many GPUs. Node 0 runs the loop, and the others' GPUs do what it asks.
//! Without a C++ compiler the tests are skipped with a message.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod cuda_support;
mod support;

use cuda_support::{can_emulate, emulated};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use support::{
    Place, column, done, expect_mistake, gpu_shape, inputs, interrupt, lines_of, start, stderr,
};

static INPUTS: LazyLock<PathBuf> = LazyLock::new(|| inputs("cuda-nodes", &gpu_shape()));

const STEPS: usize = 6;

fn sft_config() -> String {
    let inputs = INPUTS.display();
    format!(
        "seed = 3
model = {{ init = '{inputs}/model.json', tokenizer = '{inputs}/tokenizer' }}
data = {{ files = ['{inputs}/samples.jsonl'], max_length = 200 }}
optim = {{ lr = 5e-3 }}
schedule = {{ kind = 'constant' }}
train = {{ total_steps = {STEPS}, seq_len = 200, gradient_accumulation = 2, ranks = 2, device = 'cuda' }}
"
    )
}

/// Returns a port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Makes the program one of two nodes with a GPU each.
fn node(command: &mut Command, rank: usize, port: u16) -> &mut Command {
    command.env("NNODES", "2").env("NODE_RANK", rank.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    emulated(command, 1)
}

/// Starts both nodes, and waits until the first has done `steps` steps.
fn start_both(place: &Place, words: &str, run: &Path, steps: usize) -> [Child; 2] {
    let port = free_port();
    let second = start(node(&mut place.train(words), 1, port), || true);
    let first = start(node(&mut place.train(words), 0, port), || lines_of(run) >= steps);
    [first, second]
}

/// Waits for the end of a node that was not asked to end. Returns its exit code and its messages.
fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), stderr(&output))
}

fn assert_equal_runs(run: &Path, other: &Path, last: &str) {
    for file in ["model.safetensors", "state/optimizer.safetensors", "state/state.json"] {
        let saved = |run: &Path| fs::read(run.join("checkpoints").join(last).join(file)).unwrap();
        assert!(saved(run) == saved(other), "{file} differs");
    }
}

#[test]
fn two_nodes_stopped_and_resumed_learn_to_the_bit_what_one_with_two_gpus_does() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let [one, two] = ["one", "two"].map(|name| place.path(name));
    done(emulated(&mut place.train("sft --config @sft.toml --out @one"), 2));
    let words = "sft --config @sft.toml --out @two";
    let [first, second] = start_both(&place, words, &two, 2);
    interrupt(first);
    assert!(lines_of(&two) < STEPS);
    assert_eq!(ended(second).0, Some(0));
    let [first, second] = start_both(&place, &format!("{words} --resume"), &two, 1);
    for child in [first, second] {
        let (code, said) = ended(child);
        assert_eq!(code, Some(0), "{said}");
    }
    assert_equal_runs(&two, &one, "step-000006");
    assert_eq!(column(&two, "optim/grad_norm"), column(&one, "optim/grad_norm"));
}

#[test]
fn the_loss_of_a_node_ends_the_other_with_a_message() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    for lost in [0, 1] {
        let out = place.path(&format!("run-{lost}"));
        let words =
            format!("sft --config @sft.toml --out @run-{lost} --set train.total_steps=100000");
        let mut nodes = Vec::from(start_both(&place, &words, &out, 1));
        support::kill(nodes.remove(lost));
        let started = Instant::now();
        let (code, said) = ended(nodes.remove(0));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("node {lost} (127.0.0.1")), "{said}");
        assert_eq!(
            said.contains("no step is saved, as checkpoint.every is 0"),
            lost == 1,
            "{said}"
        );
        assert!(said.contains("--resume"), "{said}");
        assert!(started.elapsed() < Duration::from_secs(60), "{said}");
    }
}

#[test]
fn a_node_0_that_cannot_begin_ends_the_other_with_the_reason() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    fs::create_dir_all(place.path("run/checkpoints")).unwrap();
    place.write("run/run.lock", "");
    let words = "sft --config @sft.toml --out @run";
    let port = free_port();
    let second = start(node(&mut place.train(words), 1, port), || true);
    expect_mistake(node(&mut place.train(words), 0, port), &["already holds a run"]);
    let (code, said) = ended(second);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("node 0 (127.0.0.1") && said.contains("already holds a run"), "{said}");
}

#[test]
fn only_training_works_over_several_nodes() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    let words = "score --model none --data none --out @scores";
    expect_mistake(node(&mut place.train(words), 0, 1), &["one of 2 nodes", "NNODES=1"]);
}

#[test]
fn what_cannot_be_divided_among_nodes_is_one_line() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    for (set, said) in [
        ("train.ranks=3", ["train.ranks is 3", "2 nodes"]),
        ("train.device=cpu", ["one of 2 nodes", "train.device=\"cuda\""]),
    ] {
        let words = format!("sft --config @sft.toml --out @run --set {set}");
        let port = free_port();
        let second = start(node(&mut place.train(&words), 1, port), || true);
        expect_mistake(node(&mut place.train(&words), 0, port), &said);
        let (code, text) = ended(second);
        assert!(code == Some(2) && said.iter().all(|words| text.contains(words)), "{text}");
    }
    assert!(!place.path("run").exists());
}

#[test]
fn a_node_that_cannot_begin_ends_node_0_with_the_reason() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let words = "sft --config @sft.toml --out @run";
    let port = free_port();
    let mut mistaken = place.train(&format!("{words} --set train.no_such_key=1"));
    let second = start(node(&mut mistaken, 1, port), || true);
    let first = start(node(&mut place.train(words), 0, port), || true);
    for (child, code) in [(first, Some(1)), (second, Some(2))] {
        let (ended_with, said) = ended(child);
        assert_eq!(ended_with, code, "{said}");
        assert!(said.contains("no_such_key"), "{said}");
    }
}

#[test]
fn reinforcement_samples_and_learns_on_two_nodes_as_on_one() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    let inputs = INPUTS.display();
    place.write(
        "grpo.toml",
        &format!(
            "seed = 5
model = {{ init = '{inputs}/model.json', tokenizer = '{inputs}/tokenizer' }}
data = {{ files = ['{inputs}/problems.jsonl'], max_prompt_tokens = 160 }}
rollout = {{ num_prompts = 4, n = 2, temperature = 1.0, max_new_tokens = 12, max_sequences = 2 }}
optim = {{ lr = 1e-3 }}
schedule = {{ kind = 'constant' }}
policy = {{ importance_sampling_cap = 2.0, kl_coef = 0.1, entropy_coef = 0.1 }}
train = {{ total_steps = 2, seq_len = 200, ranks = 2, device = 'cuda' }}
"
        ),
    );
    let [one, two] = ["one", "two"].map(|name| place.path(name));
    done(emulated(&mut place.train("grpo --config @grpo.toml --out @one"), 2));
    for child in start_both(&place, "grpo --config @grpo.toml --out @two", &two, 1) {
        let (code, said) = ended(child);
        assert_eq!(code, Some(0), "{said}");
    }
    assert_equal_runs(&two, &one, "step-000002");
    for key in ["policy/reference_kl", "policy/entropy", "response/mean_tokens"] {
        assert_eq!(column(&two, key), column(&one, key), "{key}");
    }
}
