//! This file launches `kernels/column_sums.cu`, which sums over rows in two steps: partial sums,
//! then their sum.

use super::{ByFloat, Float, VECTOR, blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, fatbin};
pub use crate::cuda::sizes::PARTS;
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

/// Returns the number of partial sums that `rows` rows have.
pub fn parts(rows: usize) -> usize {
    rows.min(PARTS)
}

/// A sum over rows whose partial sums another kernel writes.
#[derive(Debug)]
pub struct SumOverRows<'a, G> {
    pub kernels: &'a ColumnSums,
    /// It has room for [`PARTS`] rows of the gradient's width; each block writes one.
    pub partials: DeviceSliceMut<'a, f32>,
    /// The sum is added to this, of shape `[width]`.
    pub gradient: DeviceSliceMut<'a, G>,
}

impl<G: Float> SumOverRows<'_, G> {
    pub(crate) fn width(&self) -> usize {
        self.gradient.len()
    }

    /// Returns the memory for the partial sums of `rows` rows, which the other kernel writes.
    pub(crate) fn partials_of(&mut self, rows: usize) -> DeviceSliceMut<'_, f32> {
        let width = self.width();
        self.partials.range(0..parts(rows) * width)
    }

    /// Adds the partial sums of `rows` rows to the gradient.
    pub(crate) fn finish(mut self, stream: &Stream, rows: usize) -> Result<()> {
        let width = self.width();
        let partials = self.partials.range(0..parts(rows) * width);
        self.kernels.add(stream, partials.as_slice(), self.gradient)
    }
}

#[derive(Debug)]
pub struct ColumnSums {
    partials: Function,
    add: ByFloat,
}

impl ColumnSums {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["column_partials", "add_column_sums_half", "add_column_sums_f32"];
        let [partials, narrow, wide] =
            functions(device, fatbin!("column_sums", device.half_format()), names)?;
        Ok(Self { partials, add: ByFloat { narrow, wide } })
    }

    /// Adds the sum of the rows of `x` `[rows, width]` to `gradient` `[width]`. `partials` has room
    /// for [`PARTS`] rows.
    pub fn add_sums_of<G: Float>(
        &self,
        stream: &Stream,
        x: DeviceSlice<'_, Half>,
        mut partials: DeviceSliceMut<'_, f32>,
        gradient: DeviceSliceMut<'_, G>,
    ) -> Result<()> {
        const THREADS: usize = 128;
        let width = gradient.len();
        let rows = rows_of(x.len(), width);
        if rows == 0 {
            return Ok(());
        }
        let mut partials = partials.range(0..parts(rows) * width);
        let grid = (blocks(width.div_ceil(THREADS * VECTOR)), blocks(parts(rows)));
        let arguments = (int(rows), int(width));
        // SAFETY: the kernel's parameters; a block of each row of partials writes it.
        unsafe {
            self.partials.launch(
                grid,
                THREADS as u32,
                0,
                stream,
                &[&x, &partials.reborrow(), &arguments.0, &arguments.1],
            )
        }?;
        self.add(stream, partials.as_slice(), gradient)
    }

    /// Adds the sum of the rows of `partials` to `gradient` `[width]`.
    fn add<G: Float>(
        &self,
        stream: &Stream,
        partials: DeviceSlice<'_, f32>,
        gradient: DeviceSliceMut<'_, G>,
    ) -> Result<()> {
        const COLUMNS: usize = 32;
        let width = gradient.len();
        let parts = rows_of(partials.len(), width);
        let (grid, sizes) = (blocks(width.div_ceil(COLUMNS)), (int(parts), int(width)));
        // SAFETY: the kernel's parameters.
        unsafe {
            let arguments: [&dyn crate::cuda::module::Argument; 4] =
                [&partials, &gradient, &sizes.0, &sizes.1];
            self.add.of::<G>().launch(grid, 256, 0, stream, &arguments)
        }
    }
}
