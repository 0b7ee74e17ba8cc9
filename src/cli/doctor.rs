//! `train doctor` shows what this machine offers, its GPUs included, and which protections the judge has
//! here.
//!
//! It exits with code 0 if programs can be judged, and otherwise with 1: then only `sft`, `generate` and
//! `score` work.

use super::judge::JudgeArgs;
use crate::base::{human, memory};
use crate::run::environment;
use crate::sandbox::{Judge, Layers};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fmt::Write;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// How the judge would be started
    #[command(flatten)]
    judge: JudgeArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    kernel: String,
    cpu: Cpu,
    memory: Memory,
    disk: Disk,
    gpu: Gpus,
    judge: JudgeState,
}

#[cfg(feature = "cuda")]
type Gpus = crate::cuda::inventory::Inventory;

/// What a build without CUDA reports about GPUs.
#[cfg(not(feature = "cuda"))]
#[derive(Debug, Serialize)]
struct Gpus {
    error: &'static str,
}

#[derive(Debug, Serialize)]
struct Cpu {
    model: String,
    cores: usize,
    simd: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Memory {
    total_bytes: u64,
    available_bytes: u64,
}

/// The file system of the working directory.
#[derive(Debug, Serialize)]
struct Disk {
    free_bytes: u64,
    temporary_free_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum JudgeState {
    Ready(Box<Layers>),
    Refused { error: String },
}

pub fn run(args: Args) -> Result<()> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        kernel: environment::os(),
        cpu: Cpu {
            model: environment::cpu(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            simd: simd(),
        },
        memory: Memory {
            total_bytes: memory::total().unwrap_or(0),
            available_bytes: memory::available().unwrap_or(0),
        },
        disk: Disk {
            free_bytes: free_bytes(std::path::Path::new(".")),
            temporary_free_bytes: free_bytes(&std::env::temp_dir()),
        },
        gpu: gpus(),
        judge: match Judge::start(args.judge.options()) {
            Ok(judge) => JudgeState::Ready(Box::new(judge.layers().clone())),
            Err(e) => JudgeState::Refused { error: format!("{e:#}") },
        },
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&report).context("encoding the report")? + "\n",
        false => report.text(),
    };
    super::print(text)?;
    match report.judge {
        JudgeState::Ready(_) => Ok(()),
        JudgeState::Refused { .. } => bail!("the judge cannot start here, see above"),
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<10}{value}");
        };
        line("train", format!("{} on {}", self.version, self.kernel));
        let simd = self.cpu.simd.join(" ");
        line("cpu", format!("{} cores, {} ({simd})", self.cpu.cores, self.cpu.model));
        let (total, available) = (self.memory.total_bytes, self.memory.available_bytes);
        line("memory", format!("{}, {} available", human::bytes(total), human::bytes(available)));
        let (here, temporary) = (self.disk.free_bytes, self.disk.temporary_free_bytes);
        line(
            "disk",
            format!(
                "{} free here, {} for temporary files",
                human::bytes(here),
                human::bytes(temporary)
            ),
        );
        for (name, value) in self.gpu.lines() {
            line(&name, value);
        }
        match &self.judge {
            JudgeState::Ready(layers) => {
                line("python", format!("{} at {}", layers.python, layers.python_path));
                line("judge", layers.to_string().trim_start_matches("judge: ").to_owned());
            }
            JudgeState::Refused { error } => line("judge", format!("cannot start: {error}")),
        }
        text
    }
}

#[cfg(feature = "cuda")]
fn gpus() -> Gpus {
    crate::cuda::inventory()
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Gpus {
    Gpus { error: "not in this build (cargo build --release --features cuda)" }
}

#[cfg(not(feature = "cuda"))]
impl Gpus {
    fn lines(&self) -> Vec<(String, String)> {
        vec![("gpu".to_owned(), self.error.to_owned())]
    }
}

fn free_bytes(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |fs| fs.blocks_available() * fs.fragment_size())
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Vec<&'static str> {
    let found = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    found.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> Vec<&'static str> {
    Vec::new()
}
