//! Cached generation: new tokens of many sequences in one pass, prompts and single steps mixed.
//!
//! The logits of a row have the bits that training computes for that row of the whole sequence, whatever
//! else is in the pass. Rows are divided among threads by sequence, and each thread takes its rows through
//! all layers without waiting for others. Where that would leave threads idle, or would read large weights
//! once for each thread, all rows are one share: the threads then divide each product by columns and
//! attention by heads. Nothing is allocated once the workspace has seen the largest pass.

use super::cache::{BLOCK_TOKENS, KvCache};
use super::decoder::{CHUNK, Decoder, Projection, Turn};
use super::weights::Weights;
use crate::ops::attention::{Cached, Heads, Pages, attend_cached, store_key, store_value};
use crate::ops::buffer::Buffer;
use crate::ops::parallel::{SharedMut, for_each};
use crate::ops::rope::Rope;

/// A token to append to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub token: u32,
    /// The index of its sequence in the list of block tables.
    pub sequence: u32,
    /// The position of the token. The sequence's blocks hold all positions before it.
    pub position: u32,
    /// Whether the logits of the next token are wanted.
    pub wants_logits: bool,
    /// Whether the token belongs to a prompt, which a GPU reads in tiles. A GPU computes the token of a
    /// response alone, as in a single step, also where it is read again, so that the bits stay the same.
    pub is_prompt: bool,
}

/// The buffers of [`Decoder::extend`]. They grow to the largest pass.
#[derive(Default)]
pub struct DecodeWorkspace {
    rope: Option<Rope>,
    threads: Vec<ShareBuffers>,
    shares: Vec<Share>,
    uses: Vec<u32>,
    logits: Buffer,
}

/// The product of weight bytes and rows from which on threads divide a pass by columns: below it, waiting
/// for each other costs more than it saves.
const WORTH_SHARING: usize = 64 << 20;
/// Weights of fewer bytes stay in the last-level cache, where every thread may read them for itself.
const CACHED: usize = 64 << 20;
/// With fewer rows a thread, large weights take longer to read than to compute with.
const FEW_ROWS: usize = 4;
/// A part of this many multiply-adds of attention is worth another thread.
const WORTH_A_FORK: usize = 1 << 18;

/// The rows of one thread.
#[derive(Clone, Copy)]
struct Share {
    first: usize,
    end: usize,
    /// The number of rows before these whose logits are wanted.
    wanted: usize,
}

/// The buffers of a share.
#[derive(Default)]
struct ShareBuffers {
    x: Buffer,
    qkv: Buffer,
    attention: Buffer,
    middle: Buffer,
    gate_up: Buffer,
    /// One buffer for each thread that works on the share.
    scratch: Vec<Buffer>,
}

/// A cache whose blocks are written by several threads, and the table of each sequence.
struct SharedCache<'a> {
    keys: SharedMut<'a, f32>,
    values: SharedMut<'a, f32>,
    shape: super::cache::CacheShape,
    tables: &'a [&'a [u32]],
}

impl SharedCache<'_> {
    /// Writes the keys and values of the rows of one sequence, then computes their attention, on a thread
    /// for each scratch buffer.
    ///
    /// # Safety
    /// No other thread reads or writes the blocks that the rows write.
    unsafe fn attend(
        &self,
        layer: usize,
        heads: Heads,
        rows: &[Row],
        qkv: &[f32],
        out: &mut [f32],
        scratch: &mut [Buffer],
    ) {
        let Self { shape, tables, .. } = self;
        let (layer_keys, layer_values) = shape.layer_lens();
        let keys = self.keys.offset(layer * layer_keys);
        let values = self.values.offset(layer * layer_values);
        let table = tables[rows[0].sequence as usize];
        let first_position = rows[0].position as usize;
        let work = rows.len() * (first_position + rows.len()) * heads.queries * heads.dim;
        let threads = if work < WORTH_A_FORK { 1 } else { scratch.len() };
        let out = SharedMut::new(out);
        for_each(heads.keys, &mut scratch[..threads], |head, scratch| {
            for (row, qkv) in rows.iter().zip(qkv.chunks_exact(heads.row())) {
                let position = row.position as usize;
                let index = shape.index(table[position / BLOCK_TOKENS], head);
                let [keys, values] = [(&keys, shape.key_len()), (&values, shape.value_len())]
                    // SAFETY: the caller's promise, and no two items have a head in common.
                    .map(|(all, len)| unsafe { all.part(index * len..(index + 1) * len) });
                let (key, value) = heads.key_value(qkv, head);
                store_key(key, position % BLOCK_TOKENS, keys);
                store_value(value, position % BLOCK_TOKENS, values);
            }
            // SAFETY: this item alone writes the head's part of the sequence's last blocks, and
            // nobody the others; the query heads of a key head are its alone.
            unsafe {
                let pages = Pages::new(&keys, &values, table, heads.keys, head, BLOCK_TOKENS);
                attend_cached(heads, qkv, Cached { pages, head, first_position }, &out, scratch);
            }
        });
    }
}

