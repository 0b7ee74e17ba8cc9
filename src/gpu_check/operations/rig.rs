//! A GPU with room for the buffers of one operation, and the numbers that go in and come out.

use crate::base::rng;
use crate::cuda::kernels::Kernels;
use crate::cuda::{
    DeviceBuffer, DeviceSlice, DeviceSliceMut, Gemm, Gpu, Half, HalfFormat, Phase, Stream, Tools,
    Transfer,
};
use anyhow::{Result, ensure};
use bytemuck::Pod;
use rayon::prelude::*;
use std::cell::{RefCell, RefMut};

/// What outputs begin with, and what lies behind a buffer: NaNs in every format.
const POISON: u8 = 0xff;
/// Elements behind a buffer that have to stay as they are.
const GUARD: usize = 64;

/// Where an operation runs.
pub(crate) struct Rig<'g> {
    pub(crate) kernels: &'g Kernels,
    pub(crate) stream: &'g Stream,
    gemm: RefCell<&'g mut Gemm>,
    transfer: RefCell<&'g mut Transfer>,
    phase: RefCell<Phase<'g>>,
}

/// Elements on the GPU, and a guard behind them.
pub(crate) struct Buffer<'g, T> {
    data: DeviceBuffer<'g, T>,
    len: usize,
}

impl<'g> Rig<'g> {
    /// All of a GPU's memory.
    pub(crate) fn on(gpu: &'g mut Gpu) -> Self {
        let Gpu { stream, arena, tools: Tools { kernels, gemm, transfer }, .. } = gpu;
        Self {
            kernels,
            stream,
            gemm: RefCell::new(gemm),
            transfer: RefCell::new(transfer),
            phase: RefCell::new(arena.phase()),
        }
    }

    /// A buffer of these elements.
    pub(crate) fn put<T: Pod>(&self, elements: &[T]) -> Result<Buffer<'g, T>> {
        let mut buffer = self.poisoned(elements.len())?;
        self.transfer.borrow_mut().upload(self.stream, elements, buffer.slice_mut())?;
        Ok(buffer)
    }

    /// A buffer of NaNs.
    pub(crate) fn poisoned<T: Pod>(&self, len: usize) -> Result<Buffer<'g, T>> {
        let mut data = self.phase.borrow_mut().take("an operand", len + GUARD)?;
        self.stream.fill(data.slice_mut(), POISON)?;
        Ok(Buffer { data, len })
    }

    /// What a buffer holds once all is done that was queued before.
    pub(crate) fn get<T: Pod>(&self, buffer: &Buffer<'_, T>) -> Result<Vec<T>> {
        let mut all = vec![T::zeroed(); buffer.data.len()];
        self.transfer.borrow_mut().download(self.stream, buffer.data.slice(), &mut all)?;
        let guard = bytemuck::cast_slice::<T, u8>(&all[buffer.len..]);
        ensure!(guard.iter().all(|&byte| byte == POISON), "something wrote behind a buffer");
        all.truncate(buffer.len);
        Ok(all)
    }

    /// The same as numbers.
    pub(crate) fn read<T: Number>(&self, buffer: &Buffer<'_, T>) -> Result<Vec<f32>> {
        let format = self.stream.device().half_format();
        Ok(self.get(buffer)?.into_par_iter().map(|number| number.number(format)).collect())
    }

    /// Products of matrices.
    pub(crate) fn gemm(&self) -> RefMut<'_, &'g mut Gemm> {
        self.gemm.borrow_mut()
    }

    /// Copies, and memory for what is no operand.
    pub(crate) fn with_phase<T>(
        &self,
        work: impl FnOnce(&mut Phase<'g>, &mut Transfer) -> Result<T>,
    ) -> Result<T> {
        work(&mut self.phase.borrow_mut(), &mut self.transfer.borrow_mut())
    }
}

impl<T: Pod> Buffer<'_, T> {
    /// To be read by kernels.
    pub(crate) fn slice(&self) -> DeviceSlice<'_, T> {
        self.data.slice().range(0..self.len)
    }

    /// To be written by kernels.
    pub(crate) fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        self.data.slice_mut().into_range(0..self.len)
    }
}

/// A kind of number that operations put out.
pub(crate) trait Number: Pod + Send {
    /// As f32, from a GPU with 16-bit numbers of this format.
    fn number(self, format: HalfFormat) -> f32;
}

impl Number for Half {
    fn number(self, format: HalfFormat) -> f32 {
        format.widen(self)
    }
}

impl Number for half::bf16 {
    fn number(self, _: HalfFormat) -> f32 {
        self.to_f32()
    }
}

impl Number for f32 {
    fn number(self, _: HalfFormat) -> f32 {
        self
    }
}

impl Number for u32 {
    fn number(self, _: HalfFormat) -> f32 {
        self as f32
    }
}

/// Many numbers of a format.
pub(crate) trait Numbers {
    /// Of a standard normal distribution times `scale`, rounded.
    fn normal(self, seed: u64, len: usize, scale: f32) -> Vec<Half>;
    /// The same as f32.
    fn widen_all(self, numbers: &[Half]) -> Vec<f32>;
    /// The nearest to each.
    fn narrow_all(self, numbers: &[f32]) -> Vec<Half>;
    /// The largest relative error of an operation's outputs.
    fn tolerance(self) -> f64;
}

impl Numbers for HalfFormat {
    fn normal(self, seed: u64, len: usize, scale: f32) -> Vec<Half> {
        let number = |i: u64| {
            let (a, b) = (1.0 - rng::uniform(seed, 2 * i), rng::uniform(seed, 2 * i + 1));
            (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
        };
        (0..len as u64).into_par_iter().map(|i| self.narrow(number(i) * scale)).collect()
    }

    fn widen_all(self, numbers: &[Half]) -> Vec<f32> {
        numbers.par_iter().map(|&number| self.widen(number)).collect()
    }

    fn narrow_all(self, numbers: &[f32]) -> Vec<Half> {
        numbers.par_iter().map(|&number| self.narrow(number)).collect()
    }

    fn tolerance(self) -> f64 {
        match self {
            Self::Bf16 => 1e-2,
            Self::Fp16 => 2e-3,
        }
    }
}
