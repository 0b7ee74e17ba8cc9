//! The number format that a model computes in.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The number format of weights and activations. Sums, and all that an optimizer keeps, are always f32.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision: what a CPU computes with
    F32,
    /// bfloat16: what GPUs compute with by default
    Bf16,
    /// Half precision, on GPUs: three bits more than bfloat16, for numbers up to 65504
    Fp16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        })
    }
}
