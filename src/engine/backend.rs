//! What an engine computes with: the passes of a decoder over a cache of blocks, and the draws from
//! their logits.
//!
//! Contract: which rows are in a pass, and which blocks they have, is the engine's business; a backend
//! only computes, and a row's result depends on its own sequence. Left out: who holds which block.

use crate::model::{DecodeWorkspace, Decoder, KvCache, Row, Weights};
use crate::ops::sample::{Draw, Drawn};
use anyhow::{Result, ensure};
use rayon::prelude::*;
use std::sync::Arc;

/// A decoder at work on a cache.
pub(crate) trait Backend {
    /// Whose passes these are.
    fn decoder(&self) -> &Decoder;

    /// Adds `rows` to the sequences whose blocks `tables` hold, as [`Decoder::extend`], and keeps the
    /// logits of the rows that want them, in order, until the next time.
    fn extend(&mut self, tables: &[&[u32]], rows: &[Row]) -> Result<()>;

    /// The token of each of `draws`, from the first logits that were kept, each by its own policy.
    fn draw(&mut self, draws: &[Draw<'_>]) -> Result<Vec<Drawn>>;

    /// The logits that were kept at `place`.
    fn logits(&mut self, place: usize) -> Result<Vec<f32>>;

    /// Copies one block of the cache to another.
    fn copy_block(&mut self, from: u32, to: u32) -> Result<()>;
}

/// Refuses log-probabilities that no distribution has.
pub(crate) fn check_finite(logprobs: impl IntoIterator<Item = f32>) -> Result<()> {
    ensure!(
        logprobs.into_iter().all(f32::is_finite),
        "the model's numbers are not finite: its weights have diverged in training, or they are too large \
         for their format (fp16 ends at 65504; compute in bf16)"
    );
    Ok(())
}

/// The threads of this machine.
pub(crate) struct Host<'m> {
    decoder: &'m Decoder,
    weights: Arc<Weights<'m>>,
    cache: KvCache,
    workspace: DecodeWorkspace,
}

impl<'m> Host<'m> {
    /// A decoder with a cache of so many blocks.
    pub(crate) fn new(decoder: &'m Decoder, weights: Arc<Weights<'m>>, blocks: usize) -> Self {
        let cache = KvCache::new(decoder.config(), blocks);
        Self { decoder, weights, cache, workspace: DecodeWorkspace::new() }
    }

    fn vocab(&self) -> usize {
        self.decoder.config().vocab_size
    }
}

impl Backend for Host<'_> {
    fn decoder(&self) -> &Decoder {
        self.decoder
    }

    fn extend(&mut self, tables: &[&[u32]], rows: &[Row]) -> Result<()> {
        let cache = (&mut self.cache, tables);
        self.decoder.extend(&self.weights, cache, rows, &mut self.workspace);
        Ok(())
    }

    fn draw(&mut self, draws: &[Draw<'_>]) -> Result<Vec<Drawn>> {
        let rows = self.workspace.logits().par_chunks(self.vocab());
        Ok(draws.par_iter().zip(rows).map(|(draw, logits)| draw.draw(logits)).collect())
    }

    fn logits(&mut self, place: usize) -> Result<Vec<f32>> {
        let vocab = self.vocab();
        Ok(self.workspace.logits()[place * vocab..(place + 1) * vocab].to_vec())
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        self.cache.copy_block(from, to);
        Ok(())
    }
}
