//! The decoder: what a layer computes for a few rows, shared by training and generation.
//!
//! Contract: every function here works on rows alone: their neighbours never matter. `threads` share
//! the columns of its products; it is 1 where [`super::training`] and [`super::extend`] spread rows
//! over threads.

use super::layout::{Ranges, TensorSpec};
use super::weights::{LayerWeights, Matrix, PackedWeights, Pass, Source, Weights};
use super::{Layout, ModelConfig};
use crate::ops::attention::{Heads, Sequences};
use crate::ops::buffer::{Buffer, parts};
use crate::ops::element::Elements;
use crate::ops::head_norm::head_norm;
use crate::ops::matmul::{Start, TILE, matmul_by_columns};
use crate::ops::rms_norm::rms_norm;
use crate::ops::rope::Rope;
use crate::ops::swiglu::swiglu;
use serde::{Deserialize, Serialize};

/// Sequences of any lengths, one after another; attention stays within each and positions restart,
/// but for those that continue the first of their family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Tokens of all sequences.
    pub tokens: Vec<u32>,
    /// Where each sequence starts, and the end of the last: from 0 to `tokens.len()`, ascending.
    pub cu_seqlens: Vec<usize>,
    /// Sequences by families, each a trunk and what continues it ([`Sequences::cu_families`]); empty
    /// where every sequence is alone.
    pub cu_families: Vec<usize>,
}

impl Packed {
    /// Packs sequences.
    pub fn from_sequences<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut packed = Self { cu_seqlens: vec![0], ..Self::default() };
        for sequence in sequences {
            packed.tokens.extend_from_slice(sequence);
            packed.cu_seqlens.push(packed.tokens.len());
        }
        packed
    }

    /// How its rows make sequences.
    pub(crate) fn sequences(&self) -> Sequences<'_> {
        Sequences { cu_seqlens: &self.cu_seqlens, cu_families: &self.cu_families }
    }
}

/// A token whose score is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Row of the packed batch whose hidden state predicts it.
    pub row: usize,
    /// The token.
    pub token: u32,
}

/// Where queries and keys turn to: the position of each row.
pub(crate) struct Turn<'a> {
    pub(crate) rope: &'a Rope,
    pub(crate) positions: &'a mut dyn Iterator<Item = usize>,
}

/// Queries, keys and values of rows, as attention takes them.
pub(crate) struct Projection<'a> {
    pub(crate) qkv: &'a mut [f32],
    /// The same before heads are normalised, which the backward reads.
    pub(crate) before_norm: Option<&'a mut [f32]>,
}

/// Rows that one work item takes through the matrices of a layer; a multiple of the tile.
pub(crate) const CHUNK: usize = 16 * TILE;

/// A model's shape, ready to compute with flat parameters.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: ModelConfig,
    layout: Layout,
    pub(crate) ranges: Ranges,
}

impl Decoder {
    /// The decoder of a configuration.
    pub fn new(config: ModelConfig) -> Self {
        let (layout, ranges) = (Layout::new(&config), Ranges::new(&config));
        Self { config, layout, ranges }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the tensors lie in the flat buffers.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Lays flat parameters out for [`Decoder::extend`]; needed once after each change of them.
    pub fn pack<'p>(&self, params: &'p [f32]) -> Weights<'p> {
        Weights::of_parameters(self.packed(Pass::Forward), &self.ranges, params)
    }

    /// Lays stored tensors out for [`Decoder::extend`], in the number format they have, on the pool.
    /// `tensor` gives one in its file's order of rows; `done` hears when it is not needed any more.
    pub fn pack_stored<'a>(
        &'a self,
        tensor: impl Fn(&'a TensorSpec) -> Elements<'a> + Sync,
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

    /// Floats of a row of attention output.
    pub(crate) fn attention_width(&self) -> usize {
        self.config.num_heads * self.config.head_dim
    }

    /// The first half of a layer, up to attention: queries, keys and values of rows `x`. Returns the
    /// rows after the norm, which lie in `scratch`.
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

    /// The second half: adds the attention output to `middle` (on entry the layer's input), then
    /// the feed-forward network gives `out`; `gate_up` keeps what the backward needs. Returns the
    /// rows after the norm and the SwiGLU product, which lie in `scratch`.
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

    /// The logits of rows `x` of the residual stream; `normal` gets the rows after the last norm.
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
