//! Vectors of eight floats: AVX2 where the machine has it, and a scalar path elsewhere.
//!
//! Both paths give the same bits: every multiply-add is fused, and every sum over lanes goes through
//! [`sum_lanes`]. A kernel is written once, generic over [`Simd`], and made callable by [`simd_fn!`], which
//! picks the path at run time. Vectors must not pass through closures, which are compiled without the
//! instruction set. AVX-512 is not used.

/// A vector has this many lanes.
pub const LANES: usize = 8;

/// An instruction set. A value of it proves that the machine has the instructions.
pub trait Simd: Copy {
    /// A vector of eight floats.
    type V: Copy;

    /// Returns a vector with `x` in all lanes.
    fn splat(self, x: f32) -> Self::V;
    /// Loads eight floats.
    fn load(self, x: &[f32; LANES]) -> Self::V;
    /// Writes the eight floats to `out`.
    fn store(self, x: Self::V, out: &mut [f32; LANES]);
    /// Widens eight bf16 numbers, given as bits; it is exact.
    fn widen_bf16(self, x: [u16; LANES]) -> Self::V;
    /// Widens eight f16 numbers, given as bits; it is exact.
    fn widen_f16(self, x: [u16; LANES]) -> Self::V;
    /// Turns rows into columns.
    fn transpose(self, rows: [[u16; LANES]; LANES]) -> [[u16; LANES]; LANES];
    /// Returns a + b.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns a - b.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns a * b.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns a / b.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns the square root of a.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Returns a * b + c, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Returns the larger number of each lane; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns the smaller number of each lane; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Returns 0 in the lanes where `a < b`, and `x` in the others.
    fn zero_where_less(self, a: Self::V, b: Self::V, x: Self::V) -> Self::V;
    /// Returns `x` times 2^n in each lane, where `magic` is [`ROUND_MAGIC`] + n.
    fn times_power_of_two(self, x: Self::V, magic: Self::V) -> Self::V;
}

/// Adding this to a small float rounds it to an integer, which then stands in the low bits of the mantissa.
pub const ROUND_MAGIC: f32 = 12_582_912.0;

/// The portable path. The compiler vectorises its arrays as the target allows.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Simd for Scalar {
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::V, out: &mut [f32; LANES]) {
        *out = x;
    }
    #[inline(always)]
    fn widen_bf16(self, x: [u16; LANES]) -> Self::V {
        x.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    fn widen_f16(self, x: [u16; LANES]) -> Self::V {
        x.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn transpose(self, rows: [[u16; LANES]; LANES]) -> [[u16; LANES]; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn zero_where_less(self, a: Self::V, b: Self::V, x: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { 0.0 } else { x[i] })
    }
    #[inline(always)]
    fn times_power_of_two(self, x: Self::V, magic: Self::V) -> Self::V {
        std::array::from_fn(|i| {
            let exponent = magic[i].to_bits().wrapping_add(127) << 23;
            x[i] * f32::from_bits(exponent)
        })
    }
}

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{LANES, Simd};
    use std::arch::x86_64::*;

    /// AVX2 with fused multiply-add and f16 conversion. It exists only where [`Avx2::detect`] found all
    /// three.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    impl Avx2 {
        /// Returns the proof, if this machine has the instructions.
        #[inline(always)]
        pub fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c"))
            .then_some(Self(()))
        }
    }

    impl Simd for Avx2 {
        type V = __m256;

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            // SAFETY: `self` proves AVX2, FMA and F16C, here and in every method below.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> __m256 {
            // SAFETY: the array holds the eight floats read.
            unsafe { _mm256_loadu_ps(x.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, x: __m256, out: &mut [f32; LANES]) {
            // SAFETY: the array holds the eight floats written.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
        }
        #[inline(always)]
        fn widen_bf16(self, x: [u16; LANES]) -> __m256 {
            // SAFETY: the array holds the sixteen bytes read; see `splat`.
            unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        fn widen_f16(self, x: [u16; LANES]) -> __m256 {
            // SAFETY: the array holds the sixteen bytes read; see `splat`.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())) }
        }
        #[inline(always)]
        fn transpose(self, rows: [[u16; LANES]; LANES]) -> [[u16; LANES]; LANES] {
            let mut rows: [__m128i; LANES] = bytemuck::cast(rows);
            // Interleaving the upper and the lower half of the rows three times transposes them.
            for _ in 0..3 {
                let [a, b, c, d, e, f, g, h] = rows;
                // SAFETY: see `splat`.
                let both = |x, y| unsafe { [_mm_unpacklo_epi16(x, y), _mm_unpackhi_epi16(x, y)] };
                rows = bytemuck::cast([both(a, e), both(b, f), both(c, g), both(d, h)]);
            }
            bytemuck::cast(rows)
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        fn sqrt(self, a: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe { _mm256_sqrt_ps(a) }
        }
        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        fn zero_where_less(self, a: __m256, b: __m256, x: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(a, b), x) }
        }
        #[inline(always)]
        fn times_power_of_two(self, x: __m256, magic: __m256) -> __m256 {
            // SAFETY: see `splat`.
            unsafe {
                let n = _mm256_add_epi32(_mm256_castps_si256(magic), _mm256_set1_epi32(127));
                _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n)))
            }
        }
    }
}

