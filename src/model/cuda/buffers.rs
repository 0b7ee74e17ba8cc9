//! This file holds the buffers of the training graph on a GPU: those that a layer keeps, those that
//! one operation leaves to the next, and those of a chunk of the head.

use super::attention::Queue;
use super::batch::{List, RowList};
use super::matrix::Matrix;
use crate::cuda::kernels::column_sums::{PARTS, SumOverRows};
use crate::cuda::kernels::logprob::{ScoreGradient, Statistics};
use crate::cuda::kernels::rms_norm::{Norm, NormBackward};
use crate::cuda::{DeviceSlice, DeviceSliceMut, Half, Phase, Stream, Transfer};
use crate::model::gpu_sizes::{TrainingShape, padded};
use crate::model::{Target, TokenScores};
use anyhow::Result;

/// The activations that one layer keeps for its backward, besides its input.
pub(crate) struct LayerBuffers<'a> {
    /// Queries, keys and values in the layout of attention, queries and keys rotated.
    pub(crate) qkv: Matrix<'a>,
    /// The rows of queries, keys and values before heads are normalised, in a model that normalises
    /// them.
    pub(crate) before_norm: Option<Matrix<'a>>,
    pub(crate) attended: Matrix<'a>,
    pub(crate) lse: Matrix<'a, f32>,
    /// The residual stream between attention and the feed-forward network.
    pub(crate) middle: Matrix<'a>,
    pub(crate) gate_up: Matrix<'a>,
}

impl<'a> LayerBuffers<'a> {
    pub(crate) fn take(phase: &mut Phase<'a>, shape: TrainingShape) -> Result<Self> {
        let rows = shape.rows;
        let mut qkv = || Matrix::take(phase, "queries, keys and values", rows, shape.qkv);
        Ok(Self {
            qkv: qkv()?,
            before_norm: if shape.head_norm > 0 { Some(qkv()?) } else { None },
            attended: Matrix::take(phase, "attention", rows, shape.width)?,
            lse: Matrix::take(phase, "sums of attention", rows, shape.heads)?,
            middle: Matrix::take(phase, "residual stream", rows, shape.hidden)?,
            gate_up: Matrix::take(phase, "gate and up", rows, 2 * shape.inner)?,
        })
    }
}

/// The buffers that one operation leaves to the next within a layer.
pub(crate) struct Work<'a> {
    /// It holds the output of a norm; in the backward it first holds the gradient of that output.
    pub(crate) normal: Matrix<'a>,
    /// It holds the output of a block before it is added to the residual stream, or the gradient of
    /// attention's output.
    pub(crate) branch: Matrix<'a>,
    /// It holds the SwiGLU product; in the backward it first holds the gradient of that product.
    pub(crate) product: Matrix<'a>,
    /// It holds rows of queries, keys and values, or their gradients.
    pub(crate) qkv: Matrix<'a>,
    /// It holds the gradient of the residual stream.
    pub(crate) d_x: Matrix<'a>,
    pub(crate) partials: Matrix<'a, f32>,
}

impl<'a> Work<'a> {
    pub(crate) fn take(phase: &mut Phase<'a>, shape: TrainingShape) -> Result<Self> {
        let rows = shape.rows;
        Ok(Self {
            normal: Matrix::take(phase, "norm", rows, shape.hidden)?,
            branch: Matrix::take(phase, "output of a block", rows, shape.branch())?,
            product: Matrix::take(phase, "SwiGLU product", rows, shape.inner)?,
            qkv: Matrix::take(phase, "queries, keys and values at work", rows, shape.qkv)?,
            d_x: Matrix::take(phase, "gradient of the residual stream", rows, shape.hidden)?,
            partials: Matrix::take(phase, "partial sums", PARTS, shape.sums)?,
        })
    }

    /// Computes the backward of a norm of `x` from the gradient of its output in `normal`. It adds
    /// the gradient of `x` to `d_x`, leaves the norm's output in `normal`, and overwrites
    /// `gradient`, the weight's.
    pub(crate) fn norm_backward(
        &mut self,
        Queue { stream, kernels }: Queue<'_>,
        norm: Norm<'_>,
        x: DeviceSlice<'_, Half>,
        rows: usize,
        mut gradient: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        stream.fill(gradient.reborrow(), 0)?;
        let (dy, dx) = (self.normal.rows_mut(rows), self.d_x.rows_mut(rows));
        let partials = self.partials.first_mut(PARTS * norm.weight.len());
        let weight = SumOverRows { kernels: &kernels.column_sums, partials, gradient };
        kernels.rms_norm.backward(stream, norm, NormBackward { x, dy, dx, adds: true }, weight)
    }
}

/// The buffers of one chunk of targets.
pub(crate) struct Head<'a> {
    /// These are the row and the token of each target, padded to whole tiles.
    pub(crate) rows: List<'a, u32>,
    pub(crate) tokens: List<'a, u32>,
    /// The targets at which each row occurs, without the padding.
    pub(crate) occurrences: RowList<'a>,
    pub(crate) normal: Matrix<'a>,
    pub(crate) d_normal: Matrix<'a>,
    pub(crate) logits: Matrix<'a, f32>,
    pub(crate) d_logits: Matrix<'a>,
    pub(crate) statistics: Matrix<'a, Statistics>,
    pub(crate) logp: Matrix<'a, f32>,
    /// The gradients of the loss by each target's scores.
    pub(crate) gradients: List<'a, ScoreGradient>,
    /// The scores are on the host.
    pub(crate) scores: Vec<TokenScores>,
}

impl<'a> Head<'a> {
    pub(crate) fn take(phase: &mut Phase<'a>, shape: TrainingShape) -> Result<Self> {
        let TrainingShape { chunk, hidden, vocab, .. } = shape;
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

impl Head<'_> {
    /// Replaces the targets.
    pub(crate) fn set(
        &mut self,
        stream: &Stream,
        to: &mut Transfer,
        targets: &[Target],
    ) -> Result<()> {
        let mut rows: Vec<u32> = targets.iter().map(|target| target.row as u32).collect();
        let mut tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
        self.occurrences.set(stream, to, &rows)?;
        rows.resize(padded(targets.len()), 0);
        tokens.resize(padded(targets.len()), 0);
        self.rows.set(stream, to, &rows)?;
        self.tokens.set(stream, to, &tokens)
    }

    /// Waits for the scores of `count` targets and copies them to the host.
    pub(crate) fn download(
        &mut self,
        stream: &Stream,
        from: &mut Transfer,
        count: usize,
    ) -> Result<()> {
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
