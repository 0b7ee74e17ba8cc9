//! This file tests runs with `train.device = "cuda"` on emulated GPUs (`scripts/emulated-gpu.sh`),
//! which run our kernels and plain loops for products. The tests show that the path works and
//! computes what the CPU computes, within the rounding of 16 bits. Without a C++ compiler they are
//! skipped with a message.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod cuda_support;
mod support;

use cuda_support::{can_emulate, emulated, emulated_with_cudnn};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use support::{
    Place, VOCAB, column, done, expect_mistake, gpu_shape, inputs, interrupt, kill, shape, start,
    train,
};

/// A run has so many updates.
const STEPS: usize = 10;

static INPUTS: LazyLock<PathBuf> = LazyLock::new(|| inputs("cuda-train", &gpu_shape()));

/// This run is on the CPU.
static CPU: LazyLock<PathBuf> = LazyLock::new(|| undisturbed("cpu", ""));

/// This is the same run on a GPU.
static GPU: LazyLock<PathBuf> = LazyLock::new(|| undisturbed("gpu", "--set train.device=cuda"));

const FP16: &str = "--set train.precision=fp16";

/// With this loss scale gradients overflow at first.
const TOO_LARGE: &str = "--set train.precision=fp16 --set train.loss_scale.initial=4194304 --set \
                         train.loss_scale.hysteresis=1";

/// This run begins with that loss scale.
static OVERFLOWING: LazyLock<PathBuf> =
    LazyLock::new(|| undisturbed("overflowing", &format!("--set train.device=cuda {TOO_LARGE}")));

fn sft_config() -> String {
    let inputs = INPUTS.display();
    format!(
        "seed = 3
model = {{ init = '{inputs}/model.json', tokenizer = '{inputs}/tokenizer' }}
data = {{ files = ['{inputs}/samples.jsonl'], max_length = 200 }}
optim = {{ lr = 5e-3, betas = [0.9, 0.95] }}
schedule = {{ kind = 'cosine', warmup = {{ steps = 2 }} }}
[train]
total_steps = {STEPS}
seq_len = 200
gradient_accumulation = 2
[checkpoint]
every = 4
"
    )
}

fn undisturbed(name: &str, more: &str) -> PathBuf {
    let (mut command, run) = run(name, more);
    done(emulated(&mut command, 1));
    run
}

/// Returns the command of a run, and the run's directory.
fn run(name: &str, more: &str) -> (Command, PathBuf) {
    let dir = &*INPUTS;
    let (file, run) = (dir.join(format!("{name}.toml")), dir.join(name));
    fs::write(&file, sft_config()).unwrap();
    let mut command = train(dir);
    command.args(["sft", "--config"]).arg(file).arg("--out").arg(&run);
    command.args(more.split_whitespace());
    (command, run)
}

/// Returns the bytes of a file in the checkpoint of a step.
fn saved(run: &Path, step: usize, file: &str) -> Vec<u8> {
    fs::read(run.join(format!("checkpoints/step-{step:06}")).join(file)).unwrap()
}

const FILES: [&str; 3] = ["model.safetensors", "state/optimizer.safetensors", "state/state.json"];

/// Expects the same numbers in every row, and the same bits in the checkpoint of the last `step`.
fn assert_equal_runs(run: &Path, other: &Path, (step, keys): (usize, &[&str])) {
    // Numbers are compared as they are written: a norm that overflows is null.
    let logged = |run: &Path, key: &str| -> Vec<Value> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.map(|row| row[key].clone()).collect()
    };
    for key in keys {
        assert_eq!(logged(run, key), logged(other, key), "{key}");
    }
    for file in FILES {
        assert!(saved(run, step, file) == saved(other, step, file), "{file} differs");
    }
}

/// Runs of fine-tuning are compared by these numbers.
const TUNED: (usize, &[&str]) = (STEPS, &["loss/nll", "optim/grad_norm"]);

/// Returns the largest relative distance between two curves.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| ((a - b) / b).abs()).fold(0.0, f64::max)
}

#[test]
fn fine_tuning_on_a_gpu_follows_the_cpu_within_bf16() {
    if !can_emulate() {
        return;
    }
    let [cpu, gpu] = [&*CPU, &*GPU].map(|run| column(run, "loss/nll"));
    assert!(cpu[STEPS - 1] < 0.8 * cpu[0], "too little is learnt to tell: {cpu:?}");
    let losses = distance(&gpu, &cpu);
    let norms = distance(&column(&GPU, "optim/grad_norm"), &column(&CPU, "optim/grad_norm"));
    println!("over {STEPS} steps: losses {losses:.1e}, norms of gradients {norms:.1e} apart");
    assert!(losses < 1e-2 && norms < 5e-2, "{gpu:?} is not {cpu:?}");
}

