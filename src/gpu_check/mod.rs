//! This module checks whether a GPU computes what the CPU computes (`gpu-check`), in one binary
//! that can be carried to the GPU.
//!
//! Contract: the checks run every operation through its launcher ([`operations`]), then whole
//! models ([`models`]). Each runs twice, and both runs must give the same bits; only the backward
//! of cuDNN's attention may differ, where its order is not fixed. A check of cuDNN is skipped where the library is not
//! installed, and then says nothing. Left out: speed.

mod models;
mod operations;

use crate::cuda::{Gpu, HalfFormat, cudnn};
use anyhow::Result;
use serde::Serialize;

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The name says what was compared.
    pub name: String,
    /// The text says how far the GPU's numbers are off.
    pub found: String,
    pub outcome: Outcome,
}

/// The meaning of a check's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The GPU computes what the CPU computes.
    Right,
    /// The GPU computes something else.
    Wrong,
    /// The check could not run here, so it says nothing.
    Skipped,
}

impl Outcome {
    fn right_if(is_right: bool) -> Self {
        if is_right { Self::Right } else { Self::Wrong }
    }
}

/// The sizes of the inputs of single operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shapes {
    /// Odd and small ones: for an emulated GPU, and for compute-sanitizer
    Small,
    /// Those and the shapes of LLaMA3-8B and Qwen2.5-7B
    Full,
}

impl Shapes {
    /// Returns `odd`, and for full shapes `real` too.
    fn choose<T: Clone>(self, odd: &[T], real: &[T]) -> Vec<T> {
        match self {
            Self::Small => odd.to_vec(),
            Self::Full => [odd, real].concat(),
        }
    }

    /// Returns how many bytes of device memory the largest operation takes.
    fn memory(self) -> usize {
        match self {
            Self::Small => 256 << 20,
            Self::Full => 4 << 30,
        }
    }
}

/// Runs all checks on GPU `ordinal` with a small part of its memory. They run in bf16 at `shapes`,
/// and in fp16, whose kernels have the same sources, at small shapes alone.
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

/// Tells whether equal passes must give equal bits, with cuDNN's attention or without it.
fn deterministic(capability: (i32, i32), has_cudnn: bool) -> bool {
    let is_ordered = |(version, _)| cudnn::is_deterministic(version, capability);
    !has_cudnn || cudnn::version().is_ok_and(is_ordered)
}
