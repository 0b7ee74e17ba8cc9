//! What a phase of training takes of the arena, known before.
//!
//! Contract: [`TrainingMemory::new`] counts the buffers that [`Training`](super::Training) takes, to the
//! byte; a test compares them. Parameters, gradients, moments and the workspace of products last longer
//! than a phase and belong to others.

use super::attention::SEGMENTS;
use super::batch::padded;
use super::head::head_chunk;
use crate::cuda::cudnn::Sizes;
use crate::cuda::kernels::attention::Tile;
use crate::cuda::kernels::column_sums::PARTS;
use crate::cuda::kernels::logprob::{ScoreGradient, Statistics};
use crate::cuda::memory::ALIGNMENT;
use crate::cuda::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Half, Phase};
use crate::model::{BatchSize, Decoder, Recompute};
use anyhow::Result;
use bytemuck::Pod;

/// Bytes of a phase of training by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainingMemory {
    /// What the forward keeps for the backward.
    pub activations: usize,
    /// Gradients of activations.
    pub backward: usize,
    /// One chunk of the head: its logits above all.
    pub head: usize,
    /// What attention works in.
    pub attention: usize,
    /// Tokens, positions and the like.
    pub batch: usize,
}

/// The lengths that buffers follow from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Rows of the largest batch, padded.
    pub(crate) rows: usize,
    /// Targets whose logits exist at a time.
    pub(crate) chunk: usize,
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) vocab: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Elements of a row of attention output.
    pub(crate) width: usize,
    /// Elements of a row of queries, keys and values.
    pub(crate) qkv: usize,
    /// Activations of how many layers exist at a time.
    pub(crate) slots: usize,
    /// Elements of the weight that normalises heads; 0 where they are not.
    pub(crate) head_norm: usize,
    /// The widest vector that is a sum over rows.
    pub(crate) sums: usize,
    pub(crate) layers: usize,
}

impl Shape {
    pub(crate) fn new(decoder: &Decoder, size: BatchSize, recompute: Recompute) -> Self {
        let config = decoder.config();
        let heads = super::heads(decoder);
        let hidden = config.hidden_size;
        let head_norm = if config.has_head_norm { 2 * heads.dim } else { 0 };
        let bias = if config.qkv_bias { heads.row() } else { 0 };
        Self {
            rows: padded(size.tokens),
            chunk: head_chunk(config.vocab_size, size.targets),
            hidden,
            inner: config.intermediate_size,
            vocab: config.vocab_size,
            heads: heads.queries,
            width: decoder.attention_width(),
            qkv: heads.row(),
            slots: if recompute == Recompute::Layer { 1 } else { config.num_layers },
            head_norm,
            sums: hidden.max(bias).max(head_norm),
            layers: config.num_layers,
        }
    }

    /// Elements of a matrix that is once the output of a block, once a gradient of attention.
    pub(crate) fn branch(&self) -> usize {
        self.hidden.max(self.width)
    }
}

