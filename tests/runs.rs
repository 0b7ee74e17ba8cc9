//! Runs as a user makes them: trained, stopped, killed, resumed, scored, and mistaken.
//!
//! A tiny model learns from random weights to answer with one of two programs, a right and a wrong
//! one; reinforcement goes on from there, so that its groups have something to tell apart.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

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
    PROGRAMS, Place, VOCAB, assert_nothing_is_half_made, done, everything_below, expect_mistake,
    inputs, interrupt, kill, problem, shape, start, stderr, train,
};

const SFT_STEPS: u64 = 60;
const GRPO_STEPS: u64 = 4;

/// Inputs of all tests.
static INPUTS: LazyLock<PathBuf> = LazyLock::new(|| inputs("runs", &shape(VOCAB)));

/// A fine-tuning run that nothing disturbed.
static SFT: LazyLock<PathBuf> = LazyLock::new(|| undisturbed("sft", &sft_config()));

/// A reinforcement run that nothing disturbed.
static GRPO: LazyLock<PathBuf> = LazyLock::new(|| undisturbed("grpo", &grpo_config()));

fn sft_config() -> String {
    let inputs = INPUTS.display();
    format!(
        "seed = 3
[model]
init = '{inputs}/model.json'
tokenizer = '{inputs}/tokenizer'
[data]
files = ['{inputs}/samples.jsonl']
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
[checkpoint]
every = 8
keep_last = 2
"
    )
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

#[test]
fn fine_tuning_learns_and_leaves_a_complete_run() {
    let run = &*SFT;
    for file in ["config.toml", "plan.json", "env.json", "logs/attempt-1.log"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let metrics = metrics(run, SFT_STEPS);
    let loss = |row: &serde_json::Map<String, Value>| row["loss/nll"].as_f64().unwrap();
    assert!(loss(&metrics[0]) > 5.0 && loss(&metrics[SFT_STEPS as usize - 1]) < 0.5);
    let kept: Vec<PathBuf> = [56, SFT_STEPS].map(|step| checkpoint(run, step)).to_vec();
    let mut found: Vec<PathBuf> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert_eq!(found, kept);
}

#[test]
fn a_finished_run_resumes_to_itself_and_a_dry_run_makes_nothing() {
    let place = Place::new();
    place.write("sft.toml", &sft_config().replace(&format!("= {SFT_STEPS}"), "= 2"));
    assert!(done(&mut place.train("sft --config @sft.toml --dry-run")).contains("seq_len = 200"));
    assert!(!place.path("runs").exists());
    let first = done(&mut place.train("sft --config @sft.toml --out @run"));
    assert_eq!(Path::new(first.trim_end()), checkpoint(&place.path("run"), 2));
    assert_eq!(done(&mut place.train("sft --config @sft.toml --out @run --resume")), first);
    assert_eq!(metrics(&place.path("run"), 2).len(), 2);
}

#[test]
fn fine_tuning_has_the_same_bits_on_one_thread() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    done(place.train("sft --config @sft.toml --out @run").env("RAYON_NUM_THREADS", "1"));
    assert_equal_runs(&place.path("run"), &SFT, SFT_STEPS);
}

#[test]
fn fine_tuning_stopped_by_ctrl_c_resumes_to_the_same_bits() {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let run = place.path("run");
    interrupt(start(&mut place.train("sft --config @sft.toml --out @run"), || {
        rows(&run).len() >= 3
    }));
    let stopped_at = rows(&run).len() as u64;
    assert!(stopped_at < SFT_STEPS && checkpoint(&run, stopped_at).is_dir());
    place.assert_nothing_is_half_made();
    done(&mut place.train("sft --config @sft.toml --out @run --resume"));
    assert_equal_runs(&run, whole, SFT_STEPS);
}

#[test]
fn fine_tuning_killed_three_times_resumes_to_the_same_bits() {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let run = place.path("run");
    let mut resume = "";
    for (step, later_millis) in [(2, 0), (17, 5), (32, 12)] {
        let mut command = place.train(&format!("sft --config @sft.toml --out @run {resume}"));
        let child = start(&mut command, || rows(&run).len() >= step);
        std::thread::sleep(Duration::from_millis(later_millis));
        kill(child);
        resume = "--resume";
    }
    done(&mut place.train("sft --config @sft.toml --out @run --resume"));
    assert_equal_runs(&run, whole, SFT_STEPS);
    assert_nothing_is_half_made(&run);
}

#[test]
fn fine_tuning_on_a_mixture_killed_resumes_to_the_same_bits() {
    let place = Place::new();
    let rows_file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/data/rows.parquet");
    let sources = format!(
        "max_empty = 1\nmix_by = 'tokens'\npack_ahead = 4\ncache_dir = 'cache'\n\
         [data.sources.tulu]\npaths = ['{rows_file}']\nweight = 5\n\
         [data.sources.codeseq]\npaths = ['{}/samples.jsonl']\n",
        INPUTS.display()
    );
    let files = format!("files = ['{}/samples.jsonl']\nmax_length = 200\n", INPUTS.display());
    let config = sft_config().replace(&files, &format!("max_length = 200\n{sources}"));
    place.write("sft.toml", &config);
    let stats = done(&mut place.train("data stats --config @sft.toml"));
    assert!(stats.contains("tulu: 2 of 3 samples kept (1 nothing to learn)"), "{stats}");
    assert!(stats.contains("% full"), "{stats}");

    done(&mut place.train("sft --config @sft.toml --out @whole"));
    let run = place.path("run");
    let mut command = place.train("sft --config @sft.toml --out @run");
    kill(start(&mut command, || rows(&run).len() >= 20));
    done(&mut place.train("sft --config @sft.toml --out @run --resume"));
    assert_equal_runs(&run, &place.path("whole"), SFT_STEPS);
    let tokens =
        |key: &str| metrics(&run, SFT_STEPS).iter().map(|r| r[key].as_f64().unwrap()).sum();
    let [tulu, codeseq]: [f64; 2] = ["data/tokens_tulu", "data/tokens_codeseq"].map(tokens);
    assert!((tulu / codeseq - 5.0).abs() < 0.2, "{tulu} : {codeseq}");
}

#[test]
fn fine_tuning_killed_at_twenty_random_moments_resumes_to_the_same_bits() {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let run = place.path("run");
    let is_saving = || {
        fs::read_dir(run.join("checkpoints")).is_ok_and(|mut entries| {
            entries.any(|e| e.unwrap().file_name().to_string_lossy().starts_with("codeseq-"))
        })
    };
    for life in 0..20u64 {
        let resume = if run.join("checkpoints").exists() { "--resume" } else { "--overwrite" };
        let words = format!("sft --config @sft.toml --out @run --set checkpoint.every=1 {resume}");
        let log = run.join(format!("logs/attempt-{}.log", life + 1));
        // Every other one while a checkpoint is being written, after a few steps.
        let steps = rows(&run).len() as u64 + life % 3;
        let is_reached = || match life % 2 {
            0 => log.exists() || run.join("logs/attempt-1.log").exists(),
            _ => rows(&run).len() as u64 >= steps && is_saving(),
        };
        let child = start(&mut place.train(&words), is_reached);
        let millis = if life % 2 == 0 { 60.0 } else { 4.0 };
        let later = f64::from(rng::uniform(11, life)) * millis / 1e3;
        std::thread::sleep(Duration::from_secs_f64(later));
        kill(child);
    }
    done(&mut place.train("sft --config @sft.toml --out @run --set checkpoint.every=1 --resume"));
    assert_equal_runs(&run, whole, SFT_STEPS);
    assert_nothing_is_half_made(&run);
}

#[test]
fn a_full_disk_leaves_the_checkpoint_before_it() {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let run = place.path("run");
    let words = "sft --config @sft.toml --out @run";
    kill(start(&mut place.train(words), || checkpoint(&run, 8).exists()));
    let weights = fs::metadata(checkpoint(&run, 8).join("model.safetensors")).unwrap().len();
    let kept: Vec<String> = step_names(&run);

    let mut full = place.train(&format!("{words} --resume"));
    // No file may grow beyond the weights: the moments are twice as long.
    // SAFETY: both calls are system calls that a new process may make before it starts.
    unsafe {
        full.pre_exec(move || {
            signal(Signal::SIGXFSZ, SigHandler::SigIgn)?;
            Ok(setrlimit(Resource::RLIMIT_FSIZE, weights + 1000, weights + 1000)?)
        });
    }
    let output = full.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let last = kept.last().unwrap().trim_start_matches("step-").trim_start_matches('0');
    for part in ["optimizer.safetensors", &format!("step {last} is saved"), "--resume"] {
        assert!(stderr(&output).contains(part), "{part} is not in {}", stderr(&output));
    }
    assert_eq!(step_names(&run), kept);
    place.assert_nothing_is_half_made();

    done(&mut place.train(&format!("{words} --resume")));
    assert_equal_runs(&run, whole, SFT_STEPS);
}

/// The names of a run's checkpoints.
fn step_names(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("step-")).collect();
    names.sort();
    names
}

