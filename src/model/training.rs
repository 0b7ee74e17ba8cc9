//! The training graph: scores of a packed batch, and their gradients by every parameter.
//!
//! Contract: work is cut into items that do not depend on the number of threads, and sums over
//! tokens run in a fixed order, so the bits do not either. The head runs over chunks of targets and
//! logits never exist whole. Kept for the backward: each layer's input, turned queries, keys and
//! values, attention output, middle of the residual stream, gate and up; norms and the SwiGLU
//! product are recomputed. Left out: recomputing whole layers.

use super::decoder::{CHUNK, Decoder, Packed, Target, TokenScores};
use super::layout::LayerRanges;
use super::weights::{Matrix, PackedWeights, Pass};
use crate::ops::attention::{AttentionScratch, attention, attention_backward};
use crate::ops::buffer::Buffer;
use crate::ops::embedding::{embedding, embedding_backward};
use crate::ops::logprob::{Statistics, statistics, statistics_backward};
use crate::ops::matmul::{Start, matmul, weight_gradient};
use crate::ops::parallel::{SharedMut, for_each};
use crate::ops::reduce::add_rows;
use crate::ops::rms_norm::rms_norm_backward;
use crate::ops::rope::Rope;
use crate::ops::swiglu::swiglu_backward;
use std::ops::Range;

/// Called for each chunk of targets with the index of the first, their scores, and their zeroed
/// gradients by log-probability and by entropy, which it fills.
pub type Objective<'a> = dyn FnMut(usize, &[TokenScores], &mut [f32], &mut [f32]) + 'a;

/// Most logits of a head chunk.
const HEAD_LOGITS: usize = 1 << 20;

/// The buffers of scoring and training; they grow to the largest batch.
#[derive(Default)]
pub struct Workspace {
    rope: Option<Rope>,
    forward: Option<PackedWeights>,
    backward: Option<PackedWeights>,
    positions: Vec<usize>,
    layers: Vec<LayerBuffers>,
    /// The residual stream after the last layer.
    x: Buffer,
    head: HeadBuffers,
    gradients: GradientBuffers,
    scratch: Vec<Buffer>,
    attention_scratch: Vec<AttentionScratch>,
}

/// What one layer keeps.
#[derive(Default)]
struct LayerBuffers {
    x: Buffer,
    qkv: Buffer,
    attention: Buffer,
    lse: Buffer,
    middle: Buffer,
    gate_up: Buffer,
}

/// One chunk of targets.
#[derive(Default)]
struct HeadBuffers {
    x: Buffer,
    normal: Buffer,
    logits: Buffer,
    statistics: Vec<Statistics>,
    scores: Vec<TokenScores>,
    d_logp: Vec<f32>,
    d_entropy: Vec<f32>,
    d_x: Buffer,
    partials: Buffer,
}

/// Gradients of activations.
#[derive(Default)]
struct GradientBuffers {
    x: Buffer,
    middle: Buffer,
    attention: Buffer,
    normal: Buffer,
    product: Buffer,
    norm_partials: Buffer,
    bias_partials: Buffer,
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for a batch; `kept` layers keep their activations.
    fn prepare(&mut self, decoder: &Decoder, batch: &Packed, kept: usize) {
        let threads = rayon::current_num_threads();
        self.scratch.resize_with(threads.max(self.scratch.len()), Buffer::default);
        self.attention_scratch
            .resize_with(threads.max(self.attention_scratch.len()), AttentionScratch::default);
        self.positions.clear();
        for ends in batch.cu_seqlens.windows(2) {
            self.positions.extend(0..ends[1] - ends[0]);
        }
        assert_eq!(self.positions.len(), batch.tokens.len(), "cu_seqlens cover the tokens");
        let longest = self.positions.iter().max().map_or(0, |last| last + 1);
        self.rope.get_or_insert_with(|| decoder.rope()).grow(longest);
        if self.layers.len() < kept {
            self.layers.resize_with(kept, LayerBuffers::default);
        }
    }
}

