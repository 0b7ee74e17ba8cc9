//! This file launches `kernels/repetition.cu`.

use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, fatbin};
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

#[derive(Debug)]
pub struct Repetition {
    penalize: Function,
}

/// The tokens that occur already in each row's text.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The tokens of row `i` are `tokens[starts[i]..starts[i + 1]]`.
    pub starts: DeviceSlice<'a, u32>,
    /// The tokens of one row are distinct and below the row's width.
    pub tokens: DeviceSlice<'a, u32>,
}

impl Repetition {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let [penalize] = functions(device, fatbin!("repetition"), ["penalize_repetition"])?;
        Ok(Self { penalize })
    }

    /// Makes the seen tokens of each row of `logits` `[rows, stride]` less likely.
    pub fn penalize(
        &self,
        stream: &Stream,
        penalty: f32,
        seen: Seen<'_>,
        logits: DeviceSliceMut<'_, f32>,
        stride: usize,
    ) -> Result<()> {
        let rows = rows_of(logits.len(), stride);
        assert_eq!(seen.starts.len(), rows + 1, "a start for each row, and an end");
        // SAFETY: the kernel's parameters; tokens are within their rows.
        unsafe {
            self.penalize.launch(
                blocks(rows),
                256,
                0,
                stream,
                &[&logits, &seen.starts, &seen.tokens, &penalty, &int(stride)],
            )
        }
    }
}
