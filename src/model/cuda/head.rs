//! The head of the training graph on a GPU: scores of a chunk of targets, and their gradients.
//!
//! Contract: logits are f32 and exist for one chunk of targets at a time, their gradients in 16 bits. Chunks
//! are padded to whole tiles of a product by targets without a gradient. The last norm is taken of all
//! rows before (`work.normal`), and its backward after all chunks, from the gradients of its output
//! that they add up in `work.branch`. Only scores and their gradients cross to the host, once a chunk.

use super::Training;
use super::batch::{List, ROWS, RowList, padded};
use super::memory::{Matrix, Shape};
use crate::cuda::gemm::{Linear, Start};
use crate::cuda::kernels::logprob::{self, ScoreGradient, Statistics};
use crate::cuda::{DeviceSliceMut, Half, Phase, Stream, Tools, Transfer};
use crate::model::{Target, TokenScores};
use crate::ops::logprob::ScoreGradient as HostGradient;
use anyhow::Result;

/// Most logits of a head chunk: with their gradients 1.5 GiB.
const HEAD_LOGITS: usize = 1 << 28;

/// Targets whose logits exist at a time.
pub(crate) fn head_chunk(vocab: usize, targets: usize) -> usize {
    (HEAD_LOGITS / vocab / ROWS * ROWS).clamp(ROWS, padded(targets))
}

/// One chunk of targets.
pub(crate) struct Head<'a> {
    /// Row and token of each target.
    rows: List<'a, u32>,
    tokens: List<'a, u32>,
    /// Where each of the rows occurs among the targets.
    occurrences: RowList<'a>,
    normal: Matrix<'a>,
    d_normal: Matrix<'a>,
    logits: Matrix<'a, f32>,
    d_logits: Matrix<'a>,
    statistics: Matrix<'a, Statistics>,
    logp: Matrix<'a, f32>,
    /// Gradient of the loss by each score.
    gradients: List<'a, ScoreGradient>,
    /// On the host.
    pub(crate) scores: Vec<TokenScores>,
}

impl<'a> Head<'a> {
    pub(crate) fn take(phase: &mut Phase<'a>, shape: Shape) -> Result<Self> {
        let Shape { chunk, hidden, vocab, .. } = shape;
        Ok(Self {
            rows: List::take(phase, "rows of targets", chunk)?,
            tokens: List::take(phase, "tokens of targets", chunk)?,
            occurrences: RowList::take(phase, "occurrences of rows", chunk)?,
            normal: Matrix::take(phase, "rows of targets", chunk, hidden)?,
            d_normal: Matrix::take(phase, "gradients of rows of targets", chunk, hidden)?,
            logits: Matrix::take(phase, "logits", chunk, vocab)?,
            d_logits: Matrix::take(phase, "gradients of logits", chunk, vocab)?,
            statistics: Matrix::take(phase, "statistics of logits", chunk, 1)?,
            logp: Matrix::take(phase, "log-probabilities", chunk, 1)?,
            gradients: List::take(phase, "gradients of scores", chunk)?,
            scores: Vec::new(),
        })
    }
}

impl Training<'_> {
    /// Logits, statistics and scores of a chunk of targets, into `head`; waits for the scores.
    pub(crate) fn head_forward(&mut self, targets: &[Target], temperature: f32) -> Result<()> {
        let (Shape { hidden, vocab, .. }, rows) = (self.shape, padded(targets.len()));
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

    /// The backward of the chunk in `head`, from the gradients of the loss by its scores: adds to the
    /// gradients of the norm's output in `work.branch`, and to that of the head, which the first chunk
    /// overwrites.
    pub(crate) fn head_backward(
        &mut self,
        is_first: bool,
        temperature: f32,
        by_scores: &[HostGradient],
        d_head: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let (Shape { hidden, vocab, .. }, count) = (self.shape, by_scores.len());
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
            (head.logits.rows(rows), head.d_logits.rows_mut(rows)),
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

impl Head<'_> {
    fn set(&mut self, stream: &Stream, to: &mut Transfer, targets: &[Target]) -> Result<()> {
        let mut rows: Vec<u32> = targets.iter().map(|target| target.row as u32).collect();
        let mut tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
        self.occurrences.set(stream, to, &rows)?;
        rows.resize(padded(targets.len()), 0);
        tokens.resize(padded(targets.len()), 0);
        self.rows.set(stream, to, &rows)?;
        self.tokens.set(stream, to, &tokens)
    }

    /// Waits for the scores of `count` targets.
    fn download(&mut self, stream: &Stream, from: &mut Transfer, count: usize) -> Result<()> {
        let (mut statistics, mut logp) = (vec![Statistics::default(); count], vec![0.0; count]);
        from.download(stream, self.statistics.rows(count), &mut statistics)?;
        from.download(stream, self.logp.rows(count), &mut logp)?;
        self.scores.clear();
        self.scores.extend(statistics.iter().zip(logp).map(|(row, logp)| TokenScores {
            logp,
            entropy: row.entropy,
            mean_logp: row.mean_logp,
        }));
        Ok(())
    }
}

/// The same gradient as the kernels take it.
fn device_gradient(gradient: &HostGradient) -> ScoreGradient {
    let HostGradient { logp, entropy, mean_logp } = *gradient;
    ScoreGradient { logp, entropy, mean_logp }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_the_head_are_whole_tiles_and_no_larger_than_the_targets_need() {
        assert_eq!(head_chunk(128_256, 5120), 2048);
        assert_eq!(head_chunk(152_064, 5120), 1664);
        assert_eq!(head_chunk(1536, 300), 384);
        assert_eq!(head_chunk(1 << 24, 300), ROWS);
        assert_eq!(head_chunk(1536, 0), ROWS);
    }
}
