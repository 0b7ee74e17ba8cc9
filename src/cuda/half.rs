//! This file defines the 16-bit numbers that weights, activations and their gradients are on a GPU.
//!
//! Contract: a GPU computes with one of two formats, which is chosen when it is opened
//! ([`Device::open`](super::Device::open)). A [`Half`] does not say which format it has; its device
//! does, and only conversions on the host ask for it. Both formats round to nearest, ties to even,
//! and turn numbers that are too large into infinity.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

/// A 16-bit number in the format of the GPU that it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Half(u16);

impl Half {
    /// The bits of zero are the same in both formats.
    pub const ZERO: Self = Self(0);

    pub fn to_bits(self) -> u16 {
        self.0
    }
}

/// The format says what the bits of a [`Half`] mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HalfFormat {
    /// bfloat16 has the range of f32 and 8 bits of precision.
    #[default]
    Bf16,
    /// IEEE half precision has 11 bits of precision and reaches from 6e-8 to 65,504. Training with
    /// it needs a loss scale.
    Fp16,
}

impl HalfFormat {
    /// Rounds `x` to the nearest number of this format.
    pub fn narrow(self, x: f32) -> Half {
        Half(match self {
            Self::Bf16 => bf16::from_f32(x).to_bits(),
            Self::Fp16 => f16::from_f32(x).to_bits(),
        })
    }

    /// Converts `x` to f32, which is exact.
    pub fn widen(self, x: Half) -> f32 {
        match self {
            Self::Bf16 => bf16::from_bits(x.0).to_f32(),
            Self::Fp16 => f16::from_bits(x.0).to_f32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_round_to_even_and_overflow_to_infinity() {
        let back = |format: HalfFormat, x| format.widen(format.narrow(x));
        let (bf16, fp16) = (HalfFormat::Bf16, HalfFormat::Fp16);
        assert_eq!(
            [back(bf16, 1.0 + 1.0 / 256.0), back(bf16, 1.0 + 3.0 / 256.0)],
            [1.0, 1.015_625]
        );
        assert_eq!([back(fp16, 2049.0), back(fp16, 2051.0)], [2048.0, 2052.0]);
        assert_eq!([back(fp16, 65_519.0), back(fp16, 65_520.0)], [65_504.0, f32::INFINITY]);
        assert_eq!([back(fp16, 6e-8), back(fp16, 2e-8)], [f32::powi(2.0, -24), 0.0]);
        assert!(back(bf16, 65_520.0) < 66_000.0 && back(fp16, f32::NAN).is_nan());
    }
}
