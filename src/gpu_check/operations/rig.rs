//! This file lends an operation a GPU with buffers, and moves numbers to and from them.

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

/// Outputs begin with this byte, and it fills the memory behind each buffer: NaNs in every format.
const POISON: u8 = 0xff;
/// So many elements behind a buffer must stay as they are.
const GUARD: usize = 64;

/// A GPU as an operation under test uses it.
pub(crate) struct Rig<'g> {
    pub(crate) kernels: &'g Kernels,
    pub(crate) stream: &'g Stream,
    gemm: RefCell<&'g mut Gemm>,
    transfer: RefCell<&'g mut Transfer>,
    phase: RefCell<Phase<'g>>,
}

/// A buffer on the GPU, with a guard behind it.
pub(crate) struct Buffer<'g, T> {
    data: DeviceBuffer<'g, T>,
    len: usize,
}

impl<'g> Rig<'g> {
    /// Begins a phase with all of the GPU's arena.
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

    /// Uploads `elements` to a new buffer.
    pub(crate) fn put<T: Pod>(&self, elements: &[T]) -> Result<Buffer<'g, T>> {
        let mut buffer = self.poisoned(elements.len())?;
        self.transfer.borrow_mut().upload(self.stream, elements, buffer.slice_mut())?;
        Ok(buffer)
    }

    /// Takes a buffer that is filled with NaNs.
    pub(crate) fn poisoned<T: Pod>(&self, len: usize) -> Result<Buffer<'g, T>> {
        let mut data = self.phase.borrow_mut().take("an operand", len + GUARD)?;
        self.stream.fill(data.slice_mut(), POISON)?;
        Ok(Buffer { data, len })
    }

    /// Waits for all queued work and returns a buffer's elements. Fails if anything was written to
    /// its guard.
    pub(crate) fn get<T: Pod>(&self, buffer: &Buffer<'_, T>) -> Result<Vec<T>> {
        let mut all = vec![T::zeroed(); buffer.data.len()];
        self.transfer.borrow_mut().download(self.stream, buffer.data.slice(), &mut all)?;
        let guard = bytemuck::cast_slice::<T, u8>(&all[buffer.len..]);
        ensure!(
            guard.iter().all(|&byte| byte == POISON),
            "the operation wrote behind the end of a buffer"
        );
        all.truncate(buffer.len);
        Ok(all)
    }

    /// Returns a buffer's elements as f32, in the same way.
    pub(crate) fn read<T: Number>(&self, buffer: &Buffer<'_, T>) -> Result<Vec<f32>> {
        let format = self.stream.device().half_format();
        Ok(self.get(buffer)?.into_par_iter().map(|number| number.number(format)).collect())
    }

    pub(crate) fn gemm(&self) -> RefMut<'_, &'g mut Gemm> {
        self.gemm.borrow_mut()
    }

    /// Lends copies and memory to `work`.
    pub(crate) fn with_phase<T>(
        &self,
        work: impl FnOnce(&mut Phase<'g>, &mut Transfer) -> Result<T>,
    ) -> Result<T> {
        work(&mut self.phase.borrow_mut(), &mut self.transfer.borrow_mut())
    }
}

impl<T: Pod> Buffer<'_, T> {
    /// Returns the elements for reading by kernels.
    pub(crate) fn slice(&self) -> DeviceSlice<'_, T> {
        self.data.slice().range(0..self.len)
    }

    /// Returns the elements for writing by kernels.
    pub(crate) fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        self.data.slice_mut().into_range(0..self.len)
    }
}

/// A type of number that operations put out.
pub(crate) trait Number: Pod + Send {
    /// Converts it to f32; 16-bit numbers have `format`.
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

/// Conversions of many numbers of a 16-bit format.
pub(crate) trait Numbers {
    /// Returns normally distributed numbers times `scale`, rounded.
    fn normal(self, seed: u64, len: usize, scale: f32) -> Vec<Half>;
    fn widen_all(self, numbers: &[Half]) -> Vec<f32>;
    fn narrow_all(self, numbers: &[f32]) -> Vec<Half>;
    /// Returns the largest relative error that an operation's outputs may have.
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
