//! A small trainer, the batches of its steps, and an objective, for tests.

use super::{Execution, MicroBatch, Trainer, Update};
use crate::checkpoint::LanguageModel;
use crate::data::pack::Batch;
use crate::model::{Decoder, ModelConfig, ScoreGradient, layout};
use crate::objective::{BatchSums, Chunk, Objective};
use crate::optim::Schedule;
use crate::tokenizer::Tokenized;
use crate::tokenizer::test_support::small_tokenizer;

const MICRO_BATCHES: usize = 12;

pub(crate) fn model() -> LanguageModel {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"{"model_type": "qwen2", "vocab_size": 400, "hidden_size": 24,
        "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.1}"#;
    let config = ModelConfig::from_json(text).unwrap();
    LanguageModel {
        params: layout::init(&config, 1),
        decoder: Decoder::new(config),
        tokenizer: small_tokenizer(dir.path()),
    }
}

pub(crate) fn trainer(execution: Execution) -> Trainer {
    let optim = toml::from_str("lr = 1e-2").unwrap();
    Trainer::new(model(), optim, Schedule::default(), 100, execution).unwrap()
}

/// Returns a trainer on `ranks` threads.
pub(crate) fn on(ranks: usize) -> Trainer {
    trainer(Execution { ranks, ..Execution::default() })
}

/// Returns the micro-batches of a step.
pub(crate) fn batches(step: usize) -> Vec<MicroBatch> {
    let batch = |i: usize| {
        let token = |at: usize| ((31 * at + 7 * i + 3 * step) % 400) as u32;
        let sample = Tokenized {
            input_ids: (0..10 + 3 * i).map(token).collect(),
            loss_mask: vec![true; 10 + 3 * i],
        };
        MicroBatch::join(&[Batch::new(&[sample], &[0])])
    };
    (0..MICRO_BATCHES).map(batch).collect()
}

/// The negative log-likelihood whose gradient, but not its loss, is multiplied by a factor.
pub(crate) struct Pull {
    factor: f32,
    losses: BatchSums<f64>,
}

impl Pull {
    pub(crate) fn by(factor: f32) -> Self {
        Self { factor, losses: BatchSums::new(MICRO_BATCHES) }
    }
}

impl Objective for Pull {
    fn learn(&self, chunk: Chunk<'_>, gradients: &mut [ScoreGradient]) {
        let logp: f64 = chunk.scores.iter().map(|score| f64::from(score.logp)).sum();
        self.losses.update(chunk.batch, |loss| *loss -= logp);
        gradients.iter_mut().for_each(|gradient| gradient.logp = -self.factor);
    }
}

/// Makes a step whose gradients are multiplied by `factor`.
pub(crate) fn step(trainer: &mut Trainer, number: usize, factor: f32) -> Update {
    let objective = Pull::by(factor);
    trainer.accumulate(&batches(number), 1.0, &objective).unwrap();
    let update = trainer.update(300.0, objective.losses.into_iter().sum()).unwrap();
    trainer.end_step();
    update
}
