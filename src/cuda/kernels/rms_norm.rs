//! This file launches `kernels/rms_norm.cu`.

use super::column_sums::{SumOverRows, parts};
use super::{Float, VECTOR, blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, fatbin};
use crate::cuda::sizes::MOST_WIDTH;
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

#[derive(Debug)]
pub struct RmsNorm {
    forward: Function,
    backward: Function,
}

#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// It has shape `[width]`.
    pub weight: DeviceSlice<'a, Half>,
    /// It is added to the mean square.
    pub eps: f32,
}

/// The rows that the backward reads and writes, all of shape `[rows, width]`.
#[derive(Debug)]
pub struct NormBackward<'a> {
    /// The forward had this input.
    pub x: DeviceSlice<'a, Half>,
    /// It holds the gradient of the output, and is overwritten with the output.
    pub dy: DeviceSliceMut<'a, Half>,
    /// It receives the gradient of the input.
    pub dx: DeviceSliceMut<'a, Half>,
    /// The gradient is added to what `dx` holds if true, else it overwrites it.
    pub adds: bool,
}

impl Norm<'_> {
    /// Returns the threads of a block: one for each vector of a row, rounded up to whole warps.
    fn threads(&self) -> u32 {
        let width = self.weight.len();
        assert!(width <= MOST_WIDTH, "rows of {width}: at most {MOST_WIDTH}");
        (width / VECTOR).next_multiple_of(32) as u32
    }
}

impl RmsNorm {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["rms_norm", "rms_norm_backward"];
        let [forward, backward] =
            functions(device, fatbin!("rms_norm", device.half_format()), names)?;
        Ok(Self { forward, backward })
    }

    /// Writes the norm of `x` to `y`, both `[rows, width]`.
    pub fn forward(
        &self,
        stream: &Stream,
        norm: Norm<'_>,
        x: DeviceSlice<'_, Half>,
        y: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let (rows, width) = (rows_of(x.len(), norm.weight.len()), int(norm.weight.len()));
        assert_eq!(x.len(), y.len(), "outputs are as wide as inputs");
        let none = None::<DeviceSlice<'_, Half>>;
        // SAFETY: the kernel's parameters; without a residual it writes no sum.
        unsafe {
            self.forward.launch(
                blocks(rows),
                norm.threads(),
                0,
                stream,
                &[&x, &none, &norm.weight, &norm.eps, &none, &y, &width],
            )
        }
    }

    /// Writes `x + residual` to `sum` and its norm to `y`; all are `[rows, width]`.
    pub fn forward_sum(
        &self,
        stream: &Stream,
        norm: Norm<'_>,
        x: DeviceSlice<'_, Half>,
        residual: DeviceSlice<'_, Half>,
        sum: DeviceSliceMut<'_, Half>,
        y: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let (rows, width) = (rows_of(x.len(), norm.weight.len()), int(norm.weight.len()));
        let lens = [residual.len(), sum.len(), y.len()];
        assert_eq!(lens, [x.len(); 3], "as many residuals, sums and outputs as inputs");
        // SAFETY: the kernel's parameters.
        unsafe {
            self.forward.launch(
                blocks(rows),
                norm.threads(),
                0,
                stream,
                &[&x, &residual, &norm.weight, &norm.eps, &sum, &y, &width],
            )
        }
    }

    /// Adds `residual` to `x` and writes the norm of the sum to `y`; all are `[rows, width]`.
    pub fn forward_add(
        &self,
        stream: &Stream,
        norm: Norm<'_>,
        x: DeviceSliceMut<'_, Half>,
        residual: DeviceSlice<'_, Half>,
        y: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let (rows, width) = (rows_of(x.len(), norm.weight.len()), int(norm.weight.len()));
        assert_eq!(
            [residual.len(), y.len()],
            [x.len(); 2],
            "as many residuals and outputs as inputs"
        );
        // SAFETY: the kernel's parameters; the sum may be the input.
        unsafe {
            self.forward.launch(
                blocks(rows),
                norm.threads(),
                0,
                stream,
                &[&x, &residual, &norm.weight, &norm.eps, &x, &y, &width],
            )
        }
    }

    /// Computes the gradient of `x`, and adds the gradient of the norm's weight to `weight`.
    pub fn backward<G: Float>(
        &self,
        stream: &Stream,
        norm: Norm<'_>,
        rows: NormBackward<'_>,
        mut weight: SumOverRows<'_, G>,
    ) -> Result<()> {
        let NormBackward { x, dy, dx, adds } = rows;
        let width = norm.weight.len();
        let rows = rows_of(x.len(), width);
        assert_eq!([dy.len(), dx.len()], [x.len(); 2], "as many gradients as inputs");
        assert_eq!(weight.width(), width, "a gradient of the weight");
        if rows == 0 {
            return Ok(());
        }
        let before = adds.then(|| dx.as_slice());
        // SAFETY: the kernel's parameters; a block of each row of partials writes it, and what is
        // added to may be what is written.
        unsafe {
            self.backward.launch(
                blocks(parts(rows)),
                norm.threads(),
                0,
                stream,
                &[
                    &x,
                    &norm.weight,
                    &norm.eps,
                    &dy,
                    &before,
                    &dx,
                    &weight.partials_of(rows),
                    &int(rows),
                    &int(width),
                ],
            )
        }?;
        weight.finish(stream, rows)
    }
}
