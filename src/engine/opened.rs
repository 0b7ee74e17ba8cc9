//! A model opened to be run: with its weights on the threads of this machine, or on GPUs.
//!
//! Contract: on threads weights keep their stored number format, on GPUs they have 16 bits. Left out:
//! training, which needs flat f32 (`checkpoint::LanguageModel`).

use super::device::{self, DeviceModel};
use super::generator::Generator;
use super::{Engine, EngineConfig, Sampler, Scorer, Threads};
use crate::base::memory;
use crate::base::progress::Progress;
use crate::checkpoint::{InferenceModel, StoredModel, stop_ids};
use crate::model::{Decoder, Precision, Weights};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;
use std::sync::Arc;

/// A model that can be run.
pub struct OpenModel {
    /// Its graph.
    pub decoder: Decoder,
    /// Text and conversations to its tokens and back.
    pub tokenizer: Tokenizer,
    place: Place,
}

/// Where the weights are.
enum Place {
    /// Read by so many ranks of threads.
    Threads(Arc<Weights<'static>>, usize),
    /// On each of these GPUs, at least one.
    Gpus(Vec<DeviceModel>),
}

impl OpenModel {
    /// Opens a model directory, or a model by its name, for so many ranks of threads.
    pub fn on_threads(model: &Path, ranks: usize) -> Result<Self> {
        let InferenceModel { decoder, weights, tokenizer } = InferenceModel::open(model)?;
        Ok(Self { decoder, tokenizer, place: Place::Threads(Arc::new(weights), ranks) })
    }

    /// The same on the first `count` GPUs, in numbers of 16 bits.
    pub fn on_gpus(model: &Path, count: usize, precision: Precision) -> Result<Self> {
        let model = StoredModel::open(model)?;
        let gpu = |ordinal| device::open(ordinal, &model.decoder, precision);
        let mut gpus = (0..count).map(gpu).collect::<Result<Vec<_>>>()?;
        model.read(|at, params| gpus.iter_mut().try_for_each(|gpu| gpu.upload(at, params)))?;
        let StoredModel { decoder, tokenizer, .. } = model;
        Ok(Self { decoder, tokenizer, place: Place::Gpus(gpus) })
    }

    /// Ids that end a response: those of the model's config and of its generation config.
    pub fn stop_ids(&self) -> Vec<u32> {
        stop_ids(self.decoder.config(), &self.tokenizer)
    }

    /// The model as it generates, on all its ranks.
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

    /// An engine of its first rank, and the tokenizer of what it samples. Refuses a cache that the memory
    /// of this machine does not hold, with `advice`.
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

    /// The log-probabilities of given tokens, by its first rank; see [`Scorer::score`].
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
