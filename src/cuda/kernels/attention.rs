//! This file launches `kernels/attention.cu`, and lists the tiles of packed sequences.

use super::decode::index_of;
use super::rope::Heads;
use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Argument, Function, fatbin};
use crate::cuda::sizes;
use crate::cuda::stream::Stream;
use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use std::ffi::c_void;
use std::sync::Arc;

/// A tile of the forward has this many queries.
pub const FORWARD_ROWS: usize = 64;
/// A tile of the backward has this many queries, or this many keys.
pub const BACKWARD_ROWS: usize = 32;

/// A run of positions of one sequence, which one block computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tile {
    /// The sequence begins at this row of the batch.
    pub start: u32,
    /// The sequence has this many rows.
    pub length: u32,
    /// The tile begins at this position of the sequence.
    pub first: u32,
}

const _: () = assert!(size_of::<Tile>() == sizes::TILE, "tiles are planned for");

/// Returns the tiles of `rows` positions of all sequences. Those with the most keys before them
/// come first, so that the longest work starts first.
pub fn tiles(cu_seqlens: &[usize], rows: usize) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for ends in cu_seqlens.windows(2) {
        let (start, length) = (ends[0] as u32, (ends[1] - ends[0]) as u32);
        tiles.extend((0..length).step_by(rows).map(|first| Tile { start, length, first }));
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile.first));
    tiles
}

/// There is a kernel for each head size of [`HEAD_DIMS`](crate::cuda::sizes::HEAD_DIMS).
#[derive(Debug)]
pub struct Attention {
    forward: [Function; 3],
    delta: Function,
    keys: [Function; 3],
    queries: [Function; 3],
}

/// What the backward needs from the forward, with the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// It has shape `[tokens, (queries + 2 * keys) * dim]`; queries and keys are rotated to their
    /// positions.
    pub qkv: DeviceSlice<'a, Half>,
    /// It has shape `[tokens, queries * dim]`.
    pub out: DeviceSlice<'a, Half>,
    /// It has shape `[tokens, queries]` and holds natural log-sum-exps of scores.
    pub lse: DeviceSlice<'a, f32>,
    /// It has the shape of `out`.
    pub d_out: DeviceSlice<'a, Half>,
}

/// The numbers of heads, as the kernels read them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Shape {
    heads: i32,
    kv_heads: i32,
}

// SAFETY: the kernel's struct of two integers.
unsafe impl Argument for Shape {
    fn pointer(&self) -> *const c_void {
        std::ptr::from_ref(self).cast()
    }
}

impl Attention {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = [
            "attention_32",
            "attention_64",
            "attention_128",
            "attention_delta",
            "attention_backward_keys_32",
            "attention_backward_keys_64",
            "attention_backward_keys_128",
            "attention_backward_queries_32",
            "attention_backward_queries_64",
            "attention_backward_queries_128",
        ];
        let [a, b, c, delta, d, e, f, g, h, i] =
            functions(device, fatbin!("attention", device.half_format()), names)?;
        Ok(Self { forward: [a, b, c], delta, keys: [d, e, f], queries: [g, h, i] })
    }

    /// Computes causal attention within each sequence: from the rotated rows `qkv` to `out`
    /// `[tokens, queries * dim]` and `lse` `[tokens, queries]`. `tiles` must be [`tiles`] of
    /// [`FORWARD_ROWS`].
    pub fn forward(
        &self,
        stream: &Stream,
        heads: Heads,
        qkv: DeviceSlice<'_, Half>,
        tiles: DeviceSlice<'_, Tile>,
        out: DeviceSliceMut<'_, Half>,
        lse: DeviceSliceMut<'_, f32>,
    ) -> Result<()> {
        let tokens = rows_of(qkv.len(), heads.row());
        assert_eq!(lse.len(), tokens * heads.queries, "a log-sum-exp for each query");
        assert_eq!(out.len(), lse.len() * heads.dim, "a row for each query");
        let grid = (blocks(tiles.len()), blocks(heads.queries));
        let kernel = &self.forward[index_of(heads.dim)];
        // SAFETY: the kernel's parameters; tiles are of these rows.
        unsafe { kernel.launch(grid, 256, 0, stream, &[&qkv, &tiles, &out, &lse, &shape(heads)]) }
    }

    /// Writes the gradients of queries, keys and values to `d_qkv`, which has the shape of `qkv`.
    /// `delta` is scratch memory of the shape of `lse`, and `tiles` must be [`tiles`] of
    /// [`BACKWARD_ROWS`].
    pub fn backward(
        &self,
        stream: &Stream,
        heads: Heads,
        forward: Forward<'_>,
        tiles: DeviceSlice<'_, Tile>,
        delta: DeviceSliceMut<'_, f32>,
        mut d_qkv: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        const WARPS: usize = 8;
        let Forward { qkv, out, lse, d_out } = forward;
        let tokens = rows_of(qkv.len(), heads.row());
        let count = tokens * heads.queries;
        assert_eq!([lse.len(), delta.len()], [count; 2], "a log-sum-exp for each query");
        assert_eq!([out.len(), d_out.len()], [count * heads.dim; 2], "a row for each query");
        assert_eq!(d_qkv.len(), qkv.len(), "a gradient for each element");
        let (grid, sizes) = (blocks(count.div_ceil(WARPS)), (int(count), int(heads.dim)));
        // SAFETY: the kernel's parameters.
        unsafe {
            let arguments: [&dyn Argument; 5] = [&out, &d_out, &delta, &sizes.0, &sizes.1];
            self.delta.launch(grid, 256, 0, stream, &arguments)
        }?;
        let (delta, shape) = (delta.as_slice(), shape(heads));
        let kernels = [(&self.keys, heads.keys), (&self.queries, heads.queries)];
        for (kernel, count) in kernels {
            let grid = (blocks(tiles.len()), blocks(count));
            let d_qkv = d_qkv.reborrow();
            let arguments: [&dyn Argument; 7] =
                [&qkv, &tiles, &d_out, &lse, &delta, &d_qkv, &shape];
            // SAFETY: the kernels' parameters; tiles are of these rows.
            unsafe { kernel[index_of(heads.dim)].launch(grid, 256, 0, stream, &arguments) }?;
        }
        Ok(())
    }
}

fn shape(heads: Heads) -> Shape {
    let group = heads.queries / heads.keys;
    assert_eq!(group * heads.keys, heads.queries, "whole groups of query heads");
    Shape { heads: int(heads.queries), kv_heads: int(heads.keys) }
}