/// Declares a function whose body is generic over [`Simd`], and which runs it on the best path of this
/// machine. `simd_fn!(/// docs pub fn name(args) -> T = generic::path);` calls `generic(simd, args)`.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $generic:ident) => {
        $(#[$meta])*
        $vis unsafe fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn with_avx2(simd: $crate::ops::simd::Avx2, $($arg: $ty),*) {
                    // SAFETY: the caller's promise is that of the generic function.
                    unsafe { $generic(simd, $($arg),*) }
                }
                if let Some(simd) = $crate::ops::simd::Avx2::detect() {
                    // SAFETY: `detect` found the features; the rest is the caller's promise.
                    return unsafe { with_avx2(simd, $($arg),*) };
                }
            }
            // SAFETY: the caller's promise is that of the generic function.
            unsafe { $generic($crate::ops::simd::Scalar, $($arg),*) }
        }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn with_avx2(simd: $crate::ops::simd::Avx2, $($arg: $ty),*) $(-> $ret)? {
                    $generic(simd, $($arg),*)
                }
                if let Some(simd) = $crate::ops::simd::Avx2::detect() {
                    // SAFETY: `detect` found the features that the function enables.
                    return unsafe { with_avx2(simd, $($arg),*) };
                }
            }
            $generic($crate::ops::simd::Scalar, $($arg),*)
        }
    };
}
pub(crate) use simd_fn;

