//! A trainer holds one model in training: its weights, the ranks with their gradients and moments, and the
//! update that joins them.
//!
//! Gradients accumulate as unnormalised sums and are divided once, by the number that the loop names (for
//! SFT, the tokens of the global batch). So packing, micro-batches and the number of ranks do not change
//! the loss. A step whose loss or gradient is not finite changes no weight.

pub mod device;
mod execution;
mod micro_batch;
#[cfg(test)]
mod test_support;
mod workers;

pub use execution::{Execution, LossScaling};
pub use micro_batch::MicroBatch;
pub(crate) use workers::GPU_BUCKET;
pub use workers::Parameters;
use workers::{Reduced, Workers};

use crate::checkpoint::LanguageModel;
use crate::checkpoint::state::{load_step, save_step};
use crate::engine::generator::Generator;
use crate::model::{ScoreGradient, TensorSpec};
use crate::nodes::Nodes;
use crate::objective::{Chunk, Objective};
use crate::ops::adamw::AdamW;
use crate::optim::{AdamWConfig, DecayedParameters, LossScale, Schedule};
use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;

/// Lends the GPUs of this node, which is not node 0, to a run of `ranks` ranks on all nodes, until that
/// ends.
pub fn serve(nodes: &Nodes, ranks: usize) -> Result<()> {
    #[cfg(feature = "cuda")]
    return workers::serve(nodes, nodes.share(ranks)?);
    #[cfg(not(feature = "cuda"))]
    Err(crate::engine::device::refusal().context(format!("{ranks} ranks on {} nodes", nodes.count)))
}

/// A model, its optimizer, and the ranks that train it.
pub struct Trainer {
    /// The model. On a CPU its weights change at every update; on GPUs they are those of the last
    /// [`Trainer::fetch_params`].
    pub model: LanguageModel,
    /// The number of steps that are done; the learning rate follows it.
    pub step: u64,
    workers: Box<dyn Workers>,
    optim: AdamWConfig,
    schedule: Schedule,
    total_steps: u64,
    loss_scaling: Option<LossScaling>,
    optimizer: OptimizerState,
}

/// The state of the optimizer besides its moments.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OptimizerState {
    /// The number of updates that changed weights; a step has one or more.
    updates: u64,
    /// The number of updates in a row, up to the last, that changed no weight although the loss scale could
    /// not fall.
    skipped_in_a_row: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
}

/// The part of a checkpoint besides weights and moments.
#[derive(Serialize, Deserialize)]
struct Saved<S> {
    step: u64,
    optimizer: OptimizerState,
    state: S,
}

/// The result of one update.
#[derive(Debug, Clone)]
pub struct Update {
    /// The norm of the whole gradient before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// The loss scale of fp16.
    pub loss_scale: Option<f64>,
    /// What was not finite, if the update changed no weight.
    pub skipped: Option<NonFinite>,
}

/// A loss, or tensors whose gradient is not finite.
#[derive(Debug, Clone, PartialEq)]
pub struct NonFinite {
    /// The loss of the step, finite or not.
    pub loss: f64,
    /// The names of the tensors whose gradient is not finite.
    pub tensors: Vec<String>,
}

impl Trainer {
    /// Creates a trainer with a fresh optimizer, for a run of `total_steps` steps.
    pub fn new(
        model: LanguageModel,
        optim: AdamWConfig,
        schedule: Schedule,
        total_steps: u64,
        execution: Execution,
    ) -> Result<Self> {
        let loss_scaling = execution.loss_scale;
        let decays = |tensor: &TensorSpec| match optim.decayed {
            DecayedParameters::Matrices => tensor.decays(),
            DecayedParameters::MatricesWithoutEmbeddings => {
                tensor.decays() && !tensor.is_embedding()
            }
            DecayedParameters::All => true,
        };
        let decayed = model.decoder.layout().ranges(decays);
        Ok(Self {
            step: 0,
            workers: workers::start(&model, execution, decayed)?,
            optim,
            schedule,
            total_steps,
            loss_scaling,
            optimizer: OptimizerState {
                loss_scale: loss_scaling.map(|scaling| LossScale::new(&scaling.config)),
                ..OptimizerState::default()
            },
            model,
        })
    }

