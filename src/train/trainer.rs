//! One model being trained: weights, ranks with their gradients and moments, and the update that
//! joins them.
//!
//! Gradients accumulate as unnormalised sums and are divided once, by the number the objective
//! names (the token count of the global batch): packing, micro-batching and the number of ranks
//! never change the loss. A step whose loss or gradient is not finite changes no weight.

use super::rank::{Chunk, MicroBatch, Rank, Reduced};
use crate::checkpoint::LanguageModel;
use crate::checkpoint::state::{load_step, save_step};
use crate::dist::{self, Shards};
use crate::model::{Recompute, ScoreGradient, TensorSpec};
use crate::ops::adamw::AdamW;
use crate::optim::{AdamWConfig, DecayedParameters, LossScale, LossScaleConfig, Schedule};
use anyhow::Result;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::ops::Range;
use std::path::Path;

/// How the work is laid out; none of it changes what is learnt.
#[derive(Debug, Clone, Copy)]
pub struct Execution {
    /// Thread-ranks.
    pub ranks: usize,
    /// What the backward computes again.
    pub recompute: Recompute,
    /// The loss scale of fp16; none with other precisions.
    pub loss_scale: Option<LossScaleConfig>,
}

impl Default for Execution {
    fn default() -> Self {
        Self { ranks: 1, recompute: Recompute::default(), loss_scale: None }
    }
}

/// What training owns besides the model.
pub struct Trainer {
    /// The model; its weights, which are the first rank's, change at every update.
    pub model: LanguageModel,
    /// Steps done; the learning rate follows them.
    pub step: u64,
    ranks: Vec<Rank>,
    /// The parameters of the other ranks.
    replicas: Vec<Vec<f32>>,
    shards: Shards,
    decayed: Vec<Range<usize>>,
    optim: AdamWConfig,
    schedule: Schedule,
    total_steps: u64,
    loss_scale: Option<LossScaleConfig>,
    optimizer: OptimizerState,
}

/// What the optimizer remembers besides its moments.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OptimizerState {
    /// Updates that changed weights; a step has one or more.
    updates: u64,
    /// Those just before now that changed none.
    skipped_in_a_row: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
}

/// What a checkpoint keeps besides weights and moments.
#[derive(Serialize, Deserialize)]
struct Saved<S> {
    step: u64,
    optimizer: OptimizerState,
    state: S,
}

/// What one update did.
#[derive(Debug, Clone)]
pub struct Update {
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate used.
    pub lr: f64,
    /// What the loss was multiplied by, with fp16.
    pub loss_scale: Option<f64>,
    /// Why no weight changed: a loss or gradient that is not finite.
    pub skipped: Option<NonFinite>,
}

/// Where something was not finite.
#[derive(Debug, Clone, PartialEq)]
pub struct NonFinite {
    /// The loss of the step.
    pub loss: f64,
    /// Tensors whose gradient was not.
    pub tensors: Vec<String>,
}

impl Trainer {
    /// A fresh optimizer around `model`, for a run of `total_steps` updates.
    pub fn new(
        model: LanguageModel,
        optim: AdamWConfig,
        schedule: Schedule,
        total_steps: u64,
        execution: Execution,
    ) -> Result<Self> {
        let Execution { ranks, recompute, loss_scale } = execution;
        let shards = Shards::new(model.params.len(), ranks, Shards::BUCKET);
        let start = |comm| Rank::new(comm, shards, recompute);
        let decays = |tensor: &TensorSpec| match optim.decayed {
            DecayedParameters::Matrices => tensor.decays(),
            DecayedParameters::MatricesWithoutEmbeddings => {
                tensor.decays() && !tensor.is_embedding()
            }
            DecayedParameters::All => true,
        };
        Ok(Self {
            step: 0,
            ranks: dist::group(ranks).into_iter().map(start).collect::<Result<_>>()?,
            replicas: vec![model.params.clone(); ranks - 1],
            shards,
            decayed: model.decoder.layout().ranges(decays),
            optim,
            schedule,
            total_steps,
            loss_scale,
            optimizer: OptimizerState {
                loss_scale: loss_scale.as_ref().map(LossScale::new),
                ..OptimizerState::default()
            },
            model,
        })
    }

