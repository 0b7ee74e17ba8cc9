//! cuDNN's plans for attention, built without a GPU for a described H100.
//!
//! Needs cuDNN (`scripts/cuda-toolkit.sh --cudnn`) and a C compiler; says so loudly where they are
//! missing. Alone in its file, because it puts a stand-in for the driver into the process.

#![cfg(feature = "cuda")]

mod cuda_support;

use codeseq::cuda::HalfFormat;
use codeseq::cuda::cudnn::{PlanReport, Sizes, check_plans, version};
use cuda_support::{driver_or, preload};
use std::path::{Path, PathBuf};

/// The driver's functions that cuDNN calls while it compiles: loading a kernel succeeds, there is no
/// device.
const DRIVER: &str = include_str!("cuda_support/compile_only_driver.c");

/// What cuDNN wants to know of a device.
const H100: &str = include_str!("cuda_support/h100.json");

const LLAMA3_8B: Sizes =
    Sizes { segments: 64, length: 5120, heads: 32, kv_heads: 8, head_dim: 128 };
const QWEN25_7B: Sizes =
    Sizes { segments: 64, length: 5120, heads: 28, kv_heads: 4, head_dim: 128 };

/// The engines with Hopper's own instructions, forward and backward: others are far slower.
const HOPPER_ENGINES: [i64; 2] = [2, 6];

fn has_cudnn() -> bool {
    let toolkit = Path::new(env!("CARGO_MANIFEST_DIR")).join(".toolkit");
    let home = std::env::var_os("CUDA_HOME").map_or(toolkit, PathBuf::from);
    preload(&home.join("lib/libcudnn.so.9")) || preload(Path::new("libcudnn.so.9"))
}

#[test]
fn cuda_attention_of_both_models_compiles_for_an_h100() {
    if driver_or(DRIVER).is_none() || !has_cudnn() {
        println!("SKIPPED: no cuDNN here: run scripts/cuda-toolkit.sh --cudnn");
        return;
    }
    let (version, file) = version().unwrap();
    println!("cuDNN {version} at {file:?}");
    for (name, sizes, format) in [
        ("llama3-8b", LLAMA3_8B, HalfFormat::Bf16),
        ("qwen2.5-7b", QWEN25_7B, HalfFormat::Bf16),
        ("llama3-8b in fp16", LLAMA3_8B, HalfFormat::Fp16),
    ] {
        let plans = check_plans(&sizes, format, H100, false).unwrap();
        println!("{name}: {plans:?}");
        assert_eq!(plans.map(|plan| plan.engine), HOPPER_ENGINES);
        assert!(plans.iter().all(is_small), "{plans:?}");
        if version >= 92_500 {
            let plans = check_plans(&sizes, format, H100, true).unwrap();
            println!("{name}, deterministic: {plans:?}");
            assert!(plans.iter().all(is_small), "{plans:?}");
        } else {
            let refusal = check_plans(&sizes, format, H100, true).unwrap_err();
            assert!(format!("{refusal:#}").contains("no deterministic backward"), "{refusal:#}");
        }
    }
}

/// Whether a plan needs memory in proportion to tokens, not to their square.
fn is_small(plan: &PlanReport) -> bool {
    plan.workspace_bytes < 16 << 20
}
