//! The generation loop: which rows go into the next forward pass, and what becomes of them.
//!
//! Each pass advances every running sequence by one token and, in the rows left, reads prompts.
//! A prompt is read into a slot of its own; its samples start from copies of that slot.

use super::{FinishReason, Request, Rollout, SamplingParams};
use crate::base::error::{Interrupted, usage};
use crate::base::{interrupt, rng};
use crate::model::{DecodeWorkspace, Decoder, KvCache, ModelConfig, Row, Weights};
use crate::ops::sample::{Sampling, sample};
use anyhow::Result;
use rayon::prelude::*;
use std::collections::VecDeque;

/// Sizes of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Sequences that generate at the same time.
    pub max_sequences: usize,
    /// Longest prompt plus response, in tokens.
    pub max_length: usize,
    /// Prompt tokens read in one pass beside the running sequences.
    pub prefill_tokens: usize,
}

impl EngineConfig {
    /// Bytes of the key-value cache for a model of this shape.
    pub fn cache_bytes(&self, model: &ModelConfig) -> u64 {
        KvCache::bytes_for(model, self.max_sequences + self.num_prefixes(), self.max_length)
    }

    /// Prompts that are read, or wait read, beside the running sequences.
    fn num_prefixes(&self) -> usize {
        (self.max_sequences / 8).max(2)
    }
}

/// What a workload took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Sampled tokens.
    pub generated_tokens: usize,
    /// Prompt tokens read; each prompt counts once.
    pub prompt_tokens: usize,
    /// Forward passes.
    pub passes: usize,
    /// Mean share of the `max_sequences` places in use, from 0 to 1.
    pub occupancy: f64,
}

/// Generates with a trainer's weights, which must not change while it lives, or with its own.
pub struct Engine<'m> {
    decoder: &'m Decoder,
    weights: Weights<'m>,
    cache: KvCache,
    workspace: DecodeWorkspace,
    config: EngineConfig,
    num_prefixes: usize,
}

/// A prompt being read, or read and waiting for places to start its samples.
struct Prefix {
    request: usize,
    slot: u32,
    num_read: usize,
    /// Logits after the last prompt token; empty until the prompt is read.
    logits: Vec<f32>,
    num_started: usize,
}

/// A sequence that has sampled at least one token.
struct Running {
    request: usize,
    sample: usize,
    key: u64,
    slot: u32,
    rollout: Rollout,
}

impl<'m> Engine<'m> {
    /// An engine that reads a trainer's parameters: lays them out for decoding.
    pub fn new(decoder: &'m Decoder, params: &'m [f32], config: EngineConfig) -> Self {
        Self::with_weights(decoder, decoder.pack(params), config)
    }

    /// An engine with weights that are laid out already; allocates the cache for `config`.
    pub fn with_weights(decoder: &'m Decoder, weights: Weights<'m>, config: EngineConfig) -> Self {
        let num_prefixes = config.num_prefixes();
        let num_slots = config.max_sequences + num_prefixes;
        Self {
            weights,
            cache: KvCache::new(decoder.config(), num_slots, config.max_length),
            workspace: DecodeWorkspace::new(),
            decoder,
            config,
            num_prefixes,
        }
    }

    /// Samples every request; `on_finish(request, sample, rollout)` is called as rollouts end, in
    /// an order that means nothing.
    ///
    /// Errors with [`Interrupted`] when the user stops the run. Refuses what could never finish: an
    /// empty prompt, one that leaves no room within `max_length`, and sizes of 0. A rollout also ends
    /// at `max_length`.
    pub fn generate(
        &mut self,
        requests: &[Request],
        sampling: &SamplingParams,
        mut on_finish: impl FnMut(usize, usize, Rollout),
    ) -> Result<Stats> {
        self.refuse_endless(requests, sampling)?;
        let max_sequences = self.config.max_sequences;
        let mut free_slots: Vec<u32> = (0..max_sequences as u32).rev().collect();
        let first_prefix_slot = max_sequences as u32;
        let mut free_prefix_slots: Vec<u32> =
            (first_prefix_slot..first_prefix_slot + self.num_prefixes as u32).rev().collect();
        let mut waiting: VecDeque<usize> =
            (0..requests.len()).filter(|&i| requests[i].num_samples > 0).collect();
        let mut prefixes: Vec<Prefix> = Vec::new();
        let mut running: Vec<Running> = Vec::new();
        let mut stats = Stats::default();

        while !(waiting.is_empty() && prefixes.is_empty() && running.is_empty()) {
            if interrupt::requested() {
                return Err(Interrupted.into());
            }
            while !waiting.is_empty() && !free_prefix_slots.is_empty() {
                let request = waiting.pop_front().expect("not empty");
                let slot = free_prefix_slots.pop().expect("not empty");
                let logits = Vec::new();
                prefixes.push(Prefix { request, slot, num_read: 0, logits, num_started: 0 });
            }
            let (rows, finished_prefixes) =
                self.next_rows(requests, &running, &mut prefixes, &mut stats);
            if !rows.is_empty() {
                stats.passes += 1;
                stats.occupancy += running.len() as f64 / max_sequences as f64;
                let logits =
                    self.decoder.extend(&self.weights, &mut self.cache, &rows, &mut self.workspace);
                let vocab = self.decoder.config().vocab_size;
                let (of_running, of_prefixes) = logits.split_at(running.len() * vocab);
                running
                    .par_iter_mut()
                    .zip(of_running.par_chunks(vocab))
                    .for_each(|(sequence, logits)| sequence.advance(logits, sampling));
                for (&prefix, logits) in finished_prefixes.iter().zip(of_prefixes.chunks(vocab)) {
                    prefixes[prefix].logits = logits.to_vec();
                }
            }
            self.start_samples(
                requests,
                sampling,
                &mut prefixes,
                &mut running,
                &mut free_slots,
                &mut free_prefix_slots,
            );
            let max_length = self.config.max_length;
            let mut i = 0;
            while i < running.len() {
                let total =
                    requests[running[i].request].prompt.len() + running[i].rollout.tokens.len();
                if running[i].has_ended(sampling) || total >= max_length {
                    let done = running.swap_remove(i);
                    free_slots.push(done.slot);
                    stats.generated_tokens += done.rollout.tokens.len();
                    on_finish(done.request, done.sample, done.rollout);
                } else {
                    i += 1;
                }
            }
        }
        stats.occupancy /= stats.passes.max(1) as f64;
        Ok(stats)
    }

