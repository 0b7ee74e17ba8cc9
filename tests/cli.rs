//! The binary as a user meets it: help, exit codes, error lines, a closed pipe.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

const COMMANDS: [&[&str]; 21] = [
    &[],
    &["demo"],
    &["sft"],
    &["grpo"],
    &["eval"],
    &["generate"],
    &["chat"],
    &["serve"],
    &["score"],
    &["judge"],
    &["data"],
    &["data", "generate"],
    &["data", "solvability"],
    &["data", "classify"],
    &["data", "inspect"],
    &["data", "stats"],
    &["config"],
    &["config", "schema"],
    &["report"],
    &["doctor"],
    &["completions"],
];

fn train(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_train")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a user's mistake is answered with.
fn mistake(args: &[&str]) -> String {
    let output = train(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert!(output.stdout.is_empty(), "{args:?} printed a result");
    text
}

fn make_run(dir: &Path, name: &str, lr: f64) -> String {
    let run = dir.join(name);
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("config.toml"), format!("[optim]\nlr = {lr}\n")).unwrap();
    let rows: String = (1..=20)
        .map(|step| format!("{{\"step\":{step},\"loss/nll\":{}}}\n", 1.0 / f64::from(step)))
        .collect();
    std::fs::write(run.join("metrics.jsonl"), rows).unwrap();
    run.display().to_string()
}

#[test]
fn a_negative_value_is_refused_by_the_option_that_got_it() {
    let generate = ["generate", "--model", "m", "--prompt", "q"];
    for (option, value) in
        [("--top-k", "-1"), ("--seed", "-1"), ("--temperature", "-1"), ("--min-p", "-0.1")]
    {
        let text = mistake(&[&generate[..], &[option, value]].concat());
        assert!(text.starts_with(&format!("error: {option}")), "{text}");
        assert!(text.contains(" 0") && !text.contains("Usage"), "{text}");
    }
}

#[test]
fn every_command_explains_itself() {
    for command in COMMANDS {
        let output = train(&[command, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(stdout(&output).contains("Usage: train"), "{command:?}");
    }
}

#[test]
fn help_names_the_run_directory_that_is_taken_where_none_is_given() {
    for command in ["sft", "grpo"] {
        let help = stdout(&train(&[command, "--help"]));
        assert!(help.contains(&format!("[default: runs/{command}]")), "{help}");
    }
}

#[test]
fn wrong_arguments_exit_with_2() {
    for args in [&[] as &[&str], &["trian"], &["demo", "--no-such-flag"], &["completions", "tcsh"]]
    {
        mistake(args);
    }
}

#[test]
fn a_directory_without_a_run_is_named_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let line = mistake(&["report", &path]);
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    assert!(line.starts_with("error: ") && line.contains(&path), "{line}");
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn runs_are_reported_in_the_terminal_and_as_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [make_run(dir.path(), "a", 0.1), make_run(dir.path(), "b", 0.2)];
    let text = train(&["report", &runs[0], &runs[1]]);
    assert_eq!(text.status.code(), Some(0));
    for part in ["optim.lr", "loss/nll", &runs[1]] {
        assert!(stdout(&text).contains(part), "{part}");
    }
    let page = dir.path().join("page.html").display().to_string();
    let written = train(&["report", &runs[0], "--out", &page]);
    assert_eq!(stdout(&written).trim_end(), page);
    assert!(std::fs::read_to_string(&page).unwrap().contains("<svg"));
}

#[test]
fn a_token_of_both_prompt_and_completion_is_told_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let [data, out] = ["lines.jsonl", "scores.jsonl"].map(|name| dir.path().join(name));
    let line = |prompt: &str, completion: &str| {
        format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\"}}\n")
    };
    let said = |text: String| {
        std::fs::write(&data, text).unwrap();
        let [data, out] = [&data, &out].map(|path| path.to_str().unwrap());
        let args = ["--quiet", "score", "--model", "data/demo/base", "--data", data, "--out", out];
        let output = train(&args);
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stderr).unwrap()
    };
    let (apart, merged) = (line("n =", "int(input())"), line("n = ", "int(input())"));
    assert_eq!(said(apart.clone()), "");
    let warned = said(format!("{apart}{merged}{merged}"));
    assert_eq!(warned.lines().count(), 1, "{warned}");
    for part in ["lines.jsonl:2 and 1 more", "tokenised together"] {
        assert!(warned.contains(part), "{part} is not in {warned}");
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&train(&["completions", shell]));
        assert!(script.contains("solvability"), "{shell}");
    }
}

