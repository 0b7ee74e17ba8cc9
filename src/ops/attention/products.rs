//! The products of attention, whose operands lie in panels and in rows with any strides.
//!
//! A sum runs over depth in ascending order, and may continue that of an earlier product.

use crate::ops::matmul::{
    PANEL, Start, Strides, TILE, finish, load_tile, tile, tile_onto, with_tile_rows,
};
use crate::ops::simd::Simd;

/// The left operand of a product: float `d` of row `r` is at `r * strides.row + d * strides.depth`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) floats: &'a [f32],
    pub(crate) strides: Strides,
}

impl<'a> Left<'a> {
    /// Describes rows that lie `stride` floats apart.
    pub(crate) fn rows(floats: &'a [f32], stride: usize) -> Self {
        Self { floats, strides: Strides { row: stride, depth: 1 } }
    }

    /// Describes the transpose of rows that lie `stride` floats apart.
    pub(crate) fn transposed(floats: &'a [f32], stride: usize) -> Self {
        Self { floats, strides: Strides { row: 1, depth: stride } }
    }
}

/// The right operand of a product: `depth` rows of `columns` columns, in panels or row by row.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) floats: &'a [f32],
    pub(crate) depth: usize,
    pub(crate) columns: usize,
}

/// Computes `out = left · right`, where `right` is in panels, for its columns rounded up to whole panels.
///
/// # Safety
/// `left` has `rows` rows of the depth of `right`; `out` has `rows` rows of whole panels, `out_stride` floats
/// apart.
#[inline(always)]
pub(crate) unsafe fn times_panels<S: Simd>(
    s: S,
    left: Left<'_>,
    rows: usize,
    right: Right<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    let Left { floats: left, strides } = left;
    let Right { floats: panels, depth, columns } = right;
    debug_assert!(panels.len() >= columns.div_ceil(PANEL) * PANEL * depth);
    for first in (0..columns).step_by(PANEL) {
        for row in (0..rows).step_by(TILE) {
            // SAFETY: the caller's promise, for each tile of it.
            unsafe {
                let left = left.as_ptr().add(row * strides.row);
                let panel = panels.as_ptr().add(first * depth);
                let target = out.as_mut_ptr().add(row * out_stride + first);
                with_tile_rows!(rows - row, R => {
                    let sums = tile::<S, f32, R>(s, depth, left, strides, panel, PANEL);
                    finish(s, sums, Start::Zero, target, out_stride, PANEL);
                });
            }
        }
    }
}

/// What a product does with the values that the result holds.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sum {
    /// It replaces them.
    New,
    /// It is added to them.
    Add,
    /// It continues them, as if the earlier product and this one were one sum.
    Continue,
}

/// Computes `out (+)= left · right`, where `right` lies row by row and its columns are whole panels.
///
/// # Safety
/// `left` has `rows` rows of the depth of `right`; `out` has `rows` rows of the columns of `right`.
#[inline(always)]
pub(crate) unsafe fn times_rows<S: Simd>(
    s: S,
    left: Left<'_>,
    rows: usize,
    right: Right<'_>,
    sum: Sum,
    out: &mut [f32],
) {
    let Left { floats: left, strides } = left;
    let Right { floats: right, depth, columns: width } = right;
    debug_assert!(right.len() >= depth * width && out.len() >= rows * width);
    let start = if sum == Sum::Add { Start::Accumulate } else { Start::Zero };
    for row in (0..rows).step_by(TILE) {
        for first in (0..width).step_by(PANEL) {
            // SAFETY: the caller's promise, for each tile of it.
            unsafe {
                let left = left.as_ptr().add(row * strides.row);
                let right = right.as_ptr().add(first);
                let target = out.as_mut_ptr().add(row * width + first);
                with_tile_rows!(rows - row, R => {
                    let sums = match sum {
                        Sum::Continue => load_tile::<S, R>(s, target, width),
                        Sum::New | Sum::Add => [[s.splat(0.0); 2]; R],
                    };
                    let sums = tile_onto(s, sums, depth, left, strides, right, width);
                    finish(s, sums, start, target, width, PANEL);
                });
            }
        }
    }
}
