//! This file runs `train gpu-check` and `train bench` on the emulated driver, because they are what
//! runs first on a GPU.

#![cfg(feature = "cuda")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may panic, and say so"
)]

mod cuda_support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Returns the folder of the emulated driver, or `None` without a compiler.
fn emulated_gpu() -> Option<PathBuf> {
    let folder = cuda_support::emulated_gpu();
    if folder.is_none() {
        println!("SKIPPED: no C++ compiler");
    }
    folder
}

/// Runs `train` on the emulated driver.
fn train(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_train"))
        .args(arguments)
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap()
}

/// Returns what `train bench` prints, and its JSON.
fn bench(folder: &Path, arguments: &[&str]) -> (String, Value) {
    let out = tempfile::tempdir().unwrap();
    let json = out.path().join("numbers.json");
    let common =
        ["bench", arguments[0], "--model-config", "tiny", "--json", json.to_str().unwrap()];
    let output = train(folder, &[&common, &arguments[1..]].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    (said, serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap())
}

fn fact<'v>(numbers: &'v Value, name: &str) -> &'v str {
    let facts = numbers["facts"].as_array().unwrap();
    let fact = facts.iter().find(|fact| fact[0] == name);
    fact.and_then(|fact| fact[1].as_str()).unwrap_or_else(|| panic!("no {name} in {facts:?}"))
}

/// Runs a part of scripts/gpu-check.sh on the emulated driver. Returns what it prints, and its files.
fn check_machine(folder: &Path, part: &str) -> (String, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-check.sh");
    let output = Command::new("bash")
        .args([script, part, dir.path().join("results").to_str().unwrap(), "--tiny"])
        .env("TRAIN", env!("CARGO_BIN_EXE_train"))
        .env("LD_LIBRARY_PATH", cuda_support::with_cudnn(folder))
        .env("PYTHON", "false")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    (said, dir)
}

fn read(dir: &tempfile::TempDir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join("results").join(name)).unwrap_or_default()
}

/// Expects that these steps of a part went well.
fn assert_well(said: &str, dir: &tempfile::TempDir, steps: &[&str]) {
    for step in steps {
        let line = said.lines().find(|line| line.starts_with(step)).unwrap();
        assert!(line.ends_with("went well"), "{line}\n{}", read(dir, &format!("{step}.txt")));
    }
}

#[test]
fn cuda_the_check_of_correctness_runs_to_its_end_on_the_emulated_driver() {
    let Some(folder) = emulated_gpu() else { return };
    let (said, dir) = check_machine(&folder, "correctness");
    let demo = ["demo-sft-cuda", "demo-sft-cpu", "demo-grpo-cuda", "demo-grpo-cpu", "demo-curves"];
    assert_well(&said, &dir, &[&["operations"], &demo[..]].concat());
    assert!(said.contains("memcheck"), "{said}");
    let operations = read(&dir, "operations.txt");
    for family in
        ["rms_norm", "head_norm", "logprob", "embedding", "rope", "swiglu", "attention", "decoding"]
    {
        assert!(operations.contains(&format!("right    {family}")), "{family}\n{operations}");
    }
    for family in ["products", "adamw", "flat buffers", "sampling", "repetition penalty"] {
        assert!(operations.contains(&format!("right    {family}")), "{family}\n{operations}");
    }
    let cudnn = operations.lines().filter(|line| line.starts_with("right    cuDNN attention"));
    assert_eq!(cudnn.count(), 4, "both heads of 128 in both formats\n{operations}");
    let curves = read(&dir, "demo-curves.txt");
    assert!(curves.contains("sft-cuda") && curves.contains("grpo-cpu"), "{curves}");
}

#[test]
fn cuda_the_check_of_speed_runs_to_its_end_on_the_emulated_driver() {
    let Some(folder) = emulated_gpu() else { return };
    let (said, dir) = check_machine(&folder, "speed");
    assert_well(&said, &dir, &["ops-tiny", "step-tiny", "decode-tiny", "grpo-step-tiny"]);
    let ops = read(&dir, "ops-tiny.txt");
    assert!(ops.contains("EMULATED: there is no GPU here"), "{ops}");
    let numbers: Value = serde_json::from_str(&read(&dir, "step-tiny.json")).unwrap();
    assert_eq!(numbers["is_emulated"], true);
    assert!(numbers["lines"][0]["milliseconds"].as_f64().unwrap() > 0.0);
}

