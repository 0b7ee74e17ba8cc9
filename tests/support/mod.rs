//! What tests of the whole program share: the program, a place of its own for each test, and what a
//! user's mistake must look like.

#![allow(dead_code, reason = "no test needs all of it")]

use codeseq::data::problem::Problem;
use codeseq::data::prompt::GtgPrompt;
use codeseq::tokenizer::Message;
use codeseq::tokenizer::bpe::{self, BpeOptions};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program in `dir`, with its temporary files in `dir/tmp`.
pub(crate) fn train(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command.arg("--quiet").current_dir(dir).env("TMPDIR", dir.join("tmp"));
    command.env("RAYON_NUM_THREADS", "2").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Programs that runs learn to answer with: a right and a wrong one.
pub(crate) const PROGRAMS: [&str; 2] = ["print(2 * int(input()))", "print(3 + int(input()))"];
pub(crate) const VOCAB: usize = 512;

/// Makes what runs read, in a directory that the tests of a file share: tokenizer, model of `shape`,
/// samples, problems.
pub(crate) fn inputs(name: &str, shape: &Value) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _absent_at_first = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("tmp")).unwrap();
    let prompt = GtgPrompt::bundled().unwrap();
    let problems: Vec<Value> = (0..4).map(problem).collect();
    let samples: Vec<Vec<Message>> = problems
        .iter()
        .flat_map(|problem| {
            let problem: Problem = serde_json::from_value(problem.clone()).unwrap();
            let question = prompt.render(&problem).unwrap();
            PROGRAMS.map(|program| {
                let answer = format!("```python\n{program}\n```");
                vec![Message::new("user", question.clone()), Message::new("assistant", answer)]
            })
        })
        .collect();
    let options = BpeOptions { vocab_size: VOCAB, max_token_length: 16 };
    bpe::train(&samples, options, &dir.join("tokenizer")).unwrap();
    fs::write(dir.join("problems.jsonl"), lines(&problems)).unwrap();
    let samples: Vec<Value> =
        samples.iter().map(|messages| json!({"messages": messages})).collect();
    fs::write(dir.join("samples.jsonl"), lines(&samples)).unwrap();
    fs::write(dir.join("model.json"), shape.to_string()).unwrap();
    dir
}

pub(crate) const SFT_STEPS: u64 = 60;

/// A configuration that fine-tunes the tiny model of `dir` on its samples, until it answers as they do.
pub(crate) fn sft_config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "seed = 3
[model]
init = '{dir}/model.json'
tokenizer = '{dir}/tokenizer'
[data]
files = ['{dir}/samples.jsonl']
max_length = 200
[optim]
lr = 1e-2
betas = [0.9, 0.95]
weight_decay = 0.01
max_grad_norm = 1.0
[schedule]
kind = 'cosine'
warmup = {{ steps = 4 }}
[train]
total_steps = {SFT_STEPS}
seq_len = 200
gradient_accumulation = 2
"
    )
}

/// Runs to the end and returns what is printed.
pub(crate) fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Expects exit code 2 and one line on stderr that names all `parts`; nothing on stdout.
pub(crate) fn expect_mistake(command: &mut Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{command:?}: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{command:?}: {text}");
    assert!(text.starts_with("error: "), "{command:?}: {text}");
    assert!(output.stdout.is_empty(), "{command:?} printed a result");
    for part in parts {
        assert!(text.contains(part), "{command:?}: {part} is not in {text}");
    }
}

/// A directory of its own for one test.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// The program with its arguments; words that begin with `@` name files of this place.
    pub(crate) fn train(&self, words: &str) -> Command {
        let mut command = train(self.0.path());
        for word in words.split_whitespace() {
            match word.strip_prefix('@') {
                Some(name) => command.arg(self.path(name)),
                None => command.arg(word),
            };
        }
        command
    }

    /// Expects one line that names all `parts`, and no trace.
    pub(crate) fn mistake(&self, words: &str, parts: &[&str]) {
        let before = self.everything();
        expect_mistake(&mut self.train(words), parts);
        let after = self.everything();
        let left: Vec<_> = before.symmetric_difference(&after).collect();
        assert!(left.is_empty(), "{words} left or took {left:?}");
    }

    pub(crate) fn everything(&self) -> BTreeSet<PathBuf> {
        everything_below(self.0.path()).into_iter().collect()
    }

    pub(crate) fn assert_nothing_is_half_made(&self) {
        assert_nothing_is_half_made(self.0.path());
    }
}

/// Expects no file that a writer had under construction.
pub(crate) fn assert_nothing_is_half_made(dir: &Path) {
    let half_made =
        |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("codeseq-");
    let left: Vec<PathBuf> = everything_below(dir).into_iter().filter(half_made).collect();
    assert!(left.is_empty(), "{left:?}");
}

pub(crate) fn everything_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            let below = if path.is_dir() { everything_below(&path) } else { Vec::new() };
            std::iter::once(path).chain(below)
        })
        .collect()
}

/// Starts the program as a shell does, in a process group of its own, and waits until `is_reached`.
pub(crate) fn start(command: &mut Command, is_reached: impl Fn() -> bool) -> Child {
    let mut child =
        command.process_group(0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !is_reached() {
        assert_eq!(child.try_wait().unwrap(), None, "the run ended too early");
        assert!(started.elapsed() < Duration::from_secs(120), "the run does not get on");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

pub(crate) fn kill(mut child: Child) {
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None, "the run had ended before it was killed");
}

/// Ctrl-C: the signal goes to every process of the group. Returns what was said on stderr.
pub(crate) fn interrupt(child: Child) -> String {
    killpg(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    stderr(&output)
}

/// JSON Lines.
pub(crate) fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// A problem whose answer is twice the input.
pub(crate) fn problem(i: usize) -> Value {
    json!({
        "problem_id": format!("p{i}"),
        "description": format!("Shelf {i} holds pairs of shoes. How many shoes are n pairs?"),
        "input_requirement": "n",
        "output_requirement": "the number",
        "examples": [{"input": 7, "output": 14}],
        "tests": [{"input": 1, "output": 2}, {"input": 5, "output": 10}],
        "terms": ["0", "2", "4", "6", "8", "10"],
        "family": if i < 8 { "many" } else { "few" },
        "solvability": 0.5,
    })
}

/// The `config.json` of a model that learns such problems in seconds.
pub(crate) fn shape(vocab_size: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab_size,
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true,
        "initializer_range": 0.1, "max_position_embeddings": 256,
    })
}

/// The same in sizes that the kernels of GPUs compute.
pub(crate) fn gpu_shape() -> Value {
    let mut shape = shape(VOCAB);
    let sizes = json!({"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 32});
    sizes.as_object().unwrap().iter().for_each(|(key, size)| shape[key] = size.clone());
    shape
}

/// A metric of every step of a run.
pub(crate) fn column(run: &Path, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"))).collect()
}

/// The steps that a run has logged.
pub(crate) fn lines_of(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().lines().count()
}