#[test]
fn ranks_share_a_run_and_another_number_of_them_resumes_it() {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let of_two = "--set train.ranks=2 --set train.gradient_accumulation=1";
    for out in ["a", "b"] {
        done(&mut place.train(&format!("sft --config @sft.toml --out @{out} {of_two}")));
    }
    let (a, b) = (place.path("a"), place.path("b"));
    assert_equal_runs(&a, &b, SFT_STEPS);
    for (two, one) in metrics(&a, SFT_STEPS).iter().zip(metrics(whole, SFT_STEPS)).take(10) {
        assert_eq!(two["data/tokens"], one["data/tokens"]);
        let [two, one] = [two, &one].map(|row| row["loss/nll"].as_f64().unwrap());
        assert!((two - one).abs() < 1e-4 * one, "{two} is not {one}");
    }

    let killed = place.path("killed");
    let words = format!("sft --config @sft.toml --out @killed {of_two}");
    kill(start(&mut place.train(&words), || rows(&killed).len() >= 20));
    done(&mut place.train(&format!("{words} --resume")));
    assert_equal_runs(&killed, &a, SFT_STEPS);

    let run = place.path("run");
    let words = "sft --config @sft.toml --out @run";
    interrupt(start(&mut place.train(&format!("{words} {of_two}")), || rows(&run).len() >= 3));
    place.mistake(&format!("{words} --resume --set train.ranks=2"), &["was 2 rows", "is 4"]);
    done(&mut place.train(&format!("{words} --resume")));
    let last = &metrics(&run, SFT_STEPS)[SFT_STEPS as usize - 1];
    assert!(last["loss/nll"].as_f64().unwrap() < 0.5);
}

