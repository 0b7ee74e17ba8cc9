//! This file launches `kernels/attention_prompt.cu`, and lists the tiles of a pass.

use super::decode::{Cache, index_of};
use super::rope::Heads;
use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, fatbin};
use crate::cuda::sizes::HEAD_DIMS;
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::ops::Range;
use std::sync::Arc;

/// A tile has at most this many pairs of a token and a query head, as `kernels/attention_prompt.cu`
/// has.
const ROWS: usize = 64;

/// Divides `rows`, which are consecutive tokens of one sequence, into tiles. One block computes one
/// tile for one key head.
pub fn tiles(heads: Heads, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let most = ROWS / (heads.queries / heads.keys);
    let end = rows.end;
    rows.step_by(most).map(move |first| first..end.min(first + most))
}

/// Flattens tiles to the pairs of first row and number of rows that [`PromptAttention::attend`]
/// takes.
pub fn numbers(tiles: &[Range<usize>]) -> Vec<u32> {
    tiles.iter().flat_map(|tile| [tile.start as u32, tile.len() as u32]).collect()
}

/// There is a kernel for each head size.
#[derive(Debug)]
pub struct PromptAttention {
    kernels: [Function; HEAD_DIMS.len()],
}

impl PromptAttention {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["attention_prompt_32", "attention_prompt_64", "attention_prompt_128"];
        let fatbin = fatbin!("attention_prompt", device.half_format());
        Ok(Self { kernels: functions(device, fatbin, names)? })
    }

    /// Computes the attention of the tokens of `tiles` into their rows of `out` `[rows, queries *
    /// dim]`. `cache` has a table and a length for each tile, as if it were a sequence that ends
    /// with the tile's last token. `tiles` must be made by [`numbers`].
    pub fn attend(
        &self,
        stream: &Stream,
        heads: Heads,
        qkv: DeviceSlice<'_, Half>,
        cache: Cache<'_>,
        tiles: DeviceSlice<'_, u32>,
        out: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let Cache { keys, values, tables, lengths } = cache;
        let rows = rows_of(qkv.len(), heads.row());
        assert_eq!(out.len(), rows * heads.queries * heads.dim, "a row for each row of qkv");
        let count = lengths.len();
        assert_eq!(tiles.len(), 2 * count, "two numbers for each tile");
        cache.check(heads);
        if count == 0 {
            return Ok(());
        }
        let sizes = [heads.queries, heads.keys, tables.len() / count].map(int);
        // SAFETY: the kernel's parameters; tables hold blocks of the cache, and tiles rows of qkv.
        unsafe {
            self.kernels[index_of(heads.dim)].launch(
                (blocks(count), blocks(heads.keys)),
                128,
                0,
                stream,
                &[
                    &qkv, &keys, &values, &tables, &lengths, &tiles, &out, &sizes[0], &sizes[1],
                    &sizes[2],
                ],
            )
        }
    }
}
