//! Numbers of 16 bits in device memory: what weights, activations and their gradients are.
//!
//! Contract: a GPU computes with one of two formats, chosen when it is opened
//! ([`Device::open`](super::Device::open)), so a [`Half`] does not say which it is: only its device
//! does, and only conversions on the host ask. Both round to nearest, ties to even; what is too large
//! becomes infinite.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

/// A number of 16 bits in the format of the GPU that it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Half(u16);

impl Half {
    /// Zero, in both formats.
    pub const ZERO: Self = Self(0);

    /// As it lies in memory.
    pub fn to_bits(self) -> u16 {
        self.0
    }
}

/// What the bits of a [`Half`] mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HalfFormat {
    /// bfloat16: the range of f32, 8 bits of precision.
    #[default]
    Bf16,
    /// IEEE half precision: 11 bits, up to 65,504, and nothing between 0 and 6e-8. Training with it
    /// needs a loss scale.
    Fp16,
}

impl HalfFormat {
    /// The nearest number of this format.
    pub fn narrow(self, x: f32) -> Half {
        Half(match self {
            Self::Bf16 => bf16::from_f32(x).to_bits(),
            Self::Fp16 => f16::from_f32(x).to_bits(),
        })
    }

    /// The same number.
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
