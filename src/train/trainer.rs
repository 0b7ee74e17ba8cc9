//! One model being trained: weights, gradients, moments, and the update that joins them.
//!
//! Gradients accumulate as unnormalised sums and are divided once, by the number the objective
//! names (the token count of the global batch): packing and micro-batching never change the loss.

use crate::checkpoint::LanguageModel;
use crate::checkpoint::state::{load_step, save_step};
use crate::data::pack::Batch;
use crate::model::{Objective, Packed, Target, Workspace};
use crate::ops::adamw::AdamW;
use crate::ops::reduce::global_norm;
use crate::optim::{AdamWConfig, Schedule};
use anyhow::Result;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;

/// What training owns besides the model.
pub struct Trainer {
    /// The model; its weights change at every update.
    pub model: LanguageModel,
    /// Steps done; the learning rate follows them.
    pub step: u64,
    /// Updates done; a step has one or more.
    num_updates: u64,
    /// First and second moments of AdamW, flat, in the layout's order.
    moments: [Vec<f32>; 2],
    grads: Vec<f32>,
    optim: AdamWConfig,
    schedule: Schedule,
    total_steps: u64,
    workspace: Workspace,
}

/// What a checkpoint keeps besides weights and moments.
#[derive(Serialize, Deserialize)]
struct Saved<S> {
    step: u64,
    num_updates: u64,
    state: S,
}

/// What one update did.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate used.
    pub lr: f64,
    /// False where a non-finite gradient made it skip the update.
    pub is_finite: bool,
}

impl Trainer {
    /// A fresh optimizer around `model`, for a run of `total_steps` updates.
    pub fn new(
        model: LanguageModel,
        optim: AdamWConfig,
        schedule: Schedule,
        total_steps: u64,
    ) -> Self {
        let zeros = || vec![0.0; model.params.len()];
        Self {
            moments: [zeros(), zeros()],
            step: 0,
            num_updates: 0,
            grads: zeros(),
            optim,
            schedule,
            total_steps,
            workspace: Workspace::default(),
            model,
        }
    }

    /// Continues where the checkpoint in `dir` stopped; the model has been read from it. Returns
    /// what the loop saved of its own.
    pub fn restore<S: DeserializeOwned>(&mut self, dir: &Path) -> Result<S> {
        let [m, v] = &mut self.moments;
        let saved: Saved<S> = load_step(dir, [m, v])?;
        self.step = saved.step;
        self.num_updates = saved.num_updates;
        Ok(saved.state)
    }

    /// Writes a checkpoint at `path`: the model, the moments, the step and the loop's own `state`.
    pub fn save<S: Serialize>(&self, path: &Path, state: S) -> Result<()> {
        let [m, v] = &self.moments;
        save_step(
            path,
            self.model.as_saved(),
            [m, v],
            &Saved { step: self.step, num_updates: self.num_updates, state },
        )
    }

    /// Adds the gradient of one batch. `objective(first_target, scores, dlogp, dentropy)` is called
    /// for consecutive chunks of the batch's targets.
    pub fn accumulate(&mut self, batch: &Batch, temperature: f32, objective: &mut Objective<'_>) {
        let packed = Packed {
            tokens: batch.tokens.clone(),
            cu_seqlens: batch.cu_seqlens.iter().map(|&end| end as usize).collect(),
        };
        let targets: Vec<Target> =
            batch.targets.iter().map(|&(row, token)| Target { row: row as usize, token }).collect();
        self.model.decoder.forward_backward(
            &self.model.params,
            &packed,
            &targets,
            temperature,
            objective,
            &mut self.grads,
            &mut self.workspace,
        );
    }

    /// Divides the gradient by `denominator`, clips it, steps AdamW and clears it.
    pub fn update(&mut self, denominator: f64) -> Update {
        let lr = self.optim.lr * self.schedule.factor(self.step, self.total_steps);
        let grad_norm = global_norm(&self.grads) / denominator;
        let is_finite = grad_norm.is_finite();
        if is_finite {
            let [m, v] = &mut self.moments;
            let adamw = AdamW {
                learning_rate: lr as f32,
                beta1: self.optim.betas.0 as f32,
                beta2: self.optim.betas.1 as f32,
                epsilon: self.optim.eps as f32,
                weight_decay: self.optim.weight_decay as f32,
                gradient_scale: (self.optim.clip_factor(grad_norm) / denominator) as f32,
                step: self.num_updates + 1,
            };
            let decays = self.model.decoder.layout().decay_ranges();
            adamw.step(&mut self.model.params, &self.grads, m, v, &decays);
        }
        self.grads.fill(0.0);
        self.num_updates += 1;
        Update { grad_norm, lr, is_finite }
    }

    /// Ends a step after its updates.
    pub fn end_step(&mut self) {
        self.step += 1;
    }
}