    fn refuse_endless(&self, requests: &[Request], sampling: &SamplingParams) -> Result<()> {
        let EngineConfig { max_sequences, max_length, prefill_tokens } = self.config;
        self.decoder.config().check_length(max_length)?;
        let sizes = [
            ("max_sequences", max_sequences),
            ("prefill_tokens", prefill_tokens),
            ("max_new_tokens", sampling.max_new_tokens),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(usage(format!("{name} is 0: generation needs at least 1")));
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

    /// One row for each running sequence, then prompt rows up to the limit. Also returns the
    /// prefixes whose last prompt token is among them, in row order.
    fn next_rows(
        &self,
        requests: &[Request],
        running: &[Running],
        prefixes: &mut [Prefix],
        stats: &mut Stats,
    ) -> (Vec<Row>, Vec<usize>) {
        let mut rows: Vec<Row> = running.iter().map(|s| s.row(requests)).collect();
        let mut budget = self.config.prefill_tokens;
        let mut finished = Vec::new();
        for (i, prefix) in prefixes.iter_mut().enumerate() {
            let prompt = &requests[prefix.request].prompt;
            let take = (prompt.len() - prefix.num_read).min(budget);
            for position in prefix.num_read..prefix.num_read + take {
                rows.push(Row {
                    token: prompt[position],
                    slot: prefix.slot,
                    position: position as u32,
                    wants_logits: position + 1 == prompt.len(),
                });
            }
            if take > 0 && prefix.num_read + take == prompt.len() {
                finished.push(i);
            }
            prefix.num_read += take;
            stats.prompt_tokens += take;
            budget -= take;
        }
        (rows, finished)
    }

    /// Starts samples of the prompts that are read while there are places, oldest prompt first.
    fn start_samples(
        &mut self,
        requests: &[Request],
        sampling: &SamplingParams,
        prefixes: &mut Vec<Prefix>,
        running: &mut Vec<Running>,
        free_slots: &mut Vec<u32>,
        free_prefix_slots: &mut Vec<u32>,
    ) {
        let cache = &mut self.cache;
        prefixes.retain_mut(|prefix| {
            let request = &requests[prefix.request];
            while !prefix.logits.is_empty() && prefix.num_started < request.num_samples {
                let Some(slot) = free_slots.pop() else { return true };
                cache.copy_prefix(prefix.slot as usize, slot as usize, request.prompt.len());
                let mut sequence = Running {
                    request: prefix.request,
                    sample: prefix.num_started,
                    key: rng::key(request.key, &[prefix.num_started as u64]),
                    slot,
                    rollout: Rollout {
                        tokens: Vec::new(),
                        logprobs: Vec::new(),
                        finish_reason: FinishReason::Length,
                    },
                };
                sequence.advance(&prefix.logits, sampling);
                running.push(sequence);
                prefix.num_started += 1;
            }
            let is_waiting = prefix.num_started < request.num_samples;
            if !is_waiting {
                free_prefix_slots.push(prefix.slot);
            }
            is_waiting
        });
    }
}

impl Running {
    /// Draws the next token from `logits`.
    fn advance(&mut self, logits: &[f32], sampling: &SamplingParams) {
        let position = self.rollout.tokens.len() as u64;
        let uniform = rng::uniform(self.key, position);
        let distribution = Sampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
        };
        let (token, logprob) = sample(logits, sampling.vocab_size, distribution, uniform);
        self.rollout.tokens.push(token);
        self.rollout.logprobs.push(logprob);
        if sampling.stop_ids.contains(&token) {
            self.rollout.finish_reason = FinishReason::Stop;
        }
    }

    fn has_ended(&self, sampling: &SamplingParams) -> bool {
        self.rollout.finish_reason == FinishReason::Stop
            || self.rollout.tokens.len() >= sampling.max_new_tokens
    }

    /// The row that feeds the last sampled token.
    fn row(&self, requests: &[Request]) -> Row {
        let num_before = requests[self.request].prompt.len() + self.rollout.tokens.len() - 1;
        Row {
            token: *self.rollout.tokens.last().expect("a running sequence has a token"),
            slot: self.slot,
            position: num_before as u32,
            wants_logits: true,
        }
    }
}
