//! One layer of the training graph: the forward into its buffers, and the backward from them.
//!
//! The backward reads what the forward kept, or computed again, and overwrites it with the gradients of
//! activations. The backward of an operation also returns norm outputs and the SwiGLU product, unless the
//! forward kept them.

use super::{Buffer, CHUNK, Decoder, Packed, Workspace, chunk_of};
use crate::model::decoder::{Projection, Turn};
use crate::model::layout::LayerRanges;
use crate::model::weights::Matrix;
use crate::ops::attention::{Attended, attention, attention_backward};
use crate::ops::head_norm::head_norm_backward;
use crate::ops::matmul::{Start, matmul, weight_gradient};
use crate::ops::parallel::{SharedMut, for_each};
use crate::ops::reduce::add_rows;
use crate::ops::rms_norm::rms_norm_backward;
use crate::ops::swiglu::swiglu_backward;
use std::ops::Range;

/// What one layer keeps for the backward.
#[derive(Default)]
pub(crate) struct LayerBuffers {
    pub(crate) x: Buffer,
    pub(crate) qkv: Buffer,
    /// Queries, keys and values before their norm, in a model that has one.
    pub(crate) before_norm: Buffer,
    pub(crate) attention: Buffer,
    pub(crate) lse: Buffer,
    pub(crate) middle: Buffer,
    pub(crate) gate_up: Buffer,
    /// Is present only with [`super::Recompute::None`].
    pub(crate) outputs: Option<OutputBuffers>,
}

/// The outputs of cheap operations: kept, or computed again in the backward.
#[derive(Default)]
pub(crate) struct OutputBuffers {
    pub(crate) input_normal: Buffer,
    pub(crate) post_normal: Buffer,
    pub(crate) product: Buffer,
}