#[test]
fn fine_tuning_through_cudnn_follows_the_cpu_in_the_memory_that_was_planned() {
    if !can_emulate() {
        return;
    }
    let (mut command, run) = run("cudnn", "--set train.device=cuda");
    done(emulated_with_cudnn(&mut command, 1));
    let losses = distance(&column(&run, "loss/nll"), &column(&CPU, "loss/nll"));
    let norms = distance(&column(&run, "optim/grad_norm"), &column(&CPU, "optim/grad_norm"));
    println!("over {STEPS} steps: losses {losses:.1e}, norms of gradients {norms:.1e} apart");
    assert!(losses < 1e-2 && norms < 5e-2);
    assert_eq!(taken(&run), vec![planned(&run, "") - planned(&run, "CUDA"); STEPS]);
    assert!(
        saved(&run, STEPS, FILES[0]) != saved(&GPU, STEPS, FILES[0]),
        "attention was not cuDNN's"
    );
}

#[test]
fn fine_tuning_in_fp16_follows_the_cpu_closer_and_skips_nothing() {
    if !can_emulate() {
        return;
    }
    let run = undisturbed("fp16", &format!("--set train.device=cuda {FP16}"));
    let losses = distance(&column(&run, "loss/nll"), &column(&CPU, "loss/nll"));
    let norms = distance(&column(&run, "optim/grad_norm"), &column(&CPU, "optim/grad_norm"));
    println!("over {STEPS} steps: losses {losses:.1e}, norms of gradients {norms:.1e} apart");
    assert!(losses < 6e-4 && norms < 3e-3);
    assert_eq!(column(&run, "optim/skipped"), [0.0; STEPS]);
    assert_eq!(column(&run, "optim/loss_scale"), [16_384.0; STEPS]);
}

#[test]
fn a_loss_scale_too_large_for_fp16_falls_until_gradients_fit() {
    if !can_emulate() {
        return;
    }
    let run = &*OVERFLOWING;
    let (scales, skipped) = (column(run, "optim/loss_scale"), column(run, "optim/skipped"));
    let expected = |first: [f64; 2], then: f64| [&first[..], &[then; STEPS - 2]].concat();
    assert_eq!(scales, expected([4_194_304.0, 2_097_152.0], 1_048_576.0));
    assert_eq!(skipped, expected([1.0; 2], 0.0));
    let losses = column(run, "loss/nll");
    assert!(losses[STEPS - 1] < 0.8 * losses[2], "{losses:?}");
}

#[test]
fn a_run_on_a_gpu_stopped_and_resumed_has_the_same_bits() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    for (name, more) in
        [("exact", ""), ("rounded", "--set train.gpu.moments=bf16"), ("overflowing", TOO_LARGE)]
    {
        let whole = match more {
            "" => GPU.clone(),
            TOO_LARGE => OVERFLOWING.clone(),
            _ => undisturbed(name, &format!("--set train.device=cuda {more}")),
        };
        let words = format!("sft --config @sft.toml --out @{name} --set train.device=cuda {more}");
        let run = place.path(name);
        let rows = || fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        let stopped =
            interrupt(start(emulated(&mut place.train(&words), 1), || rows().lines().count() >= 3));
        assert!(rows().lines().count() < STEPS, "{stopped}");
        done(emulated(&mut place.train(&format!("{words} --resume")), 1));
        assert_equal_runs(&run, &whole, TUNED);
    }
}

#[test]
fn a_cpu_goes_on_where_a_gpu_stopped_and_the_other_way_round() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    for (first, then) in [("cpu", "cuda"), ("cuda", "cpu")] {
        let run = place.path(first);
        let words = format!("sft --config @sft.toml --out @{first} --set train.device=");
        let rows = || fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        let mut command = place.train(&format!("{words}{first} --set checkpoint.every=1"));
        interrupt(start(emulated(&mut command, 1), || rows().lines().count() >= 2));
        done(emulated(
            &mut place.train(&format!("{words}{then} --set checkpoint.every=1 --resume")),
            1,
        ));
        let apart = distance(&column(&run, "loss/nll"), &column(&CPU, "loss/nll"));
        assert!(apart < 1e-2, "{first}, then {then}: {apart:.1e}");
    }
}

