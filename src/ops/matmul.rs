//! Matrix products: `x · Wᵀ`, its input gradient `dy · W`, its weight gradient `dyᵀ · x`.
//!
//! Contract: an element of a product is a sum over depth in ascending order, in blocks of [`DEPTH`]
//! that are summed with fused multiply-adds and then added to the result; so its bits depend neither
//! on the number of rows of the call, nor on the row's place, nor on threads. The right-hand matrix
//! is packed once into panels of [`PANEL`] columns and then used any number of times; it may be
//! stored in half precision, which is widened as it is loaded. Left out: transposed outputs.

use super::buffer::{Buffer, parts};
use super::element::{Dtype, Element, Elements};
use super::parallel::{SharedMut, for_each};
use super::simd::{LANES, Simd, simd_fn};
use half::{bf16, f16};

/// Columns of a packed panel.
pub const PANEL: usize = 16;
/// Depth of a block: a panel of it stays in the first-level cache.
pub const DEPTH: usize = 256;
/// Rows of a register tile: 6 x 16 results and their operands fill sixteen vector registers.
pub const TILE: usize = 6;

/// A packed right-hand matrix of `depth` rows and `columns` columns.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    /// Panels one after another, each `[depth][PANEL]`, missing columns 0.
    pub data: Elements<'a>,
    /// Rows: the length of the sums.
    pub depth: usize,
    /// Columns of the product.
    pub columns: usize,
}

