//! Register tiles: sums of a few rows with one panel, or of one row with a few panels.
//!
//! A sum starts from 0 and runs over depth in ascending order with fused multiply-adds. It is then added to
//! what the result starts with.

use super::{PANEL, Start};
use crate::ops::element::Element;
use crate::ops::simd::{LANES, Simd};

/// How far apart the floats of a left operand are: from row to row, and along the depth.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub(crate) row: usize,
    pub(crate) depth: usize,
}

/// Computes the products of `R` rows with one panel over `depth`.
///
/// # Safety
/// As for [`tile_onto`].
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, E: Element, const R: usize>(
    s: S,
    depth: usize,
    left: *const f32,
    strides: Strides,
    right: *const E,
    right_stride: usize,
) -> [[S::V; 2]; R] {
    // SAFETY: the caller's promise.
    unsafe { tile_onto(s, [[s.splat(0.0); 2]; R], depth, left, strides, right, right_stride) }
}

/// Computes what [`tile`] does, continuing `sums` over an earlier part of the depth. The bits are those of
/// one sum over both parts.
///
/// # Safety
/// `left` is readable at `r * strides.row + d * strides.depth` and `right` at `d * right_stride` and
/// the 15 numbers after it, for all `r < R`, `d < depth`.
#[inline(always)]
pub(crate) unsafe fn tile_onto<S: Simd, E: Element, const R: usize>(
    s: S,
    mut sums: [[S::V; 2]; R],
    depth: usize,
    left: *const f32,
    strides: Strides,
    right: *const E,
    right_stride: usize,
) -> [[S::V; 2]; R] {
    let mut left = left;
    let mut right = right;
    for _ in 0..depth {
        // SAFETY: within the ranges that the caller promises.
        unsafe {
            let b0 = E::widen_eight(s, right.cast::<[E; LANES]>().read_unaligned());
            let b1 = E::widen_eight(s, right.add(LANES).cast::<[E; LANES]>().read_unaligned());
            for (r, sum) in sums.iter_mut().enumerate() {
                let a = s.splat(*left.add(r * strides.row));
                sum[0] = s.fma(a, b0, sum[0]);
                sum[1] = s.fma(a, b1, sum[1]);
            }
            left = left.wrapping_add(strides.depth);
            right = right.wrapping_add(right_stride);
        }
    }
    sums
}

/// Computes the products of one row with `P` panels, `panel_len` numbers apart, over `depth`. The additions
/// of one panel alone would wait for each other.
///
/// # Safety
/// `left` is readable for `depth` floats and each panel for `depth * PANEL` numbers.
#[inline(always)]
pub(crate) unsafe fn row_tile<S: Simd, E: Element, const P: usize>(
    s: S,
    depth: usize,
    left: *const f32,
    right: *const E,
    panel_len: usize,
) -> [[S::V; 2]; P] {
    let mut sums = [[s.splat(0.0); 2]; P];
    for d in 0..depth {
        // SAFETY: within the ranges that the caller promises.
        unsafe {
            let a = s.splat(*left.add(d));
            for (p, sum) in sums.iter_mut().enumerate() {
                let right = right.add(p * panel_len + d * PANEL);
                let b0 = E::widen_eight(s, right.cast::<[E; LANES]>().read_unaligned());
                let b1 = E::widen_eight(s, right.add(LANES).cast::<[E; LANES]>().read_unaligned());
                sum[0] = s.fma(a, b0, sum[0]);
                sum[1] = s.fma(a, b1, sum[1]);
            }
        }
    }
    sums
}

/// Loads the sums that a whole tile of `out` holds.
///
/// # Safety
/// `out` is readable at `r * stride` and the 15 floats after it for all `r < R`.
#[inline(always)]
pub(crate) unsafe fn load_tile<S: Simd, const R: usize>(
    s: S,
    out: *const f32,
    stride: usize,
) -> [[S::V; 2]; R] {
    let mut sums = [[s.splat(0.0); 2]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        for (half, sum) in sums.iter_mut().enumerate() {
            // SAFETY: within the row that the caller promises.
            *sum = s.load(unsafe { &*out.add(r * stride + half * LANES).cast() });
        }
    }
    sums
}

/// Adds a tile's sums to `start` and writes `width` columns of each row of `out`.
///
/// # Safety
/// `out` is writable at `r * stride` and the `width - 1` floats after it for all `r < R`.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd, const R: usize>(
    s: S,
    sums: [[S::V; 2]; R],
    start: Start<'_>,
    out: *mut f32,
    stride: usize,
    width: usize,
) {
    let mut bias = [0.0; PANEL];
    if let Start::Bias(values) = start {
        bias[..width].copy_from_slice(&values[..width]);
    }
    for (r, sums) in sums.into_iter().enumerate() {
        // SAFETY: within the row that the caller promises; `narrow` has a whole panel.
        unsafe {
            let row = out.add(r * stride);
            let mut narrow = [0.0f32; PANEL];
            let target = if width == PANEL {
                row
            } else {
                std::ptr::copy_nonoverlapping(row, narrow.as_mut_ptr(), width);
                narrow.as_mut_ptr()
            };
            for (half, sum) in sums.into_iter().enumerate() {
                let eight: *mut [f32; LANES] = target.add(half * LANES).cast();
                let value = match start {
                    Start::Zero => sum,
                    Start::Accumulate => s.add(s.load(&*eight), sum),
                    Start::Bias(_) => s.add(s.load(&*bias.as_ptr().add(half * LANES).cast()), sum),
                };
                s.store(value, &mut *eight);
            }
            if width < PANEL {
                std::ptr::copy_nonoverlapping(narrow.as_ptr(), row, width);
            }
        }
    }
}

/// Calls `$body` with the constant `$rows` bound to the number of rows of a tile, 1 to 6.
macro_rules! with_tile_rows {
    ($count:expr, $rows:ident => $body:expr) => {
        match $count {
            1 => {
                const $rows: usize = 1;
                $body
            }
            2 => {
                const $rows: usize = 2;
                $body
            }
            3 => {
                const $rows: usize = 3;
                $body
            }
            4 => {
                const $rows: usize = 4;
                $body
            }
            5 => {
                const $rows: usize = 5;
                $body
            }
            _ => {
                const $rows: usize = 6;
                $body
            }
        }
    };
}
pub(crate) use with_tile_rows;