#[test]
fn two_gpus_learn_what_one_does() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let sums = ["sharded", "full"];
    for (kept, again) in [(sums[0], false), (sums[0], true), (sums[1], false)] {
        let out = format!("{kept}-{again}");
        let words = format!(
            "sft --config @sft.toml --out @{out} --set train.device=cuda --set train.ranks=2 --set \
             train.gradient_accumulation=1 --set train.gpu.gradient_sums={kept}"
        );
        done(emulated(&mut place.train(&words), 2));
        let apart = distance(&column(&place.path(&out), "loss/nll"), &column(&GPU, "loss/nll"));
        println!("{kept} sums on two GPUs: losses {apart:.1e} apart");
        assert!(apart < 1e-2, "{kept}: {apart}");
    }
    assert_equal_runs(&place.path("sharded-false"), &place.path("sharded-true"), TUNED);
}

#[test]
fn a_gpu_takes_the_memory_that_was_planned() {
    if !can_emulate() {
        return;
    }
    // Without cuDNN its part of the plan is not taken, apart from one number for each head and row.
    // There are no libraries outside of the arena either.
    let own_attention = 4 * 256 * 3;
    let [all, cuda, attention] = ["", "CUDA", "attention"].map(|name| planned(&GPU, name));
    assert_eq!(taken(&GPU), vec![all - cuda - attention + own_attention; STEPS]);
    assert!(column(&GPU, "time/model_tflops_per_sec").iter().all(|&rate| rate > 0.0));
}

/// Returns the bytes that a run planned for buffers whose names begin with `name`.
fn planned(run: &Path, name: &str) -> u64 {
    let plan: Value = serde_json::from_slice(&fs::read(run.join("plan.json")).unwrap()).unwrap();
    let buffers = plan["buffers"].as_array().unwrap().iter();
    let of_name = buffers.filter(|b| b["name"].as_str().unwrap().starts_with(name));
    of_name.map(|b| b["bytes"].as_u64().unwrap()).sum()
}

/// Returns the bytes that a run took, by step.
fn taken(run: &Path) -> Vec<u64> {
    let mib = column(run, "time/gpu_peak_mib").into_iter();
    mib.map(|mib| (mib * f64::from(1 << 20)) as u64).collect()
}

#[test]
fn what_a_machine_does_not_have_is_one_line() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let words = "sft --config @sft.toml --out @run --set train.device=cuda";
    let two = format!("{words} --set train.ranks=2");
    expect_mistake(emulated(&mut place.train(&two), 1), &["2 ranks", "shows 1"]);
    let model = place.write("odd.json", &shape(VOCAB).to_string());
    let odd = format!("{words} --set model.init={:?}", model.display().to_string());
    expect_mistake(emulated(&mut place.train(&odd), 1), &["heads of 8 elements"]);
    assert!(!place.path("run").exists());
    if std::env::var_os("LD_LIBRARY_PATH").is_none() && !codeseq_sees_a_driver() {
        place.mistake(words, &["device cuda", "no NVIDIA driver"]);
    }
}

/// Tells whether this machine has NVIDIA's driver.
fn codeseq_sees_a_driver() -> bool {
    codeseq::cuda::device::driver_version().is_ok()
}

/// This model has learnt something before it is reinforced.
static TRAINED: LazyLock<String> = LazyLock::new(|| {
    let dir = &*INPUTS;
    fs::write(dir.join("trained.toml"), sft_config().replace(&format!("= {STEPS}"), "= 60"))
        .unwrap();
    let words = "sft --config trained.toml --out trained";
    done(train(dir).args(words.split_whitespace())).trim_end().to_owned()
});

fn grpo_config() -> String {
    let inputs = INPUTS.display();
    let model = INPUTS.join(&*TRAINED);
    format!(
        "seed = 5
model = {{ path = '{}' }}
data = {{ files = ['{inputs}/problems.jsonl'], max_prompt_tokens = 160 }}
rollout = {{ num_prompts = 2, n = 4, temperature = 0.9, max_new_tokens = 32, max_sequences = 8 }}
optim = {{ lr = 1e-4, weight_decay = 0.0 }}
schedule = {{ kind = 'constant' }}
policy = {{ importance_sampling_cap = 2.0 }}
train = {{ total_steps = 2, seq_len = 400, device = 'cuda' }}
",
        model.display()
    )
}