impl Panels<'_> {
    /// Column `column`, widened; `out` is `depth` long.
    pub fn column(&self, column: usize, out: &mut [f32]) {
        let first = column / PANEL * PANEL * self.depth + column % PANEL;
        for (d, out) in out.iter_mut().enumerate() {
            self.data.slice(first + d * PANEL, 1).widen(std::slice::from_mut(out));
        }
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing: the result is overwritten.
    Zero,
    /// What the result already holds.
    Accumulate,
    /// One value per column.
    Bias(&'a [f32]),
}

/// Floats of a packed matrix.
pub const fn packed_len(depth: usize, columns: usize) -> usize {
    columns.div_ceil(PANEL) * PANEL * depth
}

/// Packs row-major `weight` `[columns, depth]` as the right-hand side of `x · weightᵀ`.
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

/// Packs one panel of the right-hand side of `x · weightᵀ` from up to [`PANEL`] rows of `weight`, in
/// the format `dtype`: the rows' own, or f32. `out` holds `[depth][PANEL]` numbers.
pub fn pack_panel(rows: &[Elements<'_>], dtype: Dtype, out: &mut [u8]) {
    if rows.len() < PANEL {
        out.fill(0);
    }
    let mut wide = [0.0; DEPTH];
    for (block, out) in out.chunks_mut(DEPTH * PANEL * dtype.size()).enumerate() {
        let depth = out.len() / (PANEL * dtype.size());
        for (column, row) in rows.iter().enumerate() {
            let part = row.slice(block * DEPTH, depth);
            let bytes = if part.dtype == dtype {
                part.bytes
            } else {
                assert_eq!(dtype, Dtype::F32, "rows are widened or stay as they are");
                part.widen(&mut wide[..depth]);
                bytemuck::cast_slice(&wide[..depth])
            };
            match dtype.size() {
                2 => place_column::<2>(bytes, column, out),
                _ => place_column::<4>(bytes, column, out),
            }
        }
    }
}

/// Writes numbers of `N` bytes into one column of a panel.
fn place_column<const N: usize>(numbers: &[u8], column: usize, out: &mut [u8]) {
    let rows = out.as_chunks_mut::<N>().0.chunks_exact_mut(PANEL);
    for (row, number) in rows.zip(numbers.as_chunks::<N>().0) {
        row[column] = *number;
    }
}

/// Packs row-major `weight` `[depth, columns]` as the right-hand side of `dy · weight`.
pub fn pack(weight: &[f32], depth: usize, columns: usize, packed: &mut [f32]) {
    assert_eq!(weight.len(), depth * columns);
    for (panel, out) in packed.chunks_exact_mut(depth * PANEL).enumerate() {
        pack_columns(weight, columns, panel * PANEL, PANEL.min(columns - panel * PANEL), out);
    }
}

/// Packs `width` columns from `first` of a row-major matrix with `stride` floats a row.
#[inline(always)]
fn pack_columns(source: &[f32], stride: usize, first: usize, width: usize, out: &mut [f32]) {
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

/// The products of `R` rows with one panel over `depth`.
///
/// # Safety
/// `left` is readable at `r * row_stride + d * depth_stride` and `right` at `d * right_stride` and
/// the 15 numbers after it, for all `r < R`, `d < depth`.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, E: Element, const R: usize>(
    s: S,
    depth: usize,
    left: *const f32,
    (row_stride, depth_stride): (usize, usize),
    right: *const E,
    right_stride: usize,
) -> [[S::V; 2]; R] {
    let mut sums = [[s.splat(0.0); 2]; R];
    let mut left = left;
    let mut right = right;
    for _ in 0..depth {
        // SAFETY: within the ranges that the caller promises.
        unsafe {
            let b0 = E::widen_eight(s, right.cast::<[E; LANES]>().read_unaligned());
            let b1 = E::widen_eight(s, right.add(LANES).cast::<[E; LANES]>().read_unaligned());
            for (r, sum) in sums.iter_mut().enumerate() {
                let a = s.splat(*left.add(r * row_stride));
                sum[0] = s.fma(a, b0, sum[0]);
                sum[1] = s.fma(a, b1, sum[1]);
            }
            left = left.wrapping_add(depth_stride);
            right = right.wrapping_add(right_stride);
        }
    }
    sums
}

/// Adds a tile's sums to `start` and writes `width` columns of each row of `out`.
///
/// # Safety
/// `out` is writable at `r * stride` and the `width - 1` floats after it for all `r < R`.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd, const R: usize>(
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

/// Calls `$body` with the constant `$rows` bound to 1..=6, the rows of a tile.
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
pub(super) use with_tile_rows;

simd_fn!(
    /// `out = start + x · right` for `rows` rows of `x` (`x_stride` floats apart, the first `depth`
    /// of each used) into rows `out_stride` apart, on this thread.
    pub fn matmul(
        x: &[f32],
        x_stride: usize,
        rows: usize,
        right: Panels<'_>,
        start: Start<'_>,
        out: &mut [f32],
        out_stride: usize,
    ) = matmul_generic
);

#[inline(always)]
fn matmul_generic<S: Simd>(
    s: S,
    x: &[f32],
    x_stride: usize,
    rows: usize,
    right: Panels<'_>,
    start: Start<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    match right.data.dtype {
        Dtype::F32 => multiply::<S, f32>(s, x, x_stride, rows, right, start, out, out_stride),
        Dtype::Bf16 => multiply::<S, bf16>(s, x, x_stride, rows, right, start, out, out_stride),
        Dtype::F16 => multiply::<S, f16>(s, x, x_stride, rows, right, start, out, out_stride),
    }
}

/// The product with panels of `E`.
#[inline(always)]
fn multiply<S: Simd, E: Element>(
    s: S,
    x: &[f32],
    x_stride: usize,
    rows: usize,
    right: Panels<'_>,
    start: Start<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    let Panels { data, depth, columns } = right;
    if rows == 0 {
        return;
    }
    let panels = data.bytes.as_ptr().cast::<E>();
    assert!(depth <= x_stride || rows == 1);
    assert!(columns <= out_stride || rows == 1);
    assert!((rows - 1) * x_stride + depth <= x.len());
    assert!((rows - 1) * out_stride + columns <= out.len());
    assert!(data.len() >= packed_len(depth, columns));
    for block in (0..depth).step_by(DEPTH) {
        let block_depth = DEPTH.min(depth - block);
        for first in (0..columns).step_by(PANEL) {
            let width = PANEL.min(columns - first);
            let start = match start {
                _ if block > 0 => Start::Accumulate,
                Start::Bias(bias) => Start::Bias(&bias[first..first + width]),
                other => other,
            };
            for row in (0..rows).step_by(TILE) {
                // SAFETY: rows, depth and columns are within the slices by the assertions above.
                unsafe {
                    let left = x.as_ptr().add(row * x_stride + block);
                    let panel = panels.add(first * depth + block * PANEL);
                    let target = out.as_mut_ptr().add(row * out_stride + first);
                    with_tile_rows!(rows - row, R => {
                        let sums =
                            tile::<S, E, R>(s, block_depth, left, (x_stride, 1), panel, PANEL);
                        finish(s, sums, start, target, out_stride, width);
                    });
                }
            }
        }
    }
}

/// Rows of the weight gradient that one work item computes.
const GRADIENT_ROWS: usize = 16 * TILE;
/// Columns of the weight gradient that one work item computes.
const GRADIENT_COLUMNS: usize = 16 * PANEL;

/// Adds `dyᵀ · x` to `gradient` `[outputs, inputs]`, for `tokens` rows of `dy` (`outputs` of each,
/// `dy_stride` apart) and `x` (`inputs` of each, `x_stride` apart), on the pool.
pub fn weight_gradient(
    (dy, dy_stride, outputs): (&[f32], usize, usize),
    (x, x_stride, inputs): (&[f32], usize, usize),
    tokens: usize,
    gradient: &mut [f32],
    scratch: &mut [Buffer],
) {
    assert_eq!(gradient.len(), outputs * inputs);
    assert!(outputs <= dy_stride && inputs <= x_stride);
    assert!(tokens * dy_stride <= dy.len() && tokens * x_stride <= x.len());
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
            let dy = &dy[token * dy_stride..(token + depth) * dy_stride];
            let x = &x[token * x_stride..(token + depth) * x_stride];
            for (tile, out) in left.chunks_mut(DEPTH * TILE).enumerate().take(rows.div_ceil(TILE)) {
                let first = row + tile * TILE;
                let width = TILE.min(row + rows - first);
                for (out, dy) in out.chunks_exact_mut(TILE).zip(dy.chunks_exact(dy_stride)) {
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
                pack_columns(x, x_stride, column + first, PANEL.min(columns - first), out);
            }
            // SAFETY: this item alone writes this rectangle, which lies within the gradient.
            unsafe {
                let target = shared.pointer(row * inputs + column);
                gradient_block(left, right, depth, (rows, columns), target, inputs);
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
        size: (usize, usize),
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
    (rows, columns): (usize, usize),
    out: *mut f32,
    stride: usize,
) {
    for (panel, right) in right.chunks(DEPTH * PANEL).enumerate().take(columns.div_ceil(PANEL)) {
        let width = PANEL.min(columns - panel * PANEL);
        for (index, left) in left.chunks(DEPTH * TILE).enumerate().take(rows.div_ceil(TILE)) {
            assert!(depth * PANEL <= right.len() && depth * TILE <= left.len());
            // SAFETY: the packed blocks hold `depth` rows; the target is the caller's rectangle.
            unsafe {
                let (left, right) = (left.as_ptr(), right.as_ptr());
                let target = out.add(index * TILE * stride + panel * PANEL);
                with_tile_rows!(rows - index * TILE, R => {
                    let sums = tile::<S, f32, R>(s, depth, left, (1, TILE), right, PANEL);
                    finish(s, sums, Start::Accumulate, target, stride, width);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng;

    fn random(len: usize, key: u64) -> Vec<f32> {
        (0..len).map(|i| rng::uniform(key, i as u64) - 0.5).collect()
    }

    fn close(actual: &[f32], expected: &[f64]) {
        for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
            assert!((f64::from(*a) - e).abs() < 1e-5 * (1.0 + e.abs()), "{i}: {a} is not {e}");
        }
    }

    #[test]
    fn products_and_gradients_match_sums_in_double_precision() {
        for (rows, depth, columns) in [(1, 3, 1), (7, 300, 20), (13, 16, 33), (100, 520, 270)] {
            let x = random(rows * depth, 1);
            let weight = random(columns * depth, 2);
            let dy = random(rows * columns, 3);
            let bias = random(columns, 4);
            let mut packed = Buffer::zeros(packed_len(depth, columns));
            pack_transposed(&weight, depth, columns, packed.as_mut_slice());
            let panels = Panels { data: packed.as_slice().into(), depth, columns };
            let mut y = vec![7.0; rows * columns];
            matmul(&x, depth, rows, panels, Start::Bias(&bias), &mut y, columns);
            let at = |m: &[f32], i: usize| f64::from(m[i]);
            let expected: Vec<f64> = (0..rows * columns)
                .map(|i| {
                    let (r, c) = (i / columns, i % columns);
                    let sum: f64 = (0..depth)
                        .map(|d| at(&x, r * depth + d) * at(&weight, c * depth + d))
                        .sum();
                    sum + at(&bias, c)
                })
                .collect();
            close(&y, &expected);

            let mut packed = Buffer::zeros(packed_len(columns, depth));
            pack(&weight, columns, depth, packed.as_mut_slice());
            let panels = Panels { data: packed.as_slice().into(), depth: columns, columns: depth };
            let mut dx = vec![1.0; rows * depth];
            matmul(&dy, columns, rows, panels, Start::Accumulate, &mut dx, depth);
            let expected: Vec<f64> = (0..rows * depth)
                .map(|i| {
                    let (r, d) = (i / depth, i % depth);
                    let terms =
                        (0..columns).map(|c| at(&dy, r * columns + c) * at(&weight, c * depth + d));
                    1.0 + terms.sum::<f64>()
                })
                .collect();
            close(&dx, &expected);

            let mut dw = vec![2.0; columns * depth];
            let mut scratch = vec![Buffer::default(); 2];
            weight_gradient(
                (&dy, columns, columns),
                (&x, depth, depth),
                rows,
                &mut dw,
                &mut scratch,
            );
            let expected: Vec<f64> = (0..columns * depth)
                .map(|i| {
                    let (c, d) = (i / depth, i % depth);
                    let terms = (0..rows).map(|r| at(&dy, r * columns + c) * at(&x, r * depth + d));
                    2.0 + terms.sum::<f64>()
                })
                .collect();
            close(&dw, &expected);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_company() {
        let (depth, columns) = (300, 37);
        let x = random(64 * depth, 5);
        let weight = random(columns * depth, 6);
        let mut packed = Buffer::zeros(packed_len(depth, columns));
        pack_transposed(&weight, depth, columns, packed.as_mut_slice());
        let panels = Panels { data: packed.as_slice().into(), depth, columns };
        let mut whole = vec![0.0; 64 * columns];
        matmul(&x, depth, 64, panels, Start::Zero, &mut whole, columns);
        for rows in 1..=13 {
            for first in [0, 5, 50] {
                let mut part = vec![0.0; rows * columns];
                matmul(&x[first * depth..], depth, rows, panels, Start::Zero, &mut part, columns);
                assert_eq!(part, whole[first * columns..(first + rows) * columns]);
            }
        }
    }

    #[test]
    fn the_scalar_path_gives_the_same_bits() {
        let (rows, depth, columns) = (9, 70, 21);
        let x = random(rows * depth, 7);
        let weight = random(columns * depth, 8);
        let mut packed = Buffer::zeros(packed_len(depth, columns));
        pack_transposed(&weight, depth, columns, packed.as_mut_slice());
        let panels = Panels { data: packed.as_slice().into(), depth, columns };
        let mut fast = vec![0.0; rows * columns];
        let mut scalar = fast.clone();
        matmul(&x, depth, rows, panels, Start::Zero, &mut fast, columns);
        let s = crate::ops::simd::Scalar;
        matmul_generic(s, &x, depth, rows, panels, Start::Zero, &mut scalar, columns);
        assert_eq!(fast, scalar);
    }

    /// Rows of several formats, and the same in f32.
    fn stored_rows(columns: usize, depth: usize, dtypes: &[Dtype]) -> (Vec<Vec<u8>>, Vec<f32>) {
        let numbers = random(columns * depth, 9);
        let mut wide = vec![0.0; numbers.len()];
        let stored: Vec<Vec<u8>> = numbers
            .chunks(depth)
            .zip(wide.chunks_mut(depth))
            .enumerate()
            .map(|(row, (numbers, wide))| {
                let dtype = dtypes[row % dtypes.len()];
                let bytes: Vec<u8> = match dtype {
                    Dtype::F32 => bytemuck::cast_slice(numbers).to_vec(),
                    Dtype::Bf16 => {
                        numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
                    }
                    Dtype::F16 => {
                        numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()
                    }
                };
                Elements { dtype, bytes: &bytes }.widen(wide);
                bytes
            })
            .collect();
        (stored, wide)
    }

    #[test]
    fn stored_weights_give_the_bits_of_the_same_weights_in_f32() {
        let (rows, depth, columns) = (9, 300, 37);
        let x = random(rows * depth, 7);
        let mixed = [Dtype::Bf16, Dtype::F32, Dtype::F16];
        for dtypes in [&mixed[..1], &mixed[1..2], &mixed[2..], &mixed[..]] {
            let (stored, wide) = stored_rows(columns, depth, dtypes);
            let dtype = if dtypes.len() == 1 { dtypes[0] } else { Dtype::F32 };
            let mut narrow = vec![0u8; packed_len(depth, columns) * dtype.size()];
            for (panel, out) in narrow.chunks_mut(depth * PANEL * dtype.size()).enumerate() {
                let rows: Vec<Elements<'_>> = (panel * PANEL..columns.min((panel + 1) * PANEL))
                    .map(|row| Elements { dtype: dtypes[row % dtypes.len()], bytes: &stored[row] })
                    .collect();
                pack_panel(&rows, dtype, out);
            }
            let mut packed = Buffer::zeros(packed_len(depth, columns));
            pack_transposed(&wide, depth, columns, packed.as_mut_slice());
            let data = Elements { dtype, bytes: &narrow };
            let [narrow, wide_panels] =
                [data, packed.as_slice().into()].map(|data| Panels { data, depth, columns });
            let (mut y, mut expected) = (vec![0.0; rows * columns], vec![1.0; rows * columns]);
            matmul(&x, depth, rows, narrow, Start::Zero, &mut y, columns);
            matmul(&x, depth, rows, wide_panels, Start::Zero, &mut expected, columns);
            assert_eq!(y, expected, "{dtypes:?}");
            let s = crate::ops::simd::Scalar;
            matmul_generic(s, &x, depth, rows, narrow, Start::Zero, &mut y, columns);
            assert_eq!(y, expected, "{dtypes:?} on the scalar path");
            let mut column = vec![0.0; depth];
            narrow.column(20, &mut column);
            assert_eq!(column, wide[20 * depth..21 * depth]);
        }
    }
}
