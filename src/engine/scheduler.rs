//! The engine accepts and cancels requests at any time and makes one forward pass a step.
//!
//! A step advances every running sequence by one token. The rows that remain in the pass read prompts, and
//! read again what was preempted. When blocks run out, the youngest gives up its blocks and waits, so the
//! oldest always advances; a sequence is older if it started earlier, and prompts are younger than all
//! sequences. None of this changes a token.

use super::backend::{Backend, Host, check_finite};
use super::blocks::BlockPool;
use super::config::{EngineConfig, Stats, max_prompts};
use super::queue::{Numbered, Queue};
use super::sequence::{Prompt, Sequence, Submitted};
use super::{FinishReason, Next, Observer, Request, RequestId};
use crate::base::error::Interrupted;
use crate::base::interrupt;
use crate::model::{Decoder, KvCache, Row, Weights};
use crate::ops::sample::{Draw, Drawn};
use anyhow::Result;
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// An engine generates with its own weights, or with those of a model in training, which do not change
/// while the engine lives.
pub struct Engine<'m> {
    backend: Box<dyn Backend + 'm>,
    pool: BlockPool,
    config: EngineConfig,
    num_submitted: usize,
    work: Work,
}

/// The samples that have not ended, and the statistics so far.
#[derive(Default)]
struct Work {
    waiting: VecDeque<Waiting>,
    /// Sequences without blocks, oldest first.
    preempted: VecDeque<Sequence>,
    /// Prompts that are being read, oldest first.
    prompts: Vec<Prompt>,
    /// Sequences that generate, oldest first.
    running: Vec<Sequence>,
    /// Log-probabilities of prompts, to be shown.
    scored: Vec<(RequestId, Vec<Drawn>)>,
    stats: Stats,
}

/// A request whose prompt is not being read.
struct Waiting {
    of: Rc<Submitted>,
    /// So many of its samples started before the prompt had to give up its blocks.
    num_started: usize,
}

/// The rows of a pass, and the indices of those that get its logits, in order: first running sequences,
/// then prompts.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    running: Vec<usize>,
    /// With the position of the row.
    prompts: Vec<(usize, usize)>,
}

impl<'m> Engine<'m> {
    /// Creates an engine that reads the parameters of a model in training. It lays them out for decoding,
    /// which may copy them.
    pub fn new(decoder: &'m Decoder, params: &'m [f32], config: EngineConfig) -> Self {
        Self::with_weights(decoder, decoder.pack(params), config)
    }

    /// Creates an engine with weights that are laid out for decoding and that others may share. It
    /// allocates the cache.
    pub fn with_weights(
        decoder: &'m Decoder,
        weights: impl Into<Arc<Weights<'m>>>,
        config: EngineConfig,
    ) -> Self {
        Self::on(Host::new(decoder, weights.into(), config.cache_blocks), config)
    }

    /// Creates an engine on a backend whose cache has `config.cache_blocks` blocks.
    pub(crate) fn on(backend: impl Backend + 'm, config: EngineConfig) -> Self {
        let pool = BlockPool::new(config.cache_blocks);
        let work = Work::default();
        Self { backend: Box::new(backend), pool, config, num_submitted: 0, work }
    }

    /// Counts the blocks that sequences hold: 0 when all requests have ended. Blocks kept for later prompts
    /// do not count.
    pub fn blocks_in_use(&self) -> usize {
        self.pool.in_use()
    }

    /// Returns the share of the cache that sequences hold, from 0 to 1.
    pub fn cache_use(&self) -> f64 {
        self.pool.in_use() as f64 / self.config.cache_blocks as f64
    }