impl Decoder {
    /// Computes the forward of one layer, from `x` in the buffers of `slot` to `ws.x`.
    pub(crate) fn layer_forward(
        &self,
        batch: &Packed,
        layer: usize,
        slot: usize,
        ws: &mut Workspace,
    ) {
        let tokens = batch.tokens.len();
        let (hidden, inner) = (self.config().hidden_size, self.config().intermediate_size);
        let (heads, width) = (self.heads(), self.attention_width());
        let Workspace { rope, forward, positions, layers, x, scratch, attention_scratch, .. } = ws;
        let (Some(rope), Some(packed)) = (rope, forward) else { return };
        let chunks = tokens.div_ceil(CHUNK);
        let kept = &mut layers[slot];
        let weights = packed.layer(layer);
        let input = &*kept.x.grow(tokens * hidden);
        let qkv = kept.qkv.grow(tokens * heads.row());
        let attended = kept.attention.grow(tokens * width);
        let outputs = kept.outputs.as_mut().map(|outputs| {
            let OutputBuffers { input_normal, post_normal, product } = outputs;
            [(input_normal, hidden), (post_normal, hidden), (product, inner)]
                .map(|(buffer, width)| SharedMut::new(buffer.grow(tokens * width)))
        });
        let before_norm = self.ranges.layers[layer].head_norm.as_ref();
        let before_norm =
            before_norm.map(|_| SharedMut::new(kept.before_norm.grow(tokens * heads.row())));
        let shared_qkv = SharedMut::new(qkv);
        for_each(chunks, scratch, |item, scratch| {
            let at = chunk_of(item, tokens, heads.row());
            // SAFETY: each item has its own rows.
            let out = unsafe {
                Projection {
                    before_norm: before_norm.as_ref().map(|all| all.part(at.clone())),
                    qkv: shared_qkv.part(at),
                }
            };
            let at = chunk_of(item, tokens, hidden);
            let x = &input[at.clone()];
            let mut positions = positions[chunk_of(item, tokens, 1)].iter().copied();
            let turn = Turn { rope, positions: &mut positions };
            let normal = self.attention_input(1, weights, x, turn, out, scratch);
            if let Some([kept, _, _]) = &outputs {
                // SAFETY: each item has its own rows.
                unsafe { kept.part(at) }.copy_from_slice(normal);
            }
        });
        let lse = kept.lse.grow(tokens * heads.queries);
        attention(heads, qkv, batch.sequences(), attended, lse, attention_scratch);
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
            middle.copy_from_slice(&input[at.clone()]);
            let attended = &attended[chunk_of(item, tokens, width)];
            let [normal, product] =
                self.attention_output(1, weights, attended, middle, gate_up, out, scratch);
            if let Some([_, kept_normal, kept_product]) = &outputs {
                // SAFETY: each item has its own rows.
                unsafe {
                    kept_normal.part(at).copy_from_slice(normal);
                    kept_product.part(chunk_of(item, tokens, inner)).copy_from_slice(product);
                }
            }
        });
    }

    /// Computes the backward of one layer, whose forward is in the buffers of `slot`. It turns
    /// `ws.gradients.x` from the gradient of the layer's output into that of its input.
    pub(crate) fn layer_backward(
        &self,
        params: &[f32],
        batch: &Packed,
        layer: usize,
        slot: usize,
        grads: &mut [f32],
        ws: &mut Workspace,
    ) {
        let tokens = batch.tokens.len();
        let (hidden, inner) = (self.config().hidden_size, self.config().intermediate_size);
        let (heads, width) = (self.heads(), self.attention_width());
        let eps = self.config().rms_norm_eps;
        let ranges = &self.ranges.layers[layer];
        let LayerRanges { input_norm, qkv, qkv_bias, head_norm, output, post_norm, gate_up, down } =
            ranges;
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
        let kept = &mut layers[slot];
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
        let (post_normal, product) = match &kept.outputs {
            Some(outputs) => (
                &outputs.post_normal.as_slice()[..tokens * hidden],
                &outputs.product.as_slice()[..tokens * inner],
            ),
            None => (&*normal, &*product),
        };
        let mut gradient = |range: &Range<usize>, dy: &[f32], x: &[f32]| {
            weight_gradient(dy, x, tokens, &mut grads[range.clone()], scratch);
        };
        gradient(down, d_out, product);
        gradient(gate_up, d_gate_up, post_normal);
        gradient(output, d_middle, attended);

        let d_qkv = kept.qkv.grow(tokens * heads.row());
        let lse = &*kept.lse.grow(tokens * heads.queries);
        let forward = Attended { out: attended, lse, d_out: d_attention };
        attention_backward(heads, d_qkv, batch.sequences(), forward, attention_scratch);

        let d_x = gradients.x.grow(tokens * hidden);
        let bias_width = if qkv_bias.is_some() { heads.row() } else { 0 };
        let bias_partials = gradients.bias_partials.grow(chunks * bias_width);
        let before_norm = kept.before_norm.as_slice();
        let head_norm_width = head_norm.as_ref().map_or(0, Range::len);
        let head_norm_partials = gradients.head_norm_partials.grow(chunks * head_norm_width);
        {
            let [d_x, normal, partials, bias_partials, head_norm_partials, d_qkv] = [
                d_x,
                &mut *normal,
                &mut *partials,
                &mut *bias_partials,
                &mut *head_norm_partials,
                &mut *d_qkv,
            ]
            .map(SharedMut::new);
            for_each(chunks, scratch, |item, _| {
                let at = chunk_of(item, tokens, hidden);
                let rows = chunk_of(item, tokens, 1);
                // SAFETY: each item has its own rows and its own partial sums.
                let (d_x, normal, partial, bias_partial, head_norm_partial, d_qkv) = unsafe {
                    (
                        d_x.part(at.clone()),
                        normal.part(at.clone()),
                        partials.part(item * hidden..(item + 1) * hidden),
                        bias_partials.part(item * bias_width..(item + 1) * bias_width),
                        head_norm_partials
                            .part(item * head_norm_width..(item + 1) * head_norm_width),
                        d_qkv.part(chunk_of(item, tokens, heads.row())),
                    )
                };
                let turned = heads.queries + heads.keys;
                for (row, &position) in
                    d_qkv.chunks_exact_mut(heads.row()).zip(&positions[rows.clone()])
                {
                    rope.backward(row, turned, position);
                }
                if let Some(range) = head_norm {
                    head_norm_partial.fill(0.0);
                    let before = &before_norm[chunk_of(item, tokens, heads.row())];
                    let weight = &params[range.clone()];
                    head_norm_backward(heads, weight, eps, before, d_qkv, head_norm_partial);
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
        if let Some(range) = head_norm {
            add_rows(head_norm_partials, &mut grads[range.clone()]);
        }
        if let Some(range) = qkv_bias {
            add_rows(bias_partials, &mut grads[range.clone()]);
        }
        let input_normal = match &kept.outputs {
            Some(outputs) => &outputs.input_normal.as_slice()[..tokens * hidden],
            None => &*normal,
        };
        weight_gradient(d_qkv, input_normal, tokens, &mut grads[qkv.clone()], scratch);
    }
}
