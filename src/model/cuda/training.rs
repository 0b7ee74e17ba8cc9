//! The training graph on a GPU: scores of a packed batch, and their gradients by every parameter.

use super::DeviceModel;
use crate::cuda::{DeviceSliceMut, Stream};
use crate::model::{BatchSize, Decoder, Objective, Packed, Recompute, Target, TokenScores};
use anyhow::{Result, bail};
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

/// Hears during a backward that the gradients in a range of the flat buffer are final once the stream
/// gets to where it is now. Ranges are neighbours and come from the end of the buffer to its start
/// (head, norm, last layer, ..., first layer, embedding). Gets the whole buffer, of which it may use
/// what is final, also on another stream that it lets wait for an event recorded on this one.
pub type Finished<'a> =
    dyn FnMut(Range<usize>, DeviceSliceMut<'_, bf16>, &Stream) -> Result<()> + 'a;

/// Bytes of a phase of training by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainingMemory {
    /// What the forward keeps for the backward.
    pub activations: usize,
    /// Gradients of activations.
    pub backward: usize,
    /// One chunk of the head: its logits above all.
    pub head: usize,
    /// Tokens, positions and the like, and what operations work in.
    pub scratch: usize,
}

impl TrainingMemory {
    /// What [`DeviceModel::training`] takes of the arena.
    pub fn new(_decoder: &Decoder, _size: BatchSize, _recompute: Recompute) -> Self {
        Self::default()
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.activations + self.backward + self.head + self.scratch
    }
}

/// A phase of scoring and training: the buffers of both, on a model's GPU.
pub struct Training<'a> {
    model: PhantomData<&'a mut DeviceModel>,
}

impl<'a> Training<'a> {
    pub(super) fn new(_model: &'a mut DeviceModel, _: BatchSize, _: Recompute) -> Result<Self> {
        bail!("not built yet");
    }

    /// Scores of each target.
    pub fn score(
        &mut self,
        _batch: &Packed,
        _targets: &[Target],
        _temperature: f32,
    ) -> Result<Vec<TokenScores>> {
        bail!("not built yet");
    }

    /// Forward, then for each chunk of targets the objective's gradients of the loss by their scores,
    /// then backward: overwrites `grads` (flat, in the layout) with the gradient of every parameter,
    /// unnormalised. Returns when all is queued; errors of kernels show at the next synchronisation.
    pub fn forward_backward(
        &mut self,
        _batch: &Packed,
        _targets: &[Target],
        _temperature: f32,
        _objective: &mut Objective<'_>,
        _grads: DeviceSliceMut<'_, bf16>,
        _finished: &mut Finished<'_>,
    ) -> Result<()> {
        bail!("not built yet");
    }
}