    /// Accepts a request. Its samples begin as soon as there are places and blocks.
    ///
    /// It refuses what could never finish: an empty prompt, a prompt that leaves no room within
    /// `max_length`, no tokens to draw, ids beyond the vocabulary, and engines whose sizes are 0 or whose
    /// cache cannot hold one
    /// sequence.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        self.check(&request)?;
        let id = RequestId(self.num_submitted);
        self.num_submitted += 1;
        if request.num_samples > 0 {
            let of = Rc::new(Submitted { id, request, is_prompt_shown: Cell::new(false) });
            self.work.waiting.push_back(Waiting { of, num_started: 0 });
        }
        Ok(id)
    }

    fn check(&self, request: &Request) -> Result<()> {
        let model = self.backend.decoder().config();
        self.config.check(model)?;
        self.config.check_request(request, model.vocab_size)
    }

    /// Gives up those samples of a request that have not ended, and frees their blocks. An observer is told
    /// nothing more of them.
    pub fn cancel(&mut self, id: RequestId) {
        let Work { waiting, preempted, prompts, running, .. } = &mut self.work;
        waiting.retain(|waiting| waiting.of.id != id);
        preempted.retain(|sequence| sequence.of.id != id);
        prompts.retain(|prompt| prompt.of.id != id);
        running.retain(|sequence| sequence.of.id != id);
    }

    /// Returns whether every request has ended.
    pub fn is_idle(&self) -> bool {
        let Work { waiting, preempted, prompts, running, .. } = &self.work;
        waiting.is_empty() && preempted.is_empty() && prompts.is_empty() && running.is_empty()
    }

    /// Returns whether a request submitted now would begin soon: the next pass has rows left for its
    /// prompt, and more places are free than the prompts at hand will fill. When no prompt is at hand, the
    /// answer is yes, unless preempted sequences wait.
    pub fn has_room(&self) -> bool {
        let Work { waiting, preempted, prompts, running, .. } = &self.work;
        let requests = waiting.iter().map(|waiting| &waiting.of.request);
        let needed: usize =
            requests.clone().map(|request| KvCache::blocks_for(request.prompt.len()) + 1).sum();
        if !preempted.is_empty()
            || prompts.len() + waiting.len() >= max_prompts(self.config.max_sequences)
            || !waiting.is_empty() && needed > self.config.cache_blocks - self.pool.in_use()
        {
            return false;
        }
        let to_start = prompts.iter().map(Prompt::num_to_start).sum::<usize>()
            + requests.clone().map(|request| request.num_samples).sum::<usize>();
        let to_read =
            prompts.iter().map(|prompt| prompt.tokens().len() - prompt.num_cached).sum::<usize>()
                + requests.map(|request| request.prompt.len()).sum::<usize>();
        prompts.is_empty() && waiting.is_empty()
            || running.len() + to_start < self.config.max_sequences
                && to_read < self.config.prefill_tokens
    }

    /// Makes one forward pass and tells `observer` of its tokens. Does nothing when all requests have
    /// ended.
    ///
    /// It fails with [`Interrupted`] when the user stops the run.
    pub fn step(&mut self, observer: &mut (impl Observer + ?Sized)) -> Result<()> {
        if interrupt::requested() {
            return Err(Interrupted.into());
        }
        self.admit();
        self.pass()?;
        self.start_samples()?;
        self.work.observe(observer, self.config.max_length);
        Ok(())
    }

    /// Samples every request. `observer` knows requests by their indices in `requests`. A rollout also ends
    /// when it and its prompt have `max_length` tokens.
    ///
    /// All requests are checked as in [`Engine::submit`] before any begins. If a step fails, all requests
    /// of the engine are given up.
    pub fn generate(
        &mut self,
        requests: &[Request],
        observer: &mut (impl Observer + ?Sized),
    ) -> Result<Stats> {
        self.work_off(&Queue::new(requests, self.config.clone()), observer)
    }

    /// Samples requests of `queue` until it is empty; others may take some of them.
    pub(crate) fn work_off(
        &mut self,
        queue: &Queue<'_>,
        observer: &mut (impl Observer + ?Sized),
    ) -> Result<Stats> {
        queue.check(|request| self.check(request))?;
        let mut observer = Numbered::new(observer);
        loop {
            while self.has_room()
                && let Some((number, request)) = queue.take()
            {
                observer.name(self.submit(request.clone())?, number);
            }
            if self.is_idle() {
                return Ok(self.take_stats());
            }
            if let Err(error) = self.step(&mut observer) {
                self.work = Work::default();
                return Err(error);
            }
        }
    }

    /// Returns the statistics since the last call.
    pub fn take_stats(&mut self) -> Stats {
        let mut stats = std::mem::take(&mut self.work.stats);
        stats.occupancy /= (stats.passes * self.config.max_sequences).max(1) as f64;
        stats
    }

    /// Admits what there are places and blocks for: first preempted sequences, then prompts.
    fn admit(&mut self) {
        let work = &mut self.work;
        let mut free = self.config.cache_blocks - self.pool.in_use();
        let mut fits = |tokens: usize| {
            let needed = KvCache::blocks_for(tokens) + 1;
            let fits = needed <= free;
            free -= if fits { needed } else { 0 };
            fits
        };
        while let Some(sequence) = work.preempted.front()
            && work.running.len() < self.config.max_sequences
            && fits(sequence.len())
        {
            work.running.extend(work.preempted.pop_front());
        }
        while work.preempted.is_empty()
            && work.prompts.len() < max_prompts(self.config.max_sequences)
            && let Some(Waiting { of, num_started }) = work.waiting.front()
            && fits(of.request.prompt.len())
        {
            // What is known has no logits any more.
            let is_scored = of.prompt_logprobs().is_some();
            let known =
                if is_scored { Vec::new() } else { self.pool.find_prefix(&of.request.prompt) };
            let prompt = Prompt::new(Rc::clone(of), *num_started, known);
            work.stats.shared_tokens += prompt.num_cached;
            work.prompts.push(prompt);
            work.waiting.pop_front();
        }
    }

    /// Makes one forward pass over the next rows, and draws a token for each running sequence that has been
    /// read to its end.
    fn pass(&mut self) -> Result<()> {
        let Rows { rows, running, prompts } = self.next_rows();
        if rows.is_empty() {
            return Ok(());
        }
        let work = &mut self.work;
        work.stats.passes += 1;
        work.stats.occupancy += work.running.len() as f64;
        let in_use = self.pool.in_use() as f64 / self.config.cache_blocks as f64;
        work.stats.peak_cache_use = work.stats.peak_cache_use.max(in_use);
        let of_running = work.running.iter().map(|sequence| sequence.table.numbers());
        let of_prompts = work.prompts.iter().map(|prompt| prompt.table.numbers());
        let tables: Vec<&[u32]> = of_running.chain(of_prompts).collect();
        self.backend.extend(&tables, &rows)?;
        for (place, &(index, position)) in prompts.iter().enumerate() {
            let prompt = &mut work.prompts[index];
            prompt.take_logits(position, self.backend.logits(running.len() + place)?);
            if prompt.logits.is_empty() {
                continue;
            }
            self.pool.keep_prefix(prompt.tokens(), prompt.table.blocks());
            if prompt.of.prompt_logprobs().is_some() {
                prompt.of.is_prompt_shown.set(true);
                let scores = std::mem::take(&mut prompt.scores);
                check_finite(scores.iter().map(|score| score.logprob))?;
                work.scored.push((prompt.of.id, scores));
            }
        }
        let draws: Vec<Draw<'_>> = running.iter().map(|&i| work.running[i].next()).collect();
        let drawn = self.backend.draw(&draws)?;
        check_finite(drawn.iter().map(|drawn| drawn.logprob))?;
        work.stats.generated_tokens += drawn.len();
        for (index, drawn) in running.into_iter().zip(drawn) {
            work.running[index].push(drawn);
        }
        Ok(())
    }

    /// Returns the rows of the next pass and takes blocks for all of them: one row for each running
    /// sequence, then as many as the limit allows of what has to be read, oldest first.
    fn next_rows(&mut self) -> Rows {
        let work = &mut self.work;
        let mut next = Rows::default();
        let mut budget = self.config.prefill_tokens;
        let mut index = 0;
        while index < work.running.len() {
            let sequence = &work.running[index];
            let (start, len) = (sequence.num_cached, sequence.len());
            let is_read_again = start + 1 < len;
            let end = if is_read_again { len.min(start + budget) } else { len };
            budget -= if is_read_again { end - start } else { 0 };
            while work.running.get(index).is_some_and(|s| s.table.capacity() < end) {
                match self.pool.take() {
                    Some(block) => work.running[index].table.push(block),
                    None => work.preempt_youngest(),
                }
            }
            // The sequence was the youngest itself, and is preempted.
            let Some(sequence) = work.running.get_mut(index) else { break };
            sequence.num_cached = end;
            work.stats.prompt_tokens += if is_read_again { end - start } else { 0 };
            next.rows.extend(sequence.rows(index, start..end));
            next.running.extend((end == len).then_some(index));
            index += 1;
        }
        let first_prompt = work.running.len();
        // Beside those of running sequences and one for each prompt.
        let mut logits = self.config.max_logits() - next.running.len() - work.prompts.len();
        let mut index = 0;
        while index < work.prompts.len() {
            let (start, len) = (work.prompts[index].num_cached, work.prompts[index].tokens().len());
            let is_scored = work.prompts[index].of.prompt_logprobs().is_some();
            let most = if is_scored { budget.min(logits + 1) } else { budget };
            let end = len.min(start + most);
            while work.prompts.get(index).is_some_and(|prompt| prompt.table.capacity() < end) {
                match self.pool.take() {
                    Some(block) => work.prompts[index].table.push(block),
                    None => work.preempt_youngest(),
                }
            }
            let Some(prompt) = work.prompts.get_mut(index) else { break };
            budget -= end - start;
            prompt.num_cached = end;
            work.stats.prompt_tokens += end - start;
            next.rows.extend((start..end).map(|position| Row {
                token: prompt.tokens()[position],
                sequence: (first_prompt + index) as u32,
                position: position as u32,
                wants_logits: is_scored || position + 1 == len,
                is_prompt: true,
            }));
            logits -= if is_scored { (end - start).saturating_sub(1) } else { 0 };
            let wants = (start..end).filter(|position| is_scored || position + 1 == len);
            next.prompts.extend(wants.map(|position| (index, position)));
            index += 1;
        }
        next
    }

    /// Starts samples of the prompts that are read, while there are places and blocks.
    fn start_samples(&mut self) -> Result<()> {
        let work = &mut self.work;
        let mut index = 0;
        while index < work.prompts.len() && work.running.len() < self.config.max_sequences {
            let prompt = &mut work.prompts[index];
            if prompt.logits.is_empty() {
                index += 1;
                continue;
            }
            if let Some(mut sequence) = prompt.start(&mut self.pool, &mut *self.backend)? {
                let drawn = sequence.next().draw(&prompt.logits);
                check_finite([drawn.logprob])?;
                sequence.push(drawn);
                work.stats.generated_tokens += 1;
                let is_finished = prompt.num_to_start() == 0;
                work.running.push(sequence);
                if is_finished {
                    work.prompts.remove(index);
                }
            } else if work.running.is_empty() && index + 1 < work.prompts.len() {
                // No running sequence will ever free a block.
                work.preempt_youngest();
            } else {
                break;
            }
        }
        Ok(())
    }
}