/// The part of `[rows, width]` that chunk `item` covers.
fn chunk_of(item: usize, rows: usize, width: usize) -> Range<usize> {
    item * CHUNK * width..rows.min((item + 1) * CHUNK) * width
}

impl Decoder {
    /// Scores of each target.
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

    /// Forward, then for each chunk of targets the objective's gradients of the loss by their scores,
    /// then backward: adds the gradient of every parameter to `grads`, unnormalised.
    pub fn forward_backward(
        &self,
        params: &[f32],
        batch: &Packed,
        targets: &[Target],
        temperature: f32,
        objective: &mut Objective<'_>,
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
            let HeadBuffers { scores, d_logp, d_entropy, .. } = &mut ws.head;
            for gradient in [&mut *d_logp, &mut *d_entropy] {
                gradient.clear();
                gradient.resize(targets.len(), 0.0);
            }
            objective(index * self.head_chunk(), scores, d_logp, d_entropy);
            self.head_backward(params, targets, grads, ws);
        }
        for layer in (0..self.config().num_layers).rev() {
            self.layer_backward(params, batch, layer, grads, ws);
        }
        let d_x = ws.gradients.x.grow(tokens * hidden);
        embedding_backward(d_x, hidden, &batch.tokens, &mut grads[self.ranges.embedding.clone()]);
    }

    /// Targets whose logits exist at a time.
    fn head_chunk(&self) -> usize {
        (HEAD_LOGITS / self.config().vocab_size).next_multiple_of(CHUNK).clamp(CHUNK, 8 * CHUNK)
    }

    /// The residual stream after all layers, into `ws.x`; `keep` keeps what the backward needs.
    fn forward(&self, params: &[f32], batch: &Packed, keep: bool, ws: &mut Workspace) {
        assert_eq!(params.len(), self.layout().len, "parameters in the layout");
        let num_layers = self.config().num_layers;
        ws.prepare(self, batch, if keep { num_layers } else { 1 });
        ws.forward.get_or_insert_with(|| self.packed(Pass::Forward)).fill(&self.ranges, params);
        let tokens = batch.tokens.len();
        let (hidden, inner) = (self.config().hidden_size, self.config().intermediate_size);
        let (heads, width) = (self.heads(), self.attention_width());
        let Workspace { rope, forward, positions, layers, x, scratch, attention_scratch, .. } = ws;
        let (Some(rope), Some(packed)) = (rope, forward) else { return };
        let table = &params[self.ranges.embedding.clone()];
        embedding(table, hidden, &batch.tokens, x.grow(tokens * hidden));
        let chunks = tokens.div_ceil(CHUNK);
        for layer in 0..num_layers {
            let kept = &mut layers[if keep { layer } else { 0 }];
            std::mem::swap(&mut kept.x, x);
            let weights = (&*packed, layer);
            let input = &*kept.x.grow(tokens * hidden);
            let qkv = kept.qkv.grow(tokens * heads.row());
            let attended = kept.attention.grow(tokens * width);
            let shared_qkv = SharedMut::new(qkv);
            for_each(chunks, scratch, |item, scratch| {
                // SAFETY: each item has its own rows.
                let qkv = unsafe { shared_qkv.part(chunk_of(item, tokens, heads.row())) };
                let x = &input[chunk_of(item, tokens, hidden)];
                let mut positions = positions[chunk_of(item, tokens, 1)].iter().copied();
                self.attention_input(weights, x, (rope, &mut positions), qkv, scratch);
            });
            let lse = kept.lse.grow(tokens * heads.queries);
            attention(heads, qkv, &batch.cu_seqlens, attended, lse, attention_scratch);
            let middle = SharedMut::new(kept.middle.grow(tokens * hidden));
            let gate_up = SharedMut::new(kept.gate_up.grow(tokens * 2 * inner));
            let out = SharedMut::new(x.grow(tokens * hidden));
            for_each(chunks, scratch, |item, scratch| {
                let at = chunk_of(item, tokens, hidden);
                // SAFETY: each item has its own rows.
                let (middle, gate_up, out) = unsafe {
                    let gate_up = gate_up.part(chunk_of(item, tokens, 2 * inner));
                    (middle.part(at.clone()), gate_up, out.part(at.clone()))
                };
                middle.copy_from_slice(&input[at]);
                let attended = &attended[chunk_of(item, tokens, width)];
                self.attention_output(weights, attended, middle, gate_up, out, scratch);
            });
        }
    }

    /// Logits, statistics and scores of a chunk of targets, into `ws.head`.
    fn head_forward(&self, targets: &[Target], temperature: f32, ws: &mut Workspace) {
        let (hidden, vocab) = (self.config().hidden_size, self.config().vocab_size);
        let Workspace { forward, x, head, scratch, .. } = ws;
        let Some(packed) = forward else { return };
        let source = x.as_slice();
        let count = targets.len();
        let empty = Statistics { max: 0.0, inverse_temperature: 1.0, log_sum: 0.0, entropy: 0.0 };
        head.statistics.clear();
        head.statistics.resize(count, empty);
        head.scores.clear();
        head.scores.resize(count, TokenScores::default());
        let x = SharedMut::new(head.x.grow(count * hidden));
        let normal = SharedMut::new(head.normal.grow(count * hidden));
        let logits = SharedMut::new(head.logits.grow(count * vocab));
        let all_statistics = SharedMut::new(&mut head.statistics);
        let all_scores = SharedMut::new(&mut head.scores);
        for_each(count.div_ceil(CHUNK), scratch, |item, _| {
            let rows = chunk_of(item, count, 1);
            // SAFETY: each item has its own rows.
            let (x, normal, logits, statistics_of, scores) = unsafe {
                (
                    x.part(chunk_of(item, count, hidden)),
                    normal.part(chunk_of(item, count, hidden)),
                    logits.part(chunk_of(item, count, vocab)),
                    all_statistics.part(rows.clone()),
                    all_scores.part(rows.clone()),
                )
            };
            let targets = &targets[rows];
            for (x, target) in x.chunks_exact_mut(hidden).zip(targets) {
                x.copy_from_slice(&source[target.row * hidden..][..hidden]);
            }
            self.logits(packed, x, normal, logits);
            let rows = logits.chunks_exact(vocab).zip(targets);
            for ((logits, target), (row, score)) in rows.zip(statistics_of.iter_mut().zip(scores)) {
                *row = statistics(logits, temperature);
                let logp = row.logp(logits[target.token as usize]);
                *score = TokenScores { logp, entropy: row.entropy };
            }
        });
    }

    /// The backward of the chunk in `ws.head`: into the gradient of the residual stream, of the
    /// last norm and of the head.
    fn head_backward(
        &self,
        params: &[f32],
        targets: &[Target],
        grads: &mut [f32],
        ws: &mut Workspace,
    ) {
        let (hidden, vocab) = (self.config().hidden_size, self.config().vocab_size);
        let Workspace { backward, head, gradients, scratch, .. } = ws;
        let Some(packed) = backward else { return };
        let HeadBuffers { x, normal, logits, statistics, d_logp, d_entropy, d_x, partials, .. } =
            head;
        let count = targets.len();
        let items = count.div_ceil(CHUNK);
        let weight = &params[self.ranges.norm.clone()];
        let eps = self.config().rms_norm_eps;
        let x = x.grow(count * hidden);
        let normal = normal.grow(count * hidden);
        let logits = logits.grow(count * vocab);
        let d_x = d_x.grow(count * hidden);
        let partials = partials.grow(items * hidden);
        let shared_normal = SharedMut::new(normal);
        let shared_logits = SharedMut::new(logits);
        let (shared_d_x, shared_partials) = (SharedMut::new(d_x), SharedMut::new(partials));
        for_each(items, scratch, |item, _| {
            let rows = chunk_of(item, count, 1);
            let at = chunk_of(item, count, hidden);
            // SAFETY: each item has its own rows and its own partial sum.
            let (normal, logits, d_x, partial) = unsafe {
                (
                    shared_normal.part(at.clone()),
                    shared_logits.part(chunk_of(item, count, vocab)),
                    shared_d_x.part(at.clone()),
                    shared_partials.part(item * hidden..(item + 1) * hidden),
                )
            };
            for (index, logits) in rows.clone().zip(logits.chunks_exact_mut(vocab)) {
                let token = targets[index].token;
                let (d_logp, d_entropy) = (d_logp[index], d_entropy[index]);
                statistics_backward(logits, statistics[index], token, d_logp, d_entropy);
            }
            let panels = packed.panels(Matrix::Head);
            matmul(logits, vocab, rows.len(), panels, Start::Zero, normal, hidden);
            d_x.fill(0.0);
            partial.fill(0.0);
            rms_norm_backward(&x[at], weight, eps, normal, d_x, partial);
        });
        add_rows(partials, &mut grads[self.ranges.norm.clone()]);
        let d_head = &mut grads[self.ranges.head.clone()];
        weight_gradient((logits, vocab, vocab), (normal, hidden, hidden), count, d_head, scratch);
        let sum = gradients.x.as_mut_slice();
        for (target, d_x) in targets.iter().zip(d_x.chunks_exact(hidden)) {
            add_rows(d_x, &mut sum[target.row * hidden..][..hidden]);
        }
    }

    /// The backward of one layer: `ws.gradients.x` from the gradient of its output to that of its
    /// input.
    fn layer_backward(
        &self,
        params: &[f32],
        batch: &Packed,
        layer: usize,
        grads: &mut [f32],
        ws: &mut Workspace,
    ) {
        let tokens = batch.tokens.len();
        let (hidden, inner) = (self.config().hidden_size, self.config().intermediate_size);
        let (heads, width) = (self.heads(), self.attention_width());
        let eps = self.config().rms_norm_eps;
        let ranges = &self.ranges.layers[layer];
        let LayerRanges { input_norm, qkv, qkv_bias, output, post_norm, gate_up, down } = ranges;
        let Workspace {
            rope,
            backward,
            positions,
            layers,
            gradients,
            scratch,
            attention_scratch,
            ..
        } = ws;
        let (Some(rope), Some(packed)) = (&*rope, &*backward) else { return };
        let kept = &mut layers[layer];
        let chunks = tokens.div_ceil(CHUNK);

        let d_out = &*gradients.x.grow(tokens * hidden);
        let d_middle = gradients.middle.grow(tokens * hidden);
        let d_attention = gradients.attention.grow(tokens * width);
        let normal = gradients.normal.grow(tokens * hidden);
        let product = gradients.product.grow(tokens * inner);
        let partials = gradients.norm_partials.grow(chunks * hidden);
        let middle = kept.middle.grow(tokens * hidden);
        let d_gate_up = kept.gate_up.grow(tokens * 2 * inner);
        {
            let [d_middle, d_attention, normal, product, partials, d_gate_up] =
                [&mut *d_middle, d_attention, normal, product, partials, d_gate_up]
                    .map(SharedMut::new);
            for_each(chunks, scratch, |item, _| {
                let at = chunk_of(item, tokens, hidden);
                let rows = chunk_of(item, tokens, 1).len();
                // SAFETY: each item has its own rows and its own partial sum.
                let (d_middle, d_attention, normal, product, partial, d_gate_up) = unsafe {
                    (
                        d_middle.part(at.clone()),
                        d_attention.part(chunk_of(item, tokens, width)),
                        normal.part(at.clone()),
                        product.part(chunk_of(item, tokens, inner)),
                        partials.part(item * hidden..(item + 1) * hidden),
                        d_gate_up.part(chunk_of(item, tokens, 2 * inner)),
                    )
                };
                let panels = packed.panels(Matrix::Down(layer));
                matmul(&d_out[at.clone()], hidden, rows, panels, Start::Zero, product, inner);
                swiglu_backward(d_gate_up, inner, product);
                let panels = packed.panels(Matrix::GateUp(layer));
                matmul(d_gate_up, 2 * inner, rows, panels, Start::Zero, normal, hidden);
                d_middle.copy_from_slice(&d_out[at.clone()]);
                partial.fill(0.0);
                let weight = &params[post_norm.clone()];
                rms_norm_backward(&middle[at], weight, eps, normal, d_middle, partial);
                let panels = packed.panels(Matrix::Output(layer));
                matmul(d_middle, hidden, rows, panels, Start::Zero, d_attention, width);
            });
        }
        add_rows(partials, &mut grads[post_norm.clone()]);
        let attended = &*kept.attention.grow(tokens * width);
        let normal_rows = (&*normal, hidden, hidden);
        let d_middle_rows = (&*d_middle, hidden, hidden);
        let d_gate_up_rows = (&*d_gate_up, 2 * inner, 2 * inner);
        let mut gradient = |range: &Range<usize>, dy, x| {
            weight_gradient(dy, x, tokens, &mut grads[range.clone()], scratch);
        };
        gradient(down, (d_out, hidden, hidden), (product, inner, inner));
        gradient(gate_up, d_gate_up_rows, normal_rows);
        gradient(output, d_middle_rows, (attended, width, width));

        let d_qkv = kept.qkv.grow(tokens * heads.row());
        let lse = &*kept.lse.grow(tokens * heads.queries);
        let forward = (attended, lse, &*d_attention);
        attention_backward(heads, d_qkv, &batch.cu_seqlens, forward, attention_scratch);

        let d_x = gradients.x.grow(tokens * hidden);
        let bias_width = if qkv_bias.is_some() { heads.row() } else { 0 };
        let bias_partials = gradients.bias_partials.grow(chunks * bias_width);
        {
            let [d_x, normal, partials, bias_partials, d_qkv] =
                [d_x, &mut *normal, &mut *partials, &mut *bias_partials, &mut *d_qkv]
                    .map(SharedMut::new);
            for_each(chunks, scratch, |item, _| {
                let at = chunk_of(item, tokens, hidden);
                let rows = chunk_of(item, tokens, 1);
                // SAFETY: each item has its own rows and its own partial sums.
                let (d_x, normal, partial, bias_partial, d_qkv) = unsafe {
                    (
                        d_x.part(at.clone()),
                        normal.part(at.clone()),
                        partials.part(item * hidden..(item + 1) * hidden),
                        bias_partials.part(item * bias_width..(item + 1) * bias_width),
                        d_qkv.part(chunk_of(item, tokens, heads.row())),
                    )
                };
                let turned = heads.queries + heads.keys;
                for (row, &position) in
                    d_qkv.chunks_exact_mut(heads.row()).zip(&positions[rows.clone()])
                {
                    rope.backward(row, turned, position);
                }
                if bias_width > 0 {
                    bias_partial.fill(0.0);
                    add_rows(d_qkv, bias_partial);
                }
                let panels = packed.panels(Matrix::Qkv(layer));
                matmul(d_qkv, heads.row(), rows.len(), panels, Start::Zero, normal, hidden);
                d_x.copy_from_slice(&d_middle[at.clone()]);
                partial.fill(0.0);
                let x = &kept.x.as_slice()[at];
                let weight = &params[input_norm.clone()];
                rms_norm_backward(x, weight, eps, normal, d_x, partial);
            });
        }
        add_rows(partials, &mut grads[input_norm.clone()]);
        if let Some(range) = qkv_bias {
            add_rows(bias_partials, &mut grads[range.clone()]);
        }
        let d_qkv_rows = (&*d_qkv, heads.row(), heads.row());
        let d_weight = &mut grads[qkv.clone()];
        weight_gradient(d_qkv_rows, (normal, hidden, hidden), tokens, d_weight, scratch);
    }
}
