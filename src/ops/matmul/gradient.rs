//! The weight gradient `dyᵀ · x`.
//!
//! Tokens are summed in ascending order, in blocks of [`DEPTH`], whatever the number of threads.

use super::pack::pack_columns;
use super::{DEPTH, PANEL, Start, Strides, TILE, finish, tile, with_tile_rows};
use crate::ops::buffer::{Buffer, aligned, parts};
use crate::ops::parallel::{SharedMut, for_each};
use crate::ops::simd::{LANES, Simd, simd_fn};

/// A work item computes this many rows of the weight gradient.
const GRADIENT_ROWS: usize = 16 * TILE;
/// A work item computes this many columns of the weight gradient.
const GRADIENT_COLUMNS: usize = 16 * PANEL;
/// A thread's scratch buffer in [`weight_gradient`] has this many floats.
pub const WEIGHT_GRADIENT_SCRATCH: usize =
    aligned(DEPTH * GRADIENT_ROWS + LANES) + DEPTH * GRADIENT_COLUMNS;

/// Adds `dyᵀ · x` to `gradient` (`[outputs, inputs]`) on the pool, for `dy` of `[tokens, outputs]` and `x`
/// of `[tokens, inputs]`.
pub fn weight_gradient(
    dy: &[f32],
    x: &[f32],
    tokens: usize,
    gradient: &mut [f32],
    scratch: &mut [Buffer],
) {
    if tokens == 0 {
        return;
    }
    let (outputs, inputs) = (dy.len() / tokens, x.len() / tokens);
    assert_eq!(gradient.len(), outputs * inputs);
    let row_blocks = outputs.div_ceil(GRADIENT_ROWS);
    let items = row_blocks * inputs.div_ceil(GRADIENT_COLUMNS);
    let shared = SharedMut::new(gradient);
    for_each(items, scratch, |item, scratch| {
        let row = item % row_blocks * GRADIENT_ROWS;
        let column = item / row_blocks * GRADIENT_COLUMNS;
        let rows = GRADIENT_ROWS.min(outputs - row);
        let columns = GRADIENT_COLUMNS.min(inputs - column);
        let [left, right] =
            parts(scratch, [DEPTH * GRADIENT_ROWS + LANES, DEPTH * GRADIENT_COLUMNS]);
        for token in (0..tokens).step_by(DEPTH) {
            let depth = DEPTH.min(tokens - token);
            let dy = &dy[token * outputs..(token + depth) * outputs];
            let x = &x[token * inputs..(token + depth) * inputs];
            for (tile, out) in left.chunks_mut(DEPTH * TILE).enumerate().take(rows.div_ceil(TILE)) {
                let first = row + tile * TILE;
                let width = TILE.min(row + rows - first);
                for (out, dy) in out.chunks_exact_mut(TILE).zip(dy.chunks_exact(outputs)) {
                    match dy[first..].first_chunk::<TILE>() {
                        Some(whole) if width == TILE => out.copy_from_slice(whole),
                        _ => out[..width].copy_from_slice(&dy[first..first + width]),
                    }
                }
            }
            for (panel, out) in
                right.chunks_mut(DEPTH * PANEL).enumerate().take(columns.div_ceil(PANEL))
            {
                let first = panel * PANEL;
                pack_columns(x, inputs, column + first, PANEL.min(columns - first), out);
            }
            // SAFETY: this item alone writes this rectangle, which lies within the gradient.
            unsafe {
                let target = shared.pointer(row * inputs + column);
                gradient_block(left, right, depth, rows, columns, target, inputs);
            }
        }
    });
}

simd_fn!(
    /// Adds the product of the packed block to the rectangle of `rows` x `columns` at `out`.
    ///
    /// # Safety
    /// The rectangle, with rows `stride` apart, is writable and nobody else's.
    unsafe fn gradient_block(
        left: &[f32],
        right: &[f32],
        depth: usize,
        rows: usize,
        columns: usize,
        out: *mut f32,
        stride: usize,
    ) = gradient_block_generic
);

#[inline(always)]
unsafe fn gradient_block_generic<S: Simd>(
    s: S,
    left: &[f32],
    right: &[f32],
    depth: usize,
    rows: usize,
    columns: usize,
    out: *mut f32,
    stride: usize,
) {
    let strides = Strides { row: 1, depth: TILE };
    for (panel, right) in right.chunks(DEPTH * PANEL).enumerate().take(columns.div_ceil(PANEL)) {
        let width = PANEL.min(columns - panel * PANEL);
        for (index, left) in left.chunks(DEPTH * TILE).enumerate().take(rows.div_ceil(TILE)) {
            assert!(depth * PANEL <= right.len() && depth * TILE <= left.len());
            // SAFETY: the packed blocks hold `depth` rows; the target is the caller's rectangle.
            unsafe {
                let (left, right) = (left.as_ptr(), right.as_ptr());
                let target = out.add(index * TILE * stride + panel * PANEL);
                with_tile_rows!(rows - index * TILE, R => {
                    let sums = tile::<S, f32, R>(s, depth, left, strides, right, PANEL);
                    finish(s, sums, Start::Accumulate, target, stride, width);
                });
            }
        }
    }
}
