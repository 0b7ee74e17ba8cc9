//! Matrix products: `x · Wᵀ`, its input gradient `dy · W`, and its weight gradient `dyᵀ · x`.
//!
//! An element of a product is a sum over depth in ascending order: blocks of [`DEPTH`] are summed with
//! fused multiply-adds and then added to the result. So its bits depend neither on the number of rows of
//! the call, nor on the row's place among them, nor on threads. The right-hand matrix is packed once into
//! panels of [`PANEL`] columns and then used any number of times. It may be stored in 16 bits, which are
//! widened as they are loaded.

mod gradient;
mod pack;
mod tile;

pub use gradient::{WEIGHT_GRADIENT_SCRATCH, weight_gradient};
pub use pack::{pack, pack_panel, pack_transposed, packed_len};
pub(crate) use tile::{Strides, finish, load_tile, tile, tile_onto, with_tile_rows};

use self::tile::row_tile;
use super::element::{Dtype, Element, Elements};
use super::parallel::{SharedMut, for_each};
use super::simd::{Simd, simd_fn};
use half::{bf16, f16};
use std::ops::Range;

/// A packed panel has this many columns.
pub const PANEL: usize = 16;
/// Sums over depth are cut into blocks of this many terms: such a block of a panel fits into the
/// first-level cache.
pub const DEPTH: usize = 256;
/// A register tile has this many rows: 6 x 16 results and their operands fill sixteen vector registers.
pub const TILE: usize = 6;
/// A single row is multiplied with this many panels at a time.
const WIDE: usize = 4;

/// A packed right-hand matrix of `depth` rows and `columns` columns.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    /// One panel after another, each `[depth][PANEL]`; columns beyond the matrix are 0.
    pub data: Elements<'a>,
    /// The matrix has this many rows: it is the length of the sums.
    pub depth: usize,
    /// The matrix, and so the product, has this many columns.
    pub columns: usize,
}

impl Panels<'_> {
    /// Returns the panels of `columns`, which start with a whole panel.
    fn part(self, columns: &Range<usize>) -> Self {
        let first = columns.start * self.depth;
        let data = self.data.slice(first, packed_len(self.depth, columns.len()));
        Self { data, columns: columns.len(), ..self }
    }

    /// Writes column `column` in f32 to `out`, which is `depth` long.
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
    /// The result is overwritten.
    Zero,
    /// The product is added to the values that the result holds.
    Accumulate,
    /// The product is added to one value for each column.
    Bias(&'a [f32]),
}

impl Start<'_> {
    /// Returns the start for some of the columns.
    fn part(self, columns: &Range<usize>) -> Self {
        match self {
            Self::Bias(bias) => Self::Bias(&bias[columns.clone()]),
            other => other,
        }
    }

    /// Returns what is the start of the sums over the depths from `block` on.
    fn of_block(self, block: usize, columns: &Range<usize>) -> Self {
        if block > 0 { Self::Accumulate } else { self.part(columns) }
    }
}

/// Computes `out = start + x · right` for `rows` rows, on this thread. Rows of `x` are `x_stride` floats
/// apart and their first `depth` floats are used; rows of `out` are `out_stride` floats apart.
pub fn matmul(
    x: &[f32],
    x_stride: usize,
    rows: usize,
    right: Panels<'_>,
    start: Start<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    matmul_by_columns(1, x, x_stride, rows, right, start, out, out_stride);
}

/// Computes what [`matmul`] does, with the columns divided among `threads` threads of the pool. It is for
/// few rows, where there is nothing else to divide. A small product stays on this thread.
pub fn matmul_by_columns(
    threads: usize,
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
    assert!(depth <= x_stride || rows == 1);
    assert!(columns <= out_stride || rows == 1);
    assert!((rows - 1) * x_stride + depth <= x.len());
    assert!((rows - 1) * out_stride + columns <= out.len());
    assert!(data.len() >= packed_len(depth, columns));
    assert!(!matches!(start, Start::Bias(bias) if bias.len() < columns));
    let parts = match threads {
        1 => 1,
        _ => (rows * depth * columns / PART).clamp(1, PARTS_PER_THREAD * threads),
    };
    let part = columns.div_ceil(parts).next_multiple_of(WIDE * PANEL);
    let out = SharedMut::new(out);
    for_each(columns.div_ceil(part), &mut vec![(); threads], |item, ()| {
        let columns = item * part..columns.min((item + 1) * part);
        let (right, start) = (right.part(&columns), start.part(&columns));
        // SAFETY: the operands were checked, and each item writes its own columns.
        unsafe { product(x, x_stride, rows, right, start, out.pointer(columns.start), out_stride) };
    });
}

/// A part of this many multiply-adds, some microseconds of work, is worth another thread.
const PART: usize = 1 << 17;
/// Each thread gets this many parts, so that one thread that is held up does not hold up the others.
const PARTS_PER_THREAD: usize = 4;

simd_fn!(
    /// Computes `out = start + x · right` for the columns of `right`.
    ///
    /// # Safety
    /// `x` holds `depth` floats at `r * x_stride` and `right` its panels; `columns` floats at
    /// `out + r * out_stride` are writable and nobody else's, for all `r < rows`.
    unsafe fn product(
        x: &[f32],
        x_stride: usize,
        rows: usize,
        right: Panels<'_>,
        start: Start<'_>,
        out: *mut f32,
        out_stride: usize,
    ) = product_generic
);

