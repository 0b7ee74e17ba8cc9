//! This file launches `kernels/logprob.cu`.

use super::{ByFloat, Float, blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Argument, Function, fatbin};
use crate::cuda::sizes;
use crate::cuda::stream::Stream;
use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

#[derive(Debug)]
pub struct LogProb {
    forward: ByFloat,
    backward: ByFloat,
}

/// The statistics of one row's distribution: those of `ops::logprob::Statistics` without the
/// temperature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Statistics {
    /// This is the row's largest logit, before it is divided by the temperature.
    pub max: f32,
    /// This is ln Σ exp((logit - max) / temperature).
    pub log_sum: f32,
    /// The entropy is in nats.
    pub entropy: f32,
    /// The mean goes over the vocabulary.
    pub mean_logp: f32,
}

/// The gradients of the loss by one target's scores, as in `ops::logprob::ScoreGradient`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ScoreGradient {
    pub logp: f32,
    pub entropy: f32,
    pub mean_logp: f32,
}

const _: () = assert!(
    size_of::<Statistics>() == sizes::STATISTICS
        && size_of::<ScoreGradient>() == sizes::SCORE_GRADIENT,
    "rows of scores are planned for"
);

/// The layout of logits, `[rows, stride]`: only the first `vocab` of each row count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub vocab: usize,
    /// Rows start this many elements apart, a multiple of eight.
    pub stride: usize,
    /// The logits are divided by it; it is above 0.
    pub temperature: f32,
}

impl LogProb {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names =
            ["logprob_half", "logprob_f32", "logprob_backward_half", "logprob_backward_f32"];
        let [narrow, wide, back_narrow, back_wide] =
            functions(device, fatbin!("logprob", device.half_format()), names)?;
        Ok(Self {
            forward: ByFloat { narrow, wide },
            backward: ByFloat { narrow: back_narrow, wide: back_wide },
        })
    }

    /// Computes the statistics of each row and the log-probability of its target.
    pub fn forward<T: Float>(
        &self,
        stream: &Stream,
        shape: Shape,
        logits: DeviceSlice<'_, T>,
        targets: DeviceSlice<'_, u32>,
        statistics: DeviceSliceMut<'_, Statistics>,
        logp: DeviceSliceMut<'_, f32>,
    ) -> Result<()> {
        let rows = shape.rows(logits.len());
        let lens = [targets.len(), statistics.len(), logp.len()];
        assert_eq!(lens, [rows; 3], "as many targets and scores as rows");
        let parts: [&dyn Argument; 4] = [&logits, &targets, &statistics, &logp];
        // SAFETY: the kernel's first parameters; targets are below the vocabulary.
        unsafe { shape.launch(self.forward.of::<T>(), rows, stream, &parts) }
    }

    /// Overwrites 16-bit logits with the gradients of the loss by them.
    pub fn backward_in_place(
        &self,
        stream: &Stream,
        shape: Shape,
        logits: DeviceSliceMut<'_, Half>,
        targets: DeviceSlice<'_, u32>,
        statistics: DeviceSlice<'_, Statistics>,
        gradients: DeviceSlice<'_, ScoreGradient>,
    ) -> Result<()> {
        let rows = shape.rows(logits.len());
        let lens = [targets.len(), statistics.len(), gradients.len()];
        assert_eq!(lens, [rows; 3], "as many targets and scores as rows");
        let parts: [&dyn Argument; 5] = [&logits, &targets, &statistics, &gradients, &logits];
        // SAFETY: the kernel's first parameters; gradients may be written over logits.
        unsafe { shape.launch(&self.backward.narrow, rows, stream, &parts) }
    }

    /// Writes the gradients of the loss by the logits to `d_logits`, in 16 bits.
    pub fn backward<T: Float>(
        &self,
        stream: &Stream,
        shape: Shape,
        logits: DeviceSlice<'_, T>,
        d_logits: DeviceSliceMut<'_, Half>,
        targets: DeviceSlice<'_, u32>,
        statistics: DeviceSlice<'_, Statistics>,
        gradients: DeviceSlice<'_, ScoreGradient>,
    ) -> Result<()> {
        let rows = shape.rows(logits.len());
        let lens = [targets.len(), statistics.len(), gradients.len()];
        assert_eq!(lens, [rows; 3], "as many targets and scores as rows");
        assert_eq!(logits.len(), d_logits.len(), "as many gradients as logits");
        let parts: [&dyn Argument; 5] = [&logits, &targets, &statistics, &gradients, &d_logits];
        // SAFETY: the kernel's first parameters.
        unsafe { shape.launch(self.backward.of::<T>(), rows, stream, &parts) }
    }
}

impl Shape {
    fn rows(&self, len: usize) -> usize {
        assert!(0 < self.vocab && self.vocab <= self.stride, "a row holds the vocabulary");
        rows_of(len, self.stride)
    }

    /// Queues a kernel with one block for each row. Its last parameters are the shape.
    ///
    /// # Safety
    /// `parts` must be the kernel's parameters before the shape, of `rows` rows each.
    unsafe fn launch(
        self,
        kernel: &Function,
        rows: usize,
        stream: &Stream,
        parts: &[&dyn Argument],
    ) -> Result<()> {
        let (vocab, stride, scale) = (int(self.vocab), int(self.stride), 1.0 / self.temperature);
        let shape: [&dyn Argument; 3] = [&vocab, &stride, &scale];
        let arguments = [parts, &shape[..]].concat();
        // SAFETY: the caller's promise, and the shape as every kernel of the file takes it.
        unsafe { kernel.launch(blocks(rows), super::sample::ROW_THREADS, 0, stream, &arguments) }
    }
}
