//! Launches `kernels/attention_prompt.cu`, and lists the tiles of a pass.

use super::decode::{Cache, DIMS, index_of};
use super::rope::Heads;
use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, cubin};
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::ops::Range;
use std::sync::Arc;

/// Pairs of a token and a query head that a tile may have, as `kernels/attention_prompt.cu` has it.
const ROWS: usize = 64;

/// The tiles of `rows` of a pass, which are consecutive tokens of one sequence: one block's work each, for
/// every key head.
pub fn tiles(heads: Heads, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let most = ROWS / (heads.queries / heads.keys);
    let end = rows.end;
    rows.step_by(most).map(move |first| first..end.min(first + most))
}

/// Tiles as [`PromptAttention::attend`] takes them: the first row and the number of rows of each.
pub fn numbers(tiles: &[Range<usize>]) -> Vec<u32> {
    tiles.iter().flat_map(|tile| [tile.start as u32, tile.len() as u32]).collect()
}

/// The kernels, by head size.
#[derive(Debug)]
pub struct PromptAttention {
    kernels: [Function; DIMS.len()],
}

impl PromptAttention {
    /// Loads the kernels.
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["attention_prompt_32", "attention_prompt_64", "attention_prompt_128"];
        let cubin = cubin!("attention_prompt", device.half_format());
        Ok(Self { kernels: functions(device, cubin, names)? })
    }

    /// The attention of the tokens of `tiles` into their rows of `out` `[rows, queries * dim]`; to `cache`
    /// a tile is a sequence, which ends with the tile's last token. `tiles` holds their
    /// [`numbers`].
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