#[test]
fn a_run_that_diverges_stops_with_a_diagnosis_and_keeps_its_weights() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let output = place
        .train("sft --config @sft.toml --out @run")
        .args(["--set", "optim.lr=1e30", "--set", "train.max_nonfinite_steps=3"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for part in ["the loss is", "train.max_nonfinite_steps = 3", "samples", "optim.lr"] {
        assert!(stderr(&output).contains(part), "{part} is not in {}", stderr(&output));
    }
    let run = place.path("run");
    let rows = rows(&run);
    let skipped: Vec<f64> = rows.iter().map(|row| row["optim/skipped"].as_f64().unwrap()).collect();
    assert!(skipped.len() > 3 && skipped[skipped.len() - 3..] == [1.0; 3], "{skipped:?}");
    assert!(checkpoint(&run, rows.len() as u64).join("model.safetensors").is_file());
}

#[test]
fn a_run_on_gpus_is_planned_anywhere_and_a_cpu_refuses_their_numbers() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let words = "sft --config @sft.toml --out @run --set train.";
    place.mistake(&format!("{words}precision=bf16"), &["train.precision is bf16", "f32"]);
    place.mistake(&format!("{words}device=gpu"), &["train.device=gpu", "unknown value"]);
    let small = "device=cuda --dry-run --set plan.gpu_memory_gb=1e-3";
    let plan = done(&mut place.train(&format!("{words}{small}")));
    assert!(plan.contains("does not fit") && plan.contains("activations"), "{plan}");
    assert!(plan.contains("device = \"cuda\"") && plan.contains("moments = \"f32\""), "{plan}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_program_built_without_gpus_says_so() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    place.write("grpo.toml", &grpo_config());
    for command in ["sft", "grpo"] {
        let words =
            format!("{command} --config @{command}.toml --out @run --set train.device=cuda");
        place.mistake(&words, &["built without GPUs", "--features cuda"]);
    }
}

#[test]
fn reinforcement_is_exactly_on_policy_and_tells_programs_apart() {
    let metrics = metrics(&GRPO, GRPO_STEPS);
    let column =
        |key: &str| metrics.iter().map(|row| row[key].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(column("policy/ratio_max_deviation"), vec![0.0; metrics.len()]);
    assert!(column("policy/learnt_tokens").iter().sum::<f64>() > 0.0);
    assert!(column("reward/pass_rate").iter().any(|rate| (0.05..0.95).contains(rate)));
    assert!(column("reward/solvability_term").iter().any(|&term| term > 0.0));
    assert_eq!(column("reward/infra"), vec![0.0; metrics.len()]);
    for step in 1..=GRPO_STEPS {
        let rollouts =
            fs::read_to_string(GRPO.join(format!("samples/step-{step:06}.jsonl"))).unwrap();
        assert_eq!(rollouts.lines().count(), 12);
    }
}

#[test]
fn reinforcement_has_the_same_bits_on_one_thread() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    done(place.train("grpo --config @grpo.toml --out @run").env("RAYON_NUM_THREADS", "1"));
    assert_equal_runs(&place.path("run"), &GRPO, GRPO_STEPS);
    place.assert_nothing_is_half_made();
}

#[test]
fn reinforcement_killed_and_stopped_resumes_to_the_same_bits() {
    let (place, whole) = (Place::new(), &*GRPO);
    place.write("grpo.toml", &grpo_config());
    let run = place.path("run");
    let command =
        |resume: &str| place.train(&format!("grpo --config @grpo.toml --out @run {resume}"));
    kill(start(&mut command(""), || rows(&run).len() == 1));
    kill(start(&mut command("--resume"), || run.join("samples/step-000002.jsonl").exists()));
    // The log appears when signals are caught already.
    let listens = || run.join("logs/attempt-3.log").exists();
    interrupt(start(&mut command("--resume"), || listens() && rows(&run).len() >= 2));
    done(&mut command("--resume"));
    assert_equal_runs(&run, whole, GRPO_STEPS);
    assert_nothing_is_half_made(&run);
}

#[test]
fn another_task_is_reinforced_by_its_cases_and_goes_on_with_the_prompt_that_it_began_with() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let prompt = place.write("prompt.txt", "{{ terms | join(' ') }}");
    let run = |words: &str| {
        let mut command = place.train(&format!("grpo --config @grpo.toml --out @run {words}"));
        command.args(["--set", &format!("prompt='{}'", prompt.display()), "--set"]);
        command.args(["task=next-number", "--set", "reward.kind=test-share", "--set"]);
        command.arg("train.total_steps=1");
        command
    };
    done(&mut run(""));
    let rows = rows(&place.path("run"));
    let value = |key: &str| rows[0][key].as_f64().unwrap();
    let total = value("reward/test_share") + value("reward/format_term");
    assert!((value("reward/mean") - total).abs() < 1e-12, "{rows:?}");
    assert!(!rows[0].contains_key("reward/solvability_term"));
    place.write("prompt.txt", "{{ terms | join(', ') }}");
    expect_mistake(&mut run("--resume"), &["the prompt template is another"]);
}