#[test]
fn what_needs_a_gpu_is_listed_and_a_build_without_says_so() {
    let help = stdout(&train(&["--help"]));
    for command in ["bench", "gpu-check"] {
        assert!(help.contains(command), "{command} is not in {help}");
        if cfg!(not(feature = "cuda")) {
            let text = mistake(&[command, "--gpu", "0"]);
            assert!(text.contains("--features cuda"), "{text}");
        }
    }
}

#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_train"))
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn numbers_that_the_device_does_not_compute_with_are_refused_before_a_model_is_read() {
    let generate = ["generate", "--model", "none", "--prompt", "a"];
    let score = ["score", "--model", "none", "--data", "none", "--out", "none"];
    let eval = ["eval", "gtg", "--model", "none", "--data", "none"];
    for command in [&generate[..], &score, &eval] {
        let text = mistake(&[command, &["--precision", "fp16"]].concat());
        assert!(text.contains("--precision is fp16: a CPU computes in f32"), "{text}");
        let text = mistake(&[command, &["--device", "cuda", "--precision", "f32"]].concat());
        assert!(text.contains("--precision is f32: GPUs compute in bf16 or fp16"), "{text}");
    }
}

#[test]
fn a_message_on_the_command_line_is_a_conversation_of_one_turn() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("asked.jsonl");
    std::fs::write(&file, r#"{"messages": [{"role": "user", "content": "How many?"}]}"#).unwrap();
    let answer = |asked: &[&str]| {
        let fixed = ["generate", "--model", "data/demo/base", "--max-new-tokens", "8", "--json"];
        let output = train(&[&fixed[..], asked].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        stdout(&output)
    };
    let chat = answer(&["--chat", "How many?"]);
    assert_eq!(chat, answer(&["--messages", file.to_str().unwrap()]));
    assert_ne!(chat, answer(&["--prompt", "How many?"]));
    let text = mistake(&["generate", "--model", "data/demo/base"]);
    assert!(["--chat", "--messages", "--prompt"].iter().all(|o| text.contains(o)), "{text}");
}

#[test]
fn a_server_that_cannot_start_says_why_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let serve = |more: &[&str]| mistake(&[&["serve", "--model", "data/demo/base"], more].concat());
    let line = serve(&["--port", &port]);
    assert!(line.contains("another program listens there") && line.lines().count() == 1, "{line}");
    let line = serve(&["--host", "203.0.113.1", "--port", "0"]);
    assert!(line.contains("cannot listen on 203.0.113.1:0") && line.lines().count() == 1, "{line}");
    let line = serve(&["--port", "0", "--max-length", "5000"]);
    assert!(line.contains("max_position_embeddings"), "{line}");
    let line = mistake(&["serve", "--model", "no/such/model/here", "--port", "0"]);
    assert_eq!(line.lines().count(), 1, "{line}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "\n").unwrap();
    let line = serve(&["--port", "0", "--api-key-file", file.to_str().unwrap()]);
    assert!(line.contains("holds no API key"), "{line}");
}

#[test]
fn a_script_can_talk_with_a_model() {
    use std::io::Write;
    let talk = |text: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_train"))
            .args(["chat", "--model", "data/demo/base", "--set", "max_new_tokens=8"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = talk("How many?\n/undo\n/set seed 0\n/settings\nHow many?\n");
    let answers = stdout(&output);
    let (first, second) = answers.trim_end_matches('\n').split_at(answers.len() / 2);
    assert_eq!(first.trim_end_matches('\n'), second.trim_end_matches('\n'), "{answers:?}");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("taken back: How many?") && errors.contains("max_new_tokens      8"));
    let wrong = talk("/set heat 1\n");
    assert_eq!(wrong.status.code(), Some(2));
}
