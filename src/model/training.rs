//! The training graph: the scores of a packed batch, and their gradients with respect to every parameter.
//!
//! Work is cut into items that do not depend on the number of threads, and sums over tokens run in a fixed
//! order, so neither do the bits. The head runs over chunks of targets: the logits of all targets never
//! exist at once. [`Recompute`] says what the forward keeps for the backward; the gradients have the same
//! bits with each choice.

mod head;
mod layer;
mod memory;

use super::decoder::{CHUNK, Decoder, Packed, Target};
use super::weights::{PackedWeights, Pass};
use crate::ops::attention::AttentionScratch;
use crate::ops::buffer::Buffer;
use crate::ops::embedding::{embedding, embedding_backward};
use crate::ops::logprob::{ScoreGradient, TokenScores};
use crate::ops::rope::Rope;
pub use memory::{BatchSize, TrainingMemory};

use head::HeadBuffers;
use layer::LayerBuffers;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// An objective as the head calls it, once for each chunk of targets. It gets the index of the chunk's
/// first target and the scores, and fills the zeroed gradients of the loss with respect to each score.
pub type ChunkObjective<'a> = dyn FnMut(usize, &[TokenScores], &mut [ScoreGradient]) + 'a;

/// What the backward computes again, instead of keeping it from the forward.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing. On a GPU this is the same as `selective`, whose outputs the backward gets for free.
    None,
    /// The outputs of norms and the SwiGLU product, which are cheap to compute and take a third of the
    /// activations.
    #[default]
    Selective,
    /// Whole layers: only the input of each layer is kept, for a second forward.
    Layer,
}

/// The buffers of scoring and training. They grow to the largest batch.
#[derive(Default)]
pub struct Workspace {
    rope: Option<Rope>,
    forward: Option<PackedWeights>,
    backward: Option<PackedWeights>,
    positions: Vec<usize>,
    recompute: Recompute,
    /// The activations of each layer, or those of one layer where the others keep nothing.
    layers: Vec<LayerBuffers>,
    /// The inputs of the other layers, with [`Recompute::Layer`].
    inputs: Vec<Buffer>,
    /// The residual stream after the last layer.
    x: Buffer,
    head: HeadBuffers,
    gradients: GradientBuffers,
    scratch: Vec<Buffer>,
    attention_scratch: Vec<AttentionScratch>,
}

/// The gradients of activations.
#[derive(Default)]
struct GradientBuffers {
    x: Buffer,
    middle: Buffer,
    attention: Buffer,
    normal: Buffer,
    product: Buffer,
    norm_partials: Buffer,
    head_norm_partials: Buffer,
    bias_partials: Buffer,
}

impl Workspace {
    /// Creates an empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty workspace; its backward computes again what `recompute` says.
    pub fn with_recompute(recompute: Recompute) -> Self {
        Self { recompute, ..Self::default() }
    }

    /// Returns the index in `layers` of the activations of `layer`.
    fn slot(&self, layer: usize, keep: bool) -> usize {
        if keep && self.recompute != Recompute::Layer { layer } else { 0 }
    }

    /// Makes room for a batch. Where `keep` is set, the forward keeps what the backward needs.
    fn prepare(&mut self, decoder: &Decoder, batch: &Packed, keep: bool) {
        let num_layers = decoder.config().num_layers;
        let (slots, inputs) = match self.recompute {
            _ if !keep => (1, 0),
            Recompute::Layer => (1, num_layers),
            Recompute::None | Recompute::Selective => (num_layers, 0),
        };
        if self.layers.len() < slots {
            self.layers.resize_with(slots, LayerBuffers::default);
        }
        if self.inputs.len() < inputs {
            self.inputs.resize_with(inputs, Buffer::default);
        }
        if keep && self.recompute == Recompute::None {
            for layer in &mut self.layers {
                layer.outputs.get_or_insert_default();
            }
        }
        let threads = rayon::current_num_threads();
        self.scratch.resize_with(threads.max(self.scratch.len()), Buffer::default);
        self.attention_scratch
            .resize_with(threads.max(self.attention_scratch.len()), AttentionScratch::default);
        self.positions.clear();
        for (sequence, ends) in batch.cu_seqlens.windows(2).enumerate() {
            let first = batch.sequences().first_position(sequence);
            self.positions.extend(first..first + ends[1] - ends[0]);
        }
        assert_eq!(self.positions.len(), batch.tokens.len(), "cu_seqlens cover the tokens");
        let longest = self.positions.iter().max().map_or(0, |last| last + 1);
        self.rope.get_or_insert_with(|| decoder.rope()).grow(longest);
    }
}