#[test]
fn a_run_whose_reward_process_fails_keeps_its_steps_and_goes_on_when_it_is_mended() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let program = |failure: &str| {
        format!(
            "import json, sys
for number, line in enumerate(sys.stdin):
    asked = json.loads(line)
    assert asked['problem']['problem_id'] and asked['passed'] in (True, False)
    {failure}
    reward = 0.5 if '2 *' in asked['response'] else -asked['num_tokens'] / 100
    print(json.dumps({{'id': asked['id'], 'reward': reward}}), flush=True)
"
        )
    };
    let file = place.write("reward.py", &program("pass"));
    let set = format!("external_reward.command=['python3','{}']", file.display());
    let run = |words: &str| {
        let mut command = place.train(&format!("grpo --config @grpo.toml {words}"));
        command.args(["--set", &set]);
        command
    };
    done(&mut run("--out @whole"));
    let rewarded = fs::read_to_string(place.path("whole/samples/step-000003.jsonl")).unwrap();
    assert!(rewarded.contains("\"external\":0.5"), "{rewarded}");

    // Two prompts a step, six responses each: the third step's answers begin so.
    place.write("reward.py", &program("if number == 30: print('oops', flush=True)"));
    expect_mistake(&mut run("--out @run"), &["step 2 is saved", "reward process", "\"oops\""]);
    assert_eq!(rows(&place.path("run")).len(), 2);
    assert!(checkpoint(&place.path("run"), 2).exists());
    place.write("reward.py", &program("pass"));
    done(&mut run("--out @run --resume"));
    assert_equal_runs(&place.path("run"), &place.path("whole"), GRPO_STEPS);
}

