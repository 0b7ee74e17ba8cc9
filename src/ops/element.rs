//! The number formats in which weights are stored, and how they are widened to f32.
//!
//! Widening is exact, so a product with stored weights has the bits of the product with the same weights in
//! f32. Numbers may lie at any address.

use super::simd::{LANES, Simd, simd_fn};
use half::{bf16, f16};
use std::borrow::Cow;

/// The number format of a stored weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// bfloat16: the upper half of a 32-bit float.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Dtype {
    /// Returns the bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// Numbers as they are stored, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Elements<'a> {
    pub dtype: Dtype,
    pub bytes: &'a [u8],
}

/// Numbers where they are stored, or made of what is stored.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    /// Their format.
    pub dtype: Dtype,
    /// Their bytes.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> From<Elements<'a>> for Stored<'a> {
    fn from(Elements { dtype, bytes }: Elements<'a>) -> Self {
        Self { dtype, bytes: Cow::Borrowed(bytes) }
    }
}

impl Stored<'_> {
    /// The numbers.
    pub fn elements(&self) -> Elements<'_> {
        Elements { dtype: self.dtype, bytes: &self.bytes }
    }
}

impl<'a> From<&'a [f32]> for Elements<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self { dtype: Dtype::F32, bytes: bytemuck::cast_slice(values) }
    }
}

impl<'a> Elements<'a> {
    /// Counts the numbers.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns `len` numbers from number `first` on.
    pub fn slice(&self, first: usize, len: usize) -> Elements<'a> {
        let size = self.dtype.size();
        Self { dtype: self.dtype, bytes: &self.bytes[first * size..(first + len) * size] }
    }

    /// Returns whether no number is NaN or infinite: such a number has only ones in its exponent.
    pub fn is_finite(&self) -> bool {
        match self.dtype {
            Dtype::F32 => none(self.bytes, |x| u32::from_le_bytes(x) << 1 >= 0xff00_0000),
            Dtype::Bf16 => none(self.bytes, |x| u16::from_le_bytes(x) << 1 >= 0xff00),
            Dtype::F16 => none(self.bytes, |x| u16::from_le_bytes(x) << 1 >= 0xf800),
        }
    }

    /// Writes all numbers as f32 to `out`, which has the same length.
    pub fn widen(&self, out: &mut [f32]) {
        assert_eq!(self.len(), out.len(), "as many places as numbers");
        match self.dtype {
            Dtype::F32 => bytemuck::cast_slice_mut(out).copy_from_slice(self.bytes),
            Dtype::Bf16 => widen_bf16(self.bytes, out),
            Dtype::F16 => widen_f16(self.bytes, out),
        }
    }
}

/// Returns whether `is` holds for none of the numbers of `N` bytes.
fn none<const N: usize>(bytes: &[u8], is: impl Fn([u8; N]) -> bool) -> bool {
    // The compiler vectorises only a loop that looks at all numbers.
    let some = |block: &[u8]| block.as_chunks().0.iter().fold(false, |some, &x| some | is(x));
    !bytes.chunks(1 << 12).any(some)
}

/// A stored number that kernels widen as they load it.
pub trait Element: Copy + bytemuck::Pod {
    /// Widens eight numbers.
    fn widen_eight<S: Simd>(s: S, x: [Self; LANES]) -> S::V;
    /// Widens one number.
    fn widen_one(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen_eight<S: Simd>(s: S, x: [Self; LANES]) -> S::V {
        s.load(&x)
    }
    #[inline(always)]
    fn widen_one(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen_eight<S: Simd>(s: S, x: [Self; LANES]) -> S::V {
        s.widen_bf16(bytemuck::cast(x))
    }
    #[inline(always)]
    fn widen_one(self) -> f32 {
        self.to_f32()
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen_eight<S: Simd>(s: S, x: [Self; LANES]) -> S::V {
        s.widen_f16(bytemuck::cast(x))
    }
    #[inline(always)]
    fn widen_one(self) -> f32 {
        self.to_f32()
    }
}

simd_fn!(fn widen_bf16(bytes: &[u8], out: &mut [f32]) = widen_bf16_generic);
simd_fn!(fn widen_f16(bytes: &[u8], out: &mut [f32]) = widen_f16_generic);

#[inline(always)]
fn widen_bf16_generic<S: Simd>(s: S, bytes: &[u8], out: &mut [f32]) {
    widen_all::<S, bf16>(s, bytes, out);
}

#[inline(always)]
fn widen_f16_generic<S: Simd>(s: S, bytes: &[u8], out: &mut [f32]) {
    widen_all::<S, f16>(s, bytes, out);
}

/// Widens the 16-bit numbers in `bytes`.
#[inline(always)]
fn widen_all<S: Simd, E: Element>(s: S, bytes: &[u8], out: &mut [f32]) {
    let (eights, tail) = bytes.as_chunks::<{ 2 * LANES }>();
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    for (eight, out) in eights.iter().zip(out) {
        s.store(E::widen_eight(s, bytemuck::pod_read_unaligned(eight)), out);
    }
    for (one, out) in tail.as_chunks::<2>().0.iter().zip(out_tail) {
        *out = bytemuck::pod_read_unaligned::<E>(one).widen_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::Scalar;

    #[test]
    fn every_half_precision_number_is_widened_exactly_from_any_address() {
        let numbers: Vec<u16> = (0..=u16::MAX).collect();
        let mut bytes = vec![0u8];
        bytes.extend(numbers.iter().flat_map(|bits| bits.to_le_bytes()));
        // The length is one short of a multiple of eight, so that the tail is tested too.
        let bytes = &bytes[1..bytes.len() - 2];
        let mut out = vec![0.0; bytes.len() / 2];
        let mut scalar = out.clone();
        for dtype in [Dtype::Bf16, Dtype::F16] {
            Elements { dtype, bytes }.widen(&mut out);
            match dtype {
                Dtype::F16 => widen_f16_generic(Scalar, bytes, &mut scalar),
                _ => widen_bf16_generic(Scalar, bytes, &mut scalar),
            }
            for ((&bits, &wide), &scalar) in numbers.iter().zip(&out).zip(&scalar) {
                let exact = match dtype {
                    Dtype::F16 => f16::from_bits(bits).to_f64(),
                    _ => bf16::from_bits(bits).to_f64(),
                };
                if exact.is_nan() {
                    assert!(wide.is_nan() && scalar.is_nan(), "{dtype:?} {bits:#x}");
                } else {
                    assert_eq!(f64::from(wide), exact, "{dtype:?} {bits:#x}");
                    assert_eq!(wide.to_bits(), scalar.to_bits(), "{dtype:?} {bits:#x}");
                }
            }
        }
    }
}