impl Work {
    /// Takes the blocks of the youngest: of a prompt, if there is one.
    fn preempt_youngest(&mut self) {
        self.stats.preemptions += 1;
        if let Some(Prompt { of, num_started, .. }) = self.prompts.pop() {
            self.waiting.push_front(Waiting { of, num_started });
        } else if let Some(mut sequence) = self.running.pop() {
            sequence.preempt();
            self.preempted.push_front(sequence);
        }
    }

    /// Tells the observer of new tokens, and of the rollouts that ended.
    fn observe(&mut self, observer: &mut (impl Observer + ?Sized), max_length: usize) {
        for (id, scores) in self.scored.drain(..) {
            observer.prompt(id, scores);
        }
        let mut has_ended = |sequence: &mut Sequence| {
            if !std::mem::take(&mut sequence.has_new_token) {
                return false;
            }
            let (id, len) = (sequence.of.id, sequence.len());
            let rollout = &mut sequence.rollout;
            match observer.token(id, sequence.sample, rollout) {
                Next::Continue => {}
                Next::Stop => rollout.finish_reason = FinishReason::Stop,
                Next::Cancel => rollout.finish_reason = FinishReason::Cancelled,
            }
            rollout.finish_reason != FinishReason::Length
                || rollout.tokens.len() >= sequence.of.request.sampling.max_new_tokens
                || len >= max_length
        };
        let ended: Vec<Sequence> = self.running.extract_if(.., |s| has_ended(s)).collect();
        for Sequence { of, sample, rollout, .. } in ended {
            observer.finished(of.id, sample, rollout);
        }
    }
}