    /// Continues where the checkpoint in `dir` stopped, whatever number and kind of ranks wrote it. The
    /// model was read from it before. Returns what the loop saved.
    pub fn restore<S: DeserializeOwned>(&mut self, dir: &Path) -> Result<S> {
        let shards = self.workers.shards();
        let empty = |rank| [0, 1].map(|_| vec![0.0; shards.shard_len(rank)]);
        let mut moments: Vec<[Vec<f32>; 2]> = (0..shards.size()).map(empty).collect();
        let by_rank = moments.iter_mut().map(|both| both.each_mut().map(Vec::as_mut_slice));
        let (first, second) = by_rank.map(|[first, second]| (first, second)).unzip();
        let whole = [first, second].map(|moments| shards.join_mut(moments));
        let saved: Saved<S> = load_step(dir, &self.model.params, whole)?;
        self.workers.set_moments(moments)?;
        self.step = saved.step;
        // The checkpoint may be of a run in another number format.
        let fresh = self.optimizer.loss_scale;
        let loss_scale = fresh.map(|fresh| saved.optimizer.loss_scale.unwrap_or(fresh));
        self.optimizer = OptimizerState { loss_scale, ..saved.optimizer };
        Ok(saved.state)
    }

    /// Writes a checkpoint at `path`: the model, the moments, the step and the loop's own `state`.
    pub fn save<S: Serialize>(&mut self, path: &Path, state: S) -> Result<()> {
        self.fetch_params()?;
        ensure!(
            self.model.params.par_iter().all(|weight| weight.is_finite()),
            "after step {} the weights are not finite, so they are not saved; lower optim.lr",
            self.step
        );
        let shards = self.workers.shards();
        let by_rank = self.workers.moments()?;
        let whole = [0, 1].map(|moment| {
            let of_ranks: Vec<&[f32]> = by_rank.iter().map(|moments| &*moments[moment]).collect();
            shards.join(&of_ranks)
        });
        let saved = Saved { step: self.step, optimizer: self.optimizer, state };
        save_step(path, self.model.as_saved(), whole, &saved)
    }

    /// Copies the trained weights to the model on the host.
    pub fn fetch_params(&mut self) -> Result<()> {
        self.workers.fetch_params(&mut self.model.params)
    }

    /// Returns the most bytes of a GPU's memory that were ever taken at once; `None` without GPUs.
    pub fn gpu_peak_bytes(&mut self) -> Result<Option<usize>> {
        self.workers.gpu_peak_bytes()
    }

    /// Returns the number of updates in a row, up to the last, that changed no weight although the loss
    /// scale could not fall.
    pub fn skipped_in_a_row(&self) -> u64 {
        self.optimizer.skipped_in_a_row
    }

    /// Returns whether any update has changed a weight.
    pub fn has_learnt(&self) -> bool {
        self.optimizer.updates > 0
    }

