//! This file builds cuDNN's plans for attention without a GPU, for a described H100.
//!
//! The test needs cuDNN (`scripts/cuda-toolkit.sh --cudnn`) and a C compiler, and prints a message
//! where they are missing. It is alone in its file, because it puts a stand-in for the driver into
//! the process.

#![cfg(feature = "cuda")]

mod cuda_support;

use codeseq::cuda::HalfFormat;
use codeseq::cuda::cudnn::{PlanReport, Sizes, check_plans, version};
use cuda_support::{driver_or, preload};
use std::path::{Path, PathBuf};

/// cuDNN calls these functions of the driver while it compiles: loading a kernel succeeds, and
/// there is no device.
const DRIVER: &str = include_str!("cuda_support/compile_only_driver.c");

/// This is cuDNN's description of a device.
const H100: &str = include_str!("cuda_support/h100.json");

const LLAMA3_8B: Sizes =
    Sizes { segments: 64, length: 5120, heads: 32, kv_heads: 8, head_dim: 128 };
const QWEN25_7B: Sizes =
    Sizes { segments: 64, length: 5120, heads: 28, kv_heads: 4, head_dim: 128 };

/// These engines use Hopper's own instructions, forward and backward; others are far slower.
const HOPPER_ENGINES: [i64; 2] = [2, 6];

fn has_cudnn() -> bool {
    let toolkit = Path::new(env!("CARGO_MANIFEST_DIR")).join(".toolkit");
    let home = std::env::var_os("CUDA_HOME").map_or(toolkit, PathBuf::from);
    preload(&home.join("lib/libcudnn.so.9")) || preload(Path::new("libcudnn.so.9"))
}

#[test]
fn cuda_attention_of_both_models_compiles_for_an_h100() {
    if driver_or(DRIVER).is_none() || !has_cudnn() {
        println!("SKIPPED: cuDNN is missing: run scripts/cuda-toolkit.sh --cudnn");
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

/// Describes another card by what differs from an H100: compute capability, multiprocessors, and the shared
/// memory in bytes that a block may ask for.
fn card([capability, multiprocessors, shared_bytes]: [u32; 3]) -> String {
    let mut properties: serde_json::Value =
        serde_json::from_str(H100).expect("the description of an H100 is JSON");
    for (key, value) in [
        ("deviceVer", capability),
        ("multiProcessorCount", multiprocessors),
        ("maxSharedMemoryPerBlockOptin", shared_bytes),
    ] {
        properties[key] = value.into();
    }
    properties.to_string()
}

#[test]
fn cuda_attention_of_both_models_compiles_for_a_b200_and_needs_too_much_memory_elsewhere() {
    if driver_or(DRIVER).is_none() || !has_cudnn() {
        println!("SKIPPED: cuDNN is missing: run scripts/cuda-toolkit.sh --cudnn");
        return;
    }
    let check =
        |sizes: &Sizes, properties| check_plans(sizes, HalfFormat::Bf16, &card(properties), false);
    for sizes in [LLAMA3_8B, QWEN25_7B] {
        let plans = check(&sizes, [1000, 148, 232_448]).unwrap();
        assert!(plans.iter().all(is_small), "B200: {plans:?}");
        // There our own kernels compute attention.
        for (name, properties) in [
            ("A100", [800, 108, 166_912]),
            ("RTX 3090", [860, 82, 101_376]),
            ("RTX 4090", [890, 128, 101_376]),
            ("RTX 5090", [1200, 170, 101_376]),
        ] {
            let refusal = format!("{:#}", check(&sizes, properties).unwrap_err());
            assert!(refusal.contains("needs a workspace of"), "{name}: {refusal}");
        }
    }
}

/// Tells whether a plan needs memory in proportion to tokens, not to their square.
fn is_small(plan: &PlanReport) -> bool {
    plan.workspace_bytes < 16 << 20
}
