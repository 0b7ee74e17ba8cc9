//! This file launches `kernels/swiglu.cu`.

use super::{VECTOR, blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, fatbin};
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

const THREADS: usize = 256;

#[derive(Debug)]
pub struct SwiGlu {
    forward: Function,
    backward: Function,
}

impl SwiGlu {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["swiglu", "swiglu_backward"];
        let [forward, backward] =
            functions(device, fatbin!("swiglu", device.half_format()), names)?;
        Ok(Self { forward, backward })
    }

    /// Writes silu(gate) * up to `out` `[rows, inner]`; `gate_up` is `[rows, 2 * inner]`, with at
    /// most 65,535 rows.
    pub fn forward(
        &self,
        stream: &Stream,
        gate_up: DeviceSlice<'_, Half>,
        inner: usize,
        out: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let grid = grid(gate_up.len(), out.len(), inner);
        // SAFETY: the kernel's parameters.
        unsafe {
            self.forward.launch(grid, THREADS as u32, 0, stream, &[&gate_up, &out, &int(inner)])
        }
    }

    /// Overwrites `gate_up` with the gradients of gate and up, and `dy`, the gradient of the
    /// output, with the output itself.
    pub fn backward(
        &self,
        stream: &Stream,
        gate_up: DeviceSliceMut<'_, Half>,
        inner: usize,
        dy: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let grid = grid(gate_up.len(), dy.len(), inner);
        // SAFETY: the kernel's parameters.
        unsafe {
            self.backward.launch(grid, THREADS as u32, 0, stream, &[&gate_up, &dy, &int(inner)])
        }
    }
}

fn grid(gate_up: usize, product: usize, inner: usize) -> (u32, u32) {
    let rows = rows_of(product, inner);
    assert_eq!(gate_up, 2 * product, "gate and up for each product");
    assert!(rows <= usize::from(u16::MAX), "{rows} rows: at most 65535");
    (blocks(inner.div_ceil(THREADS * VECTOR)), blocks(rows))
}
