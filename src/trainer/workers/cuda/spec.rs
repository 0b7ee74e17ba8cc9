//! What every rank of a run on GPUs needs when it starts, on any node.

use crate::model::{Decoder, Layout, ModelConfig, Recompute};
use crate::ranks::Shards;
use crate::trainer::device::Gpus;
use crate::trainer::workers::GPU_BUCKET;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::ops::Range;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The model's `config.json`.
    pub(crate) model: String,
    /// The number of ranks on all nodes.
    pub(crate) size: usize,
    pub(crate) gpus: Gpus,
    pub(crate) recompute: Recompute,
    /// The elements to which weight decay applies.
    pub(crate) decayed: Vec<Range<usize>>,
}

impl Spec {
    pub(crate) fn decoder(&self) -> Result<Decoder> {
        Ok(Decoder::new(ModelConfig::from_json(&self.model)?))
    }

    /// Returns how flat buffers of `layout` are divided.
    pub(crate) fn shards(&self, layout: &Layout) -> Shards {
        Shards::new(layout.len, self.size, GPU_BUCKET)
    }
}