#[test]
fn reinforcement_runs_on_a_gpu_and_says_how_far_sampler_and_trainer_are_apart() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let run = place.path("run");
    done(emulated(&mut place.train("grpo --config @grpo.toml --out @run"), 1));
    let [ratio, off] =
        ["rollout/ratio_mean", "rollout/logprob_diff_max"].map(|key| column(&run, key));
    println!("two steps: mean ratio {ratio:?}, log-probabilities at most {off:?} off");
    assert_eq!(off.len(), 2);
    assert!(off.iter().all(|&off| off < 0.1) && ratio.iter().all(|r| (r - 1.0).abs() < 0.02));
    assert!(run.join("checkpoints/step-000002/model.safetensors").is_file());
    place.mistake(
        "grpo --config @grpo.toml --out @other --set train.share_prompts=true",
        &["train.share_prompts", "CPU"],
    );
}

#[test]
fn a_gpu_that_samples_takes_the_memory_that_was_planned_from_the_first_step_on() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    // There is so much room for sequences that sampling takes more memory than updating.
    let wide = grpo_config().replace("max_sequences = 8", "max_sequences = 500");
    place.write("grpo.toml", &wide);
    done(emulated(&mut place.train("grpo --config @grpo.toml --out @run"), 1));
    let run = place.path("run");
    let plan: Value = serde_json::from_slice(&fs::read(run.join("plan.json")).unwrap()).unwrap();
    let bytes = |buffers: &Value| -> u64 {
        let buffers = buffers.as_array().unwrap().iter();
        let of_arena = buffers.filter(|b| !b["name"].as_str().unwrap().starts_with("CUDA"));
        of_arena.map(|b| b["bytes"].as_u64().unwrap()).sum()
    };
    let [sampling, updating] = [0, 1].map(|phase| bytes(&plan["phases"][phase]["buffers"]));
    assert!(sampling > updating, "{plan}");
    assert_eq!(taken(&run), [bytes(&plan["buffers"]) + sampling; 2]);
}

#[test]
fn reinforcement_in_fp16_follows_the_cpu_and_its_sampler_is_eight_times_closer() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let run = |out: &str, more: &str| {
        let words = format!("grpo --config @grpo.toml --out @{out} --set optim.lr=1e-3 {more}");
        done(emulated(&mut place.train(&words), 1));
        place.path(out)
    };
    let (cpu, gpu) = (run("cpu", "--set train.device=cpu"), run("gpu", FP16));
    // Draws are keyed, so such close distributions give the same responses.
    for key in ["response/mean_tokens", "reward/mean"] {
        assert_eq!(column(&gpu, key), column(&cpu, key), "{key}");
    }
    let norms = distance(&column(&gpu, "optim/grad_norm"), &column(&cpu, "optim/grad_norm"));
    let [ratio, off] =
        ["rollout/ratio_mean", "rollout/logprob_diff_max"].map(|key| column(&gpu, key));
    println!("norms of gradients {norms:.1e} apart, mean ratio {ratio:?}, at most {off:?} off");
    // bf16 may be off eight times as far.
    assert!(norms < 5e-2 / 8.0);
    assert!(off.iter().all(|&off| off < 0.1 / 8.0));
    assert!(ratio.iter().all(|r| (r - 1.0).abs() < 0.02 / 8.0));
    assert_eq!(column(&gpu, "optim/skipped"), [0.0; 2]);
    assert_eq!(column(&gpu, "optim/loss_scale"), [16_384.0; 2]);
}

#[test]
fn reinforcement_skips_updates_that_overflow_and_killed_resumes_to_the_same_bits() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("grpo.toml", &grpo_config().replace("total_steps = 2", "total_steps = 4"));
    let words = |out: &str| {
        format!(
            "grpo --config @grpo.toml --out @{out} --set optim.lr=1e-3 --set checkpoint.every=1 {TOO_LARGE}"
        )
    };
    done(emulated(&mut place.train(&words("whole")), 1));
    let (whole, stopped) = (place.path("whole"), place.path("stopped"));
    let rows = || fs::read_to_string(stopped.join("metrics.jsonl")).unwrap_or_default();
    let mut command = place.train(&words("stopped"));
    kill(start(emulated(&mut command, 1), || rows().lines().count() >= 2));
    done(emulated(&mut place.train(&format!("{} --resume", words("stopped"))), 1));

    let (scales, skipped) = (column(&whole, "optim/loss_scale"), column(&whole, "optim/skipped"));
    assert_eq!(skipped[0], 1.0, "{scales:?}");
    assert_eq!(skipped[3], 0.0, "{scales:?}");
    for step in 0..3 {
        assert_eq!(scales[step + 1], scales[step] / (1.0 + skipped[step]), "{scales:?}");
    }
    let first = saved(&whole, 1, FILES[0]);
    assert!(first == fs::read(INPUTS.join(&*TRAINED).join(FILES[0])).unwrap(), "skipped");
    assert!(first != saved(&whole, 4, FILES[0]), "learnt");
    let keys = ["loss/policy", "optim/grad_norm", "optim/loss_scale", "optim/skipped"];
    assert_equal_runs(&whole, &stopped, (4, &keys));
}

