//! Keys and values of sequences being generated, one contiguous slot each.
//!
//! Contract: a slot belongs to one sequence at a time; what lies past a sequence's length is never
//! seen. Left out: paging and the choice of slots (`engine`).

use super::ModelConfig;
use crate::ops::attention::padded;
use crate::ops::buffer::Buffer;
use crate::ops::matmul::PANEL;

/// The cache of all layers for a number of slots.
pub struct KvCache {
    pub(super) keys: Buffer,
    pub(super) values: Buffer,
    pub(super) shape: CacheShape,
}

/// Where the parts of a cache lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheShape {
    layers: usize,
    slots: usize,
    kv_heads: usize,
    head_dim: usize,
    max_len: usize,
}

impl CacheShape {
    fn new(config: &ModelConfig, slots: usize, max_len: usize) -> Self {
        Self {
            layers: config.num_layers,
            slots,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            max_len,
        }
    }

    /// Floats of the keys of one head of a slot.
    pub(super) fn key_len(&self) -> usize {
        self.max_len.next_multiple_of(PANEL) * self.head_dim
    }

    /// Floats of the values of one head of a slot.
    pub(super) fn value_len(&self) -> usize {
        self.max_len * padded(self.head_dim)
    }

    /// The number of the head among all; its keys start at that times [`Self::key_len`].
    pub(super) fn index(&self, layer: usize, slot: usize, head: usize) -> usize {
        (layer * self.slots + slot) * self.kv_heads + head
    }
}

impl KvCache {
    /// An empty cache for `num_slots` sequences of up to `max_len` tokens.
    pub fn new(config: &ModelConfig, num_slots: usize, max_len: usize) -> Self {
        let shape = CacheShape::new(config, num_slots, max_len);
        let heads = shape.index(shape.layers, 0, 0);
        Self {
            keys: Buffer::zeros(heads * shape.key_len()),
            values: Buffer::zeros(heads * shape.value_len()),
            shape,
        }
    }

    /// Bytes that a cache for `num_slots` sequences of up to `max_len` tokens takes.
    pub fn bytes_for(config: &ModelConfig, num_slots: usize, max_len: usize) -> u64 {
        let shape = CacheShape::new(config, num_slots, max_len.min(1 << 40));
        let head = shape.key_len() + shape.value_len();
        (shape.index(shape.layers, 0, 0) as u64 * size_of::<f32>() as u64)
            .saturating_mul(head as u64)
    }

    /// Sequences that fit.
    pub fn num_slots(&self) -> usize {
        self.shape.slots
    }

    /// Tokens that fit a slot.
    pub fn max_len(&self) -> usize {
        self.shape.max_len
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    /// Copies the first `len` tokens of one slot to another, so that a prompt is computed once for
    /// all its samples.
    pub fn copy_prefix(&mut self, from_slot: usize, to_slot: usize, len: usize) {
        let shape = self.shape;
        assert!(from_slot < shape.slots && to_slot < shape.slots && len <= shape.max_len);
        let keys = len.next_multiple_of(PANEL) * shape.head_dim;
        let values = len * padded(shape.head_dim);
        for layer in 0..shape.layers {
            for head in 0..shape.kv_heads {
                let [from, to] = [from_slot, to_slot].map(|slot| shape.index(layer, slot, head));
                let at = from * shape.key_len();
                self.keys.as_mut_slice().copy_within(at..at + keys, to * shape.key_len());
                let at = from * shape.value_len();
                self.values.as_mut_slice().copy_within(at..at + values, to * shape.value_len());
            }
        }
    }
}