    /// Continues where the checkpoint in `dir` stopped, whatever number of ranks wrote it; the
    /// model has been read from it. Returns what the loop saved of its own.
    pub fn restore<S: DeserializeOwned>(&mut self, dir: &Path) -> Result<S> {
        let mut whole: [Vec<&mut [f32]>; 2] = [Vec::new(), Vec::new()];
        let mut rests: Vec<[&mut [f32]; 2]> = self
            .ranks
            .iter_mut()
            .map(|rank| rank.moments.each_mut().map(Vec::as_mut_slice))
            .collect();
        for (rank, len) in self.shards.order() {
            for (rest, whole) in rests[rank].iter_mut().zip(&mut whole) {
                let (piece, tail) = std::mem::take(rest).split_at_mut(len);
                whole.push(piece);
                *rest = tail;
            }
        }
        let saved: Saved<S> = load_step(dir, whole)?;
        self.step = saved.step;
        self.optimizer = saved.optimizer;
        Ok(saved.state)
    }

    /// Writes a checkpoint at `path`: the model, the moments, the step and the loop's own `state`.
    pub fn save<S: Serialize>(&self, path: &Path, state: S) -> Result<()> {
        let mut whole: [Vec<&[f32]>; 2] = [Vec::new(), Vec::new()];
        let mut ends = vec![0; self.ranks.len()];
        for (rank, len) in self.shards.order() {
            let of_shard = ends[rank]..ends[rank] + len;
            ends[rank] = of_shard.end;
            for (moment, whole) in self.ranks[rank].moments.iter().zip(&mut whole) {
                whole.push(&moment[of_shard.clone()]);
            }
        }
        let saved = Saved { step: self.step, optimizer: self.optimizer, state };
        save_step(path, self.model.as_saved(), whole, &saved)
    }

    /// Updates just before now that changed no weight and could not be answered by a smaller loss
    /// scale.
    pub fn skipped_in_a_row(&self) -> u64 {
        self.optimizer.skipped_in_a_row
    }

    /// Gives back the memory that accumulating gradients took; the next time takes it again.
    pub fn release_memory(&mut self) {
        self.ranks.iter_mut().for_each(Rank::release_memory);
    }

