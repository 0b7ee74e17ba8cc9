//! The generation loop: which rows go into the next forward pass, and what becomes of them.
//!
//! Each pass advances every running sequence by one token and, in the rows left, reads prompts and
//! reads again what was preempted. Sequences are older or younger by when they started, and prompts
//! are younger than all of them: when blocks run out the youngest gives up its own and waits, so the
//! oldest always gets on. None of this can change a token.

use super::backend::{Backend, Host};
use super::blocks::BlockPool;
use super::config::{EngineConfig, Stats, max_prompts};
use super::sequence::{Prompt, Sequence};
use super::share::{InOrder, Queue};
use super::{FinishReason, Next, Observer, Request, SamplingParams};
use crate::base::error::{Interrupted, usage};
use crate::base::interrupt;
use crate::model::{BLOCK_TOKENS, Decoder, KvCache, Row, Weights};
use crate::ops::sample::Draw;
use anyhow::Result;
use std::collections::VecDeque;
use std::sync::Arc;

/// Generates with a trainer's weights, which must not change while it lives, or with its own.
pub struct Engine<'m> {
    backend: Box<dyn Backend + 'm>,
    pool: BlockPool,
    config: EngineConfig,
}

/// What is left to do for some requests.
struct Workload<'r> {
    queue: &'r dyn Queue,
    requests: &'r [Request],
    sampling: &'r SamplingParams,
    /// Requests taken and not begun, and how many of their samples were started before they were preempted.
    waiting: VecDeque<(usize, usize)>,
    /// Sequences without blocks, oldest first.
    preempted: VecDeque<Sequence>,
    /// Oldest first.
    prompts: Vec<Prompt>,
    /// Oldest first.
    running: Vec<Sequence>,
    stats: Stats,
}

/// The rows of a pass, and who gets the logits that they want, in order: first the running
/// sequences, then the prompts.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    running: Vec<usize>,
    prompts: Vec<usize>,
}

impl<'m> Engine<'m> {
    /// An engine that reads a trainer's parameters: lays them out for decoding.
    pub fn new(decoder: &'m Decoder, params: &'m [f32], config: EngineConfig) -> Self {
        Self::with_weights(decoder, decoder.pack(params), config)
    }

    /// An engine with weights that are laid out already, which it may share; allocates the cache for
    /// `config`.
    pub fn with_weights(
        decoder: &'m Decoder,
        weights: impl Into<Arc<Weights<'m>>>,
        config: EngineConfig,
    ) -> Self {
        Self::on(Host::new(decoder, weights.into(), config.cache_blocks), config)
    }

    /// An engine on a backend whose cache has the blocks of `config`.
    pub(crate) fn on(backend: impl Backend + 'm, config: EngineConfig) -> Self {
        Self { backend: Box::new(backend), pool: BlockPool::new(config.cache_blocks), config }
    }

    /// Blocks that sequences hold: 0 between workloads. Kept prompts do not count.
    pub fn blocks_in_use(&self) -> usize {
        self.pool.in_use()
    }

    /// Samples every request and tells `observer`.
    ///
    /// Errors with [`Interrupted`] when the user stops the run. Refuses what could never finish: an
    /// empty prompt, one that leaves no room within `max_length`, sizes of 0, a cache that cannot
    /// hold one sequence. A rollout also ends at `max_length`.
    pub fn generate(
        &mut self,
        requests: &[Request],
        sampling: &SamplingParams,
        observer: &mut impl Observer,
    ) -> Result<Stats> {
        self.work_off(&InOrder::new(requests), sampling, observer)
    }

    /// Samples requests of `queue` until it is empty; others may take some of them.
    pub fn work_off(
        &mut self,
        queue: &dyn Queue,
        sampling: &SamplingParams,
        observer: &mut (impl Observer + ?Sized),
    ) -> Result<Stats> {
        self.refuse_endless(queue.requests(), sampling)?;
        let mut work = Workload {
            queue,
            requests: queue.requests(),
            sampling,
            waiting: VecDeque::new(),
            preempted: VecDeque::new(),
            prompts: Vec::new(),
            running: Vec::new(),
            stats: Stats::default(),
        };
        loop {
            if interrupt::requested() {
                return Err(Interrupted.into());
            }
            self.admit(&mut work);
            if work.is_done() {
                break;
            }
            self.pass(&mut work)?;
            self.start_samples(&mut work)?;
            work.observe(observer, self.config.max_length);
        }
        let stats = &mut work.stats;
        stats.occupancy /= (stats.passes * self.config.max_sequences).max(1) as f64;
        Ok(work.stats)
    }

