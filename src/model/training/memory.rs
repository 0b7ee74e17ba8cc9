//! The memory of training on the CPU, computed in advance.
//!
//! [`Decoder::training_memory`] says what a [`Workspace`] will hold after its largest batch, and
//! [`Workspace::memory`] what it holds; a test compares them to the byte. Parameters, gradients and moments
//! belong to the caller. A few numbers for each token are not counted.

use super::{CHUNK, Decoder, Recompute, Workspace, chunk_of};
use crate::model::layout::LayerRanges;
use crate::model::weights::Pass;
use crate::ops::attention::{AttentionScratch, scratch_len};
use crate::ops::buffer::{Buffer, aligned};
use crate::ops::matmul::{WEIGHT_GRADIENT_SCRATCH, packed_len};
use serde::{Deserialize, Serialize};

/// The largest batch that a workspace will see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSize {
    /// The tokens of all sequences.
    pub tokens: usize,
    /// The tokens of the longest sequence.
    pub longest: usize,
    /// The targets of all sequences.
    pub targets: usize,
}

/// The bytes of a workspace, by purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrainingMemory {
    /// Matrices packed for the products of forward and backward.
    pub packed_weights: usize,
    /// What the forward keeps for the backward.
    pub activations: usize,
    /// The gradients of activations.
    pub backward: usize,
    /// One chunk of the head, above all its logits.
    pub head: usize,
    /// The buffers of threads: attention, packed blocks, and the rotary table.
    pub scratch: usize,
}

impl TrainingMemory {
    /// Returns the sum.
    pub fn total(&self) -> usize {
        self.packed_weights + self.activations + self.backward + self.head + self.scratch
    }
}

/// Returns the bytes of aligned buffers of the given lengths, in floats.
fn bytes<const N: usize>(lens: [usize; N]) -> usize {
    lens.iter().map(|&len| aligned(len) * size_of::<f32>()).sum()
}

impl Decoder {
    /// Returns what a workspace will hold after its largest batch, on a pool of `threads` threads.
    pub fn training_memory(
        &self,
        batch: BatchSize,
        recompute: Recompute,
        threads: usize,
    ) -> TrainingMemory {
        let BatchSize { tokens, longest, targets } = batch;
        let (hidden, inner) = (self.config().hidden_size, self.config().intermediate_size);
        let vocab = self.config().vocab_size;
        let (heads, width) = (self.heads(), self.attention_width());
        let num_layers = self.config().num_layers;
        let (before_norm, head_norm) = if self.config().has_head_norm {
            (tokens * heads.row(), 2 * heads.dim)
        } else {
            (0, 0)
        };
        let layer = bytes([
            tokens * heads.row(),
            before_norm,
            tokens * width,
            tokens * heads.queries,
            tokens * hidden,
            tokens * 2 * inner,
        ]);
        let outputs = bytes([tokens * hidden, tokens * hidden, tokens * inner]);
        // The inputs of all layers, and the output of the last.
        let inputs = (num_layers + 1) * bytes([tokens * hidden]);
        let activations = inputs
            + match recompute {
                Recompute::None => num_layers * (layer + outputs),
                Recompute::Selective => num_layers * layer,
                Recompute::Layer => layer,
            };
        let chunks = tokens.div_ceil(CHUNK);
        let bias = if self.config().qkv_bias { heads.row() } else { 0 };
        let chunk = targets.min(self.head_chunk());
        let rows = chunk_of(0, tokens, 1).len();
        let products = [rows * hidden, rows * inner].map(aligned).iter().sum();
        let of_thread =
            bytes([WEIGHT_GRADIENT_SCRATCH.max(products)]) + bytes(scratch_len(heads, longest));
        TrainingMemory {
            packed_weights: self.packed_bytes(Pass::Forward) + self.packed_bytes(Pass::Backward),
            activations,
            backward: bytes([
                tokens * hidden,
                tokens * hidden,
                tokens * width,
                tokens * hidden,
                tokens * inner,
                chunks * hidden,
                chunks * bias,
                chunks * head_norm,
            ]),
            head: bytes([
                chunk * hidden,
                chunk * hidden,
                chunk * vocab,
                chunk * hidden,
                chunk.div_ceil(CHUNK) * hidden,
            ]),
            scratch: threads * of_thread + longest * heads.dim * size_of::<f32>(),
        }
    }

    /// Returns the bytes of the weights as generation reads them ([`Decoder::pack`]), beside the
    /// parameters.
    pub fn decoding_weights_bytes(&self) -> usize {
        self.packed_bytes(Pass::Forward)
    }

    /// Returns the bytes of all matrices, packed for one pass.
    fn packed_bytes(&self, pass: Pass) -> usize {
        let hidden = self.config().hidden_size;
        let packed = |len: usize, inputs: usize| {
            let outputs = len / inputs;
            bytes([match pass {
                Pass::Forward => packed_len(inputs, outputs),
                Pass::Backward => packed_len(outputs, inputs),
            }])
        };
        let of_layer = |layer: &LayerRanges| {
            packed(layer.qkv.len(), hidden)
                + packed(layer.output.len(), layer.output.len() / hidden)
                + packed(layer.gate_up.len(), hidden)
                + packed(layer.down.len(), layer.down.len() / hidden)
        };
        let layers: usize = self.ranges.layers.iter().map(of_layer).sum();
        layers + packed(self.ranges.head.len(), hidden)
    }
}

impl Workspace {
    /// Returns what the workspace holds now.
    pub fn memory(&self) -> TrainingMemory {
        let sum = |buffers: &[&Buffer]| buffers.iter().map(|b| b.bytes()).sum::<usize>();
        let kept = |layer: &super::LayerBuffers| {
            let outputs = layer.outputs.as_ref();
            let outputs =
                outputs.map_or(0, |o| sum(&[&o.input_normal, &o.post_normal, &o.product]));
            let kept = [&layer.x, &layer.qkv, &layer.before_norm, &layer.attention, &layer.lse];
            sum(&kept) + sum(&[&layer.middle, &layer.gate_up]) + outputs
        };
        let head = &self.head;
        let gradients = &self.gradients;
        TrainingMemory {
            packed_weights: [&self.forward, &self.backward]
                .iter()
                .map(|packed| packed.as_ref().map_or(0, |packed| packed.bytes()))
                .sum(),
            activations: self.layers.iter().map(kept).sum::<usize>()
                + self.inputs.iter().map(Buffer::bytes).sum::<usize>()
                + self.x.bytes(),
            backward: sum(&[&gradients.x, &gradients.middle, &gradients.attention])
                + sum(&[&gradients.normal, &gradients.product])
                + sum(&[&gradients.norm_partials, &gradients.bias_partials])
                + gradients.head_norm_partials.bytes(),
            head: sum(&[&head.x, &head.normal, &head.logits, &head.d_x, &head.partials]),
            scratch: self.scratch.iter().map(Buffer::bytes).sum::<usize>()
                + self.attention_scratch.iter().map(AttentionScratch::bytes).sum::<usize>()
                + self.rope.as_ref().map_or(0, |rope| rope.bytes()),
        }
    }
}
