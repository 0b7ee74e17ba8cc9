//! This file launches `kernels/head_norm.cu`.

use super::column_sums::{SumOverRows, parts};
use super::rms_norm::Norm;
use super::rope::Heads;
use super::{Float, blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Argument, Function, fatbin};
use crate::cuda::sizes::HEAD_DIMS;
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

const THREADS: u32 = 256;

/// The kernels that normalise each query head and key head. Their [`Norm`] has a weight `[2, dim]`:
/// the first row is for query heads, the second for key heads.
#[derive(Debug)]
pub struct HeadNorm {
    forward: Function,
    backward: Function,
}

impl HeadNorm {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["head_norm", "head_norm_backward"];
        let [forward, backward] =
            functions(device, fatbin!("head_norm", device.half_format()), names)?;
        Ok(Self { forward, backward })
    }

    /// Writes the rows `x` of queries, keys and values to `y`, with query heads and key heads
    /// normalised.
    pub fn forward(
        &self,
        stream: &Stream,
        heads: Heads,
        norm: Norm<'_>,
        x: DeviceSlice<'_, Half>,
        y: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        assert_eq!(x.len(), y.len(), "outputs are as wide as inputs");
        // SAFETY: the launch's inputs and outputs have as many elements.
        unsafe { self.launch_forward(stream, heads, norm, [&x, &y], x.len()) }
    }

    /// Normalises the query heads and key heads of the rows `qkv` in place.
    pub fn forward_in_place(
        &self,
        stream: &Stream,
        heads: Heads,
        norm: Norm<'_>,
        qkv: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        // SAFETY: the output may be the input.
        unsafe { self.launch_forward(stream, heads, norm, [&qkv, &qkv], qkv.len()) }
    }

    /// # Safety
    /// `from` and `to` must be slices of `len` elements of 16 bits.
    unsafe fn launch_forward(
        &self,
        stream: &Stream,
        heads: Heads,
        norm: Norm<'_>,
        [from, to]: [&dyn Argument; 2],
        len: usize,
    ) -> Result<()> {
        let rows = check(heads, norm, len);
        let [queries, keys, dim] = [heads.queries, heads.keys, heads.dim].map(int);
        // SAFETY: the kernel's parameters.
        unsafe {
            self.forward.launch(
                blocks(rows),
                THREADS,
                0,
                stream,
                &[from, &norm.weight, &norm.eps, to, &queries, &keys, &dim],
            )
        }
    }

    /// Turns `d_qkv` from the gradient of the forward's output into that of its input `x`, and adds
    /// the gradient of the norm's weight to `weight`.
    pub fn backward<G: Float>(
        &self,
        stream: &Stream,
        heads: Heads,
        norm: Norm<'_>,
        x: DeviceSlice<'_, Half>,
        d_qkv: DeviceSliceMut<'_, Half>,
        mut weight: SumOverRows<'_, G>,
    ) -> Result<()> {
        let rows = check(heads, norm, x.len());
        assert_eq!(x.len(), d_qkv.len(), "as many gradients as inputs");
        assert_eq!(weight.width(), norm.weight.len(), "a gradient of the weight");
        if rows == 0 {
            return Ok(());
        }
        let [queries, keys, dim] = [heads.queries, heads.keys, heads.dim].map(int);
        // SAFETY: the kernel's parameters; a block of each row of partials writes it.
        unsafe {
            self.backward.launch(
                blocks(parts(rows)),
                THREADS,
                0,
                stream,
                &[
                    &x,
                    &norm.weight,
                    &norm.eps,
                    &d_qkv,
                    &weight.partials_of(rows),
                    &int(rows),
                    &queries,
                    &keys,
                    &dim,
                ],
            )
        }?;
        weight.finish(stream, rows)
    }
}

/// Checks the heads and the norm's weight, and returns how many rows `len` elements are.
fn check(heads: Heads, norm: Norm<'_>, len: usize) -> usize {
    assert!(HEAD_DIMS.contains(&heads.dim), "heads of {}: one of {HEAD_DIMS:?}", heads.dim);
    assert_eq!(norm.weight.len(), 2 * heads.dim, "a weight of query heads and one of key heads");
    rows_of(len, heads.row())
}
