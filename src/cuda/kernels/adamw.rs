//! This file launches `kernels/adamw.cu`.

use super::{Float, VECTOR, blocks, functions, int};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Argument, Function, fatbin};
use crate::cuda::stream::Stream;
use crate::ops::adamw::AdamW;
use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use half::bf16;
use std::ffi::c_void;
use std::sync::Arc;

/// There is a kernel for each format of moments (f32, bf16) and of gradients (16 bits, f32).
#[derive(Debug)]
pub struct AdamWKernels {
    exact: super::ByFloat,
    rounded: super::ByFloat,
}

/// A number format that AdamW's moments can have.
pub trait Moment: Pod {
    /// The format is f32 if true, else bf16.
    const IS_EXACT: bool;
}

impl Moment for f32 {
    const IS_EXACT: bool = true;
}

impl Moment for bf16 {
    const IS_EXACT: bool = false;
}

/// The factors of one step, as the kernel reads them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Step {
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    gradient_scale: f32,
    keep: f32,
    step_size: f32,
    inverse_root_correction: f32,
}

// SAFETY: the kernel's struct of seven floats.
unsafe impl Argument for Step {
    fn pointer(&self) -> *const c_void {
        std::ptr::from_ref(self).cast()
    }
}

/// A range of the whole model's elements that weight decay applies to; `end` is exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DecayRange {
    pub start: u64,
    pub end: u64,
}

/// The elements of the optimizer that one rank updates; all slices have one element for each.
#[derive(Debug)]
pub struct Shard<'a, M> {
    /// The first element has this index in the whole model, a multiple of eight.
    pub start: u64,
    pub master: DeviceSliceMut<'a, f32>,
    pub first_moments: DeviceSliceMut<'a, M>,
    pub second_moments: DeviceSliceMut<'a, M>,
    /// The kernel writes the new weights here, rounded to 16 bits.
    pub parameters: DeviceSliceMut<'a, Half>,
}

/// The other inputs of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a, G> {
    /// There is one gradient for each element of the shard.
    pub gradients: DeviceSlice<'a, G>,
    /// The ranges are ascending, disjoint, and count elements of the whole model.
    pub decays: DeviceSlice<'a, DecayRange>,
    /// The step is skipped where this one flag is not 0.
    pub not_finite: DeviceSlice<'a, u32>,
}

impl AdamWKernels {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["adamw_half", "adamw_f32", "adamw_half_rounded", "adamw_f32_rounded"];
        let [narrow, wide, rounded_narrow, rounded_wide] =
            functions(device, fatbin!("adamw", device.half_format()), names)?;
        Ok(Self {
            exact: super::ByFloat { narrow, wide },
            rounded: super::ByFloat { narrow: rounded_narrow, wide: rounded_wide },
        })
    }

    /// Updates a shard. `key` belongs to the run and the step, and decides how bf16 moments are
    /// rounded.
    pub fn step<G: Float, M: Moment>(
        &self,
        stream: &Stream,
        adamw: AdamW,
        shard: &mut Shard<'_, M>,
        inputs: StepInputs<'_, G>,
        key: u64,
    ) -> Result<()> {
        const THREADS: usize = 256;
        let Shard { start, master, first_moments, second_moments, parameters } = shard;
        let StepInputs { gradients, decays, not_finite } = inputs;
        let count = master.len();
        let lens = [first_moments.len(), second_moments.len(), parameters.len(), gradients.len()];
        assert_eq!(lens, [count; 4], "as many of everything as weights");
        assert!(start.is_multiple_of(VECTOR as u64), "a shard starts at a whole vector");
        assert_eq!(not_finite.len(), 1, "one flag");
        let factors = Step::from(adamw);
        let grid = blocks(count.div_ceil(THREADS * VECTOR));
        let (count, num_decays) = (count as i64, int(decays.len()));
        let kernel: &Function =
            if M::IS_EXACT { self.exact.of::<G>() } else { self.rounded.of::<G>() };
        // SAFETY: the kernel's parameters.
        unsafe {
            kernel.launch(
                grid,
                THREADS as u32,
                0,
                stream,
                &[
                    master,
                    parameters,
                    first_moments,
                    second_moments,
                    &gradients,
                    &count,
                    start,
                    &decays,
                    &num_decays,
                    &factors,
                    &not_finite,
                    &key,
                ],
            )
        }
    }
}

impl From<AdamW> for Step {
    fn from(adamw: AdamW) -> Self {
        let power = i32::try_from(adamw.step).unwrap_or(i32::MAX);
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(power);
        Self {
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            epsilon: adamw.epsilon,
            gradient_scale: adamw.gradient_scale,
            keep: 1.0 - adamw.learning_rate * adamw.weight_decay,
            step_size: (f64::from(adamw.learning_rate) / correction(adamw.beta1)) as f32,
            inverse_root_correction: (1.0 / correction(adamw.beta2).sqrt()) as f32,
        }
    }
}
