//! `gpu-check`: whether a GPU computes what the CPU does, in one binary that can be carried to it.
//!
//! Contract: the checks run every operation through its launcher ([`operations`]), then whole models
//! ([`models`]). Each runs twice, and its bits have to agree; only the backward of a cuDNN before 9.25 may
//! differ. A check of cuDNN is skipped where the library is not installed, which is neither right nor wrong.
//! Left out: speed.

mod models;
mod operations;

use crate::cuda::{Gpu, HalfFormat, cudnn};
use anyhow::Result;
use serde::Serialize;

/// What one check found.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// How far it is off, in words.
    pub found: String,
    /// What that means.
    pub outcome: Outcome,
}

/// What a check says of the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The GPU computes what the CPU does.
    Right,
    /// The GPU computes something else.
    Wrong,
    /// The check could not run here, and says nothing.
    Skipped,
}

impl Outcome {
    fn right_if(is_right: bool) -> Self {
        if is_right { Self::Right } else { Self::Wrong }
    }
}

/// How large the inputs of single operations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shapes {
    /// Odd and small ones: for an emulated GPU, and for compute-sanitizer
    Small,
    /// Those and the shapes of LLaMA3-8B and Qwen2.5-7B
    Full,
}

impl Shapes {
    /// Returns `odd`, and in full `real` too.
    fn choose<T: Clone>(self, odd: &[T], real: &[T]) -> Vec<T> {
        match self {
            Self::Small => odd.to_vec(),
            Self::Full => [odd, real].concat(),
        }
    }

    /// Bytes of device memory that the largest takes.
    fn memory(self) -> usize {
        match self {
            Self::Small => 256 << 20,
            Self::Full => 4 << 30,
        }
    }
}

/// Runs all checks on device `ordinal`, with a little of its memory: in bf16, and in fp16, whose kernels
/// are the same sources, at odd shapes alone.
pub fn run(ordinal: usize, shapes: Shapes) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (format, shapes) in [(HalfFormat::Bf16, shapes), (HalfFormat::Fp16, Shapes::Small)] {
        let mut gpu = Gpu::open(ordinal, format, Some(shapes.memory()))?;
        checks.extend(operations::check(&mut gpu, shapes)?);
        drop(gpu);
        models::check(ordinal, format, &mut checks)?;
    }
    Ok(checks)
}

/// Whether equal passes have to give equal bits, with cuDNN's attention or without.
fn deterministic(has_cudnn: bool) -> bool {
    let is_ordered = |(version, _)| version >= cudnn::DETERMINISTIC_SINCE;
    !has_cudnn || cudnn::version().is_ok_and(is_ordered)
}
