//! The scorer computes log-probabilities of given tokens, several sequences in one cached pass.
//!
//! Its numbers equal those of [`crate::model::Decoder::score`] and of generation on the same tokens to the
//! bit, whatever else is scored beside them. The weights may have any stored number format.

use super::backend::check_finite;
use crate::base::memory;
use crate::base::progress::Progress;
use crate::model::{DecodeWorkspace, Decoder, KvCache, Row, Weights};
use crate::ops::logprob::statistics;
use anyhow::Result;
use rayon::prelude::*;
use std::ops::Range;

/// A pass reads at most this many tokens of a sequence.
const PIECE: usize = 96;
/// A pass computes at most this many logits.
const LOGITS: usize = 1 << 25;

/// Scores sequences with borrowed weights.
pub struct Scorer<'m> {
    decoder: &'m Decoder,
    weights: &'m Weights<'m>,
}

/// A sequence that is being read.
struct Active {
    sequence: usize,
    slot: usize,
    num_read: usize,
}

impl<'m> Scorer<'m> {
    pub fn new(decoder: &'m Decoder, weights: &'m Weights<'m>) -> Self {
        Self { decoder, weights }
    }

    /// Returns for each sequence the natural log-probabilities, under softmax(logits / temperature), of its
    /// tokens from the second on, each given those before it. `temperature` is above 0, and tokens are
    /// below the model's `vocab_size`. `progress` counts tokens.
    ///
    /// It refuses sequences that are longer than the model's positions or than the memory allows.
    pub fn score(
        &self,
        sequences: &[Vec<u32>],
        temperature: f32,
        progress: &Progress,
    ) -> Result<Vec<Vec<f32>>> {
        let config = self.decoder.config();
        let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
        config.check_length(longest)?;
        let num_slots = self.num_slots(sequences.len(), longest)?;
        let blocks = KvCache::blocks_for(longest).max(1);
        let mut cache = KvCache::new(config, num_slots * blocks);
        let all_blocks: Vec<u32> = (0..(num_slots * blocks) as u32).collect();
        let tables: Vec<&[u32]> = all_blocks.chunks(blocks).collect();
        let mut workspace = DecodeWorkspace::new();
        let mut free: Vec<usize> = (0..num_slots).rev().collect();
        let mut waiting = (0..sequences.len()).filter(|&i| sequences[i].len() > 1);
        let mut active: Vec<Active> = Vec::new();
        let mut scores: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
        let vocab = config.vocab_size;
        let piece = (LOGITS / vocab / num_slots).clamp(1, PIECE);
        loop {
            while let Some(slot) = free.pop() {
                let Some(sequence) = waiting.next() else { break };
                active.push(Active { sequence, slot, num_read: 0 });
            }
            if active.is_empty() {
                return Ok(scores);
            }
            let (mut rows, mut next) = (Vec::new(), Vec::new());
            for a in &active {
                let tokens = &sequences[a.sequence];
                for position in a.positions(tokens, piece) {
                    rows.push(Row {
                        token: tokens[position],
                        sequence: a.slot as u32,
                        position: position as u32,
                        wants_logits: true,
                        is_prompt: true,
                    });
                    next.push(tokens[position + 1]);
                }
            }
            let logits =
                self.decoder.extend(self.weights, &mut cache, &tables, &rows, &mut workspace);
            let logps: Vec<f32> = logits
                .par_chunks(vocab)
                .zip(&next)
                .map(|(row, &token)| statistics(row, temperature).logp(row[token as usize]))
                .collect();
            check_finite(logps.iter().copied())?;
            progress.inc(logps.len() as u64);
            let mut logps = logps.into_iter();
            active.retain_mut(|a| {
                let tokens = &sequences[a.sequence];
                let count = a.positions(tokens, piece).len();
                scores[a.sequence].extend(logps.by_ref().take(count));
                a.num_read += count;
                let is_unfinished = a.num_read + 1 < tokens.len();
                if !is_unfinished {
                    free.push(a.slot);
                }
                is_unfinished
            });
        }
    }

    /// Returns how many sequences are scored at a time: one for each thread, fewer where memory is short.
    fn num_slots(&self, num_sequences: usize, longest: usize) -> Result<usize> {
        let config = self.decoder.config();
        let bytes = |slots| KvCache::bytes_for(config, slots * KvCache::blocks_for(longest));
        memory::check(
            bytes(1),
            &format!("a sequence of {longest} tokens"),
            "score shorter sequences",
        )?;
        let mut slots = num_sequences.clamp(1, rayon::current_num_threads());
        let room = memory::available().map_or(u64::MAX, |available| available / 2);
        while slots > 1 && bytes(slots) > room {
            slots -= 1;
        }
        Ok(slots)
    }
}

impl Active {
    /// Returns the positions that the next pass reads. Each position predicts the token after it.
    fn positions(&self, tokens: &[u32], piece: usize) -> Range<usize> {
        self.num_read..(tokens.len() - 1).min(self.num_read + piece)
    }
}
