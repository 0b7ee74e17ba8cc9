//! Launches `kernels/rope.cu`.

use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, cubin};
use crate::cuda::stream::Stream;
use anyhow::Result;
use half::bf16;
use std::sync::Arc;

/// The kernels.
#[derive(Debug)]
pub struct RopeKernels {
    turn: Function,
    write: Function,
}

/// The heads of a layer: a row of queries, keys and values is `[queries, keys, keys]` heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads.
    pub keys: usize,
    /// Elements of a head: 32, 64 or 128.
    pub dim: usize,
}

impl Heads {
    /// Elements of a row of queries, keys and values.
    pub fn row(&self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }
}

/// The cosines and sines of `ops::rope::Rope`, `[positions, dim / 2]` each, and the position of each
/// row, which is below `positions`.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Cosines.
    pub cosines: DeviceSlice<'a, f32>,
    /// Sines.
    pub sines: DeviceSlice<'a, f32>,
    /// A row's position in its sequence.
    pub positions: DeviceSlice<'a, u32>,
}

/// Which way heads turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To their position.
    Forward,
    /// The gradient, back from it.
    Backward,
}

/// Positions in a block of the cache.
pub const BLOCK_TOKENS: usize = 32;

/// Where the keys and values of rows go: `[block][kv_head][32][dim]` each, and the slot of each row,
/// `block * 32 + position % 32`.
#[derive(Debug)]
pub struct CacheWrite<'a> {
    /// Keys of one layer.
    pub keys: DeviceSliceMut<'a, bf16>,
    /// Values of one layer.
    pub values: DeviceSliceMut<'a, bf16>,
    /// A row's slot; no two rows have the same.
    pub slots: DeviceSlice<'a, u32>,
}

impl RopeKernels {
    /// Loads the kernels.
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let [turn, write] = functions(device, cubin!("rope"), ["rope", "rope_write"])?;
        Ok(Self { turn, write })
    }

    /// Turns the queries and keys of the rows of `qkv`.
    pub fn turn(
        &self,
        stream: &Stream,
        heads: Heads,
        angles: Angles<'_>,
        direction: Direction,
        qkv: DeviceSliceMut<'_, bf16>,
    ) -> Result<()> {
        let rows = check(heads, angles, qkv.len());
        let (turned, half) = (int(heads.queries + heads.keys), int(heads.dim / 2));
        let direction = if direction == Direction::Forward { 1.0f32 } else { -1.0 };
        let Angles { cosines, sines, positions } = angles;
        // SAFETY: the kernel's parameters; positions are within the table.
        unsafe {
            self.turn.launch(
                blocks(rows),
                256,
                0,
                stream,
                &[
                    &qkv,
                    &cosines,
                    &sines,
                    &positions,
                    &turned,
                    &half,
                    &int(heads.row()),
                    &direction,
                ],
            )
        }
    }

    /// Turns them forward and writes keys and values into the cache.
    pub fn write(
        &self,
        stream: &Stream,
        heads: Heads,
        angles: Angles<'_>,
        qkv: DeviceSliceMut<'_, bf16>,
        cache: &CacheWrite<'_>,
    ) -> Result<()> {
        let rows = check(heads, angles, qkv.len());
        let CacheWrite { keys, values, slots } = cache;
        assert_eq!(slots.len(), rows, "a slot for each row");
        assert_eq!(keys.len(), values.len(), "as many values as keys");
        rows_of(keys.len(), heads.keys * BLOCK_TOKENS * heads.dim);
        let Angles { cosines, sines, positions } = angles;
        let sizes = [heads.queries, heads.keys, heads.dim / 2].map(int);
        // SAFETY: the kernel's parameters; positions are within the table, slots within the cache.
        unsafe {
            self.write.launch(
                blocks(rows),
                256,
                0,
                stream,
                &[
                    &qkv, &cosines, &sines, &positions, slots, keys, values, &sizes[0], &sizes[1],
                    &sizes[2],
                ],
            )
        }
    }
}

/// The number of rows.
fn check(heads: Heads, angles: Angles<'_>, len: usize) -> usize {
    assert!(heads.dim.is_multiple_of(16), "heads of {}: a multiple of 16", heads.dim);
    let rows = rows_of(len, heads.row());
    assert_eq!(angles.positions.len(), rows, "a position for each row");
    assert_eq!(angles.cosines.len(), angles.sines.len(), "as many sines as cosines");
    rows
}
