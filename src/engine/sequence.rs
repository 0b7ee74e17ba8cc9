//! A prompt being read and a rollout being sampled: what is cached of each, and its next rows.

use super::backend::Backend;
use super::blocks::{Block, BlockPool};
use super::{FinishReason, Request, RequestId, Rollout, SamplingParams};
use crate::base::rng;
use crate::model::{BLOCK_TOKENS, Row};
use crate::ops::sample::{Draw, Drawn};
use anyhow::Result;
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

    /// The blocks as the decoder reads them.
    pub(crate) fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Positions that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }

    /// A table that shares the full blocks of the first `len` positions and has, where one is needed,
    /// `rest` for a copy of those that do not fill a block.
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

/// A request that is not finished, shared by its prompt and its samples.
pub(crate) struct Submitted {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
}

/// A prompt being read, or read and waiting for places to start its samples.
pub(crate) struct Prompt {
    pub(crate) of: Rc<Submitted>,
    pub(crate) table: BlockTable,
    /// Positions in the cache.
    pub(crate) num_cached: usize,
    /// Logits after the last token; empty until the prompt is read.
    pub(crate) logits: Vec<f32>,
    /// Samples that have left.
    pub(crate) num_started: usize,
}

impl Prompt {
    /// A prompt of which `num_started` samples were started before; begins with the blocks of a
    /// prompt that began alike.
    pub(crate) fn new(of: Rc<Submitted>, num_started: usize, known: Vec<Block>) -> Self {
        let table = BlockTable::from(known);
        let num_cached = table.capacity();
        Self { of, table, num_cached, logits: Vec::new(), num_started }
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.of.request.prompt
    }

    /// Samples that have yet to leave.
    pub(crate) fn num_to_start(&self) -> usize {
        self.of.request.num_samples - self.num_started
    }

    /// The next sample, in blocks of its own from where it will differ; `None` without a free block.
    /// The last sample takes the prompt's blocks over.
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

/// A rollout in the making, with what is cached of it.
pub(crate) struct Sequence {
    pub(crate) of: Rc<Submitted>,
    pub(crate) sample: usize,
    /// Key of the sample's randomness.
    key: u64,
    pub(crate) table: BlockTable,
    /// Positions in the cache; one less than there are tokens, unless it was preempted.
    pub(crate) num_cached: usize,
    pub(crate) rollout: Rollout,
    /// The last token has not been shown yet.
    pub(crate) has_new_token: bool,
}

impl Sequence {
    /// Its next token.
    pub(crate) fn next(&self) -> Draw<'_> {
        let Request { prompt, sampling, .. } = &self.of.request;
        Draw {
            key: self.key,
            prompt,
            response: &self.rollout.tokens,
            policy: sampling.policy(),
            num_top: sampling.top_logprobs,
        }
    }

    /// Takes what was drawn.
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

    /// Gives its blocks back; what it has sampled stays.
    pub(crate) fn preempt(&mut self) {
        self.table = BlockTable::default();
        self.num_cached = 0;
    }

    /// Tokens of the prompt and of the rollout.
    pub(crate) fn len(&self) -> usize {
        self.of.request.prompt.len() + self.rollout.tokens.len()
    }

    /// Rows for `positions`, the last of which wants logits if it is the last of all.
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
