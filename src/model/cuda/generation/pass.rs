//! This file uploads what a pass reads besides weights and cache: tokens, positions, slots and
//! tables.
//!
//! Contract: single steps come first, then prompts, whose attention is computed by tiles. The place
//! of each part depends only on the size of a pass, so that a recorded pass reads the inputs of the
//! next pass of its size. Rows that fill a pass up write to the additional block of the cache, and
//! repeat row 0 where logits are filled up. In a pass of single steps alone they are sequences
//! without tokens; otherwise attention skips them.

use crate::cuda::kernels::prompt;
use crate::cuda::kernels::rope::Heads;
use crate::cuda::{DeviceBuffer, DeviceSlice, Phase, Stream, Transfer};
use crate::model::gpu_sizes::filled;
use crate::model::{BLOCK_TOKENS, Row};
use anyhow::Result;
use std::ops::Range;

/// The sizes of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PassSize {
    /// The number of rows is filled up.
    pub(crate) rows: usize,
    /// The number of rows that want logits is filled up.
    pub(crate) wanted: usize,
    /// This many rows are single steps; the number is filled up where there are no tiles.
    pub(crate) singles: usize,
    /// The prompts have so many tiles.
    pub(crate) tiles: usize,
}

impl PassSize {
    /// Returns how many lengths and tables there are: one for each single step and each tile.
    fn sequences(self) -> usize {
        self.singles + self.tiles
    }

    // Parts of the inputs begin here, after tokens, positions and slots.

    fn wanted_start(self) -> usize {
        3 * self.rows
    }

    fn tiles_start(self) -> usize {
        self.wanted_start() + self.wanted
    }

    fn lengths_start(self) -> usize {
        self.tiles_start() + 2 * self.tiles
    }

    fn tables_start(self) -> usize {
        self.lengths_start() + self.sequences()
    }
}

/// The inputs in device memory, and on the host while they are gathered.
pub(crate) struct Inputs<'a> {
    device: DeviceBuffer<'a, u32>,
    host: Vec<u32>,
    heads: Heads,
    /// A table has the blocks of the longest sequence.
    table_width: usize,
}

impl<'a> Inputs<'a> {
    /// Takes memory for passes of at most `rows` rows of which `wanted` want logits, both filled
    /// up.
    pub(crate) fn take(
        phase: &mut Phase<'a>,
        heads: Heads,
        (rows, wanted): (usize, usize),
        table_width: usize,
    ) -> Result<Self> {
        // In the worst case every row is a tile.
        let len = rows * (6 + table_width) + wanted;
        let device = phase.take("inputs of a pass", len)?;
        Ok(Self { device, host: Vec::with_capacity(len), heads, table_width })
    }

    /// Uploads the inputs of `rows`, whose sequences have `tables`. Rows that fill the pass up
    /// write to the block `beside`.
    pub(crate) fn set(
        &mut self,
        (stream, transfer): (&Stream, &mut Transfer),
        (tables, beside): (&[&[u32]], usize),
        rows: &[Row],
    ) -> Result<PassSize> {
        let arranged = Arranged::new(self.heads, rows);
        let pass = arranged.size();
        let table = |row: &Row| tables[row.sequence as usize];
        let slot = |row: &Row| {
            let (block, within) =
                (row.position as usize / BLOCK_TOKENS, row.position as usize % BLOCK_TOKENS);
            table(row)[block] * BLOCK_TOKENS as u32 + within as u32
        };
        let filling = 0..(pass.rows - rows.len()) as u32;
        let zeros = filling.clone().map(|_| 0);
        let beside = filling.map(|i| (beside * BLOCK_TOKENS) as u32 + i);
        let Arranged { rows, tiles, wanted, .. } = &arranged;
        let host = &mut self.host;
        host.clear();
        host.extend(rows.iter().map(|row| row.token).chain(zeros.clone()));
        host.extend(rows.iter().map(|row| row.position).chain(zeros));
        host.extend(rows.iter().map(slot).chain(beside));
        host.extend(wanted);
        host.resize(pass.tiles_start(), 0);
        host.extend(prompt::numbers(tiles));
        host.extend(arranged.last_rows().map(|row| row.position + 1));
        host.resize(pass.tables_start(), 0);
        for row in arranged.last_rows() {
            let next = host.len() + self.table_width;
            host.extend_from_slice(table(row));
            host.resize(next, 0);
        }
        host.resize(pass.tables_start() + pass.sequences() * self.table_width, 0);
        let device = self.device.slice_mut().into_range(0..self.host.len());
        transfer.upload(stream, &self.host, device)?;
        Ok(pass)
    }

    /// Returns the token of each row.
    pub(crate) fn tokens(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(0..pass.rows)
    }

    /// Returns the position of each row.
    pub(crate) fn positions(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(pass.rows..2 * pass.rows)
    }

    /// Returns the slot of the cache to which each row writes its key and value.
    pub(crate) fn slots(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(2 * pass.rows..3 * pass.rows)
    }

