//! The decoder: what one layer computes for some rows, shared by training and generation.
//!
//! Every function works row by row: the other rows never change a row's result. `threads` threads divide
//! the columns of its products; `threads` is 1 where [`super::training`] and [`super::extend`] divide rows
//! among threads instead.

use super::layout::{Ranges, TensorSpec};
use super::weights::{LayerWeights, Matrix, PackedWeights, Pass, Source, Weights};
use super::{Layout, ModelConfig};
use crate::ops::attention::{Heads, Sequences};
use crate::ops::buffer::{Buffer, parts};
use crate::ops::element::Stored;
use crate::ops::head_norm::head_norm;
use crate::ops::matmul::{Start, TILE, matmul_by_columns};
use crate::ops::rms_norm::rms_norm;
use crate::ops::rope::Rope;
use crate::ops::swiglu::swiglu;
use serde::{Deserialize, Serialize};

/// Sequences of any lengths, one after another. Attention stays within each sequence, and positions start
/// at 0 in each. The exception is a sequence that continues the first of its family: it sees that one too,
/// and its positions go on from there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// The tokens of all sequences.
    pub tokens: Vec<u32>,
    /// The first row of each sequence, and the end of the last: ascending, from 0 to `tokens.len()`.
    pub cu_seqlens: Vec<usize>,
    /// The families of sequences that share their first rows, as [`Sequences::cu_families`]; empty where
    /// every sequence stands alone.
    pub cu_families: Vec<usize>,
}

impl Packed {
    /// Packs sequences, each of which stands alone.
    pub fn from_sequences<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut packed = Self { cu_seqlens: vec![0], ..Self::default() };
        for sequence in sequences {
            packed.tokens.extend_from_slice(sequence);
            packed.cu_seqlens.push(packed.tokens.len());
        }
        packed
    }

    /// Returns which rows make up which sequence.
    pub(crate) fn sequences(&self) -> Sequences<'_> {
        Sequences { cu_seqlens: &self.cu_seqlens, cu_families: &self.cu_families }
    }
}

/// A token whose score is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The row of the packed batch whose hidden state predicts it.
    pub row: usize,
    pub token: u32,
}

/// The rotary table, and the position of each row.
pub(crate) struct Turn<'a> {
    pub(crate) rope: &'a Rope,
    pub(crate) positions: &'a mut dyn Iterator<Item = usize>,
}

/// Where the queries, keys and values of rows are written.
pub(crate) struct Projection<'a> {
    pub(crate) qkv: &'a mut [f32],
    /// Where they are kept as they were before heads are normalised, for the backward.
    pub(crate) before_norm: Option<&'a mut [f32]>,
}

/// A work item takes this many rows through the matrices of a layer: a multiple of the tile.
pub(crate) const CHUNK: usize = 16 * TILE;

/// The decoder of one model: it computes with flat parameters that the caller owns.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: ModelConfig,
    layout: Layout,
    pub(crate) ranges: Ranges,
}

