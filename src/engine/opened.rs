//! A model opened to generate and to score, on the threads of this machine or on GPUs.
//!
//! On threads the weights keep the number format in which they are stored; on GPUs they have 16 bits.
//! Training needs flat f32 parameters and opens `checkpoint::LanguageModel` instead.

use super::device::{self, DeviceModel};
use super::generator::Generator;
use super::{Engine, EngineConfig, Sampler, Scorer, Threads};
use crate::base::memory;
use crate::base::progress::Progress;
use crate::checkpoint::{InferenceModel, ModelPlace, StoredModel, stop_ids};
use crate::model::{Decoder, Precision, Weights};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::sync::Arc;

/// A model that generates and scores.
pub struct OpenModel {
    pub decoder: Decoder,
    pub tokenizer: Arc<Tokenizer>,
    place: Place,
}

/// Where the weights are.
enum Place {
    /// They are in this machine's memory, and this many ranks of threads read them.
    Threads(Arc<Weights<'static>>, usize),
    /// They are on each of these GPUs, at least one.
    Gpus(Vec<DeviceModel>),
}

/// A rank is a part of the machine that can have an engine of its own.
pub enum Rank<'m> {
    /// The threads of the present pool, which read these weights.
    Threads(&'m Decoder, Arc<Weights<'static>>),
    /// A GPU.
    Gpu(&'m mut DeviceModel),
}

impl Rank<'_> {
    /// Creates an engine with a cache of its own.
    pub fn engine(&mut self, config: EngineConfig) -> Result<Engine<'_>> {
        match self {
            Self::Threads(decoder, weights) => {
                Ok(Engine::with_weights(decoder, Arc::clone(weights), config))
            }
            Self::Gpu(gpu) => Engine::on_gpu(gpu, config),
        }
    }
}

impl OpenModel {
    /// Opens a model, given by its directory or its name, for `ranks` ranks of threads.
    pub fn on_threads<'a>(model: impl Into<ModelPlace<'a>>, ranks: usize) -> Result<Self> {
        let InferenceModel { decoder, weights, tokenizer } = InferenceModel::open(model)?;
        let (tokenizer, weights) = (Arc::new(tokenizer), Arc::new(weights));
        Ok(Self { decoder, tokenizer, place: Place::Threads(weights, ranks) })
    }

    /// Opens the model on the first `count` GPUs, with weights of 16 bits.
    pub fn on_gpus<'a>(
        model: impl Into<ModelPlace<'a>>,
        count: usize,
        precision: Precision,
    ) -> Result<Self> {
        let model = StoredModel::open(model)?;
        let gpu = |ordinal| device::open(ordinal, &model.decoder, precision);
        let mut gpus = (0..count).map(gpu).collect::<Result<Vec<_>>>()?;
        model.read(|at, params| gpus.iter_mut().try_for_each(|gpu| gpu.upload(at, params)))?;
        let StoredModel { decoder, tokenizer, .. } = model;
        Ok(Self { decoder, tokenizer: Arc::new(tokenizer), place: Place::Gpus(gpus) })
    }

    /// Returns the ids of the tokens that end a response, from the model's config and its generation
    /// config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }

    /// Returns a generator that uses all ranks.
    pub fn generator(&mut self) -> Generator<'_> {
        let Self { decoder, tokenizer, place } = self;
        match place {
            Place::Threads(weights, ranks) => {
                let threads = Threads::new(decoder, Arc::clone(weights));
                Generator::on_threads(decoder, tokenizer, threads, *ranks)
            }
            Place::Gpus(gpus) => {
                let gpus = gpus.iter_mut().map(|gpu| Box::new(gpu) as Box<dyn Sampler>);
                Generator::on_gpus(decoder, tokenizer, gpus.collect())
            }
        }
    }

    /// Returns each of its ranks.
    pub fn ranks(&mut self) -> Vec<Rank<'_>> {
        let decoder = &self.decoder;
        match &mut self.place {
            Place::Threads(weights, ranks) => {
                (0..*ranks).map(|_| Rank::Threads(decoder, Arc::clone(weights))).collect()
            }
            Place::Gpus(gpus) => gpus.iter_mut().map(Rank::Gpu).collect(),
        }
    }

    /// Creates an engine on the first rank, and returns the tokenizer with it. On threads it refuses a
    /// cache that does not fit into the free memory; `advice` is the part of that error that says what to
    /// do.
    pub fn engine(
        &mut self,
        config: EngineConfig,
        advice: &str,
    ) -> Result<(Engine<'_>, &Tokenizer)> {
        let Self { decoder, tokenizer, place } = self;
        let engine = match place {
            Place::Threads(weights, _) => {
                let EngineConfig { max_sequences, max_length, .. } = config;
                let cache = format!(
                    "the key-value cache of {max_sequences} sequences of {max_length} tokens"
                );
                memory::check(config.cache_bytes(decoder.config()), &cache, advice)?;
                Engine::with_weights(decoder, Arc::clone(weights), config)
            }
            Place::Gpus(gpus) => Engine::on_gpu(&mut gpus[0], config)?,
        };
        Ok((engine, tokenizer))
    }

    /// Returns the log-probabilities of given tokens, computed by the first rank; see [`Scorer::score`].
    pub fn score(
        &mut self,
        sequences: &[Vec<u32>],
        temperature: f32,
        progress: &Progress,
    ) -> Result<Vec<Vec<f32>>> {
        match &mut self.place {
            Place::Threads(weights, _) => {
                Scorer::new(&self.decoder, weights).score(sequences, temperature, progress)
            }
            Place::Gpus(gpus) => device::score(&mut gpus[0], sequences, temperature, progress),
        }
    }
}
