//! This file holds a packed batch in device memory: tokens, positions and tiles, which the training
//! graph reads besides activations.
//!
//! Contract: rows are padded to whole tiles of products by one more sequence of token 0 at position
//! 0. No target names its rows, so its gradients are zeros; padding keeps the number of shapes of
//! products small. Sequences without tokens are left out. Indices are checked here, because kernels
//! do not check them.

use crate::cuda::kernels::attention::{BACKWARD_ROWS, FORWARD_ROWS, Tile, tiles};
use crate::cuda::kernels::embedding::{DeviceTokenRows, TokenRows};
use crate::cuda::{DeviceBuffer, DeviceSlice, Phase, Stream, Transfer};
use crate::model::gpu_sizes::padded;
use crate::model::{BatchSize, Packed};
use anyhow::{Result, ensure};
use bytemuck::Pod;

/// A list of varying length in memory for the longest.
pub(crate) struct List<'a, T> {
    data: DeviceBuffer<'a, T>,
    len: usize,
}

impl<'a, T: Pod> List<'a, T> {
    pub(crate) fn take(phase: &mut Phase<'a>, name: &str, capacity: usize) -> Result<Self> {
        Ok(Self { data: phase.take(name, capacity)?, len: 0 })
    }

    pub(crate) fn set(&mut self, stream: &Stream, to: &mut Transfer, values: &[T]) -> Result<()> {
        self.len = values.len();
        to.upload(stream, values, self.data.slice_mut().range(0..values.len()))
    }

    pub(crate) fn get(&self) -> DeviceSlice<'_, T> {
        self.data.slice().range(0..self.len)
    }
}

/// [`TokenRows`] in memory for the largest batch.
pub(crate) struct RowList<'a> {
    tokens: List<'a, u32>,
    starts: List<'a, u32>,
    rows: List<'a, u32>,
}

impl<'a> RowList<'a> {
    pub(crate) fn take(phase: &mut Phase<'a>, name: &str, capacity: usize) -> Result<Self> {
        Ok(Self {
            tokens: List::take(phase, name, capacity)?,
            starts: List::take(phase, name, capacity + 1)?,
            rows: List::take(phase, name, capacity)?,
        })
    }

    pub(crate) fn set(&mut self, stream: &Stream, to: &mut Transfer, tokens: &[u32]) -> Result<()> {
        let list = TokenRows::new(tokens);
        self.tokens.set(stream, to, &list.tokens)?;
        self.starts.set(stream, to, &list.starts)?;
        self.rows.set(stream, to, &list.rows)
    }

    pub(crate) fn get(&self) -> DeviceTokenRows<'_> {
        DeviceTokenRows {
            tokens: self.tokens.get(),
            starts: self.starts.get(),
            rows: self.rows.get(),
        }
    }
}

/// The current batch.
pub(crate) struct Batch<'a> {
    /// The batch has so many tokens without its padding.
    pub(crate) count: usize,
    pub(crate) tokens: List<'a, u32>,
    pub(crate) positions: List<'a, u32>,
    /// The rows in which each token occurs, without the padding.
    pub(crate) occurrences: RowList<'a>,
    /// The lengths of all sequences, the padding included; none is 0.
    pub(crate) lengths: Vec<usize>,
    pub(crate) forward_tiles: List<'a, Tile>,
    pub(crate) backward_tiles: List<'a, Tile>,
    size: BatchSize,
}

impl<'a> Batch<'a> {
    pub(crate) fn take(phase: &mut Phase<'a>, size: BatchSize) -> Result<Self> {
        let rows = padded(size.tokens);
        Ok(Self {
            count: 0,
            tokens: List::take(phase, "tokens", rows)?,
            positions: List::take(phase, "positions", rows)?,
            occurrences: RowList::take(phase, "occurrences of tokens", rows)?,
            lengths: Vec::new(),
            forward_tiles: List::take(phase, "tiles of attention", rows)?,
            backward_tiles: List::take(phase, "tiles of attention", rows)?,
            size,
        })
    }

    /// Returns the rows of the batch's matrices, padding included.
    pub(crate) fn rows(&self) -> usize {
        padded(self.count)
    }

    /// Replaces the batch.
    pub(crate) fn set(
        &mut self,
        stream: &Stream,
        to: &mut Transfer,
        batch: &Packed,
        vocab: usize,
    ) -> Result<()> {
        let count = batch.tokens.len();
        let are_alone = batch.cu_families.windows(2).all(|family| family[1] - family[0] == 1);
        ensure!(are_alone, "families of several sequences are not computed on a GPU");
        ensure!(
            count <= self.size.tokens,
            "the batch has {count} tokens; at most {} were declared",
            self.size.tokens
        );
        assert_eq!(
            batch.cu_seqlens.last().copied().unwrap_or(0),
            count,
            "cu_seqlens cover the tokens"
        );
        assert!(
            batch.tokens.iter().all(|&token| (token as usize) < vocab),
            "tokens of the vocabulary"
        );
        self.count = count;
        let mut ends = vec![0];
        ends.extend(&batch.cu_seqlens);
        ends.dedup();
        let rows = self.rows();
        let lengths = ends.windows(2).map(|ends| ends[1] - ends[0]);
        let mut positions: Vec<u32> = lengths.flat_map(|length| 0..length as u32).collect();
        ensure!(
            positions.iter().all(|&position| (position as usize) < self.size.longest),
            "a sequence has more than the declared {} tokens",
            self.size.longest
        );
        if rows > count {
            ends.push(rows);
        }
        self.lengths = ends.windows(2).map(|ends| ends[1] - ends[0]).collect();
        let mut tokens = batch.tokens.clone();
        self.occurrences.set(stream, to, &tokens)?;
        tokens.resize(rows, 0);
        positions.resize(rows, 0);
        self.tokens.set(stream, to, &tokens)?;
        self.positions.set(stream, to, &positions)?;
        self.forward_tiles.set(stream, to, &tiles(&ends, FORWARD_ROWS))?;
        self.backward_tiles.set(stream, to, &tiles(&ends, BACKWARD_ROWS))
    }
}