/// Panics if two sequences hold a block that a row writes: blocks are written without locks.
pub(crate) fn assert_writes_are_private(
    num_blocks: usize,
    tables: &[&[u32]],
    rows: &[Row],
    uses: &mut Vec<u32>,
) {
    uses.clear();
    uses.resize(num_blocks, 0);
    tables.iter().for_each(|table| table.iter().for_each(|&block| uses[block as usize] += 1));
    for row in rows {
        let table = tables[row.sequence as usize];
        let written = table[row.position as usize / BLOCK_TOKENS];
        assert_eq!(uses[written as usize], 1, "block {written} is written and shared");
    }
}

impl DecodeWorkspace {
    /// Creates an empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the logits of the last pass, as [`Decoder::extend`] did. What follows them in the buffer has
    /// no meaning.
    pub fn logits(&self) -> &[f32] {
        self.logits.as_slice()
    }
}

impl Decoder {
    /// Appends `rows` to their sequences: writes their keys and values into the cache, and returns the
    /// logits `[wanted, vocab_size]` of the rows that want them, in order. The rows of a sequence are
    /// neighbours with ascending positions. `tables` lists the blocks of each sequence, enough for its last
    /// row. A block that a row writes must be in no other table; it panics otherwise.
    pub fn extend<'w>(
        &self,
        weights: &Weights<'_>,
        cache: &mut KvCache,
        tables: &[&[u32]],
        rows: &[Row],
        ws: &'w mut DecodeWorkspace,
    ) -> &'w mut [f32] {
        let DecodeWorkspace { rope, threads, shares, uses, logits } = ws;
        assert_writes_are_private(cache.num_blocks(), tables, rows, uses);
        let rope = rope.get_or_insert_with(|| self.rope());
        let longest = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
        rope.grow(longest);
        let num_threads = rayon::current_num_threads();
        threads.resize_with(num_threads, ShareBuffers::default);
        share_rows(rows, num_threads, shares);
        let threads_per_share = if is_shared_by_columns(rows, shares, num_threads, weights) {
            share_rows(rows, 1, shares);
            num_threads
        } else {
            1
        };
        let vocab = self.config().vocab_size;
        let wanted = rows.iter().filter(|row| row.wants_logits).count();
        let logits = logits.grow(wanted * vocab);
        let shared_logits = SharedMut::new(logits);
        let shared_cache = SharedCache {
            keys: SharedMut::new(cache.keys.as_mut_slice()),
            values: SharedMut::new(cache.values.as_mut_slice()),
            shape: cache.shape,
            tables,
        };
        let extend = |item: usize, buffers: &mut ShareBuffers| {
            let share: Share = shares[item];
            let rows = &rows[share.first..share.end];
            let wanted = rows.iter().filter(|row| row.wants_logits).count();
            let at = share.wanted * vocab;
            // SAFETY: each share has its own rows of the logits.
            let logits = unsafe { shared_logits.part(at..at + wanted * vocab) };
            buffers.scratch.resize_with(threads_per_share, Buffer::default);
            self.extend_share(weights, &shared_cache, rows, rope, buffers, logits);
        };
        if threads_per_share > 1 {
            // The pool is entered once, rather than once for each product.
            rayon::scope(|_| extend(0, &mut threads[0]));
        } else {
            for_each(shares.len(), threads, extend);
        }
        logits
    }

    fn extend_share(
        &self,
        weights: &Weights<'_>,
        cache: &SharedCache<'_>,
        rows: &[Row],
        rope: &Rope,
        buffers: &mut ShareBuffers,
        logits: &mut [f32],
    ) {
        let (hidden, heads) = (self.config().hidden_size, self.heads());
        let (inner, width) = (self.config().intermediate_size, self.attention_width());
        let chunk = CHUNK.min(rows.len());
        let threads = buffers.scratch.len();
        let x = buffers.x.grow(rows.len() * hidden);
        let qkv = buffers.qkv.grow(rows.len() * heads.row());
        let attention = buffers.attention.grow(rows.len() * width);
        let middle = buffers.middle.grow(chunk * hidden);
        let gate_up = buffers.gate_up.grow(chunk * 2 * inner);
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(hidden)) {
            weights.embed(row.token, x);
        }
        for layer in 0..self.config().num_layers {
            let weights = weights.packed.layer(layer);
            let chunks = rows.chunks(CHUNK).zip(x.chunks(CHUNK * hidden));
            for ((rows, x), qkv) in chunks.zip(qkv.chunks_mut(CHUNK * heads.row())) {
                let mut positions = rows.iter().map(|row| row.position as usize);
                let turn = Turn { rope, positions: &mut positions };
                let out = Projection { qkv, before_norm: None };
                self.attention_input(threads, weights, x, turn, out, &mut buffers.scratch[0]);
            }
            let mut first = 0;
            for run in rows.chunk_by(|a, b| a.sequence == b.sequence) {
                let qkv = &qkv[first * heads.row()..(first + run.len()) * heads.row()];
                let out = &mut attention[first * width..(first + run.len()) * width];
                first += run.len();
                // SAFETY: the rows of a sequence are all in one share, and what they write belongs
                // to that sequence alone.
                unsafe { cache.attend(layer, heads, run, qkv, out, &mut buffers.scratch) };
            }
            let chunks = x.chunks_mut(CHUNK * hidden).zip(attention.chunks(CHUNK * width));
            for (x, attention) in chunks {
                let rows = x.len() / hidden;
                let middle = &mut middle[..rows * hidden];
                let gate_up = &mut gate_up[..rows * 2 * inner];
                middle.copy_from_slice(x);
                let scratch = &mut buffers.scratch[0];
                self.attention_output(threads, weights, attention, middle, gate_up, x, scratch);
            }
        }
        let mut wanted = 0;
        for (index, _) in rows.iter().enumerate().filter(|(_, row)| row.wants_logits) {
            x.copy_within(index * hidden..(index + 1) * hidden, wanted * hidden);
            wanted += 1;
        }
        let vocab = self.config().vocab_size;
        for (x, logits) in
            x[..wanted * hidden].chunks(CHUNK * hidden).zip(logits.chunks_mut(CHUNK * vocab))
        {
            let normal = buffers.scratch[0].grow(x.len());
            self.logits(threads, &weights.packed, x, normal, logits);
        }
    }
}