    /// Adds the gradients of micro-batches, which the ranks divide among themselves. `objective`
    /// gets the targets of each in consecutive chunks, writes the gradient of the loss by their
    /// scores, and gathers what it wants to know in an `M` for each micro-batch, which are returned
    /// in order.
    pub fn accumulate<M: Default + Send>(
        &mut self,
        batches: &[MicroBatch],
        temperature: f32,
        objective: impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M) + Sync,
    ) -> Result<Vec<M>> {
        let share = batches.len().div_ceil(self.ranks.len());
        let scale = self.optimizer.loss_scale.map(|scale| scale.scale() as f32);
        let scaled = |chunk: Chunk<'_>, gradients: &mut [ScoreGradient], gathered: &mut M| {
            objective(chunk, gradients, gathered);
            if let Some(scale) = scale {
                gradients.iter_mut().for_each(|gradient| *gradient = gradient.times(scale));
            }
        };
        let decoder = &self.model.decoder;
        let params = std::iter::once(&self.model.params).chain(&self.replicas);
        let workers: Vec<_> = self.ranks.iter_mut().zip(params).collect();
        let gathered = dist::on_every_rank(
            workers,
            |(rank, _)| &*rank.comm,
            |(rank, params)| {
                let first = (rank.comm.rank() * share).min(batches.len());
                let own = &batches[first..batches.len().min(first + share)];
                Ok(rank.accumulate(decoder, params, (first, own), temperature, &scaled))
            },
        )?;
        Ok(gathered.into_iter().flatten().collect())
    }

    /// Ends a step: divides the gradient by `denominator`, clips it, steps AdamW and forgets it.
    /// Where the gradient or `loss` is not finite, no weight changes.
    pub fn update(&mut self, denominator: f64, loss: f64) -> Result<Update> {
        let lr = self.optim.lr * self.schedule.factor(self.step, self.total_steps);
        let loss_scale = self.optimizer.loss_scale.map(|scale| scale.scale());
        let denominator = denominator * loss_scale.unwrap_or(1.0);
        let adamw = AdamW {
            learning_rate: lr as f32,
            beta1: self.optim.betas.0 as f32,
            beta2: self.optim.betas.1 as f32,
            epsilon: self.optim.eps as f32,
            weight_decay: self.optim.weight_decay as f32,
            gradient_scale: 0.0,
            step: self.optimizer.updates + 1,
        };
        let (optim, shards, decayed) = (self.optim, self.shards, &self.decayed);
        let layout = self.model.decoder.layout();
        let params = std::iter::once(&mut self.model.params).chain(&mut self.replicas);
        let workers: Vec<_> = self.ranks.iter_mut().zip(params).collect();
        let reduced = dist::on_every_rank(
            workers,
            |(rank, _)| &*rank.comm,
            |(rank, params)| {
                let reduced = rank.reduce(shards, layout)?;
                let norm = reduced.norm / denominator;
                if norm.is_finite() && loss.is_finite() {
                    let gradient_scale = (optim.clip_factor(norm) / denominator) as f32;
                    rank.step(params, shards, AdamW { gradient_scale, ..adamw }, decayed)?;
                }
                rank.clear();
                Ok(reduced)
            },
        )?;
        let grad_norm = reduced.first().map_or(0.0, |first| first.norm) / denominator;
        let is_finite = grad_norm.is_finite() && loss.is_finite();
        let skipped = (!is_finite).then(|| self.non_finite(loss, &reduced));
        self.advance(is_finite);
        Ok(Update { grad_norm, lr, loss_scale, skipped })
    }

    fn non_finite(&self, loss: f64, reduced: &[Reduced]) -> NonFinite {
        let mut indices: Vec<usize> = reduced.iter().flat_map(|r| &r.culprits).copied().collect();
        indices.sort_unstable();
        indices.dedup();
        let tensors = &self.model.decoder.layout().tensors;
        NonFinite { loss, tensors: indices.iter().map(|&i| tensors[i].name.clone()).collect() }
    }

    /// Ends a step after its updates.
    pub fn end_step(&mut self) {
        self.step += 1;
    }

    /// Counts the update and moves the loss scale.
    fn advance(&mut self, is_finite: bool) {
        let OptimizerState { updates, skipped_in_a_row, loss_scale } = &mut self.optimizer;
        *updates += u64::from(is_finite);
        let mut is_answered = false;
        if let (Some(scale), Some(config)) = (loss_scale, &self.loss_scale) {
            is_answered = !scale.is_at_minimum(config);
            scale.update(config, !is_finite);
        }
        *skipped_in_a_row = match is_finite || is_answered {
            true => 0,
            false => *skipped_in_a_row + 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pack::Batch;
    use crate::model::{Decoder, ModelConfig, layout};
    use crate::tokenizer::{Tokenized, bpe};

    fn trainer(execution: Execution) -> Trainer {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"model_type": "qwen2", "vocab_size": 400, "hidden_size": 24,
            "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "initializer_range": 0.1}"#;
        let config = ModelConfig::from_json(text).unwrap();
        let model = LanguageModel {
            params: layout::init(&config, 1),
            decoder: Decoder::new(config),
            tokenizer: bpe::tests::small(dir.path()),
        };
        let optim = toml::from_str("lr = 1e-2").unwrap();
        Trainer::new(model, optim, Schedule::default(), 100, execution).unwrap()
    }

    fn on(ranks: usize) -> Trainer {
        trainer(Execution { ranks, ..Execution::default() })
    }

    fn batches(step: usize) -> Vec<MicroBatch> {
        let of = |i: usize| {
            let token = |at: usize| ((31 * at + 7 * i + 3 * step) % 400) as u32;
            let sample = Tokenized {
                input_ids: (0..10 + 3 * i).map(token).collect(),
                loss_mask: vec![true; 10 + 3 * i],
            };
            MicroBatch::of(&[Batch::new(&[sample], &[0])])
        };
        (0..12).map(of).collect()
    }

    /// A step whose gradients are multiplied by `factor`.
    fn step(trainer: &mut Trainer, number: usize, factor: f32) -> Update {
        let losses = trainer
            .accumulate(&batches(number), 1.0, |chunk, gradients, loss: &mut f64| {
                *loss -= chunk.scores.iter().map(|score| f64::from(score.logp)).sum::<f64>();
                gradients.iter_mut().for_each(|gradient| gradient.logp = -factor);
            })
            .unwrap();
        let update = trainer.update(300.0, losses.iter().sum()).unwrap();
        trainer.end_step();
        update
    }

    fn trained(ranks: usize) -> Trainer {
        let mut trainer = on(ranks);
        for number in 0..3 {
            step(&mut trainer, number, 1.0);
        }
        trainer
    }

    fn moments(trainer: &Trainer) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        trainer.save(&dir.path().join("step"), ()).unwrap();
        std::fs::read(dir.path().join("step/state/optimizer.safetensors")).unwrap()
    }

    #[test]
    fn ranks_learn_what_one_rank_learns() {
        let one = trained(1);
        for ranks in [2, 3, 8] {
            let several = trained(ranks);
            for (a, b) in several.model.params.iter().zip(&one.model.params) {
                assert!((a - b).abs() < 2e-5, "{ranks} ranks: {a} is not {b}");
            }
            assert!(several.replicas.iter().all(|replica| *replica == several.model.params));
            let again = trained(ranks);
            assert_eq!(again.model.params, several.model.params, "{ranks} ranks");
            assert_eq!(moments(&again), moments(&several), "{ranks} ranks");
        }
    }

    #[test]
    fn any_number_of_ranks_resumes_what_any_other_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step");
        let three = trained(3);
        three.save(&path, 7u32).unwrap();
        for ranks in [1, 2, 3, 8] {
            let mut resumed = on(ranks);
            assert_eq!(resumed.restore::<u32>(&path).unwrap(), 7);
            assert_eq!((resumed.step, moments(&resumed)), (3, moments(&three)), "{ranks} ranks");
        }
    }

    #[test]
    fn a_step_that_is_not_finite_changes_nothing_and_names_its_tensors() {
        for ranks in [1, 3] {
            let (mut disturbed, mut spared) = (on(ranks), on(ranks));
            let update = step(&mut disturbed, 0, f32::NAN);
            assert_eq!(disturbed.model.params, spared.model.params);
            let tensors = update.skipped.unwrap().tensors;
            assert_eq!(tensors.len(), disturbed.model.decoder.layout().tensors.len());
            assert_eq!((disturbed.step, disturbed.skipped_in_a_row()), (1, 1));
            assert_eq!(step(&mut disturbed, 1, 1.0).skipped, None);
            step(&mut spared, 1, 1.0);
            assert_eq!(disturbed.model.params, spared.model.params);
            assert_eq!((disturbed.step, disturbed.skipped_in_a_row()), (2, 0));
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_changes_nothing_either() {
        let mut trainer = on(1);
        let before = trainer.model.params.clone();
        trainer.accumulate(&batches(0), 1.0, |_, _, (): &mut ()| {}).unwrap();
        let skipped = trainer.update(300.0, f64::INFINITY).unwrap().skipped;
        assert_eq!(skipped, Some(NonFinite { loss: f64::INFINITY, tensors: Vec::new() }));
        assert_eq!(trainer.model.params, before);
    }

    #[test]
    fn a_loss_scale_changes_no_bit_and_falls_where_gradients_overflow() {
        let config = LossScaleConfig { initial: 2.0, hysteresis: 1, ..LossScaleConfig::default() };
        let mut scaled = trainer(Execution { loss_scale: Some(config), ..Execution::default() });
        let mut plain = on(1);
        assert_eq!(step(&mut scaled, 0, 1.0).loss_scale, Some(2.0));
        step(&mut plain, 0, 1.0);
        assert_eq!(scaled.model.params, plain.model.params);
        assert!(step(&mut scaled, 1, f32::INFINITY).skipped.is_some());
        assert_eq!(scaled.skipped_in_a_row(), 0, "answered by a smaller scale");
        assert_eq!(step(&mut scaled, 2, f32::INFINITY).loss_scale, Some(1.0));
        assert_eq!(scaled.skipped_in_a_row(), 1, "the scale is at its minimum");

        let dir = tempfile::tempdir().unwrap();
        scaled.save(&dir.path().join("step"), ()).unwrap();
        let mut resumed = trainer(Execution { loss_scale: Some(config), ..Execution::default() });
        resumed.restore::<()>(&dir.path().join("step")).unwrap();
        assert_eq!(resumed.skipped_in_a_row(), 1);
        assert_eq!(step(&mut resumed, 3, 1.0).loss_scale, Some(1.0));
    }
}
