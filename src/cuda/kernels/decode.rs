//! Launches `kernels/attention_decode.cu`.

use super::rope::{BLOCK_TOKENS, Heads};
use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, cubin};
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

/// Head sizes that kernels exist for.
pub const DIMS: [usize; 3] = [32, 64, 128];
/// The most query heads that share a key head.
pub const MOST_GROUP: usize = 8;

/// The kernels: by head size, for groups of up to four and of up to eight.
#[derive(Debug)]
pub struct DecodeAttention {
    kernels: [[Function; 2]; 3],
}

/// The cached keys and values of one layer, `[block][kv_head][32][dim]` each, and who has which.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// Keys, those of the new tokens included.
    pub keys: DeviceSlice<'a, Half>,
    /// Values.
    pub values: DeviceSlice<'a, Half>,
    /// Block numbers, `[sequences, table_width]`.
    pub tables: DeviceSlice<'a, u32>,
    /// Tokens of each sequence, the new one included; at most 32 * table_width.
    pub lengths: DeviceSlice<'a, u32>,
}

impl DecodeAttention {
    /// Loads the kernels.
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = [
            "attention_decode_32_4",
            "attention_decode_32_8",
            "attention_decode_64_4",
            "attention_decode_64_8",
            "attention_decode_128_4",
            "attention_decode_128_8",
        ];
        let [a, b, c, d, e, f] =
            functions(device, cubin!("attention_decode", device.half_format()), names)?;
        Ok(Self { kernels: [[a, b], [c, d], [e, f]] })
    }

    /// The attention of the new token of each sequence, a row of `qkv` (turned), into `out`
    /// `[sequences, queries * dim]`.
    pub fn attend(
        &self,
        stream: &Stream,
        heads: Heads,
        qkv: DeviceSlice<'_, Half>,
        cache: Cache<'_>,
        out: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let sequences = rows_of(qkv.len(), heads.row());
        let Cache { keys, values, tables, lengths } = cache;
        assert_eq!(out.len(), sequences * heads.queries * heads.dim, "a row for each sequence");
        assert_eq!(lengths.len(), sequences, "a length for each sequence");
        assert_eq!(keys.len(), values.len(), "as many values as keys");
        rows_of(keys.len(), heads.keys * BLOCK_TOKENS * heads.dim);
        let group = heads.queries / heads.keys;
        assert!(group * heads.keys == heads.queries && group <= MOST_GROUP, "groups of {group}");
        let table_width = int(tables.len() / sequences.max(1));
        let kernel = &self.kernels[index_of(heads.dim)][usize::from(group > 4)];
        let grid = (blocks(sequences), blocks(heads.keys));
        let sizes = [heads.queries, heads.keys].map(int);
        // SAFETY: the kernel's parameters; tables hold blocks of the cache.
        unsafe {
            kernel.launch(
                grid,
                128,
                0,
                stream,
                &[
                    &qkv,
                    &keys,
                    &values,
                    &tables,
                    &lengths,
                    &out,
                    &sizes[0],
                    &sizes[1],
                    &table_width,
                ],
            )
        }
    }
}

/// The place of a head size among [`DIMS`].
pub(super) fn index_of(dim: usize) -> usize {
    DIMS.iter().position(|&known| known == dim).expect("a head size that kernels exist for")
}