#[test]
fn a_step_run_again_asks_no_reward_again_in_any_round_of_dynamic_sampling() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    // Of equal rewards nothing can be learnt, so all problems are taken; each start gives others.
    let program = "import json, sys, time
reward = time.time()
for line in sys.stdin:
    print(json.dumps({'id': json.loads(line)['id'], 'reward': reward}), flush=True)
";
    let program = place.write("reward.py", program);
    let run = |words: &str| {
        let mut command = place.train(&format!("grpo --config @grpo.toml --out @run {words}"));
        for set in [
            format!("external_reward.command=['python3','{}']", program.display()).as_str(),
            "rollout.max_rounds=8",
            "rollout.filter_metric=reward",
            "train.total_steps=2",
            "checkpoint.every=100",
        ] {
            command.args(["--set", set]);
        }
        command
    };
    let journal = place.path("run/samples/step-000001.jsonl");
    kill(start(&mut run(""), || rows(&place.path("run")).len() == 1));
    let before = fs::read_to_string(&journal).unwrap();
    assert_eq!(before.lines().count(), 4 * 6, "no problem twice");
    done(&mut run("--resume"));
    assert!(fs::read_to_string(&journal).unwrap() == before);
    for row in metrics(&place.path("run"), 2) {
        assert_eq!(row["rollout/replaced_groups"], 4);
        assert!(!row.contains_key("reward/mean"), "nothing was learnt from: {row:?}");
    }
}

#[test]
fn a_reward_process_ends_with_a_killed_run() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let file = place.path("number");
    let program = format!(
        "import os, time
with open('{0}.tmp', 'w') as file: file.write(str(os.getpid()))
os.rename('{0}.tmp', '{0}')
time.sleep(1000)
",
        file.display()
    );
    let program = place.write("reward.py", &program);
    let mut command = place.train("grpo --config @grpo.toml --out @run");
    let set = format!("external_reward.command=['python3','{}']", program.display());
    kill(start(command.args(["--set", &set]), || file.exists()));
    let process = fs::read_to_string(&file).unwrap();
    let is_running = || {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    };
    let killed = Instant::now();
    while is_running() && killed.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!is_running());
}

/// The same with a score of the problems of training every two steps.
fn validated_grpo_config() -> String {
    let problems = INPUTS.join("problems.jsonl").display().to_string();
    grpo_config() + &format!("[validation]\nfiles = ['{problems}']\nevery = 2\nrollouts = 2\n")
}

#[test]
fn the_untrained_model_is_scored_as_step_0() {
    let place = Place::new();
    place.write("grpo.toml", &validated_grpo_config());
    done(&mut place.train("grpo --config @grpo.toml --out @run --set train.total_steps=3"));
    let scored = |row: &serde_json::Map<String, Value>| {
        (row["step"].as_u64().unwrap(), row.contains_key("val/pass_at_1"))
    };
    let scored: Vec<_> = rows(&place.path("run")).iter().map(scored).collect();
    assert_eq!(scored, [(0, true), (1, false), (2, true), (3, true)]);
    let report = done(&mut place.train("report @run"));
    assert!(report.contains("val/pass_at_1"), "{report}");
}

#[test]
fn a_run_stopped_while_it_validates_keeps_the_step_and_scores_it_later() {
    let place = Place::new();
    place.write("grpo.toml", &validated_grpo_config());
    let run = |out: &str| {
        let sets =
            "--set checkpoint.every=100 --set train.total_steps=3 --set validation.rollouts=30";
        place.train(&format!("grpo --config @grpo.toml {sets} --out {out}"))
    };
    done(&mut run("@whole"));
    let stopped = place.path("run");
    // The row of the step, of which the score is a part, appears before the score is known.
    interrupt(start(&mut run("@run"), || rows(&stopped).iter().any(|row| row["step"] == 2)));
    assert!(checkpoint(&stopped, 2).exists() || checkpoint(&stopped, 3).exists());
    done(&mut run("@run --resume"));
    let [whole, resumed] = [place.path("whole"), stopped].map(|run| {
        let mut rows = rows(&run);
        rows.iter_mut().for_each(|row| row.retain(|key, _| !key.starts_with("time/")));
        assert_eq!(rows.iter().filter(|row| row.contains_key("val/pass_at_1")).count(), 3);
        (run, rows)
    });
    assert_eq!(whole.1, resumed.1);
    assert_equal_checkpoints(&whole.0, &resumed.0, 3);
}

