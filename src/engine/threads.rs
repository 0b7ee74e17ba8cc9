//! A sampler on the threads of this process.

use super::{Engine, Observer, Queue, Sampler, Stats};
use crate::model::{Decoder, Weights};
use anyhow::Result;
use std::sync::Arc;

/// Samples on the threads of the current rayon pool.
#[derive(Clone)]
pub struct Threads<'m> {
    decoder: &'m Decoder,
    weights: Arc<Weights<'m>>,
}

impl<'m> Threads<'m> {
    /// Creates a sampler that reads `weights`, which others may share.
    pub fn new(decoder: &'m Decoder, weights: impl Into<Arc<Weights<'m>>>) -> Self {
        Self { decoder, weights: weights.into() }
    }
}

impl Sampler for Threads<'_> {
    fn sample(&mut self, queue: &Queue<'_>, observer: &mut dyn Observer) -> Result<Stats> {
        let weights = Arc::clone(&self.weights);
        Engine::with_weights(self.decoder, weights, queue.config().clone())
            .work_off(queue, observer)
    }
}