/// Returns what `train doctor` prints about an emulated GPU of this compute capability.
fn doctor(folder: &str, capability: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command.env("LD_LIBRARY_PATH", folder).env("EMULATED_GPU_CAPABILITY", capability);
    let output = command.arg("doctor").output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn cuda_kernels_run_on_cards_from_ampere_on() {
    let Some(folder) = emulated_gpu() else { return };
    let folder = folder.to_str().unwrap();
    for (capability, name) in [
        ("80", "8.0"),
        ("87", "8.7"),
        ("89", "8.9"),
        ("100", "10.0"),
        ("110", "11.0"),
        ("121", "12.1"),
    ] {
        let said = doctor(folder, capability);
        let gpu = said.lines().find(|line| line.starts_with("gpu 0")).unwrap();
        assert!(gpu.contains(&format!("compute capability {name}")), "{said}");
        assert!(gpu.ends_with("kernels run"), "{said}");
    }
    let said = doctor(folder, "75");
    assert!(said.contains("has compute capability 7.5; 8.0 or newer is needed"), "{said}");
}

#[test]
fn cuda_every_operation_is_right_on_an_emulated_a100() {
    let Some(folder) = emulated_gpu() else { return };
    let output = Command::new(env!("CARGO_BIN_EXE_train"))
        .args(["gpu-check", "--shapes", "small"])
        .env("LD_LIBRARY_PATH", cuda_support::with_cudnn(&folder))
        .env("EMULATED_GPU_CAPABILITY", "80")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("WRONG"), "{said}");
    assert!(said.contains("right    cuDNN attention"), "{said}");
}

#[test]
fn cuda_an_older_cublaslt_that_hides_the_right_one_is_named() {
    let Some(folder) = emulated_gpu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("old.c"), dir.path().join("libcublasLt.so"));
    std::fs::write(&source, "unsigned long cublasLtGetVersion(void) { return 120800; }").unwrap();
    let made =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(made.unwrap().success());
    let said = doctor(&format!("{}:{}", dir.path().display(), folder.display()), "90");
    let expected = format!(
        "cuBLASLt 12.8.0 is too old, and hides libcublasLt.so.13: take the folder of {} off",
        library.display()
    );
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn cuda_a_step_is_broken_down_into_families_that_add_up_to_it() {
    let Some(folder) = emulated_gpu() else { return };
    let arguments = ["step", "--seq", "64", "--repeats", "1", "--recompute-layers"];
    let (said, numbers) = bench(&folder, &arguments);
    let breakdowns = numbers["breakdowns"].as_array().unwrap();
    assert_eq!([&breakdowns[0]["name"], &breakdowns[1]["name"]], ["micro-step", "optimizer"]);
    let families = |index: usize| -> Vec<&str> {
        let families: &Vec<Value> = breakdowns[index]["families"].as_array().unwrap();
        families.iter().map(|family| family["name"].as_str().unwrap()).collect()
    };
    let of_step = [
        "products (GEMM)",
        "attention",
        "norms, sums over rows",
        "rope",
        "swiglu",
        "logprob",
        "embedding",
        "copies and zeros",
    ];
    assert_eq!(families(0), of_step, "{said}");
    let of_optimizer = ["copies and zeros", "accumulation, norm of gradients", "adamw"];
    assert_eq!(families(1), of_optimizer, "{said}");
    for breakdown in breakdowns {
        let time = |value: &Value| value["milliseconds"].as_f64().unwrap();
        let sum: f64 = breakdown["families"].as_array().unwrap().iter().map(time).sum();
        let gaps = breakdown["gaps_milliseconds"].as_f64().unwrap();
        assert!((sum + gaps - time(breakdown)).abs() < 1e-6, "{said}");
    }
    assert!(numbers["limits"]["bytes_per_second"].as_f64().unwrap() > 0.0);
    assert!(said.contains("gaps: what is left of the time"), "{said}");
}

#[test]
fn cuda_a_step_of_grpo_generates_all_tokens_and_the_trainer_agrees_with_the_sampler() {
    let Some(folder) = emulated_gpu() else { return };
    let sizes = ["--prompts", "2", "--samples", "3", "--prompt", "33", "--response", "5"];
    let (said, numbers) = bench(&folder, &[&["grpo-step"], &sizes[..]].concat());
    assert_eq!(fact(&numbers, "prompts x responses"), "2 x 3");
    assert_eq!(fact(&numbers, "tokens of each"), "33 + 5");
    let limits = ["copy", "square product"];
    let phases = ["generation", "update: forward and backward", "update: optimizer", "step"];
    let names = limits.iter().chain(&phases);
    for (line, name) in numbers["lines"].as_array().unwrap().iter().zip(names) {
        assert_eq!(line["name"], *name);
        assert!(line["milliseconds"].as_f64().unwrap() > 0.0, "{said}");
    }
    let distance = fact(&numbers, "sampler against trainer, log-probabilities");
    let mean: f64 = distance.split(' ').next().unwrap().parse().unwrap();
    assert!(mean < 4e-3, "{distance}");
}

#[test]
fn cuda_a_step_without_tokens_is_a_mistake_of_the_user() {
    let Some(folder) = emulated_gpu() else { return };
    let output = train(&folder, &["bench", "grpo-step", "--response", "0"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("0 is not a number from 1 up"), "{said}");
}