    /// Returns the model as it is trained, to sample with it between updates, on its own ranks.
    pub fn generator(&mut self) -> Generator<'_> {
        self.workers.generator(&self.model)
    }

    /// Gives back the memory for accumulating gradients; it is taken again when it is needed.
    pub fn release_memory(&mut self) {
        self.workers.release_memory();
    }

    /// Adds the gradients of micro-batches, which the ranks divide among themselves. The objective gets the
    /// targets of each micro-batch in consecutive chunks.
    pub fn accumulate(
        &mut self,
        batches: &[MicroBatch],
        temperature: f32,
        objective: &dyn Objective,
    ) -> Result<()> {
        match self.loss_factor() {
            None => self.workers.accumulate(&self.model, batches, temperature, objective),
            Some(factor) => {
                let scaled = Scaled { objective, factor: factor as f32 };
                self.workers.accumulate(&self.model, batches, temperature, &scaled)
            }
        }
    }

    /// Returns the natural log-probabilities of the targets of each row.
    pub fn score(
        &mut self,
        parameters: Parameters,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        self.workers.score(&self.model, parameters, rows, temperature)
    }

    /// Keeps the parameters of a reference model, which have the layout of the model's.
    pub fn keep_reference(&mut self, params: Vec<f32>) -> Result<()> {
        self.workers.keep_reference(params)
    }

    /// Makes one update: divides the gradient by `denominator`, clips it, takes an AdamW step, and clears
    /// the gradient. If the gradient or `loss` is not finite, no weight changes.
    pub fn update(&mut self, denominator: f64, loss: f64) -> Result<Update> {
        let lr = self.optim.lr * self.schedule.factor(self.step, self.total_steps);
        let loss_scale = self.optimizer.loss_scale.map(|scale| scale.scale());
        let denominator = denominator * self.loss_factor().unwrap_or(1.0);
        let adamw = AdamW {
            learning_rate: lr as f32,
            beta1: self.optim.betas.0 as f32,
            beta2: self.optim.betas.1 as f32,
            epsilon: self.optim.eps as f32,
            weight_decay: self.optim.weight_decay as f32,
            gradient_scale: 0.0,
            step: self.optimizer.updates + 1,
        };
        let optim = self.optim;
        let scale = |norm: f64| {
            let norm = norm / denominator;
            let is_finite = norm.is_finite() && loss.is_finite();
            is_finite.then(|| (optim.clip_factor(norm) / denominator) as f32)
        };
        let reduced = self.workers.update(&mut self.model, adamw, &scale)?;
        let grad_norm = reduced.first().map_or(0.0, |first| first.norm) / denominator;
        let is_finite = grad_norm.is_finite() && loss.is_finite();
        let skipped = (!is_finite).then(|| self.non_finite(loss, &reduced));
        self.advance(is_finite);
        Ok(Update { grad_norm, lr, loss_scale, skipped })
    }

    /// Returns the factor of the summed loss, with fp16.
    fn loss_factor(&self) -> Option<f64> {
        let (scaling, scale) = self.loss_scaling.zip(self.optimizer.loss_scale)?;
        Some(scale.scale() / scaling.divisor.next_power_of_two() as f64)
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
        if let (Some(scale), Some(LossScaling { config, .. })) = (loss_scale, &self.loss_scaling) {
            is_answered = !scale.is_at_minimum(config);
            scale.update(config, !is_finite);
        }
        *skipped_in_a_row = match is_finite || is_answered {
            true => 0,
            false => *skipped_in_a_row + 1,
        };
    }
}

/// An objective whose loss is multiplied by a constant.
struct Scaled<'o> {
    objective: &'o dyn Objective,
    factor: f32,
}

impl Objective for Scaled<'_> {
    fn learn(&self, chunk: Chunk<'_>, gradients: &mut [ScoreGradient]) {
        self.objective.learn(chunk, gradients);
        gradients.iter_mut().for_each(|gradient| *gradient = gradient.times(self.factor));
    }
}

#[cfg(test)]
mod tests {
    use super::test_support::{Pull, batches, on, step, trainer};
    use super::*;
    use crate::optim::LossScaleConfig;

    fn trained(ranks: usize) -> Trainer {
        let mut trainer = on(ranks);
        for number in 0..3 {
            step(&mut trainer, number, 1.0);
        }
        trainer
    }

