//! This file launches `kernels/rope.cu`.

use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Argument, Function, fatbin};
pub use crate::cuda::sizes::BLOCK_TOKENS;
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug)]
pub struct RopeKernels {
    turn: Function,
    split: Function,
    join: Function,
    write: Function,
}

/// The heads of a layer. A row of queries, keys and values has the heads `[queries, keys, keys]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub queries: usize,
    /// Keys and values have so many heads each.
    pub keys: usize,
    /// A head has 32, 64 or 128 elements.
    pub dim: usize,
}

impl Heads {
    /// Returns the elements of a row of queries, keys and values.
    pub fn row(&self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }

    /// Returns where queries, keys and values of `rows` rows lie when they are stored one after the
    /// other.
    pub fn parts(&self, rows: usize) -> [Range<usize>; 3] {
        let key = rows * self.queries * self.dim;
        let value = key + rows * self.keys * self.dim;
        [0..key, key..value, value..rows * self.row()]
    }
}

/// The angles of rotation for each position, as `ops::rope::Rope` computes them, and the position
/// of each row.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// It has shape `[positions, dim / 2]`.
    pub cosines: DeviceSlice<'a, f32>,
    /// It has shape `[positions, dim / 2]`.
    pub sines: DeviceSlice<'a, f32>,
    /// It holds each row's position in its sequence, which must be below the number of `positions`
    /// of the tables.
    pub positions: DeviceSlice<'a, u32>,
}

/// The direction in which heads are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Queries and keys are rotated to their positions.
    Forward,
    /// Gradients are rotated back.
    Backward,
}

/// The place in the cache to which the keys and values of each row are written.
#[derive(Debug)]
pub struct CacheWrite<'a> {
    /// It holds the keys of one layer, `[block][kv_head][32][dim]`.
    pub keys: DeviceSliceMut<'a, Half>,
    /// It has the shape of `keys`.
    pub values: DeviceSliceMut<'a, Half>,
    /// The slot of a row is `block * 32 + position % 32`; no two rows have the same.
    pub slots: DeviceSlice<'a, u32>,
}

impl RopeKernels {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["rope", "rope_split", "rope_join", "rope_write"];
        let [turn, split, join, write] =
            functions(device, fatbin!("rope", device.half_format()), names)?;
        Ok(Self { turn, split, join, write })
    }

    /// Rotates the queries and keys of the rows of `qkv` in place.
    pub fn turn(
        &self,
        stream: &Stream,
        heads: Heads,
        angles: Angles<'_>,
        direction: Direction,
        qkv: DeviceSliceMut<'_, Half>,
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

    /// Rotates the queries and keys of the rows of `qkv` forward, and writes queries, keys and
    /// values to `apart`, one after the other ([`Heads::parts`]).
    pub fn split(
        &self,
        stream: &Stream,
        heads: Heads,
        angles: Angles<'_>,
        qkv: DeviceSlice<'_, Half>,
        apart: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        assert_eq!(qkv.len(), apart.len(), "as many elements apart as in rows");
        // SAFETY: the kernel moves `qkv` to `apart`, which has as many elements.
        unsafe { launch_move(&self.split, stream, heads, angles, &[&qkv, &apart], qkv.len()) }
    }

    /// Rotates the gradients of queries and keys back, and joins those of queries, keys and values
    /// to rows.
    pub fn join(
        &self,
        stream: &Stream,
        heads: Heads,
        angles: Angles<'_>,
        apart: DeviceSlice<'_, Half>,
        qkv: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        assert_eq!(qkv.len(), apart.len(), "as many elements in rows as apart");
        // SAFETY: the kernel moves `apart` to `qkv`, which has as many elements.
        unsafe { launch_move(&self.join, stream, heads, angles, &[&apart, &qkv], apart.len()) }
    }

    /// Rotates queries and keys forward in place, and writes keys and values to the cache.
    pub fn write(
        &self,
        stream: &Stream,
        heads: Heads,
        angles: Angles<'_>,
        qkv: DeviceSliceMut<'_, Half>,
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

/// Queues a kernel that moves rows from one layout to the other.
///
/// # Safety
/// The kernel's first parameters must be `ends`, each of `len` elements.
unsafe fn launch_move(
    kernel: &Function,
    stream: &Stream,
    heads: Heads,
    angles: Angles<'_>,
    ends: &[&dyn Argument; 2],
    len: usize,
) -> Result<()> {
    let rows = blocks(check(heads, angles, len));
    let Angles { cosines, sines, positions } = angles;
    let [queries, keys, half] = [heads.queries, heads.keys, heads.dim / 2].map(int);
    let rest: [&dyn Argument; 6] = [&cosines, &sines, &positions, &queries, &keys, &half];
    // SAFETY: the caller's promise, and the other parameters; positions are within the table.
    unsafe { kernel.launch(rows, 256, 0, stream, &[&ends[..], &rest[..]].concat()) }
}

/// Checks the heads and the angles, and returns the number of rows.
fn check(heads: Heads, angles: Angles<'_>, len: usize) -> usize {
    assert!(heads.dim.is_multiple_of(16), "heads of {}: a multiple of 16", heads.dim);
    let rows = rows_of(len, heads.row());
    assert_eq!(angles.positions.len(), rows, "a position for each row");
    assert_eq!(angles.cosines.len(), angles.sines.len(), "as many sines as cosines");
    rows
}