#[test]
fn reinforcement_killed_at_twenty_random_moments_resumes_to_the_same_bits() {
    const STEPS: u64 = 32;
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let words = format!("grpo --config @grpo.toml --set train.total_steps={STEPS} --out");
    done(&mut place.train(&format!("{words} @whole")));
    let run = place.path("run");
    let is_saving = || {
        fs::read_dir(run.join("checkpoints")).is_ok_and(|mut entries| {
            entries.any(|e| e.unwrap().file_name().to_string_lossy().starts_with("codeseq-"))
        })
    };
    for life in 0..20u64 {
        let resume = if run.join("checkpoints").exists() { "--resume" } else { "--overwrite" };
        let log = run.join(format!("logs/attempt-{}.log", life + 1));
        let step = rows(&run).len() as u64;
        let next = run.join(format!("samples/step-{:06}.jsonl", step + 1));
        let listens = || log.exists() || run.join("logs/attempt-1.log").exists();
        // While it starts, samples and judges; once a step is judged; while it saves; anywhere.
        let (is_reached, millis): (&dyn Fn() -> bool, f32) = match life % 4 {
            0 => (&listens, 400.0),
            1 => (&|| next.exists(), 30.0),
            2 => (&|| rows(&run).len() as u64 > step && is_saving(), 4.0),
            _ => (&|| rows(&run).len() as u64 > step, 150.0),
        };
        let child = start(&mut place.train(&format!("{words} @run {resume}")), is_reached);
        std::thread::sleep(Duration::from_secs_f32(rng::uniform(13, life) * millis / 1e3));
        kill(child);
    }
    assert!((rows(&run).len() as u64) < STEPS, "killed before the end");
    done(&mut place.train(&format!("{words} @run --resume")));
    assert_equal_runs(&run, &place.path("whole"), STEPS);
    assert_nothing_is_half_made(&run);
}

#[test]
fn reinforcement_is_on_policy_however_its_work_is_laid_out() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    for set in ["train.recompute=layer", "rollout.kv_cache_tokens=256"] {
        done(
            &mut place
                .train(&format!("grpo --config @grpo.toml --out @run --overwrite --set {set}")),
        );
        assert_equal_runs(&place.path("run"), &GRPO, GRPO_STEPS);
    }
    let set = "policy.importance_sampling_cap=2.0";
    done(&mut place.train(&format!("grpo --config @grpo.toml --out @capped --set {set}")));
    assert_equal_checkpoints(&place.path("capped"), &GRPO, GRPO_STEPS);

    let ranks = "--set train.ranks=2";
    done(&mut place.train(&format!("grpo --config @grpo.toml --out @two {ranks}")));
    let (two, one) = (metrics(&place.path("two"), GRPO_STEPS), metrics(&GRPO, GRPO_STEPS));
    for row in &two {
        assert_eq!(row["policy/ratio_max_deviation"], 0.0);
        assert_eq!(row["rollout/logprob_diff_max"], 0.0);
    }
    let sampled = |key: &String| key.starts_with("reward/") || key.starts_with("response/");
    for (key, value) in one[0].iter().filter(|(key, _)| sampled(key)) {
        assert_eq!(*value, two[0][key], "{key}: ranks sample what one rank samples");
    }
    let again = place.path("again");
    done(&mut place.train(&format!("grpo --config @grpo.toml --out @again {ranks}")));
    assert_equal_runs(&again, &place.path("two"), GRPO_STEPS);
}

#[test]
fn the_best_and_worst_samples_are_shown_with_their_rewards() {
    let place = Place::new();
    let report = |end: &str| {
        done(&mut place.train(&format!("report {} --samples {end} -n 3", GRPO.display())))
    };
    let (best, worst) = (report("best"), report("worst"));
    assert_eq!(best.matches("\nreward ").count(), 3, "{best}");
    assert!(best.contains(": pass\n") && best.contains(PROGRAMS[0]), "{best}");
    assert!(!worst.contains(": pass\n"), "{worst}");
}

