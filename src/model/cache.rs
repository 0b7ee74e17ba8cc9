//! The key-value cache of sequences that generate, in blocks of [`BLOCK_TOKENS`] positions (as
//! PagedAttention, Kwon et al. 2023).
//!
//! A sequence is a table of block indices, in the order of positions, and a block holds its positions for
//! all layers and heads. Sequences may share blocks that nobody writes any more. What a block holds beyond
//! a sequence's length is never read for that sequence. The `engine` decides which sequence holds which
//! block.

use super::ModelConfig;
use crate::ops::attention::padded;
use crate::ops::buffer::Buffer;
use crate::ops::matmul::PANEL;

/// A block has this many positions: whole panels of keys.
pub const BLOCK_TOKENS: usize = 2 * PANEL;

/// The keys and values of all layers, in f32.
pub struct KvCache {
    pub(crate) keys: Buffer,
    pub(crate) values: Buffer,
    pub(crate) shape: CacheShape,
}

/// Where the parts of a cache are: `[layer][block][head]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheShape {
    layers: usize,
    blocks: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl CacheShape {
    fn new(config: &ModelConfig, blocks: usize) -> Self {
        Self {
            layers: config.num_layers,
            blocks,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Returns the floats of the keys of one head of a block.
    pub(crate) fn key_len(&self) -> usize {
        BLOCK_TOKENS * self.head_dim
    }

    /// Returns the floats of the values of one head of a block.
    pub(crate) fn value_len(&self) -> usize {
        BLOCK_TOKENS * padded(self.head_dim)
    }

    /// Returns the floats of all keys of one layer, and those of all its values.
    pub(crate) fn layer_lens(&self) -> (usize, usize) {
        let heads = self.blocks * self.kv_heads;
        (heads * self.key_len(), heads * self.value_len())
    }

    /// Returns the index of head `head` of `block` among all heads of a layer's blocks. Its keys start at
    /// that index times [`Self::key_len`].
    pub(crate) fn index(&self, block: u32, head: usize) -> usize {
        block as usize * self.kv_heads + head
    }
}

impl KvCache {
    /// Allocates a cache of `num_blocks` blocks.
    pub fn new(config: &ModelConfig, num_blocks: usize) -> Self {
        let shape = CacheShape::new(config, num_blocks);
        let (keys, values) = shape.layer_lens();
        Self {
            keys: Buffer::zeros(shape.layers * keys),
            values: Buffer::zeros(shape.layers * values),
            shape,
        }
    }

    pub fn num_blocks(&self) -> usize {
        self.shape.blocks
    }

    /// Returns the bytes of a cache of `num_blocks` blocks.
    pub fn bytes_for(config: &ModelConfig, num_blocks: usize) -> u64 {
        let (keys, values) = CacheShape::new(config, 1).layer_lens();
        let block = config.num_layers * (keys + values) * size_of::<f32>();
        (num_blocks as u64).saturating_mul(block as u64)
    }

    /// Copies block `from` to block `to` in all layers, so that a sequence can continue after a part of a
    /// shared block.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let shape = self.shape;
        let (layer_keys, layer_values) = shape.layer_lens();
        let copy = |buffer: &mut Buffer, layer_len: usize, head_len: usize| {
            for layer in buffer.as_mut_slice().chunks_exact_mut(layer_len).take(shape.layers) {
                let [from, to] = [from, to].map(|block| shape.index(block, 0) * head_len);
                layer.copy_within(from..from + shape.kv_heads * head_len, to);
            }
        };
        copy(&mut self.keys, layer_keys, shape.key_len());
        copy(&mut self.values, layer_values, shape.value_len());
    }

    /// Returns how many blocks hold `tokens` positions.
    pub fn blocks_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS)
    }
}
