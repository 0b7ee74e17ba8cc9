//! `train gpu-check` and `train bench` on the emulated driver: what runs first on a GPU has run before.

#![cfg(feature = "cuda")]

mod cuda_support;

use std::process::Command;

#[test]
fn cuda_the_check_of_a_gpu_machine_runs_to_its_end_on_the_emulated_driver() {
    let Some(folder) = cuda_support::emulated_gpu() else {
        return println!("SKIPPED: no C++ compiler");
    };
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("results");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-check.sh");
    let output = Command::new("bash")
        .args([script, out.to_str().unwrap(), "--tiny"])
        .env("TRAIN", env!("CARGO_BIN_EXE_train"))
        .env("LD_LIBRARY_PATH", folder)
        .env("PYTHON", "false")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{}", read("correctness.txt"));
    for name in ["correctness", "ops-tiny", "step-tiny", "decode-tiny"] {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.ends_with("went well"), "{line}\n{}", read(&format!("{name}.txt")));
    }
    let ops = read("ops-tiny.txt");
    assert!(ops.contains("EMULATED: there is no GPU here"), "{ops}");
    let numbers: serde_json::Value = serde_json::from_str(&read("step-tiny.json")).unwrap();
    assert_eq!(numbers["is_emulated"], true);
    assert!(numbers["lines"][0]["milliseconds"].as_f64().unwrap() > 0.0);
}
