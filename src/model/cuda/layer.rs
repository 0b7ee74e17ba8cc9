//! This file computes a layer of the training graph on a GPU: the forward into the layer's buffers,
//! and the backward from them.
//!
//! Contract: it is the twin of `model::training::layer`. The backward reads what the forward kept,
//! whether it was kept since or computed again, and overwrites it with gradients. Norm outputs and
//! the SwiGLU product are not kept, because the backward kernels of both compute them anyway. One
//! kernel adds a block's output to the residual stream and computes the norm that follows.

use super::attention::{self, Queue};
use super::buffers::LayerBuffers;
use super::{Training, heads};
use crate::cuda::gemm::{Linear, Start};
use crate::cuda::kernels::column_sums::{PARTS, SumOverRows};
use crate::cuda::{DeviceSliceMut, Half};
use crate::model::gpu_sizes::TrainingShape;
use crate::model::layout::LayerRanges;
use anyhow::Result;

impl Training<'_> {
    /// Computes the forward of a layer from the norm of its input, in `work.normal`, up to gate and
    /// up.
    pub(crate) fn layer_blocks(&mut self, layer: usize) -> Result<()> {
        let (slot, rows) = (self.slot(layer), self.batch.rows());
        let TrainingShape { hidden, inner, width, qkv, .. } = self.shape;
        let linear = |inputs, outputs| Linear { rows, inputs, outputs };
        let ranges = &self.decoder.ranges.layers[layer];
        let Self { weights, stream, tools, batch, inputs, layers, work, attention, rope, .. } =
            self;
        let (kept, kernels, gemm) = (&mut layers[slot], &tools.kernels, &mut tools.gemm);
        let bias = ranges.qkv_bias.clone().map(|range| weights.params.range(range));
        let start = bias.map_or(Start::Zero, Start::Bias);
        let LayerBuffers { qkv: turned, before_norm, attended, lse, middle, gate_up } = kept;
        // Attention reads rows from here: it rotates them in place unless it moves them.
        let taken = if attention.moves() { &mut work.qkv } else { &mut *turned };
        let projected = before_norm.as_mut().unwrap_or(&mut *taken).rows_mut(rows);
        let weight = weights.params.range(ranges.qkv.clone());
        gemm.forward(
            stream,
            linear(hidden, qkv),
            work.normal.rows(rows),
            weight,
            start,
            projected,
        )?;
        if let (Some(range), Some(before)) = (&ranges.head_norm, before_norm) {
            let (norm, heads) = (weights.norm(range), heads(self.decoder));
            let (before, to) = (before.rows(rows), taken.rows_mut(rows));
            kernels.head_norm.forward(stream, heads, norm, before, to)?;
        }
        let operands = attention::Forward {
            projected: work.qkv.rows(rows),
            qkv: turned.rows_mut(rows),
            out: attended.rows_mut(rows),
            lse: lse.rows_mut(rows),
        };
        let angles = rope.angles(batch.positions.get());
        attention.forward(Queue { stream, kernels }, batch, angles, operands)?;
        let weight = weights.params.range(ranges.output.clone());
        let branch = work.branch.first_mut(rows * hidden);
        let attended = attended.rows(rows);
        gemm.forward(stream, linear(width, hidden), attended, weight, Start::Zero, branch)?;
        kernels.rms_norm.forward_sum(
            stream,
            weights.norm(&ranges.post_norm),
            inputs[layer].rows(rows),
            work.branch.first(rows * hidden),
            middle.rows_mut(rows),
            work.normal.rows_mut(rows),
        )?;
        let weight = weights.params.range(ranges.gate_up.clone());
        let gate_up = gate_up.rows_mut(rows);
        let normal = work.normal.rows(rows);
        gemm.forward(stream, linear(hidden, 2 * inner), normal, weight, Start::Zero, gate_up)
    }

    /// Computes the rest of a layer's forward: the input of the next layer, and its norm in
    /// `work.normal`.
    pub(crate) fn layer_output(&mut self, layer: usize) -> Result<()> {
        let (slot, rows) = (self.slot(layer), self.batch.rows());
        let TrainingShape { hidden, inner, .. } = self.shape;
        let ranges = &self.decoder.ranges;
        let next = ranges.layers.get(layer + 1).map_or(&ranges.norm, |next| &next.input_norm);
        let Self { weights, stream, tools, inputs, layers, work, .. } = self;
        let (kept, kernels) = (&layers[slot], &tools.kernels);
        let product = work.product.rows_mut(rows);
        kernels.swiglu.forward(stream, kept.gate_up.rows(rows), inner, product)?;
        tools.gemm.forward(
            stream,
            Linear { rows, inputs: inner, outputs: hidden },
            work.product.rows(rows),
            weights.params.range(ranges.layers[layer].down.clone()),
            Start::Zero,
            work.branch.first_mut(rows * hidden),
        )?;
        kernels.rms_norm.forward_sum(
            stream,
            weights.norm(next),
            kept.middle.rows(rows),
            work.branch.first(rows * hidden),
            inputs[layer + 1].rows_mut(rows),
            work.normal.rows_mut(rows),
        )
    }

    /// Computes the backward of a layer whose forward is in its buffers. It replaces the gradient
    /// of the layer's output in `work.d_x` by that of its input, and writes the gradients of its
    /// parameters to `grads`.
    pub(crate) fn layer_backward(
        &mut self,
        layer: usize,
        grads: &mut DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        self.feed_forward_backward(layer, grads)?;
        self.attention_backward(layer, grads)
    }

    fn feed_forward_backward(
        &mut self,
        layer: usize,
        grads: &mut DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let (slot, rows) = (self.slot(layer), self.batch.rows());
        let TrainingShape { hidden, inner, .. } = self.shape;
        let (to_hidden, to_inner) = (
            Linear { rows, inputs: inner, outputs: hidden },
            Linear { rows, inputs: hidden, outputs: 2 * inner },
        );
        let LayerRanges { post_norm, gate_up, down, .. } = &self.decoder.ranges.layers[layer];
        let Self { weights, stream, tools, layers, work, .. } = self;
        let (kept, kernels, gemm) = (&mut layers[slot], &tools.kernels, &mut tools.gemm);
        let stream = *stream;
        let weight = weights.params.range(down.clone());
        let (d_x, product) = (work.d_x.rows(rows), work.product.rows_mut(rows));
        gemm.input_gradient(stream, to_hidden, d_x, weight, Start::Zero, product)?;
        let (d_gate_up, product) = (kept.gate_up.rows_mut(rows), work.product.rows_mut(rows));
        kernels.swiglu.backward(stream, d_gate_up, inner, product)?;
        let (d_x, product) = (work.d_x.rows(rows), work.product.rows(rows));
        gemm.weight_gradient(
            stream,
            to_hidden,
            d_x,
            product,
            Start::Zero,
            grads.range(down.clone()),
        )?;
        let d_gate_up = kept.gate_up.rows(rows);
        let weight = weights.params.range(gate_up.clone());
        let d_normal = work.normal.rows_mut(rows);
        gemm.input_gradient(stream, to_inner, d_gate_up, weight, Start::Zero, d_normal)?;
        let (norm, gradient) = (weights.norm(post_norm), grads.range(post_norm.clone()));
        work.norm_backward(
            Queue { stream, kernels },
            norm,
            kept.middle.rows(rows),
            rows,
            gradient,
        )?;
        let (normal, gradient) = (work.normal.rows(rows), grads.range(gate_up.clone()));
        gemm.weight_gradient(stream, to_inner, d_gate_up, normal, Start::Zero, gradient)
    }

    fn attention_backward(
        &mut self,
        layer: usize,
        grads: &mut DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let (slot, rows) = (self.slot(layer), self.batch.rows());
        let TrainingShape { hidden, width, qkv: qkv_width, .. } = self.shape;
        let (to_hidden, to_qkv) = (
            Linear { rows, inputs: width, outputs: hidden },
            Linear { rows, inputs: hidden, outputs: qkv_width },
        );
        let LayerRanges { input_norm, qkv, qkv_bias, head_norm, output, .. } =
            &self.decoder.ranges.layers[layer];
        let Self {
            decoder,
            weights,
            stream,
            tools,
            batch,
            inputs,
            layers,
            work,
            attention,
            rope,
            ..
        } = self;
        let (kept, kernels, gemm) = (&layers[slot], &tools.kernels, &mut tools.gemm);
        let stream = *stream;
        let (d_middle, attended) = (work.d_x.rows(rows), kept.attended.rows(rows));
        let d_attended = work.branch.first_mut(rows * width);
        let weight = weights.params.range(output.clone());
        gemm.input_gradient(stream, to_hidden, d_middle, weight, Start::Zero, d_attended)?;
        let gradient = grads.range(output.clone());
        gemm.weight_gradient(stream, to_hidden, d_middle, attended, Start::Zero, gradient)?;
        let operands = attention::Backward {
            qkv: kept.qkv.rows(rows),
            out: attended,
            lse: kept.lse.rows(rows),
            d_out: work.branch.first(rows * width),
            d_qkv: work.qkv.rows_mut(rows),
        };
        let angles = rope.angles(batch.positions.get());
        attention.backward(Queue { stream, kernels }, batch, angles, operands)?;
        if let (Some(range), Some(before)) = (head_norm, &kept.before_norm) {
            let mut gradient = grads.range(range.clone());
            stream.fill(gradient.reborrow(), 0)?;
            let partials = work.partials.first_mut(PARTS * range.len());
            let weight = SumOverRows { kernels: &kernels.column_sums, partials, gradient };
            let (norm, d_qkv) = (weights.norm(range), work.qkv.rows_mut(rows));
            let (heads, before) = (heads(decoder), before.rows(rows));
            kernels.head_norm.backward(stream, heads, norm, before, d_qkv, weight)?;
        }
        let d_qkv = work.qkv.rows(rows);
        if let Some(range) = qkv_bias {
            stream.fill(grads.range(range.clone()), 0)?;
            let partials = work.partials.first_mut(PARTS * qkv_width);
            let gradient = grads.range(range.clone());
            kernels.column_sums.add_sums_of(stream, d_qkv, partials, gradient)?;
        }
        let weight = weights.params.range(qkv.clone());
        gemm.input_gradient(
            stream,
            to_qkv,
            d_qkv,
            weight,
            Start::Zero,
            work.normal.rows_mut(rows),
        )?;
        let (norm, gradient) = (weights.norm(input_norm), grads.range(input_norm.clone()));
        work.norm_backward(
            Queue { stream, kernels },
            norm,
            inputs[layer].rows(rows),
            rows,
            gradient,
        )?;
        let (d_qkv, normal) = (work.qkv.rows(rows), work.normal.rows(rows));
        let gradient = grads.range(qkv.clone());
        gemm.weight_gradient(stream, to_qkv, d_qkv, normal, Start::Zero, gradient)
    }
}