    /// Returns the rows that want logits.
    pub(crate) fn wanted(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(pass.wanted_start()..pass.tiles_start())
    }

    /// Returns the first row and the number of rows of each tile.
    pub(crate) fn tiles(&self, pass: PassSize) -> DeviceSlice<'_, u32> {
        self.device.slice().range(pass.tiles_start()..pass.lengths_start())
    }

    /// Returns the lengths and the tables of single steps.
    pub(crate) fn singles(&self, pass: PassSize) -> [DeviceSlice<'_, u32>; 2] {
        self.sequences(pass, 0..pass.singles)
    }

    /// Returns the lengths up to the end of each tile, and the tables of tiles.
    pub(crate) fn tiled(&self, pass: PassSize) -> [DeviceSlice<'_, u32>; 2] {
        self.sequences(pass, pass.singles..pass.sequences())
    }

    fn sequences(&self, pass: PassSize, range: Range<usize>) -> [DeviceSlice<'_, u32>; 2] {
        let (lengths, tables) = (pass.lengths_start(), pass.tables_start());
        let width = self.table_width;
        let all = self.device.slice();
        [
            all.range(lengths + range.start..lengths + range.end),
            all.range(tables + range.start * width..tables + range.end * width),
        ]
    }
}

/// The rows of a pass in the order in which they are computed: single steps, then prompts.
struct Arranged {
    rows: Vec<Row>,
    singles: usize,
    tiles: Vec<Range<usize>>,
    /// The places of the rows that want logits, in the order in which rows were given.
    wanted: Vec<u32>,
}

impl Arranged {
    fn new(heads: Heads, rows: &[Row]) -> Self {
        let (mut order, prompts): (Vec<usize>, Vec<usize>) =
            (0..rows.len()).partition(|&given| !rows[given].is_prompt);
        let singles = order.len();
        order.extend(prompts);
        let mut wanted: Vec<(usize, u32)> = order.iter().copied().zip(0..).collect();
        wanted.retain(|&(given, _)| rows[given].wants_logits);
        wanted.sort_unstable();
        let rows: Vec<Row> = order.into_iter().map(|given| rows[given]).collect();
        let tiles = tiles_of(heads, singles, &rows[singles..]);
        Self { rows, singles, tiles, wanted: wanted.into_iter().map(|(_, place)| place).collect() }
    }

    fn size(&self) -> PassSize {
        let (rows, tiles) = (filled(self.rows.len()), self.tiles.len());
        let singles = if tiles == 0 { rows } else { self.singles };
        PassSize { rows, wanted: filled(self.wanted.len()), singles, tiles }
    }

    /// Returns the single steps, and the last row of each tile.
    fn last_rows(&self) -> impl Iterator<Item = &Row> {
        let of_tiles = self.tiles.iter().map(|tile| &self.rows[tile.end - 1]);
        self.rows[..self.singles].iter().chain(of_tiles)
    }
}

/// Divides prompts, whose rows begin at `first`, into tiles. A prompt may be there in several
/// parts.
fn tiles_of(heads: Heads, mut first: usize, prompts: &[Row]) -> Vec<Range<usize>> {
    let follows = |a: &Row, b: &Row| a.sequence == b.sequence && a.position + 1 == b.position;
    let mut all = Vec::new();
    for piece in prompts.chunk_by(follows) {
        all.extend(prompt::tiles(heads, first..first + piece.len()));
        first += piece.len();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { queries: 28, keys: 4, dim: 128 };

    fn row(sequence: u32, position: u32, is_prompt: bool) -> Row {
        Row { token: 1, sequence, position, wants_logits: !is_prompt, is_prompt }
    }

    #[test]
    fn a_tile_holds_consecutive_tokens_of_one_prompt() {
        // Nine tokens of seven heads each are 63 of a tile's 64 rows.
        let first = (5..16).map(|position| row(0, position, true));
        let others = [row(1, 16, true), row(2, 17, true), row(2, 18, true)];
        let rows: Vec<Row> = first.chain(others).collect();
        assert_eq!(tiles_of(HEADS, 3, &rows), [3..12, 12..14, 14..15, 15..17]);
    }

    #[test]
    fn single_steps_come_first_and_logits_in_the_order_of_the_rows_given() {
        let ends = Row { wants_logits: true, ..row(0, 1, true) };
        let given = [row(0, 0, true), ends, row(1, 40, false), row(2, 7, true), row(3, 9, false)];
        let arranged = Arranged::new(HEADS, &given);
        let sequences: Vec<u32> = arranged.rows.iter().map(|row| row.sequence).collect();
        assert_eq!(sequences, [1, 3, 0, 0, 2]);
        assert_eq!(arranged.wanted, [3, 0, 1]);
        let last: Vec<u32> = arranged.last_rows().map(|row| row.position).collect();
        assert_eq!(last, [40, 9, 1, 7]);
        assert_eq!(arranged.size(), PassSize { rows: 8, wanted: 4, singles: 2, tiles: 2 });
    }
}
