//! A backend computes what an engine asks for: passes of a decoder over a cache of blocks, and draws
//! from the logits of a pass.
//!
//! The engine decides which rows a pass has and which blocks each sequence holds. A backend only computes,
//! and the result of a row depends on its own sequence alone.

use crate::model::{DecodeWorkspace, Decoder, KvCache, Row, Weights};
use crate::ops::sample::{Draw, Drawn};
use anyhow::{Result, ensure};
use rayon::prelude::*;
use std::sync::Arc;

/// A backend runs one decoder on one key-value cache.
pub(crate) trait Backend {
    /// Returns the decoder that this backend runs.
    fn decoder(&self) -> &Decoder;

    /// Appends `rows` to the sequences whose blocks `tables` lists, as [`Decoder::extend`] does. Keeps the
    /// logits of the rows that want them, in the order of the rows, until the next call.
    fn extend(&mut self, tables: &[&[u32]], rows: &[Row]) -> Result<()>;

    /// Draws one token for each of `draws`: draw number `i` reads the kept logits number `i`.
    fn draw(&mut self, draws: &[Draw<'_>]) -> Result<Vec<Drawn>>;

    /// Returns a copy of the kept logits number `place`: `vocab_size` numbers.
    fn logits(&mut self, place: usize) -> Result<Vec<f32>>;

    /// Copies the keys and values of block `from` to block `to`.
    fn copy_block(&mut self, from: u32, to: u32) -> Result<()>;
}

/// Refuses log-probabilities that are NaN or infinite.
pub(crate) fn check_finite(logprobs: impl IntoIterator<Item = f32>) -> Result<()> {
    ensure!(
        logprobs.into_iter().all(f32::is_finite),
        "the model's numbers are not finite: its weights have diverged in training, or they are too large \
         for their format (fp16 ends at 65504; compute in bf16)"
    );
    Ok(())
}

/// The backend on the threads of this machine.
pub(crate) struct Host<'m> {
    decoder: &'m Decoder,
    weights: Arc<Weights<'m>>,
    cache: KvCache,
    workspace: DecodeWorkspace,
}

impl<'m> Host<'m> {
    /// Allocates a cache of `blocks` blocks.
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
        self.decoder.extend(&self.weights, &mut self.cache, tables, rows, &mut self.workspace);
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
