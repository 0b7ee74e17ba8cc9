//! Packing lays a right-hand matrix out in panels of [`PANEL`] columns.
//!
//! A panel is `[depth][PANEL]` numbers, and columns beyond the matrix are 0. The numbers keep their format
//! or become f32.

use super::{DEPTH, PANEL};
use crate::ops::element::{Dtype, Elements};
use crate::ops::simd::{LANES, Simd, simd_fn};

/// Returns the floats of a packed matrix.
pub const fn packed_len(depth: usize, columns: usize) -> usize {
    columns.div_ceil(PANEL) * PANEL * depth
}

/// Packs row-major `weight` of `[columns, depth]` as the right-hand side of `x · weightᵀ`.
pub fn pack_transposed(weight: &[f32], depth: usize, columns: usize, packed: &mut [f32]) {
    assert_eq!(weight.len(), depth * columns);
    for (panel, out) in packed.chunks_exact_mut(depth * PANEL).enumerate() {
        let first = panel * PANEL;
        let width = PANEL.min(columns - first);
        if width < PANEL {
            out.fill(0.0);
        }
        for (column, source) in
            weight[first * depth..(first + width) * depth].chunks_exact(depth).enumerate()
        {
            for (row, &value) in out.chunks_exact_mut(PANEL).zip(source) {
                row[column] = value;
            }
        }
    }
}

simd_fn!(
    /// Packs one panel of the right-hand side of `x · weightᵀ` from at most [`PANEL`] rows of `weight`, in
    /// the format `dtype`, which is that of the rows or f32. `out` has room for `[depth][PANEL]` numbers.
    pub fn pack_panel(rows: &[Elements<'_>], dtype: Dtype, out: &mut [u8]) = pack_panel_generic
);

#[inline(always)]
fn pack_panel_generic<S: Simd>(s: S, rows: &[Elements<'_>], dtype: Dtype, out: &mut [u8]) {
    let depth = out.len() / (PANEL * dtype.size());
    assert!(rows.iter().all(|row| row.len() == depth), "rows as deep as the panel");
    if rows.len() < PANEL {
        out.fill(0);
    }
    if dtype == Dtype::F32 {
        for (column, row) in rows.iter().enumerate() {
            place_widened(*row, column, bytemuck::cast_slice_mut(out));
        }
        return;
    }
    assert!(rows.iter().all(|row| row.dtype == dtype), "rows are widened or stay as they are");
    let out = out.as_chunks_mut::<2>().0.as_chunks_mut::<PANEL>().0;
    for (eight, columns) in rows.chunks(LANES).enumerate() {
        let whole = if columns.len() == LANES { depth / LANES * LANES } else { 0 };
        for first in (0..whole).step_by(LANES) {
            let square = std::array::from_fn(|i| {
                bytemuck::pod_read_unaligned(columns[i].slice(first, LANES).bytes)
            });
            for (row, out) in s.transpose(square).iter().zip(&mut out[first..first + LANES]) {
                out[eight * LANES..][..LANES].copy_from_slice(bytemuck::cast_slice(row));
            }
        }
        for (column, row) in columns.iter().enumerate() {
            let numbers = row.bytes.as_chunks::<2>().0;
            for (out, number) in out.iter_mut().zip(numbers).skip(whole) {
                out[eight * LANES + column] = *number;
            }
        }
    }
}

/// Writes numbers into one column of a panel of f32, a block at a time.
#[inline(always)]
fn place_widened(numbers: Elements<'_>, column: usize, out: &mut [f32]) {
    let mut wide = [0.0; DEPTH];
    for (block, out) in out.chunks_mut(DEPTH * PANEL).enumerate() {
        let wide = &mut wide[..out.len() / PANEL];
        numbers.slice(block * DEPTH, wide.len()).widen(wide);
        for (out, number) in out.as_chunks_mut::<PANEL>().0.iter_mut().zip(wide) {
            out[column] = *number;
        }
    }
}

/// Packs row-major `weight` of `[depth, columns]` as the right-hand side of `dy · weight`.
pub fn pack(weight: &[f32], depth: usize, columns: usize, packed: &mut [f32]) {
    assert_eq!(weight.len(), depth * columns);
    for (panel, out) in packed.chunks_exact_mut(depth * PANEL).enumerate() {
        pack_columns(weight, columns, panel * PANEL, PANEL.min(columns - panel * PANEL), out);
    }
}

/// Packs `width` columns from column `first` on, of a row-major matrix with `stride` floats a row.
#[inline(always)]
pub(crate) fn pack_columns(
    source: &[f32],
    stride: usize,
    first: usize,
    width: usize,
    out: &mut [f32],
) {
    for (row, out) in source.chunks(stride).zip(out.as_chunks_mut::<PANEL>().0) {
        match row[first..].first_chunk::<PANEL>() {
            Some(whole) if width == PANEL => *out = *whole,
            _ => {
                *out = [0.0; PANEL];
                out[..width].copy_from_slice(&row[first..first + width]);
            }
        }
    }
}