/// Returns whether the threads divide all rows by columns instead of taking a share of rows each. They do
/// where the largest share exceeds an even one by more than a third, and where few rows would make each
/// thread read weights that no cache holds.
fn is_shared_by_columns(
    rows: &[Row],
    shares: &[Share],
    threads: usize,
    weights: &Weights<'_>,
) -> bool {
    let largest = shares.iter().map(|share| share.end - share.first).max().unwrap_or(0);
    let is_uneven = 3 * largest * threads > 4 * rows.len();
    let bytes = weights.packed.bytes();
    let is_reading = bytes > CACHED && rows.len() < FEW_ROWS * threads;
    threads > 1 && rows.len() * bytes >= WORTH_SHARING && (is_uneven || is_reading)
}

/// Divides the rows into shares of about equal size, between sequences.
fn share_rows(rows: &[Row], threads: usize, shares: &mut Vec<Share>) {
    shares.clear();
    let mut share = Share { first: 0, end: 0, wanted: 0 };
    let mut wanted = 0;
    for (index, row) in rows.iter().enumerate() {
        let due = (shares.len() + 1) * rows.len() / threads;
        if index >= due && index > share.first && rows[index - 1].sequence != row.sequence {
            shares.push(Share { end: index, ..share });
            share = Share { first: index, end: index, wanted };
        }
        wanted += usize::from(row.wants_logits);
    }
    if !rows.is_empty() {
        shares.push(Share { end: rows.len(), ..share });
    }
}
