//! This file computes the training graph on a GPU: the scores of a packed batch, and the gradients
//! of every parameter.
//!
//! Contract: it is the twin of `model::training`. Its memory is one phase of the arena, sized by
//! the largest batch ([`BatchSize`]); nothing is taken later. The host waits for the device only
//! where the scores of a chunk of targets are copied to it. The gradients have the same bits
//! whatever [`Recompute`] says. Backward kernels compute norm outputs and the SwiGLU product
//! anyway, so `none` is `selective` here. Equal batches give equal bits, except with cuDNN before
//! 9.25, which sums query gradients in no fixed order.

use super::attention::Attention;
use super::batch::Batch;
use super::buffers::{Head, LayerBuffers, Work};
use super::matrix::Matrix;
use super::{DeviceModel, RopeTable, Weights, heads};
use crate::cuda::kernels::column_sums::{PARTS, SumOverRows};
use crate::cuda::kernels::rms_norm::NormBackward;
use crate::cuda::{DeviceSlice, DeviceSliceMut, Half, Phase, Stream, Tools};
use crate::model::gpu_sizes::{MOST_ROWS, TrainingShape, attention_sizes};
use crate::model::{
    BatchSize, ChunkObjective, Decoder, Packed, Recompute, ScoreGradient, Target, TokenScores,
};
use anyhow::{Result, ensure};
use std::ops::Range;

/// A callback of the backward. It is told that the gradients in a range of the flat buffer are
/// final once the stream has done the work that is queued now. The ranges are adjacent and come
/// from the end of the buffer to its start (head, norm, last layer, ..., first layer, embedding).
/// The callback gets the whole buffer and may use what is final, also on another stream that it
/// makes wait for an event recorded on this one.
pub type Finished<'a> =
    dyn FnMut(Range<usize>, DeviceSliceMut<'_, Half>, &Stream) -> Result<()> + 'a;

/// A phase of scoring and training: the buffers of both, on a model's GPU.
pub struct Training<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) weights: Weights<'a>,
    pub(crate) rope: &'a RopeTable,
    pub(crate) stream: &'a Stream,
    pub(crate) tools: &'a mut Tools,
    pub(crate) shape: TrainingShape,
    pub(crate) batch: Batch<'a>,
    /// The residual stream before each layer and after the last one.
    pub(crate) inputs: Vec<Matrix<'a>>,
    /// The activations of each layer, or of only the current one where only inputs are kept.
    pub(crate) layers: Vec<LayerBuffers<'a>>,
    pub(crate) work: Work<'a>,
    pub(crate) attention: Attention<'a>,
    pub(crate) head: Head<'a>,
}

impl<'a> Training<'a> {
    /// Takes the buffers, and returns them with the rest of their phase.
    pub(crate) fn new(
        model: &'a mut DeviceModel,
        size: BatchSize,
        recompute: Recompute,
    ) -> Result<(Self, Phase<'a>)> {
        let positions = model.rope.positions;
        ensure!(
            size.longest <= positions,
            "sequences may have {} tokens, but the model was made for {positions}",
            size.longest
        );
        let DeviceModel { gpu, decoder, params, rope, plans } = model;
        let shape = TrainingShape::new(decoder, size, recompute);
        ensure!(
            shape.rows <= MOST_ROWS,
            "a batch may have {} tokens; a GPU takes at most {MOST_ROWS}",
            size.tokens
        );
        let mut phase = gpu.arena.phase();
        let take = |phase: &mut _| Matrix::take(phase, "residual stream", shape.rows, shape.hidden);
        let inputs = (0..=shape.layers).map(|_| take(&mut phase)).collect::<Result<_>>()?;
        let layers = (0..shape.slots).map(|_| LayerBuffers::take(&mut phase, shape));
        let layers = layers.collect::<Result<_>>()?;
        let plans = plans.get(&gpu.stream, attention_sizes(decoder, shape.rows));
        let training = Self {
            inputs,
            layers,
            work: Work::take(&mut phase, shape)?,
            attention: Attention::take(&mut phase, heads(decoder), shape, plans)?,
            head: Head::take(&mut phase, shape)?,
            batch: Batch::take(&mut phase, size)?,
            weights: Weights { params: params.slice(), eps: decoder.config().rms_norm_eps },
            decoder,
            rope,
            stream: &gpu.stream,
            tools: &mut gpu.tools,
            shape,
        };
        Ok((training, phase))
    }

