//! Launches `kernels/adamw.cu`.

use super::{Float, VECTOR, blocks, functions, int};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Argument, Function, cubin};
use crate::cuda::stream::Stream;
use crate::ops::adamw::AdamW;
use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use half::bf16;
use std::ffi::c_void;
use std::sync::Arc;

/// The kernels: by moments (fp32, bf16), by gradients (16 bits, fp32).
#[derive(Debug)]
pub struct AdamWKernels {
    exact: super::ByFloat,
    rounded: super::ByFloat,
}

/// A number format of moments.
pub trait Moment: Pod {
    /// Whether it is fp32, not bf16.
    const IS_EXACT: bool;
}

impl Moment for f32 {
    const IS_EXACT: bool = true;
}

impl Moment for bf16 {
    const IS_EXACT: bool = false;
}

/// The kernel's factors.
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

/// Elements that weight decay applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DecayRange {
    /// The first.
    pub start: u64,
    /// The first behind.
    pub end: u64,
}

/// A shard of the optimizer's state.
#[derive(Debug)]
pub struct Shard<'a, M> {
    /// The place of its first element in the whole model, a multiple of eight.
    pub start: u64,
    /// fp32 weights.
    pub master: DeviceSliceMut<'a, f32>,
    /// First moments, fp32 or bf16.
    pub first_moments: DeviceSliceMut<'a, M>,
    /// Second moments.
    pub second_moments: DeviceSliceMut<'a, M>,
    /// The parameters of the shard.
    pub parameters: DeviceSliceMut<'a, Half>,
}

/// What a step reads of the device besides the shard.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a, G> {
    /// Gradients of the shard's elements.
    pub gradients: DeviceSlice<'a, G>,
    /// Ascending, disjoint ranges of the whole model.
    pub decays: DeviceSlice<'a, DecayRange>,
    /// One flag: what is not 0 skips the step.
    pub not_finite: DeviceSlice<'a, u32>,
}

impl AdamWKernels {
    /// Loads the kernels.
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["adamw_half", "adamw_f32", "adamw_half_rounded", "adamw_f32_rounded"];
        let [narrow, wide, rounded_narrow, rounded_wide] =
            functions(device, cubin!("adamw", device.half_format()), names)?;
        Ok(Self {
            exact: super::ByFloat { narrow, wide },
            rounded: super::ByFloat { narrow: rounded_narrow, wide: rounded_wide },
        })
    }

    /// Updates a shard. `key` is of the run and the step; it decides how bf16 moments are rounded.
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
