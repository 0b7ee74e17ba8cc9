//! A prompt that is read and a rollout that is sampled: what the cache holds of each, and the rows of
//! its next pass.

use super::backend::Backend;
use super::blocks::{Block, BlockPool};
use super::{FinishReason, Request, RequestId, Rollout, SamplingParams};
use crate::base::rng;
use crate::model::{BLOCK_TOKENS, Row};
use crate::ops::sample::{self, Draw, Drawn};
use anyhow::Result;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

/// The blocks of a sequence, in the order of positions.
#[derive(Default)]
pub(crate) struct BlockTable {
    blocks: Vec<Block>,
    numbers: Vec<u32>,
}

impl BlockTable {
    pub(crate) fn push(&mut self, block: Block) {
        self.numbers.push(block.number());
        self.blocks.push(block);
    }

    /// Returns the indices of the blocks, as the decoder reads them.
    pub(crate) fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Returns the number of positions for which there are blocks.
    pub(crate) fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }

    /// Returns a table that shares the full blocks of the first `len` positions. `rest`, where given,
    /// follows them and is for a copy of the positions that fill no block.
    fn fork(&self, len: usize, rest: Option<Block>) -> Self {
        let mut table = Self::default();
        self.blocks[..len / BLOCK_TOKENS].iter().cloned().for_each(|block| table.push(block));
        rest.into_iter().for_each(|block| table.push(block));
        table
    }
}

impl From<Vec<Block>> for BlockTable {
    fn from(blocks: Vec<Block>) -> Self {
        Self { numbers: blocks.iter().map(Block::number).collect(), blocks }
    }
}

/// A request that has not ended. Its prompt and its samples share it.
pub(crate) struct Submitted {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    /// The observer has heard of the prompt's log-probabilities.
    pub(crate) is_prompt_shown: Cell<bool>,
}

impl Submitted {
    /// How many of the most likely tokens are wanted in place of each of the prompt's, if their
    /// log-probabilities are wanted and the observer has not heard of them yet.
    pub(crate) fn prompt_logprobs(&self) -> Option<usize> {
        self.request.sampling.prompt_logprobs.filter(|_| !self.is_prompt_shown.get())
    }
}

/// A prompt that is being read, or that is read and waits for places to start its samples.
pub(crate) struct Prompt {
    pub(crate) of: Rc<Submitted>,
    pub(crate) table: BlockTable,
    /// So many of its tokens are in the cache.
    pub(crate) num_cached: usize,
    /// The logits after its last token; empty until the prompt is read.
    pub(crate) logits: Vec<f32>,
    /// The log-probabilities of its tokens from the second on, where they are wanted.
    pub(crate) scores: Vec<Drawn>,
    /// So many of its samples have started.
    pub(crate) num_started: usize,
}

impl Prompt {
    /// Creates a prompt of which `num_started` samples started before. Its first blocks are `known`: those
    /// of an earlier prompt that began alike.
    pub(crate) fn new(of: Rc<Submitted>, num_started: usize, known: Vec<Block>) -> Self {
        let table = BlockTable::from(known);
        let num_cached = table.capacity();
        Self { of, table, num_cached, logits: Vec::new(), scores: Vec::new(), num_started }
    }

    /// Takes the logits after the token at `position`.
    pub(crate) fn take_logits(&mut self, position: usize, logits: Vec<f32>) {
        match (self.tokens().get(position + 1), self.of.prompt_logprobs()) {
            (Some(&next), Some(num_top)) => {
                let vocab_size = self.of.request.sampling.vocab_size;
                self.scores.push(sample::score(&logits, next, vocab_size, num_top));
            }
            _ => self.logits = logits,
        }
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.of.request.prompt
    }

    /// Returns how many samples have yet to start.
    pub(crate) fn num_to_start(&self) -> usize {
        self.of.request.num_samples - self.num_started
    }

    /// Starts the next sample, with blocks of its own from the position at which samples differ. The last
    /// sample takes over the prompt's blocks. Returns `None` when it needs a block and none is free.
    pub(crate) fn start(
        &mut self,
        pool: &mut BlockPool,
        backend: &mut dyn Backend,
    ) -> Result<Option<Sequence>> {
        let len = self.tokens().len();
        let is_last = self.num_to_start() == 1;
        let table = if is_last {
            std::mem::take(&mut self.table)
        } else if len.is_multiple_of(BLOCK_TOKENS) {
            self.table.fork(len, None)
        } else {
            let Some(rest) = pool.take() else { return Ok(None) };
            backend.copy_block(self.table.numbers[len / BLOCK_TOKENS], rest.number())?;
            self.table.fork(len, Some(rest))
        };
        let sample = self.num_started;
        self.num_started += 1;
        Ok(Some(Sequence {
            key: rng::key(self.of.request.key, &[sample as u64]),
            of: Rc::clone(&self.of),
            sample,
            table,
            num_cached: len,
            rollout: Rollout::default(),
            has_new_token: false,
        }))
    }
}

/// A rollout that is being sampled.
pub(crate) struct Sequence {
    pub(crate) of: Rc<Submitted>,
    pub(crate) sample: usize,
    /// The key of the sample's randomness.
    key: u64,
    pub(crate) table: BlockTable,
    /// So many of its positions are in the cache: all but the last, unless it was preempted.
    pub(crate) num_cached: usize,
    pub(crate) rollout: Rollout,
    /// Whether the observer has yet to be told of the last token.
    pub(crate) has_new_token: bool,
}

impl Sequence {
    /// Returns how its next token is drawn.
    pub(crate) fn next(&self) -> Draw<'_> {
        let Request { prompt, sampling, .. } = &self.of.request;
        Draw {
            key: self.key,
            prompt,
            response: &self.rollout.tokens,
            policy: sampling.policy(),
            edits: sampling.edits(self.rollout.tokens.len()),
            num_top: sampling.top_logprobs,
        }
    }

    /// Appends a drawn token.
    pub(crate) fn push(&mut self, Drawn { token, logprob, top }: Drawn) {
        let SamplingParams { stop_ids, top_logprobs, .. } = &self.of.request.sampling;
        if stop_ids.contains(&token) {
            self.rollout.finish_reason = FinishReason::Stop;
        }
        if *top_logprobs > 0 {
            self.rollout.top_logprobs.push(top);
        }
        self.rollout.tokens.push(token);
        self.rollout.logprobs.push(logprob);
        self.has_new_token = true;
    }

    /// Gives back its blocks and keeps its tokens.
    pub(crate) fn preempt(&mut self) {
        self.table = BlockTable::default();
        self.num_cached = 0;
    }

    /// Counts the tokens of the prompt and the rollout.
    pub(crate) fn len(&self) -> usize {
        self.of.request.prompt.len() + self.rollout.tokens.len()
    }

    /// Returns the rows of `positions`, for sequence number `sequence` of a pass. The row of the last token
    /// of all wants logits.
    pub(crate) fn rows(
        &self,
        sequence: usize,
        positions: Range<usize>,
    ) -> impl Iterator<Item = Row> + '_ {
        let len = self.len();
        let prompt = &self.of.request.prompt;
        positions.map(move |position| Row {
            token: prompt
                .get(position)
                .copied()
                .unwrap_or_else(|| self.rollout.tokens[position - prompt.len()]),
            sequence: sequence as u32,
            position: position as u32,
            wants_logits: position + 1 == len,
            is_prompt: position < prompt.len(),
        })
    }
}
