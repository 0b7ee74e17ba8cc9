//! This file computes the attention of the training graph, by cuDNN where it opens and else by our
//! own kernels.
//!
//! Contract: both are behind [`Attention`], which also rotates queries and keys to their positions.
//! A layer keeps queries, keys and values in the layout that the batch's implementation reads: rows
//! for our kernels, three tensors one after the other for cuDNN. A batch of more than [`SEGMENTS`]
//! sequences goes to our kernels: cuDNN's plan is not made for it, and its sequences are short.

use super::batch::Batch;
use super::matrix::Matrix;
use crate::cuda::cudnn::{Attention as Plans, Gradients, Operands, Results, Segments, Sizes};
use crate::cuda::kernels::Kernels;
use crate::cuda::kernels::attention::Forward as Attended;
use crate::cuda::kernels::rope::{Angles, Direction, Heads};
use crate::cuda::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Half, Phase, Stream, Transfer};
use crate::model::gpu_sizes::{SEGMENTS, TrainingShape};
use anyhow::Result;

/// The stream of a pass, and the kernels that it launches.
#[derive(Clone, Copy)]
pub(crate) struct Queue<'q> {
    pub(crate) stream: &'q Stream,
    pub(crate) kernels: &'q Kernels,
}

/// The inputs and outputs of attention in the forward.
pub(crate) struct Forward<'f> {
    /// These rows of queries, keys and values are read only where [`Attention::moves`] them to
    /// `qkv`.
    pub(crate) projected: DeviceSlice<'f, Half>,
    /// It receives queries, keys and values in the layout of the backward, queries and keys
    /// rotated.
    pub(crate) qkv: DeviceSliceMut<'f, Half>,
    pub(crate) out: DeviceSliceMut<'f, Half>,
    /// It receives the log-sum-exp of every query's scores.
    pub(crate) lse: DeviceSliceMut<'f, f32>,
}

/// The inputs of attention in the backward, as the forward left them, and its output.
pub(crate) struct Backward<'b> {
    pub(crate) qkv: DeviceSlice<'b, Half>,
    pub(crate) out: DeviceSlice<'b, Half>,
    pub(crate) lse: DeviceSlice<'b, f32>,
    pub(crate) d_out: DeviceSlice<'b, Half>,
    /// It receives the gradient of the rows before queries and keys were rotated.
    pub(crate) d_qkv: DeviceSliceMut<'b, Half>,
}

/// Attention over the current batch.
pub(crate) struct Attention<'a> {
    heads: Heads,
    /// Our kernels' backward keeps its row sums here.
    delta: Matrix<'a, f32>,
    cudnn: Option<Cudnn<'a>>,
}

/// cuDNN's plans and the memory that they use.
struct Cudnn<'a> {
    plans: &'a mut Plans,
    segments: Segments<'a>,
    /// The gradients of queries, keys and values lie here one after the other.
    gradients: Matrix<'a>,
    scratch: DeviceBuffer<'a, u8>,
    /// The current batch has few enough sequences for cuDNN's plan.
    takes_batch: bool,
}

