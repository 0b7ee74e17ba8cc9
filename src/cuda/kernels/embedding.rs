//! This file launches `kernels/embedding.cu`, and lists the rows of each token for its backward.

use super::{ByFloat, Float, VECTOR, blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::half::Half;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, fatbin};
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

#[derive(Debug)]
pub struct Embedding {
    forward: Function,
    backward: ByFloat,
}

/// The distinct tokens of a batch, and the rows in which each occurs, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRows {
    /// The tokens are distinct and ascending.
    pub tokens: Vec<u32>,
    /// The rows of token `i` are `rows[starts[i]..starts[i + 1]]`.
    pub starts: Vec<u32>,
    /// These are all rows of the batch, grouped by token.
    pub rows: Vec<u32>,
}

impl TokenRows {
    /// Groups the rows of a batch by token.
    pub fn new(tokens: &[u32]) -> Self {
        let mut rows: Vec<u32> = (0..).take(tokens.len()).collect();
        rows.sort_by_key(|&row| tokens[row as usize]);
        let mut list = Self { rows, ..Self::default() };
        for (at, &row) in list.rows.iter().enumerate() {
            let token = tokens[row as usize];
            if list.tokens.last() != Some(&token) {
                list.tokens.push(token);
                list.starts.push(at as u32);
            }
        }
        list.starts.push(tokens.len() as u32);
        list
    }
}

/// [`TokenRows`] in device memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTokenRows<'a> {
    pub tokens: DeviceSlice<'a, u32>,
    pub starts: DeviceSlice<'a, u32>,
    pub rows: DeviceSlice<'a, u32>,
}

impl Embedding {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["embedding", "embedding_backward_half", "embedding_backward_f32"];
        let [forward, narrow, wide] =
            functions(device, fatbin!("embedding", device.half_format()), names)?;
        Ok(Self { forward, backward: ByFloat { narrow, wide } })
    }

    /// Copies each token's row of `table` `[vocabulary, width]` to `out` `[tokens, width]`. Every
    /// token must be below the vocabulary's size.
    pub fn forward(
        &self,
        stream: &Stream,
        table: DeviceSlice<'_, Half>,
        tokens: DeviceSlice<'_, u32>,
        width: usize,
        out: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        rows_of(table.len(), width);
        assert_eq!(rows_of(out.len(), width), tokens.len(), "a row for each token");
        let (grid, threads) =
            (blocks(tokens.len()), (width / VECTOR).next_multiple_of(32).min(256));
        // SAFETY: the kernel's parameters; it reads rows of tokens in the table.
        unsafe {
            self.forward.launch(
                grid,
                threads as u32,
                0,
                stream,
                &[&table, &tokens, &out, &int(width)],
            )
        }
    }

    /// Adds the rows of `dy` `[tokens, width]` to their tokens' rows of `gradient` `[vocabulary,
    /// width]`.
    pub fn backward<G: Float>(
        &self,
        stream: &Stream,
        dy: DeviceSlice<'_, Half>,
        list: DeviceTokenRows<'_>,
        width: usize,
        gradient: DeviceSliceMut<'_, G>,
    ) -> Result<()> {
        const THREADS: usize = 128;
        rows_of(gradient.len(), width);
        assert_eq!(rows_of(dy.len(), width), list.rows.len(), "a row for each token");
        assert_eq!(list.starts.len(), list.tokens.len() + 1, "starts and an end");
        let columns = width.div_ceil(THREADS * VECTOR);
        let grid = (blocks(list.tokens.len()), blocks(columns));
        // SAFETY: the kernel's parameters; rows and tokens are those of the batch.
        unsafe {
            self.backward.of::<G>().launch(
                grid,
                THREADS as u32,
                0,
                stream,
                &[&dy, &list.tokens, &list.starts, &list.rows, &gradient, &int(width)],
            )
        }
    }
}
