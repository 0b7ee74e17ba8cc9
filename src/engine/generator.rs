//! A model and where it generates: ranks of threads on this machine, or GPUs that hold its parameters, here
//! and in other processes.
//!
//! Contract: any number of ranks of one kind gives the same responses; GPUs compute in 16 bits, and
//! give others than threads do. Left out: what is asked of the model (`attempts`).

use crate::base::error::usage;
use crate::base::{human, memory};
use crate::checkpoint::{LanguageModel, stop_ids};
use crate::engine::device::DeviceModel;
use crate::engine::{
    Elsewhere, Engine, EngineConfig, Observer, Queue, Request, SamplingParams, Stats, Worker, share,
};
use crate::model::{BLOCK_TOKENS, Decoder, KvCache, ModelConfig};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::sync::Arc;

/// A model that generates.
pub struct Generator<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    ranks: Ranks<'a>,
}

/// Who share the prompts.
enum Ranks<'a> {
    /// So many parts of the pool's threads, which read these parameters.
    Threads(usize, &'a [f32]),
    /// A GPU each.
    Gpus(Vec<GpuRank<'a>>),
}

/// A GPU that holds the model's parameters.
pub enum GpuRank<'a> {
    /// Of this process.
    Here(&'a mut DeviceModel),
    /// Of another.
    Elsewhere(&'a mut dyn Elsewhere),
}

impl<'a> Generator<'a> {
    /// Generates with the model's own weights, on at least one rank.
    pub fn on_threads(model: &'a LanguageModel, ranks: usize) -> Self {
        let LanguageModel { decoder, params, tokenizer } = model;
        Self { decoder, tokenizer, ranks: Ranks::Threads(ranks, params) }
    }

    /// Generates with the parameters that each of `gpus`, at least one, has of the model.
    pub fn on_gpus(decoder: &'a Decoder, tokenizer: &'a Tokenizer, gpus: Vec<GpuRank<'a>>) -> Self {
        Self { decoder, tokenizer, ranks: Ranks::Gpus(gpus) }
    }

    /// The shape of the model.
    pub(crate) fn config(&self) -> &'a ModelConfig {
        self.decoder.config()
    }

    /// Its tokenizer.
    pub(crate) fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// Ids that end its responses.
    pub(crate) fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.config(), self.tokenizer)
    }

    /// Whether GPUs compute.
    pub(crate) fn is_on_gpus(&self) -> bool {
        matches!(self.ranks, Ranks::Gpus(_))
    }

    /// The sizes of each rank's engine with the cache that the memory of this machine has room for,
    /// half of what is free; refuses where that holds no sequence. A GPU gives an engine what it has
    /// left when the engine starts.
    pub(crate) fn fit(&self, config: EngineConfig) -> Result<EngineConfig> {
        let (Ranks::Threads(ranks, _), Some(free)) = (&self.ranks, memory::available()) else {
            return Ok(config);
        };
        let of_rank = free / 2 / *ranks as u64;
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
                if *ranks > 1 { " for each rank" } else { "" }
            )));
        }
        Ok(config.within(most_tokens))
    }

    /// Samples every request on all ranks; see [`share`].
    pub(crate) fn generate(
        &mut self,
        config: &EngineConfig,
        requests: &[Request],
        sampling: &SamplingParams,
        observer: &mut (impl Observer + Send),
    ) -> Result<Stats> {
        match &mut self.ranks {
            Ranks::Threads(ranks, params) => {
                let decoder = self.decoder;
                let weights = Arc::new(decoder.pack(params));
                let engine =
                    || Ok(Engine::with_weights(decoder, Arc::clone(&weights), config.clone()));
                share(vec![engine; *ranks], requests, sampling, observer)
            }
            Ranks::Gpus(gpus) => {
                let ranks = gpus.iter_mut().map(|gpu| OnGpu { gpu, config: config.clone() });
                share(ranks.collect(), requests, sampling, observer)
            }
        }
    }
}

/// A GPU's rank with the sizes of its engine.
struct OnGpu<'g, 'a> {
    gpu: &'g mut GpuRank<'a>,
    config: EngineConfig,
}

impl Worker for OnGpu<'_, '_> {
    fn work_off(
        self,
        queue: &dyn Queue,
        sampling: &SamplingParams,
        observer: &mut dyn Observer,
    ) -> Result<Stats> {
        match self.gpu {
            GpuRank::Here(model) => {
                Engine::on_gpu(model, self.config)?.work_off(queue, sampling, observer)
            }
            GpuRank::Elsewhere(rank) => rank.work_off(&self.config, queue, sampling, observer),
        }
    }
}