impl<'a> Attention<'a> {
    pub(crate) fn take(
        phase: &mut Phase<'a>,
        heads: Heads,
        shape: TrainingShape,
        plans: Option<&'a mut Plans>,
    ) -> Result<Self> {
        let delta = Matrix::take(phase, "row sums of attention", shape.rows, shape.heads)?;
        let mut cudnn = |plans: &'a mut Plans| {
            let sizes = plans.sizes();
            anyhow::Ok(Cudnn {
                segments: Segments::take(phase, sizes)?,
                gradients: Matrix::take(phase, "gradients of attention", shape.rows, shape.qkv)?,
                scratch: phase.take("scratch of attention", sizes.scratch_bytes())?,
                plans,
                takes_batch: false,
            })
        };
        Ok(Self { heads, delta, cudnn: plans.map(&mut cudnn).transpose()? })
    }

    /// Tells whether cuDNN opened; batches of few sequences then go to it.
    pub(crate) fn has_cudnn(&self) -> bool {
        self.cudnn.is_some()
    }

    /// Prepares for a batch of sequences of these lengths.
    pub(crate) fn set(
        &mut self,
        stream: &Stream,
        transfer: &mut Transfer,
        lengths: &[usize],
    ) -> Result<()> {
        let Some(cudnn) = &mut self.cudnn else { return Ok(()) };
        cudnn.takes_batch = lengths.len() <= SEGMENTS;
        if cudnn.takes_batch { cudnn.segments.set(stream, transfer, lengths) } else { Ok(()) }
    }

    /// Tells whether [`Self::forward`] moves queries, keys and values to another place; if not, it
    /// rotates them in place.
    pub(crate) fn moves(&self) -> bool {
        self.cudnn.as_ref().is_some_and(|cudnn| cudnn.takes_batch)
    }

    /// Rotates queries and keys, and attends.
    pub(crate) fn forward(
        &mut self,
        Queue { stream, kernels }: Queue<'_>,
        batch: &Batch<'_>,
        angles: Angles<'_>,
        pass: Forward<'_>,
    ) -> Result<()> {
        let heads = self.heads;
        let Forward { projected, mut qkv, out, lse } = pass;
        let Some(cudnn) = self.cudnn.as_mut().filter(|cudnn| cudnn.takes_batch) else {
            kernels.rope.turn(stream, heads, angles, Direction::Forward, qkv.reborrow())?;
            let tiles = batch.forward_tiles.get();
            return kernels.attention.forward(stream, heads, qkv.as_slice(), tiles, out, lse);
        };
        kernels.rope.split(stream, heads, angles, projected, qkv.reborrow())?;
        let operands = operands(heads, qkv.as_slice());
        let scratch = cudnn.scratch.slice_mut();
        cudnn.plans.forward(stream, &cudnn.segments, operands, (out, lse), scratch)
    }

    /// Computes the gradient of queries, keys and values from that of the output.
    pub(crate) fn backward(
        &mut self,
        Queue { stream, kernels }: Queue<'_>,
        batch: &Batch<'_>,
        angles: Angles<'_>,
        pass: Backward<'_>,
    ) -> Result<()> {
        let (heads, rows) = (self.heads, batch.rows());
        let Backward { qkv, out, lse, d_out, mut d_qkv } = pass;
        let Some(cudnn) = self.cudnn.as_mut().filter(|cudnn| cudnn.takes_batch) else {
            let forward = Attended { qkv, out, lse, d_out };
            let (tiles, delta) = (batch.backward_tiles.get(), self.delta.rows_mut(rows));
            kernels.attention.backward(stream, heads, forward, tiles, delta, d_qkv.reborrow())?;
            return kernels.rope.turn(stream, heads, angles, Direction::Backward, d_qkv);
        };
        let results = Results { output: out, stats: lse };
        let [query, key, _] = heads.parts(rows);
        let (query, rest) = cudnn.gradients.rows_mut(rows).split_at(query.end);
        let (key, value) = rest.split_at(key.len());
        let gradients = Gradients { query, key, value };
        let scratch = cudnn.scratch.slice_mut();
        let forward = (operands(heads, qkv), results);
        cudnn.plans.backward(stream, &cudnn.segments, forward, d_out, gradients, scratch)?;
        kernels.rope.join(stream, heads, angles, cudnn.gradients.rows(rows), d_qkv)
    }
}

/// Splits queries, keys and values that lie one after the other.
fn operands(heads: Heads, qkv: DeviceSlice<'_, Half>) -> Operands<'_> {
    let [query, key, value] = heads.parts(qkv.len() / heads.row());
    Operands { query: qkv.range(query), key: qkv.range(key), value: qkv.range(value) }
}

/// cuDNN's plans for one batch size, compiled when they are first asked for.
#[derive(Default)]
pub(crate) struct PlanStore {
    plans: Option<Plans>,
    is_absent: bool,
}

impl PlanStore {
    /// Returns the plans for `sizes`, or `None` where cuDNN does not give any; the reason is logged
    /// once.
    pub(crate) fn get(&mut self, stream: &Stream, sizes: Sizes) -> Option<&mut Plans> {
        if self.is_absent {
            return None;
        }
        if self.plans.as_ref().is_none_or(|plans| plans.sizes() != sizes) {
            self.plans = None;
            match Plans::new(stream, sizes) {
                Ok(plans) => self.plans = Some(plans),
                Err(reason) => {
                    tracing::warn!("attention uses our own kernels, which are slower: {reason:#}");
                    self.is_absent = true;
                }
            }
        }
        self.plans.as_mut()
    }
}