#[test]
fn mistakes_in_a_configuration_are_named() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    place.write("unknown.toml", &sft_config().replace("lr = 1e-2", "lrr = 1e-2"));
    place.mistake("sft --config @unknown.toml", &["unknown.toml:9", "`optim.lrr`", "`optim.lr`"]);
    place.write("type.toml", &sft_config().replace("seq_len = 200", "seq_len = 'long'"));
    place.mistake("sft --config @type.toml", &["type.toml:18", "`train.seq_len`", "long"]);
    place.mistake("sft --config @absent.toml", &["absent.toml"]);
    for key in ["train.total_steps", "train.gradient_accumulation"] {
        place.mistake(&format!("sft --config @sft.toml --set {key}=0"), &[key]);
    }
    place.write("grpo.toml", &grpo_config());
    for (set, part) in [
        ("rollout.n=0", "rollout.n"),
        ("rollout.max_sequences=0", "rollout.max_sequences"),
        ("rollout.temperature=0.0", "rollout.temperature"),
        ("train.seq_len=191", "= 192"),
        ("overlong={buffer=0,factor=1.0}", "overlong.buffer"),
        ("profile=verl-0.1", "profile"),
        ("optim.lr=nan", "optim.lr"),
        ("optim.betas=[2,2]", "optim.betas[0]"),
        ("schedule.warmup={ratio=3}", "schedule.warmup.ratio"),
        ("reward.eps=-1", "reward.eps"),
        ("judge.recursion=1", "judge.recursion"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last"),
        ("rollout.num_prompts=5", "rollout.num_prompts"),
        ("rollout.kv_cache_tokens=100", "rollout.kv_cache_tokens"),
        ("policy.importance_sampling_cap=0.5", "policy.importance_sampling_cap"),
    ] {
        place.mistake(&format!("grpo --config @grpo.toml --set {set}"), &[part]);
    }
}

