//! This file launches `kernels/flat.cu`, whose kernels pass over flat buffers.

use super::{ByFloat, Float, VECTOR, blocks, functions, int};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Argument, Function, fatbin};
use crate::cuda::sizes::SQUARES;
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

/// A block of an elementwise pass has this many threads.
const THREADS: usize = 256;

#[derive(Debug)]
pub struct Flat {
    squares: ByFloat,
    sum: Function,
    widen: Function,
    narrow: Function,
    accumulate: Function,
}

impl Flat {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = [
            "square_partials_half",
            "square_partials_f32",
            "sum_of_squares",
            "widen_half",
            "narrow_to_half",
            "accumulate",
        ];
        let [narrow_squares, wide_squares, sum, widen, narrow, accumulate] =
            functions(device, fatbin!("flat", device.half_format()), names)?;
        let squares = ByFloat { narrow: narrow_squares, wide: wide_squares };
        Ok(Self { squares, sum, widen, narrow, accumulate })
    }

    /// Returns the number of partial sums that the squares of `len` elements have.
    pub fn square_parts(len: usize) -> usize {
        len.div_ceil(SQUARES)
    }

    /// Writes the sum of the squares of all `parts` to `total`, and to `not_finite` 1 where that
    /// sum is not a finite number, else 0. `partials` has room for the [`Self::square_parts`] of
    /// every part.
    pub fn sum_of_squares<'p, T: Float>(
        &self,
        stream: &Stream,
        parts: impl IntoIterator<Item = DeviceSlice<'p, T>>,
        mut partials: DeviceSliceMut<'_, f64>,
        total: DeviceSliceMut<'_, f64>,
        not_finite: DeviceSliceMut<'_, u32>,
    ) -> Result<()> {
        assert_eq!((total.len(), not_finite.len()), (1, 1), "one sum, one flag");
        let mut count = 0;
        for x in parts {
            let first = count;
            count += Self::square_parts(x.len());
            let (grid, len) = (blocks(count - first), x.len() as i64);
            let partials = partials.range(first..count);
            // SAFETY: the kernel's parameters.
            unsafe {
                let arguments: [&dyn Argument; 3] = [&x, &len, &partials];
                self.squares.of::<T>().launch(grid, 512, 0, stream, &arguments)
            }?;
        }
        let (partials, count) = (partials.range(0..count), int(count));
        // SAFETY: the kernel's parameters.
        unsafe {
            let arguments: [&dyn Argument; 4] = [&partials, &count, &total, &not_finite];
            self.sum.launch(1, 1024, 0, stream, &arguments)
        }
    }

    /// Converts `x` to f32.
    pub fn widen(
        &self,
        stream: &Stream,
        x: DeviceSlice<'_, Half>,
        out: DeviceSliceMut<'_, f32>,
    ) -> Result<()> {
        pass(&self.widen, stream, &x, x.len(), &out, out.len())
    }

    /// Rounds `x` to 16 bits.
    pub fn narrow(
        &self,
        stream: &Stream,
        x: DeviceSlice<'_, f32>,
        out: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        pass(&self.narrow, stream, &x, x.len(), &out, out.len())
    }

    /// Adds `x` to `sum`.
    pub fn accumulate(
        &self,
        stream: &Stream,
        x: DeviceSlice<'_, Half>,
        sum: DeviceSliceMut<'_, f32>,
    ) -> Result<()> {
        pass(&self.accumulate, stream, &x, x.len(), &sum, sum.len())
    }
}

fn pass(
    kernel: &Function,
    stream: &Stream,
    x: &dyn Argument,
    len: usize,
    out: &dyn Argument,
    out_len: usize,
) -> Result<()> {
    assert_eq!(len, out_len, "as many outputs as inputs");
    let grid = blocks(len.div_ceil(THREADS * VECTOR));
    // SAFETY: the kernels' parameters: slices of as many elements.
    unsafe { kernel.launch(grid, THREADS as u32, 0, stream, &[x, out, &(len as i64)]) }
}
