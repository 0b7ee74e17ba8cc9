//! This file launches `kernels/attention_decode.cu`.

use super::rope::{BLOCK_TOKENS, Heads};
use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Argument, Function, fatbin};
use crate::cuda::sizes::{self, HEAD_DIMS, MOST_GROUP, splits};
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

/// There is a kernel for each head size, for groups of up to four and of up to eight query heads.
#[derive(Debug)]
pub struct DecodeAttention {
    kernels: [[Function; 2]; 3],
    combine: Function,
}

/// Returns how many f32 of partial results a sequence with a table of `table_width` blocks needs.
/// It needs none where it is not split.
pub fn partials_len(heads: Heads, table_width: usize) -> usize {
    sizes::partials_len(heads.queries, heads.dim, table_width)
}

/// The cached keys and values of one layer, and the blocks that each sequence has of them.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// It has shape `[block][kv_head][32][dim]` and already holds the new tokens' keys.
    pub keys: DeviceSlice<'a, Half>,
    /// It has the shape of `keys`.
    pub values: DeviceSlice<'a, Half>,
    /// It holds block numbers, `[sequences, table_width]`.
    pub tables: DeviceSlice<'a, u32>,
    /// It holds the tokens of each sequence, the new one included: at most 32 * table_width.
    pub lengths: DeviceSlice<'a, u32>,
}

impl Cache<'_> {
    /// Panics unless keys and values are equally many whole blocks.
    pub(crate) fn check(&self, heads: Heads) {
        assert_eq!(self.keys.len(), self.values.len(), "as many values as keys");
        rows_of(self.keys.len(), heads.keys * BLOCK_TOKENS * heads.dim);
    }
}

impl DecodeAttention {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = [
            "attention_decode_32_4",
            "attention_decode_32_8",
            "attention_decode_64_4",
            "attention_decode_64_8",
            "attention_decode_128_4",
            "attention_decode_128_8",
            "attention_decode_combine",
        ];
        let [a, b, c, d, e, f, combine] =
            functions(device, fatbin!("attention_decode", device.half_format()), names)?;
        Ok(Self { kernels: [[a, b], [c, d], [e, f]], combine })
    }

    /// Computes the attention of each sequence's new token, whose rotated row is in `qkv`, into
    /// `out` `[sequences, queries * dim]`. `partials` is scratch memory of [`partials_len`]
    /// elements for each sequence that is computed at a time; where it has fewer than all, they are
    /// computed in turns.
    pub fn attend(
        &self,
        stream: &Stream,
        heads: Heads,
        qkv: DeviceSlice<'_, Half>,
        cache: Cache<'_>,
        mut partials: DeviceSliceMut<'_, f32>,
        mut out: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let sequences = rows_of(qkv.len(), heads.row());
        let width = heads.queries * heads.dim;
        let Cache { tables, lengths, .. } = cache;
        assert_eq!(out.len(), sequences * width, "a row for each sequence");
        assert_eq!(lengths.len(), sequences, "a length for each sequence");
        cache.check(heads);
        let group = heads.queries / heads.keys;
        assert!(group * heads.keys == heads.queries && group <= MOST_GROUP, "groups of {group}");
        let table_width = tables.len() / sequences.max(1);
        let room = partials.len().checked_div(partials_len(heads, table_width));
        let at_a_time = room.unwrap_or(sequences.max(1));
        assert!(at_a_time > 0, "room for the partial results of a sequence");
        for first in (0..sequences).step_by(at_a_time) {
            let end = sequences.min(first + at_a_time);
            let cache = Cache {
                tables: tables.range(first * table_width..end * table_width),
                lengths: lengths.range(first..end),
                ..cache
            };
            let qkv = qkv.range(first * heads.row()..end * heads.row());
            let out = out.range(first * width..end * width);
            self.attend_some(stream, heads, qkv, cache, partials.reborrow(), out)?;
        }
        Ok(())
    }

    /// Attends for at most as many sequences as `partials` has room for.
    fn attend_some(
        &self,
        stream: &Stream,
        heads: Heads,
        qkv: DeviceSlice<'_, Half>,
        cache: Cache<'_>,
        partials: DeviceSliceMut<'_, f32>,
        out: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let Cache { keys, values, tables, lengths } = cache;
        let sequences = lengths.len();
        let table_width = tables.len() / sequences;
        let splits = splits(table_width);
        let kernel =
            &self.kernels[index_of(heads.dim)][usize::from(heads.queries / heads.keys > 4)];
        let grid = (blocks(sequences), blocks(heads.keys * splits));
        let sizes = [heads.queries, heads.keys, table_width, splits].map(int);
        // SAFETY: the kernel's parameters; tables hold blocks of the cache, and partials have room.
        unsafe {
            kernel.launch(
                grid,
                128,
                0,
                stream,
                &[
                    &qkv, &keys, &values, &tables, &lengths, &partials, &out, &sizes[0], &sizes[1],
                    &sizes[2],
                ],
            )
        }?;
        if splits == 1 {
            return Ok(());
        }
        let grid = (blocks(sequences), blocks(heads.queries));
        let partials = partials.as_slice();
        // SAFETY: the kernel's parameters.
        unsafe {
            let arguments: [&dyn Argument; 5] = [&partials, &lengths, &out, &sizes[0], &sizes[3]];
            self.combine.launch(grid, heads.dim as u32, 0, stream, &arguments)
        }
    }
}

/// Returns the place of a head size in [`HEAD_DIMS`].
pub(crate) fn index_of(dim: usize) -> usize {
    HEAD_DIMS.iter().position(|&known| known == dim).expect("a head size that kernels exist for")
}