/// Returns the part of `[rows, width]` that chunk `item` covers.
fn chunk_of(item: usize, rows: usize, width: usize) -> Range<usize> {
    item * CHUNK * width..rows.min((item + 1) * CHUNK) * width
}

impl Decoder {
    /// Returns the scores of each target under softmax(logits / temperature), in order.
    pub fn score(
        &self,
        params: &[f32],
        batch: &Packed,
        targets: &[Target],
        temperature: f32,
        ws: &mut Workspace,
    ) -> Vec<TokenScores> {
        self.forward(params, batch, false, ws);
        let mut scores = Vec::with_capacity(targets.len());
        for targets in targets.chunks(self.head_chunk()) {
            self.head_forward(targets, temperature, ws);
            scores.extend_from_slice(&ws.head.scores);
        }
        scores
    }

    /// Adds the gradient of every parameter to `grads`, unnormalised. It runs the forward, then calls
    /// `objective` for each chunk of targets, then runs the backward.
    pub fn forward_backward(
        &self,
        params: &[f32],
        batch: &Packed,
        targets: &[Target],
        temperature: f32,
        objective: &mut ChunkObjective<'_>,
        grads: &mut [f32],
        ws: &mut Workspace,
    ) {
        assert_eq!(grads.len(), self.layout().len, "gradients in the layout of the parameters");
        self.forward(params, batch, true, ws);
        let tokens = batch.tokens.len();
        let hidden = self.config().hidden_size;
        ws.backward.get_or_insert_with(|| self.packed(Pass::Backward)).fill(&self.ranges, params);
        ws.gradients.x.grow(tokens * hidden).fill(0.0);
        for (index, targets) in targets.chunks(self.head_chunk()).enumerate() {
            self.head_forward(targets, temperature, ws);
            let HeadBuffers { scores, gradients, .. } = &mut ws.head;
            gradients.clear();
            gradients.resize(targets.len(), ScoreGradient::default());
            objective(index * self.head_chunk(), scores, gradients);
            self.head_backward(params, targets, grads, ws);
        }
        for layer in (0..self.config().num_layers).rev() {
            let slot = ws.slot(layer, true);
            if ws.recompute == Recompute::Layer {
                std::mem::swap(&mut ws.layers[slot].x, &mut ws.inputs[layer]);
                self.layer_forward(batch, layer, slot, ws);
            }
            self.layer_backward(params, batch, layer, slot, grads, ws);
        }
        let d_x = ws.gradients.x.grow(tokens * hidden);
        embedding_backward(d_x, hidden, &batch.tokens, &mut grads[self.ranges.embedding.clone()]);
    }

    /// Computes the residual stream after all layers into `ws.x`. Where `keep` is set, it keeps what the
    /// backward needs.
    fn forward(&self, params: &[f32], batch: &Packed, keep: bool, ws: &mut Workspace) {
        assert_eq!(params.len(), self.layout().len, "parameters in the layout");
        ws.prepare(self, batch, keep);
        ws.forward.get_or_insert_with(|| self.packed(Pass::Forward)).fill(&self.ranges, params);
        let hidden = self.config().hidden_size;
        let table = &params[self.ranges.embedding.clone()];
        let x = ws.x.grow(batch.tokens.len() * hidden);
        embedding(table, hidden, &batch.tokens, x);
        for layer in 0..self.config().num_layers {
            let slot = ws.slot(layer, keep);
            std::mem::swap(&mut ws.layers[slot].x, &mut ws.x);
            self.layer_forward(batch, layer, slot, ws);
            if keep && ws.recompute == Recompute::Layer {
                std::mem::swap(&mut ws.layers[slot].x, &mut ws.inputs[layer]);
            }
        }
    }
}