    fn refuse_endless(&self, requests: &[Request], sampling: &SamplingParams) -> Result<()> {
        let EngineConfig { max_sequences, max_length, prefill_tokens, cache_blocks } = self.config;
        self.backend.decoder().config().check_length(max_length)?;
        let sizes = [
            ("max_sequences", max_sequences),
            ("prefill_tokens", prefill_tokens),
            ("max_new_tokens", sampling.max_new_tokens),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(usage(format!("{name} is 0: generation needs at least 1")));
        }
        let least = EngineConfig::least_cache_tokens(max_length) / BLOCK_TOKENS;
        if cache_blocks < least {
            return Err(usage(format!(
                "the key-value cache has {cache_blocks} blocks, but one sequence of {max_length} tokens \
                 (max_length) needs {least}"
            )));
        }
        for (i, request) in requests.iter().enumerate() {
            let length = request.prompt.len();
            if length == 0 {
                return Err(usage(format!(
                    "prompt {} is empty: give it at least one token",
                    i + 1
                )));
            }
            if length >= max_length {
                return Err(usage(format!(
                    "prompt {} has {length} tokens: no room for a response within {max_length} \
                     (max_length)",
                    i + 1
                )));
            }
        }
        Ok(())
    }

    /// Lets in what there are places and blocks for: first what was preempted, then prompts.
    fn admit(&mut self, work: &mut Workload<'_>) {
        let mut free = self.config.cache_blocks - self.pool.in_use();
        let mut fits = |tokens: usize| {
            let needed = KvCache::blocks_for(tokens) + 1;
            let fits = needed <= free;
            free -= if fits { needed } else { 0 };
            fits
        };
        while let Some(sequence) = work.preempted.front()
            && work.running.len() < self.config.max_sequences
            && fits(sequence.len(&work.requests[sequence.request]))
        {
            work.running.extend(work.preempted.pop_front());
        }
        while work.preempted.is_empty()
            && work.prompts.len() < max_prompts(self.config.max_sequences)
        {
            if work.waiting.is_empty() && work.has_room(&self.config) {
                work.waiting.extend(work.queue.take().map(|request| (request, 0)));
            }
            let Some(&(request, num_started)) = work.waiting.front() else { break };
            if !fits(work.requests[request].prompt.len()) {
                break;
            }
            let known = self.pool.find_prefix(&work.requests[request].prompt);
            let prompt = Prompt::new(request, num_started, known);
            work.stats.shared_tokens += prompt.num_cached;
            work.prompts.push(prompt);
            work.waiting.pop_front();
        }
    }

    /// One forward pass over the next rows, and a token for each running sequence that is up to date.
    fn pass(&mut self, work: &mut Workload<'_>) -> Result<()> {
        let Rows { rows, running, prompts } = self.next_rows(work);
        if rows.is_empty() {
            return Ok(());
        }
        work.stats.passes += 1;
        work.stats.occupancy += work.running.len() as f64;
        let in_use = self.pool.in_use() as f64 / self.config.cache_blocks as f64;
        work.stats.peak_cache_use = work.stats.peak_cache_use.max(in_use);
        let of_running = work.running.iter().map(|sequence| sequence.table.numbers());
        let of_prompts = work.prompts.iter().map(|prompt| prompt.table.numbers());
        let tables: Vec<&[u32]> = of_running.chain(of_prompts).collect();
        self.backend.extend(&tables, &rows)?;
        for (place, &index) in prompts.iter().enumerate() {
            let prompt = &mut work.prompts[index];
            prompt.logits = self.backend.logits(running.len() + place)?;
            self.pool.keep_prefix(&work.requests[prompt.request].prompt, prompt.table.blocks());
        }
        let next = |&index: &usize| {
            let sequence = &work.running[index];
            sequence.draft.next(&work.requests[sequence.request].prompt)
        };
        let draws: Vec<Draw<'_>> = running.iter().map(next).collect();
        let drawn = self.backend.draw(&draws, &work.sampling.policy())?;
        for (index, drawn) in running.into_iter().zip(drawn) {
            work.running[index].draft.push(drawn, work.sampling);
        }
        Ok(())
    }

