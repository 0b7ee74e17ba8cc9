//! What a pass reads beside weights and cache: tokens, places and tables, uploaded at once.
//!
//! Contract: where each part lies depends on nothing but the size of a pass, so that a recorded pass
//! reads the inputs of the next one of its size. Rows that fill a pass up are sequences of no tokens,
//! which write into the block beside the cache and want no logits of their own.

use crate::cuda::{DeviceBuffer, DeviceSlice, Phase, Stream, Transfer};
use crate::model::{BLOCK_TOKENS, Row};
use anyhow::Result;
use std::ops::Range;

/// Rows of a pass and those that want logits, both filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PassSize {
    pub(super) rows: usize,
    pub(super) wanted: usize,
}

/// A power of two or a multiple of 32, so that at most 31 rows are added, each with its own place in
/// a block.
pub(super) fn filled(rows: usize) -> usize {
    match rows {
        0 => 0,
        1..BLOCK_TOKENS => rows.next_power_of_two(),
        _ => rows.next_multiple_of(BLOCK_TOKENS),
    }
}

/// Numbers in device memory and, while they are gathered, on the host.
pub(super) struct Inputs<'a> {
    device: DeviceBuffer<'a, u32>,
    host: Vec<u32>,
    /// Blocks of the longest sequence.
    table_width: usize,
}

impl<'a> Inputs<'a> {
    /// Room for passes of at most `rows` rows of which `wanted` want logits, both filled up.
    pub(super) fn take(
        phase: &mut Phase<'a>,
        rows: usize,
        wanted: usize,
        table_width: usize,
    ) -> Result<Self> {
        let len = rows * (4 + table_width) + wanted;
        let device = phase.take("inputs of a pass", len)?;
        Ok(Self { device, host: Vec::with_capacity(len), table_width })
    }

    /// Uploads the inputs of `rows`, whose sequences have `tables` in a cache with a block `beside` it.
    pub(super) fn set(
        &mut self,
        (stream, transfer): (&Stream, &mut Transfer),
        (tables, beside): (&[&[u32]], usize),
        rows: &[Row],
    ) -> Result<PassSize> {
        let wanted = rows.iter().filter(|row| row.wants_logits).count();
        let pass = PassSize { rows: filled(rows.len()), wanted: filled(wanted) };
        let end = self.tables_of(pass).end;
        let table = |row: &Row| tables[row.sequence as usize];
        let slot = |row: &Row| {
            let (block, within) =
                (row.position as usize / BLOCK_TOKENS, row.position as usize % BLOCK_TOKENS);
            table(row)[block] * BLOCK_TOKENS as u32 + within as u32
        };
        let filling = 0..(pass.rows - rows.len()) as u32;
        let zeros = filling.clone().map(|_| 0);
        let to_chosen = (0..).zip(rows).filter(|(_, row)| row.wants_logits).map(|(place, _)| place);
        let host = &mut self.host;
        host.clear();
        host.extend(rows.iter().map(|row| row.token).chain(zeros.clone()));
        host.extend(rows.iter().map(|row| row.position).chain(zeros.clone()));
        host.extend(
            rows.iter().map(slot).chain(filling.map(|i| (beside * BLOCK_TOKENS) as u32 + i)),
        );
        host.extend(rows.iter().map(|row| row.position + 1).chain(zeros));
        host.extend(to_chosen);
        host.resize(4 * pass.rows + pass.wanted, 0);
        for row in rows {
            let next = host.len() + self.table_width;
            host.extend_from_slice(table(row));
            host.resize(next, 0);
        }
        host.resize(end, 0);
        let device = self.device.slice_mut().into_range(0..self.host.len());
        transfer.upload(stream, &self.host, device)?;
        Ok(pass)
    }

    /// The token of each row.
    pub(super) fn tokens(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(0..pass.rows)
    }

    /// Its position.
    pub(super) fn positions(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(pass.rows..2 * pass.rows)
    }

    /// Where its key and value go.
    pub(super) fn slots(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(2 * pass.rows..3 * pass.rows)
    }

    /// The tokens that it sees.
    pub(super) fn lengths(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(3 * pass.rows..4 * pass.rows)
    }

    /// The rows that want logits.
    pub(super) fn wanted(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(4 * pass.rows..4 * pass.rows + pass.wanted)
    }

    /// The blocks of each row's sequence.
    pub(super) fn tables(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(self.tables_of(pass))
    }

    fn tables_of(&self, pass: PassSize) -> Range<usize> {
        let start = 4 * pass.rows + pass.wanted;
        start..start + pass.rows * self.table_width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_have_few_sizes_and_little_filling() {
        assert_eq!([0, 1, 2, 3, 5, 31, 32].map(filled), [0, 1, 2, 4, 8, 32, 32]);
        assert_eq!([33, 64, 65, 257].map(filled), [64, 64, 96, 288]);
        assert!((0..5000).all(|rows| filled(rows) - rows < BLOCK_TOKENS));
    }
}
