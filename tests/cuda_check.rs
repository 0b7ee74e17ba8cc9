//! `train gpu-check` and `train bench` on the emulated driver: what runs first on a GPU has run before.

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

/// The folder of the emulated driver; `None`, said once, without a compiler.
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

/// What `train bench` prints, and its JSON.
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

#[test]
fn cuda_the_check_of_a_gpu_machine_runs_to_its_end_on_the_emulated_driver() {
    let Some(folder) = emulated_gpu() else { return };
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("results");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-check.sh");
    let output = Command::new("bash")
        .args([script, out.to_str().unwrap(), "--tiny"])
        .env("TRAIN", env!("CARGO_BIN_EXE_train"))
        .env("LD_LIBRARY_PATH", cuda_support::with_cudnn(&folder))
        .env("PYTHON", "false")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{}", read("correctness.txt"));
    for name in ["correctness", "ops-tiny", "step-tiny", "decode-tiny", "grpo-step-tiny"] {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.ends_with("went well"), "{line}\n{}", read(&format!("{name}.txt")));
    }
    assert!(said.contains("memcheck"), "{said}");
    let ops = read("ops-tiny.txt");
    assert!(ops.contains("EMULATED: there is no GPU here"), "{ops}");
    let numbers: Value = serde_json::from_str(&read("step-tiny.json")).unwrap();
    assert_eq!(numbers["is_emulated"], true);
    assert!(numbers["lines"][0]["milliseconds"].as_f64().unwrap() > 0.0);
    let operations = read("correctness.txt");
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
    let names = ["generation", "update: forward and backward", "update: optimizer", "step"];
    for (line, name) in numbers["lines"].as_array().unwrap().iter().zip(names) {
        assert_eq!(line["name"], name);
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