/// Fetches the first 4 KiB of `floats` into the cache for a read that comes soon. After that, the processor
/// itself fetches ahead of a read in order.
#[inline(always)]
pub fn prefetch(floats: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in floats.chunks(super::buffer::LINE).take(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: part of every x86-64 processor; any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = floats;
}

/// Loads up to eight floats, with `fill` in the lanes that remain.
#[inline(always)]
pub fn load_partial<S: Simd>(s: S, x: &[f32], fill: f32) -> S::V {
    let mut lanes = [fill; LANES];
    lanes[..x.len()].copy_from_slice(x);
    s.load(&lanes)
}

/// Stores the first `out.len()` lanes.
#[inline(always)]
pub fn store_partial<S: Simd>(s: S, x: S::V, out: &mut [f32]) {
    let mut lanes = [0.0; LANES];
    s.store(x, &mut lanes);
    let count = out.len();
    out.copy_from_slice(&lanes[..count]);
}

/// Returns the sum of the lanes, always added in the same order.
#[inline(always)]
pub fn sum_lanes<S: Simd>(s: S, x: S::V) -> f32 {
    let mut l = [0.0; LANES];
    s.store(x, &mut l);
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

/// Returns the largest lane.
#[inline(always)]
pub fn max_lanes<S: Simd>(s: S, x: S::V) -> f32 {
    let mut lanes = [0.0; LANES];
    s.store(x, &mut lanes);
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Returns exp(x) with a relative error below 2e-7: 0 below -87.3, at most about 1.7e38, and exactly 1 at
/// 0.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.02;
    // ln 2 is split in two. The first part has few bits, so that x - n ln 2 is nearly exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // The minimax coefficients of exp(r) for |r| <= ln 2 / 2, highest power first.
    const POLYNOMIAL: [f32; 5] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1];

    let clamped = s.min(s.splat(HIGHEST), s.max(s.splat(LOWEST), x));
    let magic = s.fma(clamped, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND_MAGIC));
    let n = s.sub(magic, s.splat(ROUND_MAGIC));
    let r = s.fma(n, s.splat(-LN_2_HIGH), clamped);
    let r = s.fma(n, s.splat(-LN_2_LOW), r);
    let mut p = s.splat(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = s.fma(p, r, s.splat(*c));
    }
    p = s.fma(p, r, s.splat(0.5));
    let r2 = s.mul(r, r);
    let p = s.add(s.fma(p, r2, r), s.splat(1.0));
    s.zero_where_less(x, s.splat(LOWEST), s.times_power_of_two(p, magic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    fn exp_all<S: Simd>(s: S, x: &mut [f32]) {
        let (chunks, []) = x.as_chunks_mut::<LANES>() else { panic!("multiple of 8") };
        for chunk in chunks {
            let y = exp(s, s.load(chunk));
            s.store(y, chunk);
        }
    }
    simd_fn!(fn exp_fast(x: &mut [f32]) = exp_all);

    #[test]
    fn exp_is_accurate_everywhere_and_exact_at_zero() {
        let inputs: Vec<f32> = (0..80_000).map(|i| -87.3 + i as f32 * (175.0 / 80_000.0)).collect();
        let mut values = inputs.clone();
        exp_fast(&mut values);
        for (&x, &y) in inputs.iter().zip(&values) {
            let exact = f64::from(x).exp();
            assert!((f64::from(y) - exact).abs() <= 2e-7 * exact, "exp({x}) = {y}, not {exact}");
        }
        let mut special = [0.0, -0.0, -200.0, f32::NEG_INFINITY, f32::NAN, 1.0, 0.0, 0.0];
        exp_fast(&mut special);
        assert_eq!(special[..4], [1.0, 1.0, 0.0, 0.0]);
        assert!(special[4].is_nan());
    }

    #[inline(always)]
    fn transpose_generic<S: Simd>(s: S, square: &mut [[u16; LANES]; LANES]) {
        *square = s.transpose(*square);
    }
    simd_fn!(fn transpose_fast(square: &mut [[u16; LANES]; LANES]) = transpose_generic);

    #[test]
    fn rows_become_columns() {
        let square: [[u16; LANES]; LANES] =
            std::array::from_fn(|i| std::array::from_fn(|j| (10 * i + j) as u16));
        let turned = std::array::from_fn(|i| std::array::from_fn(|j| square[j][i]));
        let (mut fast, mut scalar) = (square, square);
        transpose_fast(&mut fast);
        transpose_generic(Scalar, &mut scalar);
        assert_eq!((fast, scalar), (turned, turned));
    }

    #[test]
    fn the_scalar_path_gives_the_same_bits() {
        let mut fast: Vec<f32> = (0..8_000).map(|i| -90.0 + i as f32 * 0.022_3).collect();
        let mut scalar = fast.clone();
        exp_fast(&mut fast);
        exp_all(Scalar, &mut scalar);
        assert_eq!(fast, scalar);
    }
}
