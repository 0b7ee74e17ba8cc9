//! This file computes the head of the training graph on a GPU: the scores of a chunk of targets,
//! and their gradients.
//!
//! Contract: logits are f32 and exist for one chunk of targets at a time; their gradients are
//! 16-bit. Chunks are padded to whole tiles of products by targets without a gradient. The last
//! norm is computed for all rows before the first chunk (`work.normal`), and its backward after the
//! last chunk, from the gradients that all chunks have added up in `work.branch`. Only scores and
//! their gradients are copied between device and host, once for each chunk.

use super::Training;
use crate::cuda::gemm::{Linear, Start};
use crate::cuda::kernels::logprob::{self, ScoreGradient};
use crate::cuda::{DeviceSliceMut, Half, Tools};
use crate::model::Target;
use crate::model::gpu_sizes::{TrainingShape, padded};
use crate::ops::logprob::ScoreGradient as HostGradient;
use anyhow::Result;

impl Training<'_> {
    /// Computes logits, statistics and scores of a chunk of targets into `head`, and waits for the
    /// scores.
    pub(crate) fn head_forward(&mut self, targets: &[Target], temperature: f32) -> Result<()> {
        let (TrainingShape { hidden, vocab, .. }, rows) = (self.shape, padded(targets.len()));
        let weight = self.weights.params.range(self.decoder.ranges.head.clone());
        let Self { stream, tools, batch, work, head, .. } = self;
        let (stream, Tools { kernels, gemm, transfer }) = (*stream, &mut **tools);
        head.set(stream, transfer, targets)?;
        let (table, normal) = (work.normal.rows(batch.rows()), head.normal.rows_mut(rows));
        kernels.embedding.forward(stream, table, head.rows.get(), hidden, normal)?;
        let (sizes, normal) =
            (Linear { rows, inputs: hidden, outputs: vocab }, head.normal.rows(rows));
        gemm.forward(stream, sizes, normal, weight, Start::Zero, head.logits.rows_mut(rows))?;
        kernels.logprob.forward(
            stream,
            logprob::Shape { vocab, stride: vocab, temperature },
            head.logits.rows(rows),
            head.tokens.get(),
            head.statistics.rows_mut(rows),
            head.logp.rows_mut(rows),
        )?;
        head.download(stream, transfer, targets.len())
    }

    /// Computes the backward of the chunk in `head` from the gradients of the loss by its scores.
    /// It adds to the gradients of the norm's output in `work.branch` and to the gradient of the
    /// head, which the first chunk overwrites.
    pub(crate) fn head_backward(
        &mut self,
        is_first: bool,
        temperature: f32,
        by_scores: &[HostGradient],
        d_head: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let (TrainingShape { hidden, vocab, .. }, count) = (self.shape, by_scores.len());
        let rows = padded(count);
        let weight = self.weights.params.range(self.decoder.ranges.head.clone());
        let Self { stream, tools, batch, work, head, .. } = self;
        let (stream, Tools { kernels, gemm, transfer }) = (*stream, &mut **tools);
        let mut gradients: Vec<_> = by_scores.iter().map(device_gradient).collect();
        gradients.resize(rows, ScoreGradient::default());
        head.gradients.set(stream, transfer, &gradients)?;
        kernels.logprob.backward(
            stream,
            logprob::Shape { vocab, stride: vocab, temperature },
            head.logits.rows(rows),
            head.d_logits.rows_mut(rows),
            head.tokens.get(),
            head.statistics.rows(rows),
            head.gradients.get(),
        )?;
        let sizes = Linear { rows, inputs: hidden, outputs: vocab };
        let d_logits = head.d_logits.rows(rows);
        let start = if is_first { Start::Zero } else { Start::Accumulate };
        gemm.weight_gradient(stream, sizes, d_logits, head.normal.rows(rows), start, d_head)?;
        let d_normal = head.d_normal.rows_mut(rows);
        gemm.input_gradient(stream, sizes, d_logits, weight, Start::Zero, d_normal)?;
        let d_normal = head.d_normal.rows(count);
        let sums = work.branch.first_mut(batch.rows() * hidden);
        kernels.embedding.backward(stream, d_normal, head.occurrences.get(), hidden, sums)
    }
}

fn device_gradient(gradient: &HostGradient) -> ScoreGradient {
    let HostGradient { logp, entropy, mean_logp } = *gradient;
    ScoreGradient { logp, entropy, mean_logp }
}
