//! This file defines a matrix in a phase's memory.

use crate::cuda::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Half, Phase};
use anyhow::Result;
use bytemuck::Pod;

/// A matrix with memory for the rows of the largest batch.
pub(crate) struct Matrix<'a, T = Half> {
    data: DeviceBuffer<'a, T>,
    width: usize,
}

impl<'a, T: Pod> Matrix<'a, T> {
    pub(crate) fn take(
        phase: &mut Phase<'a>,
        name: &str,
        rows: usize,
        width: usize,
    ) -> Result<Self> {
        Ok(Self { data: phase.take(name, rows * width)?, width })
    }

    /// Returns the elements of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Returns the first `rows` rows.
    pub(crate) fn rows(&self, rows: usize) -> DeviceSlice<'_, T> {
        self.first(rows * self.width)
    }

    /// Returns the first `rows` rows for writing.
    pub(crate) fn rows_mut(&mut self, rows: usize) -> DeviceSliceMut<'_, T> {
        self.first_mut(rows * self.width)
    }

    /// Returns the first `len` elements, for rows of another width.
    pub(crate) fn first(&self, len: usize) -> DeviceSlice<'_, T> {
        self.data.slice().range(0..len)
    }

    /// Returns the first `len` elements for writing.
    pub(crate) fn first_mut(&mut self, len: usize) -> DeviceSliceMut<'_, T> {
        self.data.slice_mut().into_range(0..len)
    }
}