impl Decoder {
    pub fn new(config: ModelConfig) -> Self {
        let (layout, ranges) = (Layout::new(&config), Ranges::new(&config));
        Self { config, layout, ranges }
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns where the tensors are in the flat buffers.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Lays flat parameters out for [`Decoder::extend`]. This is needed after each change of the
    /// parameters.
    pub fn pack<'p>(&self, params: &'p [f32]) -> Weights<'p> {
        Weights::of_parameters(self.packed(Pass::Forward), &self.ranges, params)
    }

    /// Lays stored tensors out for [`Decoder::extend`], on the pool. They keep their number format.
    /// `tensor` returns a tensor with the rows in its file's order; `done` is called when a tensor is no
    /// longer needed.
    pub fn pack_stored<'a>(
        &'a self,
        tensor: impl Fn(&'a TensorSpec) -> Stored<'a> + Sync,
        done: impl Fn(&'a TensorSpec) + Sync,
    ) -> Weights<'static> {
        let source = Source { layout: &self.layout, tensor };
        Weights::of_stored(&self.ranges, self.config.hidden_size, &source, done)
    }

    pub(crate) fn packed(&self, pass: Pass) -> PackedWeights {
        PackedWeights::new(&self.ranges, self.config.hidden_size, pass)
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads {
            queries: self.config.num_heads,
            keys: self.config.num_kv_heads,
            dim: self.config.head_dim,
        }
    }

    pub(crate) fn rope(&self) -> Rope {
        Rope::new(self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)
    }

    /// Returns the floats of a row of attention output.
    pub(crate) fn attention_width(&self) -> usize {
        self.config.num_heads * self.config.head_dim
    }

    /// Computes the first half of a layer for the rows `x`: queries, keys and values, with positions
    /// applied. Returns the rows after the norm, which are in `scratch`.
    pub(crate) fn attention_input<'s>(
        &self,
        threads: usize,
        weights: LayerWeights<'_>,
        x: &[f32],
        turn: Turn<'_>,
        out: Projection<'_>,
        scratch: &'s mut Buffer,
    ) -> &'s [f32] {
        let (hidden, heads, eps) =
            (self.config.hidden_size, self.heads(), self.config.rms_norm_eps);
        let vectors = weights.vectors();
        let Projection { qkv, before_norm } = out;
        let rows = x.len() / hidden;
        let [normal] = parts(scratch, [rows * hidden]);
        rms_norm(x, &vectors.input_norm, eps, normal);
        let bias = vectors.qkv_bias.as_deref().map_or(Start::Zero, Start::Bias);
        let panels = weights.panels(Matrix::Qkv);
        matmul_by_columns(threads, normal, hidden, rows, panels, bias, qkv, heads.row());
        if let Some(weight) = &vectors.head_norm {
            if let Some(kept) = before_norm {
                kept.copy_from_slice(qkv);
            }
            head_norm(heads, weight, eps, qkv);
        }
        for (row, position) in qkv.chunks_exact_mut(heads.row()).zip(turn.positions) {
            turn.rope.forward(row, heads.queries + heads.keys, position);
        }
        normal
    }

    /// Computes the second half of a layer. On entry `middle` holds the layer's input; the projected
    /// attention output is added to it. `gate_up` gets what the backward needs, and `out` the layer's
    /// output. Returns the rows after the norm and the SwiGLU product, which are in `scratch`.
    pub(crate) fn attention_output<'s>(
        &self,
        threads: usize,
        weights: LayerWeights<'_>,
        attention: &[f32],
        middle: &mut [f32],
        gate_up: &mut [f32],
        out: &mut [f32],
        scratch: &'s mut Buffer,
    ) -> [&'s [f32]; 2] {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let width = self.attention_width();
        let rows = middle.len() / hidden;
        let [normal, product] = parts(scratch, [rows * hidden, rows * inner]);
        let panels = weights.panels(Matrix::Output);
        matmul_by_columns(
            threads,
            attention,
            width,
            rows,
            panels,
            Start::Accumulate,
            middle,
            hidden,
        );
        rms_norm(middle, &weights.vectors().post_norm, self.config.rms_norm_eps, normal);
        let panels = weights.panels(Matrix::GateUp);
        matmul_by_columns(threads, normal, hidden, rows, panels, Start::Zero, gate_up, 2 * inner);
        swiglu(gate_up, inner, product);
        out.copy_from_slice(middle);
        let panels = weights.panels(Matrix::Down);
        matmul_by_columns(threads, product, inner, rows, panels, Start::Accumulate, out, hidden);
        [normal, product]
    }

    /// Computes the logits of rows `x` of the residual stream. `normal` gets the rows after the last norm.
    pub(crate) fn logits(
        &self,
        threads: usize,
        packed: &PackedWeights,
        x: &[f32],
        normal: &mut [f32],
        logits: &mut [f32],
    ) {
        let (hidden, vocab) = (self.config.hidden_size, self.config.vocab_size);
        rms_norm(x, packed.norm(), self.config.rms_norm_eps, normal);
        let panels = packed.panels(Matrix::Head);
        matmul_by_columns(
            threads,
            normal,
            hidden,
            x.len() / hidden,
            panels,
            Start::Zero,
            logits,
            vocab,
        );
    }
}