impl TrainingMemory {
    /// What [`DeviceModel::training`](super::DeviceModel::training) takes of the arena, with cuDNN's
    /// attention or without.
    pub fn new(decoder: &Decoder, size: BatchSize, recompute: Recompute, has_cudnn: bool) -> Self {
        let shape = Shape::new(decoder, size, recompute);
        let Shape { rows, chunk, hidden, inner, vocab, heads, width, qkv, .. } = shape;
        let matrix = |rows: usize, width: usize| bytes::<Half>(rows * width);
        let residual = matrix(rows, hidden);
        let before_norm = if shape.head_norm > 0 { matrix(rows, qkv) } else { 0 };
        let layer = matrix(rows, qkv)
            + before_norm
            + matrix(rows, width)
            + bytes::<f32>(rows * heads)
            + residual
            + matrix(rows, 2 * inner);
        let row_list = |count| 2 * bytes::<u32>(count) + bytes::<u32>(count + 1);
        let cudnn = || {
            let sizes = attention_sizes(decoder, rows);
            matrix(rows, qkv) + bytes::<i32>(sizes.table_len()) + bytes::<u8>(sizes.scratch_bytes())
        };
        Self {
            activations: (shape.layers + 1) * residual + shape.slots * layer,
            backward: 2 * residual
                + matrix(rows, shape.branch())
                + matrix(rows, inner)
                + matrix(rows, qkv)
                + bytes::<f32>(PARTS * shape.sums),
            head: 2 * matrix(chunk, hidden)
                + matrix(chunk, vocab)
                + bytes::<f32>(chunk * vocab)
                + bytes::<Statistics>(chunk)
                + bytes::<ScoreGradient>(chunk)
                + bytes::<f32>(chunk)
                + 2 * bytes::<u32>(chunk)
                + row_list(chunk),
            attention: bytes::<f32>(rows * heads) + if has_cudnn { cudnn() } else { 0 },
            batch: 2 * bytes::<u32>(rows) + row_list(rows) + 2 * bytes::<Tile>(rows),
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.activations + self.backward + self.head + self.attention + self.batch
    }
}

/// The sizes that cuDNN's attention is compiled for.
pub(crate) fn attention_sizes(decoder: &Decoder, rows: usize) -> Sizes {
    let heads = super::heads(decoder);
    Sizes {
        segments: SEGMENTS,
        length: rows,
        heads: heads.queries,
        kv_heads: heads.keys,
        head_dim: heads.dim,
    }
}

/// Bytes of `len` elements in an arena.
fn bytes<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(ALIGNMENT)
}

/// Rows of numbers, in room for the largest batch.
pub(crate) struct Matrix<'a, T = Half> {
    data: DeviceBuffer<'a, T>,
    width: usize,
}

impl<'a, T: Pod> Matrix<'a, T> {
    pub(crate) fn take(
        phase: &mut Phase<'a>,
        name: &str,
        rows: usize,
        width: usize,
    ) -> Result<Self> {
        Ok(Self { data: phase.take(name, rows * width)?, width })
    }

    /// Elements of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The first `rows` rows.
    pub(crate) fn rows(&self, rows: usize) -> DeviceSlice<'_, T> {
        self.first(rows * self.width)
    }

    /// The first `rows` rows, to be written.
    pub(crate) fn rows_mut(&mut self, rows: usize) -> DeviceSliceMut<'_, T> {
        self.first_mut(rows * self.width)
    }

    /// The first `len` elements, for rows of another width.
    pub(crate) fn first(&self, len: usize) -> DeviceSlice<'_, T> {
        self.data.slice().range(0..len)
    }

    /// The first `len` elements, to be written.
    pub(crate) fn first_mut(&mut self, len: usize) -> DeviceSliceMut<'_, T> {
        self.data.slice_mut().into_range(0..len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    /// Bytes beside a phase of training on one of eight ranks: parameters and gradients in 16 bits, and an
    /// eighth of master weights, gradient sums and two moments in f32.
    fn lasting(decoder: &Decoder) -> usize {
        decoder.layout().len * (2 + 2 + 16 / 8)
    }

    fn decoder(text: &str) -> Decoder {
        Decoder::new(ModelConfig::from_json(text).unwrap())
    }

    #[test]
    fn models_of_8_and_7_billion_train_on_packs_of_5120_tokens_within_72_gb() {
        let size = BatchSize { tokens: 5120, longest: 5120, targets: 5120 };
        for model in [
            r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8}"#,
            r#"{"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
            "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4}"#,
        ] {
            let decoder = decoder(model);
            let memory = TrainingMemory::new(&decoder, size, Recompute::Selective, true);
            assert!(lasting(&decoder) + memory.total() < 72_000_000_000, "{memory:?}");
            let less = TrainingMemory::new(&decoder, size, Recompute::Layer, true);
            assert!(less.activations < memory.activations / 8, "{less:?}");
        }
    }
}