#[test]
fn mistakes_in_data_are_named() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    place.write("grpo.toml", &grpo_config());
    let samples = fs::read_to_string(INPUTS.join("samples.jsonl")).unwrap();
    let (first, _) = samples.split_once('\n').unwrap();
    let with = |command: &str, file: &str| {
        format!("{command} --config @{command}.toml --out @run --set data.files=['{file}']")
    };
    place.write("cut.jsonl", &format!("{first}\n{}\n", &first[..30]));
    place.mistake(&with("sft", "cut.jsonl"), &["cut.jsonl:2:"]);
    place.write("role.jsonl", r#"{"messages":[{"role":"bard","content":"O"}]}"#);
    place.mistake(&with("sft", "role.jsonl"), &["role.jsonl", "sample 1", "bard"]);
    place.mistake(&with("sft", "absent.jsonl"), &["absent.jsonl"]);
    let mut unsolved = problem(0);
    unsolved.as_object_mut().unwrap().remove("solvability");
    place.write("unsolved.jsonl", &unsolved.to_string());
    place.mistake(&with("grpo", "unsolved.jsonl"), &["unsolved.jsonl", "p0", "data solvability"]);
    place.write("no-tests.jsonl", r#"{"problem_id": "a"}"#);
    place.mistake(&with("grpo", "no-tests.jsonl"), &["no-tests.jsonl:1:", "tests"]);
}

#[test]
fn models_that_are_absent_damaged_or_foreign_are_named() {
    let place = Place::new();
    let weights = fs::read(model().join("model.safetensors")).unwrap();
    for name in ["truncated", "foreign", "small"] {
        fs::create_dir(place.path(name)).unwrap();
        for file in fs::read_dir(model()).unwrap().map(|entry| entry.unwrap().path()) {
            if file.is_file() {
                fs::copy(&file, place.path(name).join(file.file_name().unwrap())).unwrap();
            }
        }
    }
    fs::write(place.path("truncated/model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let tensors = SafeTensors::deserialize(&weights).unwrap().tensors();
    let others = tensors.into_iter().filter(|(name, _)| name != "model.norm.weight");
    safetensors::serialize_to_file(others, None, &place.path("foreign/model.safetensors")).unwrap();
    place.write("small/config.json", &shape(300).to_string());
    place.write("small.json", &shape(300).to_string());

    let mistakes: [(&str, &[&str]); 4] = [
        ("absent", &["absent", "config.json"]),
        ("truncated", &["truncated/model.safetensors", "truncated"]),
        ("foreign", &["foreign", "model.norm.weight", "missing"]),
        ("small", &["small/model.safetensors", "model.embed_tokens.weight", "300"]),
    ];
    let by_path = sft_config().replace("tokenizer = ", "# ").replace("init = ", "path = ");
    for (name, parts) in mistakes {
        let from = format!("{}/model.json", INPUTS.display());
        place.write("sft.toml", &by_path.replace(&from, name));
        place.mistake("sft --config @sft.toml --out @run", parts);
        place.mistake(&format!("generate --model @{name} --prompt x"), parts);
    }
    place.write("init.toml", &sft_config());
    place.mistake(
        "sft --config @init.toml --set model.init='small.json' --out @run",
        &["the tokenizer in", "only 300"],
    );
}

#[test]
fn a_run_directory_in_use_is_kept() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let run = SFT.display();
    let used = format!("sft --config @sft.toml --out {run}");
    place.mistake(&used, &["--resume", "--overwrite"]);
    place.mistake(&format!("{used} --resume --set seed=9"), &["seed was 3, is 9"]);
    assert_eq!(metrics(&SFT, SFT_STEPS).len() as u64, SFT_STEPS);
}

#[test]
fn generated_log_probabilities_are_those_of_scoring() {
    let (place, model) = (Place::new(), model());
    let tokenizer = Tokenizer::load(&model).unwrap();
    let conversations =
        ["Two?", "How many shoes are n pairs?"].map(|text| vec![Message::new("user", text)]);
    let lines = conversations.iter().map(|messages| format!("{}\n", json!({"messages": messages})));
    place.write("messages.jsonl", &lines.collect::<String>());
    let model = model.display();
    for temperature in ["0", "0.7"] {
        let printed = done(&mut place.train(&format!(
            "generate --model {model} --messages @messages.jsonl --json -n 2 --max-new-tokens 16 \
             --temperature {temperature}"
        )));
        let prompts =
            conversations.iter().map(|messages| tokenizer.encode_prompt(messages).unwrap());
        let prompts: Vec<Vec<u32>> = prompts.flat_map(|prompt| [prompt.clone(), prompt]).collect();
        let generated: Vec<Value> =
            printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(generated.len(), prompts.len());
        let whole = prompts.iter().zip(&generated).map(|(prompt, line)| {
            let output: Vec<u32> = serde_json::from_value(line["output_ids"].clone()).unwrap();
            let input_ids = [prompt.as_slice(), &output].concat();
            format!("{}\n", json!({"input_ids": input_ids}))
        });
        place.write("whole.jsonl", &whole.collect::<String>());
        done(&mut place.train(&format!(
            "score --model {model} --data @whole.jsonl --out @scores.jsonl --temperature {temperature}"
        )));
        let scores = fs::read_to_string(place.path("scores.jsonl")).unwrap();
        for ((line, prompt), generated) in scores.lines().zip(&prompts).zip(&generated) {
            let line: Value = serde_json::from_str(line).unwrap();
            let scored = &line["logprobs"].as_array().unwrap()[prompt.len()..];
            assert_eq!(scored, generated["logprobs"].as_array().unwrap().as_slice());
        }
    }
    place.mistake(&format!("generate --model {model} --messages @whole.jsonl"), &["whole.jsonl:1"]);
    place.assert_nothing_is_half_made();
}

#[test]
fn a_gtg_score_is_written_and_repeats() {
    let place = Place::new();
    place.write("problems.jsonl", &format!("{}\n{}\n", problem(0), problem(1)));
    let model = model();
    let score = |out: &str| -> Value {
        let words = format!(
            "eval gtg --model {} --data @problems.jsonl --rollouts 6 --max-new-tokens 32 \
             --max-sequences 4 --out @{out}",
            model.display()
        );
        assert!(done(&mut place.train(&words)).contains("pass@1"));
        let mut score: Value =
            serde_json::from_str(&fs::read_to_string(place.path(out)).unwrap()).unwrap();
        for key in ["tokens_per_sec", "generation_secs", "judging_secs"] {
            assert!(score.as_object_mut().unwrap().remove(key).unwrap().as_f64().unwrap() >= 0.0);
        }
        score
    };
    let first = score("a.json");
    assert_eq!(first, score("b.json"));
    let pass_at_1 = first["pass_at_1"].as_f64().unwrap();
    assert!((0.05..=1.0).contains(&pass_at_1), "{first}");
    assert_eq!((&first["num_problems"], &first["num_infra"]), (&json!(2), &json!(0)));
    assert!(first["ci95"][0].as_f64().unwrap() <= pass_at_1);
    place.assert_nothing_is_half_made();
    place.mistake(
        &format!("eval gtg --model {} --data @problems.jsonl --max-sequences 0", model.display()),
        &["max_sequences"],
    );
}