    /// Returns the stream on which this phase queues its work, so that a caller can wait for it or
    /// profile it.
    pub fn stream(&self) -> &'a Stream {
        self.stream
    }

    /// Copies from the host to the device, in the order of this phase's stream.
    pub fn upload(&mut self, from: &[Half], to: DeviceSliceMut<'_, Half>) -> Result<()> {
        self.tools.transfer.upload(self.stream, from, to)
    }

    /// Computes with other parameters of the same layout from now on.
    pub fn with_params<'b>(self, params: DeviceSlice<'b, Half>) -> Training<'b>
    where
        'a: 'b,
    {
        assert_eq!(params.len(), self.weights.params.len(), "parameters in the layout");
        Training { weights: Weights { params, ..self.weights }, ..self }
    }

    /// Tells whether cuDNN computes attention.
    pub fn has_cudnn(&self) -> bool {
        self.attention.has_cudnn()
    }

    /// Returns the scores of each target.
    pub fn score(
        &mut self,
        batch: &Packed,
        targets: &[Target],
        temperature: f32,
    ) -> Result<Vec<TokenScores>> {
        self.forward(batch, targets)?;
        let mut scores = Vec::with_capacity(targets.len());
        for targets in targets.chunks(self.shape.chunk) {
            self.head_forward(targets, temperature)?;
            scores.extend_from_slice(&self.head.scores);
        }
        Ok(scores)
    }

    /// Computes the forward, asks the objective for the gradients of the loss by the scores of each
    /// chunk of targets, and computes the backward. It overwrites `grads` (flat, in the layout)
    /// with the unnormalised gradient of every parameter. It returns when all work is queued; a
    /// failed kernel shows at the next synchronisation.
    pub fn forward_backward(
        &mut self,
        batch: &Packed,
        targets: &[Target],
        temperature: f32,
        objective: &mut ChunkObjective<'_>,
        mut grads: DeviceSliceMut<'_, Half>,
        finished: &mut Finished<'_>,
    ) -> Result<()> {
        assert_eq!(grads.len(), self.weights.params.len(), "gradients in the layout");
        let ranges = &self.decoder.ranges;
        self.forward(batch, targets)?;
        self.head(targets, temperature, objective, &mut grads)?;
        if ranges.head != ranges.embedding {
            finished(ranges.head.clone(), grads.reborrow(), self.stream)?;
        }
        self.last_norm_backward(&mut grads)?;
        finished(ranges.norm.clone(), grads.reborrow(), self.stream)?;
        for (layer, ranges) in ranges.layers.iter().enumerate().rev() {
            if self.layers.len() == 1 && layer + 1 < self.shape.layers {
                self.input_norm(layer)?;
                self.layer_blocks(layer)?;
            }
            self.layer_backward(layer, &mut grads)?;
            let range = ranges.input_norm.start..ranges.down.end;
            finished(range, grads.reborrow(), self.stream)?;
        }
        self.embedding_backward(&mut grads)?;
        finished(ranges.embedding.clone(), grads, self.stream)
    }

    /// Computes the residual stream after all layers, and its norm in `work.normal`.
    fn forward(&mut self, batch: &Packed, targets: &[Target]) -> Result<()> {
        let TrainingShape { hidden, vocab, .. } = self.shape;
        let is_inside =
            |target: &Target| target.row < batch.tokens.len() && (target.token as usize) < vocab;
        assert!(targets.iter().all(is_inside), "targets of the batch and the vocabulary");
        let transfer = &mut self.tools.transfer;
        self.batch.set(self.stream, transfer, batch, vocab)?;
        self.attention.set(self.stream, transfer, &self.batch.lengths)?;
        let table = self.weights.params.range(self.decoder.ranges.embedding.clone());
        let x = self.inputs[0].rows_mut(self.batch.rows());
        let tokens = self.batch.tokens.get();
        self.tools.kernels.embedding.forward(self.stream, table, tokens, hidden, x)?;
        self.input_norm(0)?;
        for layer in 0..self.shape.layers {
            self.layer_blocks(layer)?;
            self.layer_output(layer)?;
        }
        Ok(())
    }

    /// Computes the norm of a layer's input into `work.normal`.
    fn input_norm(&mut self, layer: usize) -> Result<()> {
        let rows = self.batch.rows();
        let norm = self.weights.norm(&self.decoder.ranges.layers[layer].input_norm);
        let (x, normal) = (self.inputs[layer].rows(rows), self.work.normal.rows_mut(rows));
        self.tools.kernels.rms_norm.forward(self.stream, norm, x, normal)
    }

    /// Computes forward and backward of the head: its gradient, and the gradient of the last norm's
    /// output in `work.branch`.
    fn head(
        &mut self,
        targets: &[Target],
        temperature: f32,
        objective: &mut ChunkObjective<'_>,
        grads: &mut DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let range = &self.decoder.ranges.head;
        let len = self.batch.rows() * self.shape.hidden;
        self.stream.fill(self.work.branch.first_mut(len), 0)?;
        if targets.is_empty() {
            self.stream.fill(grads.range(range.clone()), 0)?;
        }
        for (index, targets) in targets.chunks(self.shape.chunk).enumerate() {
            self.head_forward(targets, temperature)?;
            let mut gradients = vec![ScoreGradient::default(); targets.len()];
            objective(index * self.shape.chunk, &self.head.scores, &mut gradients);
            let d_head = grads.range(range.clone());
            self.head_backward(index == 0, temperature, &gradients, d_head)?;
        }
        Ok(())
    }

    /// Computes the backward of the last norm, from the gradient of its output in `work.branch` to
    /// that of the residual stream, with which it overwrites `work.d_x`.
    fn last_norm_backward(&mut self, grads: &mut DeviceSliceMut<'_, Half>) -> Result<()> {
        let (rows, range) = (self.batch.rows(), &self.decoder.ranges.norm);
        let TrainingShape { hidden, layers, .. } = self.shape;
        let (norm, kernels) = (self.weights.norm(range), &self.tools.kernels);
        let mut gradient = grads.range(range.clone());
        self.stream.fill(gradient.reborrow(), 0)?;
        let rows = NormBackward {
            x: self.inputs[layers].rows(rows),
            dy: self.work.branch.first_mut(rows * hidden),
            dx: self.work.d_x.rows_mut(rows),
            adds: false,
        };
        let partials = self.work.partials.first_mut(PARTS * hidden);
        let weight = SumOverRows { kernels: &kernels.column_sums, partials, gradient };
        kernels.rms_norm.backward(self.stream, norm, rows, weight)
    }

    /// Adds the rows of `work.d_x` to the gradient of the embedding, which is also the head's where
    /// the two share a matrix.
    fn embedding_backward(&mut self, grads: &mut DeviceSliceMut<'_, Half>) -> Result<()> {
        let ranges = &self.decoder.ranges;
        let mut gradient = grads.range(ranges.embedding.clone());
        if ranges.head != ranges.embedding {
            self.stream.fill(gradient.reborrow(), 0)?;
        }
        let (d_x, list) = (self.work.d_x.rows(self.batch.count), self.batch.occurrences.get());
        let hidden = self.shape.hidden;
        self.tools.kernels.embedding.backward(self.stream, d_x, list, hidden, gradient)
    }

    /// Returns the index in `layers` at which the activations of `layer` lie.
    pub(crate) fn slot(&self, layer: usize) -> usize {
        if self.layers.len() == 1 { 0 } else { layer }
    }
}