#[test]
fn reinforcement_held_to_a_reference_resumes_to_the_same_bits_in_the_memory_of_one_without() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let sets = "--set optim.lr=1e-3 --set checkpoint.every=1";
    let words =
        |out: &str, more: &str| format!("grpo --config @grpo.toml --out @{out} {sets} {more}");
    let run = |words: &str| done(emulated(&mut place.train(words), 1));
    run(&words("without", "--set train.total_steps=1"));
    run(&words("whole", "--set policy.kl_coef=0.1"));
    let (whole, stopped) = (place.path("whole"), place.path("stopped"));
    let rows = || fs::read_to_string(stopped.join("metrics.jsonl")).unwrap_or_default();
    let mut command = place.train(&words("stopped", "--set policy.kl_coef=0.1"));
    interrupt(start(emulated(&mut command, 1), || rows().lines().count() >= 1));
    run(&words("stopped", "--set policy.kl_coef=0.1 --resume"));
    let kl = column(&whole, "policy/reference_kl");
    assert!(kl[0] < 1e-3 && kl[1] > kl[0], "{kl:?}");
    let keys = ["policy/reference_kl", "loss/policy", "optim/grad_norm"];
    assert_equal_runs(&whole, &stopped, (2, &keys));
    let [with, without] =
        [&whole, &place.path("without")].map(|run| column(run, "time/gpu_peak_mib"));
    assert_eq!(with[0], without[0]);
}

/// Preferences of the first of two answers to each problem.
fn dpo_config() -> String {
    let text = fs::read_to_string(INPUTS.join("samples.jsonl")).unwrap();
    let samples: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let pair = |two: &[Value]| {
        let turn = |sample: usize, turn: usize| [two[sample]["messages"][turn].clone()];
        serde_json::json!({"prompt": turn(0, 0), "chosen": turn(0, 1), "rejected": turn(1, 1)})
    };
    let pairs: Vec<Value> = samples.chunks(2).map(pair).collect();
    let file = INPUTS.join("pairs.jsonl");
    fs::write(&file, support::lines(&pairs)).unwrap();
    format!(
        "model = {{ path = '{}' }}
data = {{ files = ['{}'], max_length = 200 }}
optim = {{ lr = 1e-3, weight_decay = 0.0 }}
train = {{ total_steps = 4, pairs_per_step = 4, seq_len = 400 }}
checkpoint.every = 2
",
        INPUTS.join(&*TRAINED).display(),
        file.display()
    )
}

#[test]
fn preferences_on_gpus_follow_the_cpu_in_the_memory_that_was_planned_and_resume() {
    if !can_emulate() {
        return;
    }
    let place = Place::new();
    place.write("dpo.toml", &dpo_config());
    let run = |out: &str, gpus: usize, more: &str| {
        let words = format!("dpo --config @dpo.toml --out @{out} {more}");
        done(emulated(&mut place.train(&words), gpus));
        place.path(out)
    };
    let cpu = run("cpu", 1, "");
    let gpu = run("gpu", 1, "--set train.device=cuda");
    let two = run("two", 2, "--set train.device=cuda --set train.ranks=2 --set train.seq_len=200");
    for gpu in [&gpu, &two] {
        let losses = distance(&column(gpu, "loss/preference"), &column(&cpu, "loss/preference"));
        println!("four steps: losses {losses:.1e} apart");
        assert!(losses < 3e-2);
    }
    assert!(column(&gpu, "reward/margin")[3] > 0.0);
    let own_attention = 4 * 400 * 3;
    let [all, cuda, attention] = ["", "CUDA", "attention"].map(|name| planned(&gpu, name));
    println!("planned {all}, {cuda}, {attention}; taken {:?}, {own_attention}", taken(&gpu));
    assert!(taken(&gpu).iter().all(|&bytes| bytes <= all - cuda));
    let words = "dpo --config @dpo.toml --out @again --set train.device=cuda";
    let again = place.path("again");
    let rows = || fs::read_to_string(again.join("metrics.jsonl")).unwrap_or_default();
    kill(start(emulated(&mut place.train(words), 1), || rows().lines().count() >= 3));
    done(emulated(&mut place.train(&format!("{words} --resume")), 1));
    assert_equal_runs(&again, &gpu, (4, &["loss/preference", "optim/grad_norm"]));
}