    fn moments(trainer: &mut Trainer) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        trainer.save(&dir.path().join("step"), ()).unwrap();
        std::fs::read(dir.path().join("step/state/optimizer.safetensors")).unwrap()
    }

    #[test]
    fn ranks_learn_what_one_rank_learns() {
        let one = trained(1);
        for ranks in [2, 3, 8] {
            let mut several = trained(ranks);
            for (a, b) in several.model.params.iter().zip(&one.model.params) {
                assert!((a - b).abs() < 2e-5, "{ranks} ranks: {a} is not {b}");
            }
            let mut again = trained(ranks);
            assert_eq!(again.model.params, several.model.params, "{ranks} ranks");
            assert_eq!(moments(&mut again), moments(&mut several), "{ranks} ranks");
        }
    }

    #[test]
    fn any_number_of_ranks_resumes_what_any_other_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step");
        let mut three = trained(3);
        three.save(&path, 7u32).unwrap();
        for ranks in [1, 2, 3, 8] {
            let mut resumed = on(ranks);
            resumed.model.params.clone_from(&three.model.params);
            assert_eq!(resumed.restore::<u32>(&path).unwrap(), 7);
            let moments = [&mut resumed, &mut three].map(moments);
            assert_eq!((resumed.step, &moments[0]), (3, &moments[1]), "{ranks} ranks");
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
    fn weights_that_are_not_finite_are_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        let mut trainer = on(1);
        trainer.model.params[7] = f32::NAN;
        let text = trainer.save(&dir.path().join("step"), ()).unwrap_err().to_string();
        assert!(text.contains("not finite") && text.contains("optim.lr"), "{text}");
        assert!(!dir.path().join("step").exists());
    }

    #[test]
    fn a_loss_that_is_not_finite_changes_nothing_either() {
        let mut trainer = on(1);
        let before = trainer.model.params.clone();
        trainer.accumulate(&batches(0), 1.0, &Pull::by(0.0)).unwrap();
        let skipped = trainer.update(300.0, f64::INFINITY).unwrap().skipped;
        assert_eq!(skipped, Some(NonFinite { loss: f64::INFINITY, tensors: Vec::new() }));
        assert_eq!(trainer.model.params, before);
    }

    /// Returns a trainer with a loss scale of 2, which any overflow halves, down to 1.
    fn scaled() -> Trainer {
        let config = LossScaleConfig { initial: 2.0, hysteresis: 1, ..LossScaleConfig::default() };
        let loss_scale = Some(LossScaling { config, divisor: 300 });
        trainer(Execution { loss_scale, ..Execution::default() })
    }

    /// Makes `resumed` continue where `stopped` is.
    fn resume(mut resumed: Trainer, stopped: &mut Trainer) -> Trainer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step");
        stopped.save(&path, ()).unwrap();
        resumed.model.params.clone_from(&stopped.model.params);
        resumed.restore::<()>(&path).unwrap();
        resumed
    }

    #[test]
    fn a_loss_scale_changes_no_bit() {
        let (mut scaled, mut plain) = (scaled(), on(1));
        assert_eq!(step(&mut scaled, 0, 1.0).loss_scale, Some(2.0));
        step(&mut plain, 0, 1.0);
        assert_eq!(scaled.model.params, plain.model.params);
    }

    #[test]
    fn a_skipped_step_counts_where_no_smaller_loss_scale_answers_it() {
        let mut scaled = scaled();
        assert!(step(&mut scaled, 0, f32::INFINITY).skipped.is_some());
        assert_eq!(scaled.skipped_in_a_row(), 0, "answered by a smaller scale");
        assert_eq!(step(&mut scaled, 1, f32::INFINITY).loss_scale, Some(1.0));
        assert_eq!(scaled.skipped_in_a_row(), 1, "the scale is at its minimum");
    }

    #[test]
    fn a_resumed_run_keeps_its_loss_scale_and_its_skipped_steps() {
        let mut stopped = scaled();
        step(&mut stopped, 0, f32::INFINITY);
        step(&mut stopped, 1, f32::INFINITY);
        let mut resumed = resume(scaled(), &mut stopped);
        assert_eq!(resumed.skipped_in_a_row(), 1);
        assert_eq!(step(&mut resumed, 2, 1.0).loss_scale, Some(1.0));
    }

    #[test]
    fn a_run_resumed_in_another_precision_loses_its_loss_scale_and_gets_a_fresh_one_back() {
        let mut fp16 = scaled();
        step(&mut fp16, 0, f32::INFINITY);
        let mut plain = resume(on(1), &mut fp16);
        assert_eq!(step(&mut plain, 1, 1.0).loss_scale, None);
        let mut back = resume(scaled(), &mut plain);
        assert_eq!(step(&mut back, 2, 1.0).loss_scale, Some(2.0));
    }
}
