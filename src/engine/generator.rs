//! A generator is a model that answers requests: its decoder, its tokenizer, and the ranks that sample
//! with it.
//!
//! Any number of ranks of one kind gives the same responses. GPUs compute in 16 bits, so their responses
//! differ from those of threads. What the model is asked is decided in `rollout`.

use super::{EngineConfig, Observer, Queue, Request, Sampler, Stats, Team, Threads};
use crate::base::error::usage;
use crate::base::{human, memory};
use crate::checkpoint::{LanguageModel, stop_ids, warn_of_run_on};
use crate::model::{BLOCK_TOKENS, Decoder, KvCache, ModelConfig};
use crate::tokenizer::Tokenizer;
use anyhow::Result;

/// A model that answers requests.
pub struct Generator<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    ranks: Team<'a>,
    /// So many caches lie in the memory of this machine; it is 0 where GPUs hold them.
    num_host_caches: usize,
}

impl<'a> Generator<'a> {
    /// Creates a generator that reads the parameters of a model in training, with `ranks` ranks of threads,
    /// at least 1.
    pub fn of_trained(model: &'a LanguageModel, ranks: usize) -> Self {
        let LanguageModel { decoder, params, tokenizer } = model;
        let threads = Threads::new(decoder, decoder.pack(params));
        Self::on_threads(decoder, tokenizer, threads, ranks)
    }

    /// Creates a generator with `ranks` ranks of threads, at least 1.
    pub(crate) fn on_threads(
        decoder: &'a Decoder,
        tokenizer: &'a Tokenizer,
        threads: Threads<'a>,
        ranks: usize,
    ) -> Self {
        let member = |_| Box::new(threads.clone()) as Box<dyn Sampler>;
        let team = Team::new((0..ranks).map(member).collect());
        Self { decoder, tokenizer, ranks: team, num_host_caches: ranks }
    }

    /// Creates a generator with `gpus`, at least one, each of which holds the model's parameters.
    pub fn on_gpus(
        decoder: &'a Decoder,
        tokenizer: &'a Tokenizer,
        gpus: Vec<Box<dyn Sampler + 'a>>,
    ) -> Self {
        Self { decoder, tokenizer, ranks: Team::new(gpus), num_host_caches: 0 }
    }

    pub(crate) fn config(&self) -> &'a ModelConfig {
        self.decoder.config()
    }

    pub(crate) fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// Returns the ids of the tokens that end a response.
    pub(crate) fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.config(), self.tokenizer)
    }

    /// Warns where responses would run on after their turn: the token that ends a turn of the chat template is
    /// neither a stop id of the model nor one of `stop_ids`.
    pub(crate) fn warn_of_run_on(&self, stop_ids: &[u32]) {
        warn_of_run_on(self.config(), self.tokenizer, stop_ids);
    }

    /// Returns whether GPUs compute.
    pub(crate) fn is_on_gpus(&self) -> bool {
        self.num_host_caches == 0
    }

    /// Shrinks each rank's cache to its share of half of this machine's free memory. Refuses a machine on
    /// which that share holds no sequence of `max_length` tokens. On GPUs it returns `config` unchanged,
    /// since an engine there takes what memory is left when it starts.
    pub(crate) fn fit(&self, config: EngineConfig) -> Result<EngineConfig> {
        let Some(free) = memory::available().filter(|_| !self.is_on_gpus()) else {
            return Ok(config);
        };
        let of_rank = free / 2 / self.num_host_caches as u64;
        let block_bytes = KvCache::bytes_for(self.config(), 1);
        let max_length = config.max_length;
        let least_tokens = EngineConfig::least_cache_tokens(max_length);
        let most_tokens = (of_rank / block_bytes) as usize * BLOCK_TOKENS;
        if most_tokens < least_tokens {
            return Err(usage(format!(
                "a sequence of {max_length} tokens needs {} of key-value cache, but half of the free \
                 memory is {}{}: lower max_new_tokens",
                human::bytes((least_tokens / BLOCK_TOKENS) as u64 * block_bytes),
                human::bytes(of_rank),
                if self.num_host_caches > 1 { " for each rank" } else { "" }
            )));
        }
        Ok(config.within(most_tokens))
    }

    /// Samples every request on all ranks. Its errors are those of [`super::Engine::generate`].
    pub(crate) fn generate(
        &mut self,
        config: &EngineConfig,
        requests: &[Request],
        observer: &mut dyn Observer,
    ) -> Result<Stats> {
        self.ranks.sample(&Queue::new(requests, config.clone()), observer)
    }
}