    /// The rows of the next pass, with blocks for all of them: one for each running sequence, then as
    /// many as the limit allows of those to be read, oldest first.
    fn next_rows(&mut self, work: &mut Workload<'_>) -> Rows {
        let mut next = Rows::default();
        let mut budget = self.config.prefill_tokens;
        let mut index = 0;
        while index < work.running.len() {
            let sequence = &work.running[index];
            let (start, len) =
                (sequence.num_cached, sequence.len(&work.requests[sequence.request]));
            let is_read_again = start + 1 < len;
            let end = if is_read_again { len.min(start + budget) } else { len };
            budget -= if is_read_again { end - start } else { 0 };
            while work.running.get(index).is_some_and(|s| s.table.capacity() < end) {
                match self.pool.take() {
                    Some(block) => work.running[index].table.push(block),
                    None => work.preempt_youngest(),
                }
            }
            // It was the youngest itself.
            let Some(sequence) = work.running.get_mut(index) else { break };
            sequence.num_cached = end;
            let request = &work.requests[sequence.request];
            work.stats.prompt_tokens += if is_read_again { end - start } else { 0 };
            next.rows.extend(sequence.rows(request, index, start..end));
            next.running.extend((end == len).then_some(index));
            index += 1;
        }
        let first_prompt = work.running.len();
        let mut index = 0;
        while index < work.prompts.len() {
            let tokens = &work.requests[work.prompts[index].request].prompt;
            let start = work.prompts[index].num_cached;
            let end = tokens.len().min(start + budget);
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
                token: tokens[position],
                sequence: (first_prompt + index) as u32,
                position: position as u32,
                wants_logits: position + 1 == tokens.len(),
                is_prompt: true,
            }));
            let is_read = start < end && end == tokens.len();
            next.prompts.extend(is_read.then_some(index));
            index += 1;
        }
        next
    }

    /// Starts samples of the prompts that are read while there are places and blocks.
    fn start_samples(&mut self, work: &mut Workload<'_>) -> Result<()> {
        let policy = work.sampling.policy();
        let mut index = 0;
        while index < work.prompts.len() && work.running.len() < self.config.max_sequences {
            let prompt = &mut work.prompts[index];
            let request = &work.requests[prompt.request];
            if prompt.logits.is_empty() {
                index += 1;
                continue;
            }
            let started = prompt.start(request, &mut self.pool, &mut *self.backend)?;
            if let Some(mut sequence) = started {
                let drawn = sequence.draft.next(&request.prompt).draw(&prompt.logits, &policy);
                sequence.draft.push(drawn, work.sampling);
                let is_finished = prompt.num_started == request.num_samples;
                work.running.push(sequence);
                if is_finished {
                    work.prompts.remove(index);
                }
            } else if work.running.is_empty() && index + 1 < work.prompts.len() {
                // Nothing that runs will ever give blocks back.
                work.preempt_youngest();
            } else {
                break;
            }
        }
        Ok(())
    }
}

impl Workload<'_> {
    /// Whether it is this engine's turn to take a prompt: the next pass has rows for it, and places are
    /// free for more samples than the prompts at hand will start. One is read ahead in any case.
    fn has_room(&self, config: &EngineConfig) -> bool {
        let to_start = |prompt: &Prompt| {
            self.requests[prompt.request].num_samples.saturating_sub(prompt.num_started)
        };
        let to_read =
            |prompt: &Prompt| self.requests[prompt.request].prompt.len() - prompt.num_cached;
        let num_spoken_for = self.running.len() + self.prompts.iter().map(to_start).sum::<usize>();
        let num_to_read = self.prompts.iter().map(to_read).sum::<usize>();
        self.prompts.is_empty()
            || num_spoken_for < config.max_sequences && num_to_read < config.prefill_tokens
    }

    fn is_done(&self) -> bool {
        self.waiting.is_empty()
            && self.preempted.is_empty()
            && self.prompts.is_empty()
            && self.running.is_empty()
    }

    /// Takes the blocks of the youngest, a prompt if there is one.
    fn preempt_youngest(&mut self) {
        self.stats.preemptions += 1;
        if let Some(prompt) = self.prompts.pop() {
            self.waiting.push_front((prompt.request, prompt.num_started));
        } else if let Some(mut sequence) = self.running.pop() {
            sequence.preempt();
            self.preempted.push_front(sequence);
        }
    }

    /// Shows new tokens to the observer and hands out what has ended.
    fn observe(&mut self, observer: &mut (impl Observer + ?Sized), max_length: usize) {
        let (requests, sampling, stats) = (self.requests, self.sampling, &mut self.stats);
        let mut ended = |sequence: &mut Sequence| {
            if !std::mem::take(&mut sequence.draft.has_new_token) {
                return false;
            }
            let rollout = &mut sequence.draft.rollout;
            match observer.token(sequence.request, sequence.sample, rollout) {
                Next::Continue => {}
                Next::Stop => rollout.finish_reason = FinishReason::Stop,
                Next::Cancel => rollout.finish_reason = FinishReason::Cancelled,
            }
            rollout.finish_reason != FinishReason::Length
                || rollout.tokens.len() >= sampling.max_new_tokens
                || sequence.len(&requests[sequence.request]) >= max_length
        };
        for sequence in self.running.extract_if(.., |sequence| ended(sequence)).collect::<Vec<_>>()
        {
            let rollout = sequence.draft.rollout;
            stats.generated_tokens += rollout.tokens.len();
            observer.finished(sequence.request, sequence.sample, rollout);
        }
    }
}