#[inline(always)]
unsafe fn product_generic<S: Simd>(
    s: S,
    x: &[f32],
    x_stride: usize,
    rows: usize,
    right: Panels<'_>,
    start: Start<'_>,
    out: *mut f32,
    out_stride: usize,
) {
    let Panels { data, depth, columns } = right;
    let sizes = Sizes { rows, depth, columns, x_stride, out_stride };
    let (x, panels) = (x.as_ptr(), data.bytes.as_ptr());
    // SAFETY: the caller's promise.
    unsafe {
        match data.dtype {
            Dtype::F32 => multiply::<S, f32>(s, sizes, x, panels.cast(), start, out),
            Dtype::Bf16 => multiply::<S, bf16>(s, sizes, x, panels.cast(), start, out),
            Dtype::F16 => multiply::<S, f16>(s, sizes, x, panels.cast(), start, out),
        }
    }
}

/// The sizes of a product, and the floats from one row of `x`, or of the result, to the next.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    depth: usize,
    columns: usize,
    x_stride: usize,
    out_stride: usize,
}

/// Computes the product with panels of `E`.
///
/// # Safety
/// As for [`product`].
#[inline(always)]
unsafe fn multiply<S: Simd, E: Element>(
    s: S,
    sizes: Sizes,
    x: *const f32,
    panels: *const E,
    start: Start<'_>,
    out: *mut f32,
) {
    let Sizes { rows, depth, columns, x_stride, out_stride } = sizes;
    if rows == 1 {
        // SAFETY: the caller's promise.
        return unsafe { multiply_row(s, depth, columns, x, panels, start, out) };
    }
    let strides = Strides { row: x_stride, depth: 1 };
    for block in (0..depth).step_by(DEPTH) {
        let block_depth = DEPTH.min(depth - block);
        for first in (0..columns).step_by(PANEL) {
            let width = PANEL.min(columns - first);
            let start = start.of_block(block, &(first..first + width));
            for row in (0..rows).step_by(TILE) {
                // SAFETY: rows, depth and columns are within what the caller promises.
                unsafe {
                    let left = x.add(row * x_stride + block);
                    let panel = panels.add(first * depth + block * PANEL);
                    let target = out.add(row * out_stride + first);
                    with_tile_rows!(rows - row, R => {
                        let sums = tile::<S, E, R>(s, block_depth, left, strides, panel, PANEL);
                        finish(s, sums, start, target, out_stride, width);
                    });
                }
            }
        }
    }
}

/// Computes the product of one row. It reads several panels side by side, each from end to end.
///
/// # Safety
/// As for [`product`].
#[inline(always)]
unsafe fn multiply_row<S: Simd, E: Element>(
    s: S,
    depth: usize,
    columns: usize,
    x: *const f32,
    panels: *const E,
    start: Start<'_>,
    out: *mut f32,
) {
    let mut first = 0;
    while first < columns {
        // SAFETY: the panels from `first` on, as many as are taken, are the caller's.
        first += unsafe {
            if columns - first > (WIDE - 1) * PANEL {
                row_panels::<S, E, WIDE>(s, x, depth, panels, start, out, first..columns)
            } else {
                row_panels::<S, E, 1>(s, x, depth, panels, start, out, first..columns)
            }
        };
    }
}

/// Computes the product of one row with the first `P` panels of `columns`, and returns how many columns
/// these are.
///
/// # Safety
/// As for [`product`]; `columns` reach into the last of the panels.
#[inline(always)]
unsafe fn row_panels<S: Simd, E: Element, const P: usize>(
    s: S,
    x: *const f32,
    depth: usize,
    panels: *const E,
    start: Start<'_>,
    out: *mut f32,
    columns: Range<usize>,
) -> usize {
    for block in (0..depth).step_by(DEPTH) {
        let block_depth = DEPTH.min(depth - block);
        // SAFETY: the caller's promise.
        unsafe {
            let right = panels.add(columns.start * depth + block * PANEL);
            let sums = row_tile::<S, E, P>(s, block_depth, x.add(block), right, depth * PANEL);
            for (p, sums) in sums.into_iter().enumerate() {
                let first = columns.start + p * PANEL;
                let width = PANEL.min(columns.end - first);
                let start = start.of_block(block, &(first..first + width));
                finish(s, [sums], start, out.add(first), 0, width);
            }
        }
    }
    P * PANEL
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng;
    use crate::ops::buffer::Buffer;

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
            weight_gradient(&dy, &x, rows, &mut dw, &mut scratch);
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
    fn a_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads() {
        let (depth, columns) = (300, 165);
        let x = random(64 * depth, 5);
        let weight = random(columns * depth, 6);
        let mut packed = Buffer::zeros(packed_len(depth, columns));
        pack_transposed(&weight, depth, columns, packed.as_mut_slice());
        let panels = Panels { data: packed.as_slice().into(), depth, columns };
        let mut whole = vec![0.0; 64 * columns];
        matmul(&x, depth, 64, panels, Start::Zero, &mut whole, columns);
        for threads in [2, 3] {
            let (start, mut shared) = (Start::Zero, vec![0.0; 64 * columns]);
            matmul_by_columns(threads, &x, depth, 64, panels, start, &mut shared, columns);
            assert_eq!(shared, whole, "{threads} threads");
        }
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
        let out = scalar.as_mut_ptr();
        // SAFETY: the operands are as long as the sizes say.
        unsafe { product_generic(s, &x, depth, rows, panels, Start::Zero, out, columns) };
        assert_eq!(fast, scalar);
    }

    /// Returns rows in the formats `dtypes`, and the same numbers in f32.
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
            let out = y.as_mut_ptr();
            // SAFETY: the operands are as long as the sizes say.
            unsafe { product_generic(s, &x, depth, rows, narrow, Start::Zero, out, columns) };
            assert_eq!(y, expected, "{dtypes:?} on the scalar path");
            let mut column = vec![0.0; depth];
            narrow.column(20, &mut column);
            assert_eq!(column, wide[20 * depth..21 * depth]);
        }
    }
}
