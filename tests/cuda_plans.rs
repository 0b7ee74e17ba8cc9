//! cuDNN's plans for attention, built without a GPU for a described H100.
//!
//! Needs cuDNN (`scripts/cuda-toolkit.sh --cudnn`) and a C compiler; says so loudly where they are
//! missing. Alone in its file, because it puts a stand-in for the driver into the process.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

use codeseq::cuda::attention::{PlanReport, Sizes, check_plans, version};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The driver's functions that cuDNN calls while it compiles: loading a kernel succeeds, there is no
/// device.
const DRIVER: &str = include_str!("cuda_support/driver_stand_in.c");

/// What cuDNN wants to know of a device.
const H100: &str = include_str!("cuda_support/h100.json");

const LLAMA3_8B: Sizes =
    Sizes { segments: 64, length: 5120, heads: 32, kv_heads: 8, head_dim: 128 };
const QWEN25_7B: Sizes =
    Sizes { segments: 64, length: 5120, heads: 28, kv_heads: 4, head_dim: 128 };

/// Opens a library for all that comes after.
fn preload(path: &Path) -> bool {
    // SAFETY: the driver and cuDNN may be loaded at any time.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    library.map(std::mem::forget).is_ok()
}

/// The driver, or a stand-in made here.
fn has_driver(dir: &Path) -> bool {
    if preload(Path::new("libcuda.so.1")) {
        return true;
    }
    let (source, library) = (dir.join("driver.c"), dir.join("libcuda.so.1"));
    std::fs::write(&source, DRIVER).unwrap();
    let made = Command::new("cc")
        .args(["-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
        .args([&library, &source])
        .status();
    made.is_ok_and(|status| status.success()) && preload(&library)
}

fn has_cudnn() -> bool {
    let toolkit = Path::new(env!("CARGO_MANIFEST_DIR")).join(".toolkit");
    let home = std::env::var_os("CUDA_HOME").map_or(toolkit, PathBuf::from);
    preload(&home.join("lib/libcudnn.so.9")) || preload(Path::new("libcudnn.so.9"))
}

#[test]
fn cuda_attention_of_both_models_compiles_for_an_h100() {
    let dir = tempfile::tempdir().unwrap();
    if !has_driver(dir.path()) || !has_cudnn() {
        println!("SKIPPED: no cuDNN here: run scripts/cuda-toolkit.sh --cudnn");
        return;
    }
    let (version, file) = version().unwrap();
    println!("cuDNN {version} at {file:?}");
    for (name, sizes) in [("llama3-8b", LLAMA3_8B), ("qwen2.5-7b", QWEN25_7B)] {
        let plans = check_plans(&sizes, H100, false).unwrap();
        println!("{name}: {plans:?}");
        assert!(plans.iter().all(is_small), "{plans:?}");
        if version >= 92_500 {
            let plans = check_plans(&sizes, H100, true).unwrap();
            println!("{name}, deterministic: {plans:?}");
            assert!(plans.iter().all(is_small), "{plans:?}");
        } else {
            let refusal = check_plans(&sizes, H100, true).unwrap_err();
            assert!(format!("{refusal:#}").contains("no deterministic backward"), "{refusal:#}");
        }
    }
}

/// Whether a plan needs memory in proportion to tokens, not to their square.
fn is_small(plan: &PlanReport) -> bool {
    plan.workspace_bytes < 16 << 20
}
