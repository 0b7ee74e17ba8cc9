//! Takes the place of `device.rs` in a build without CUDA: every function refuses, since there are no
//! GPUs.

use super::{Engine, EngineConfig, Observer, Queue, Sampler, Stats};
use crate::base::error::usage;
use crate::base::progress::Progress;
use crate::model::{Decoder, Precision};
use anyhow::Result;

/// A model on a GPU. It has no values in this build.
#[derive(Debug)]
pub enum DeviceModel {}

/// Refuses any number of GPUs.
pub fn check(_count: usize) -> Result<()> {
    Err(refusal())
}

/// Refuses to train on several GPUs.
pub fn check_collectives() -> Result<()> {
    Err(refusal())
}

/// Returns `None`, because there are no GPUs.
pub fn name(_ordinal: usize) -> Option<String> {
    None
}

/// Refuses any GPU.
pub fn open(_ordinal: usize, _decoder: &Decoder, _precision: Precision) -> Result<DeviceModel> {
    Err(refusal())
}

impl DeviceModel {
    /// Is never called, since the type has no values.
    pub fn upload(&mut self, _at: usize, _params: &[f32]) -> Result<()> {
        match *self {}
    }
}

/// Returns the error that says why this binary has no GPUs.
pub fn refusal() -> anyhow::Error {
    usage("this binary was built without GPUs: cargo build --release --features cuda")
}

impl<'m> Engine<'m> {
    /// Is never called, since the type has no values.
    pub fn on_gpu(model: &'m mut DeviceModel, _config: EngineConfig) -> Result<Self> {
        match *model {}
    }
}

impl Sampler for DeviceModel {
    fn sample(&mut self, _queue: &Queue<'_>, _observer: &mut dyn Observer) -> Result<Stats> {
        match *self {}
    }
}

/// Is never called, since the type has no values.
pub fn score(
    model: &mut DeviceModel,
    _sequences: &[Vec<u32>],
    _temperature: f32,
    _progress: &Progress,
) -> Result<Vec<Vec<f32>>> {
    match *model {}
}
