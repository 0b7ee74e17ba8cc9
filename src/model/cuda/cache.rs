//! This file holds the keys and values of sequences that are generated on a GPU, in 16 bits: the
//! twin of [`crate::model::KvCache`].
//!
//! Keys have the layout `[layer][block][kv_head][32][head_dim]`, and values the same, as
//! `kernels/rope.cu` writes them and `kernels/attention_{decode,prompt}.cu` read them. There is one
//! block more than was asked for: rows that only fill a pass up write to it.

use crate::cuda::sizes::{self, ALIGNMENT};
use crate::cuda::{DeviceBuffer, DeviceSliceMut, Half, Phase, Stream};
use crate::model::gpu_sizes::{block_bytes, block_len};
use crate::model::{BLOCK_TOKENS, ModelConfig};
use anyhow::Result;

const _: () = assert!(BLOCK_TOKENS == sizes::BLOCK_TOKENS, "kernels have the engine's blocks");

/// The blocks of all layers.
pub(crate) struct DeviceCache<'a> {
    keys: DeviceBuffer<'a, Half>,
    values: DeviceBuffer<'a, Half>,
    shape: Shape,
}

/// The sizes of keys in elements; values have as many.
#[derive(Clone, Copy)]
struct Shape {
    /// One block of one layer has so many elements.
    block: usize,
    /// One layer has so many elements.
    layer: usize,
    layers: usize,
}

impl Shape {
    fn new(config: &ModelConfig, blocks: usize) -> Self {
        let block = block_len(config);
        Self { block, layer: (blocks + 1) * block, layers: config.num_layers }
    }
}

impl<'a> DeviceCache<'a> {
    /// Takes memory for `most` blocks, or for as many as fit, and for the additional one.
    pub(crate) fn take(phase: &mut Phase<'a>, config: &ModelConfig, most: usize) -> Result<Self> {
        let room = phase.free_bytes().saturating_sub(2 * ALIGNMENT) / block_bytes(config);
        let shape = Shape::new(config, most.min(room.saturating_sub(1)));
        let mut take = || phase.take("key-value cache", shape.layers * shape.layer);
        Ok(Self { keys: take()?, values: take()?, shape })
    }

    /// Returns the number of blocks that sequences may have, which is also the index of the
    /// additional block.
    pub(crate) fn num_blocks(&self) -> usize {
        self.shape.layer / self.shape.block - 1
    }

    /// Returns the keys and the values of a layer.
    pub(crate) fn layer(
        &mut self,
        layer: usize,
    ) -> (DeviceSliceMut<'_, Half>, DeviceSliceMut<'_, Half>) {
        let range = layer * self.shape.layer..(layer + 1) * self.shape.layer;
        let (keys, values) = (self.keys.slice_mut(), self.values.slice_mut());
        (keys.into_range(range.clone()), values.into_range(range))
    }

    /// Copies the block `from` to the block `to` in all layers, in the order of `stream`.
    pub(crate) fn copy_block(&mut self, stream: &Stream, from: u32, to: u32) -> Result<()> {
        let Shape { block, layers, .. } = self.shape;
        let [low, high] = [from.min(to), from.max(to)].map(|number| number as usize * block);
        for layer in 0..layers {
            let (keys, values) = self.layer(layer);
            for all in [keys, values] {
                let (before, after) = all.split_at(high);
                let (before, after) =
                    (before.into_range(low..low + block), after.into_range(0..block));
                match from < to {
                    true => stream.copy(after, before.as_slice())?,
                    false => stream.copy(before, after.as_slice())?,
                }
            }
        }
        Ok(())
    }
}
