//! Cached generation: new tokens of many sequences, prompts and single steps mixed.
//!
//! Contract: a row's logits have the same bits as training computes for that row of the whole
//! sequence, whatever else is in the batch. Rows are spread over threads by sequence, and each
//! thread takes its rows through all layers without waiting for others. Nothing is allocated once
//! the workspace has seen the largest batch.

use super::cache::KvCache;
use super::decoder::{CHUNK, Decoder};
use super::weights::Weights;
use crate::ops::attention::{Cached, attend_cached, store_key, store_value};
use crate::ops::buffer::Buffer;
use crate::ops::parallel::{SharedMut, for_each};
use crate::ops::rope::Rope;

/// A token to add to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The token.
    pub token: u32,
    /// The sequence's slot of the cache.
    pub slot: u32,
    /// The token's position; the slot holds all positions before it.
    pub position: u32,
    /// Whether the logits of the next token are wanted.
    pub wants_logits: bool,
}

/// The buffers of [`Decoder::extend`]; they grow to the largest batch.
#[derive(Default)]
pub struct DecodeWorkspace {
    rope: Option<Rope>,
    threads: Vec<ThreadBuffers>,
    shares: Vec<Share>,
    logits: Buffer,
}

/// The rows of one thread.
#[derive(Clone, Copy)]
struct Share {
    first: usize,
    end: usize,
    /// Rows before these whose logits are wanted.
    wanted: usize,
}

#[derive(Default)]
struct ThreadBuffers {
    x: Buffer,
    qkv: Buffer,
    attention: Buffer,
    middle: Buffer,
    gate_up: Buffer,
    scratch: Buffer,
}

/// A cache whose slots are written by different threads.
struct SharedCache<'a> {
    keys: SharedMut<'a, f32>,
    values: SharedMut<'a, f32>,
}

impl DecodeWorkspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Decoder {
    /// Adds `rows` to their sequences: writes their keys and values into the cache and returns the
    /// logits `[wanted, vocab_size]` of the rows that want them, in order. The rows of a sequence
    /// are neighbours in ascending positions.
    pub fn extend<'w>(
        &self,
        weights: &Weights<'_>,
        cache: &mut KvCache,
        rows: &[Row],
        ws: &'w mut DecodeWorkspace,
    ) -> &'w mut [f32] {
        let DecodeWorkspace { rope, threads, shares, logits } = ws;
        let rope = rope.get_or_insert_with(|| self.rope());
        let longest = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
        assert!(longest <= cache.max_len(), "positions fit the cache");
        rope.grow(longest);
        threads.resize_with(rayon::current_num_threads(), ThreadBuffers::default);
        share_rows(rows, threads.len(), shares);
        let vocab = self.config().vocab_size;
        let wanted = rows.iter().filter(|row| row.wants_logits).count();
        let logits = logits.grow(wanted * vocab);
        let shared_logits = SharedMut::new(logits);
        let shape = cache.shape;
        let shared_cache = SharedCache {
            keys: SharedMut::new(cache.keys.as_mut_slice()),
            values: SharedMut::new(cache.values.as_mut_slice()),
        };
        for_each(shares.len(), threads, |item, buffers| {
            let share = shares[item];
            let rows = &rows[share.first..share.end];
            let wanted = rows.iter().filter(|row| row.wants_logits).count();
            let at = share.wanted * vocab;
            // SAFETY: each share has its own rows of the logits.
            let logits = unsafe { shared_logits.part(at..at + wanted * vocab) };
            self.extend_share(weights, (&shared_cache, shape), rows, rope, buffers, logits);
        });
        logits
    }

    fn extend_share(
        &self,
        weights: &Weights<'_>,
        (cache, shape): (&SharedCache<'_>, super::cache::CacheShape),
        rows: &[Row],
        rope: &Rope,
        buffers: &mut ThreadBuffers,
        logits: &mut [f32],
    ) {
        let (hidden, heads) = (self.config().hidden_size, self.heads());
        let (inner, width) = (self.config().intermediate_size, self.attention_width());
        let chunk = CHUNK.min(rows.len());
        let x = buffers.x.grow(rows.len() * hidden);
        let qkv = buffers.qkv.grow(rows.len() * heads.row());
        let attention = buffers.attention.grow(rows.len() * width);
        let middle = buffers.middle.grow(chunk * hidden);
        let gate_up = buffers.gate_up.grow(chunk * 2 * inner);
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(hidden)) {
            weights.embed(row.token, x);
        }
        for layer in 0..self.config().num_layers {
            let weights = (&weights.packed, layer);
            let chunks = rows.chunks(CHUNK).zip(x.chunks(CHUNK * hidden));
            for ((rows, x), qkv) in chunks.zip(qkv.chunks_mut(CHUNK * heads.row())) {
                let mut positions = rows.iter().map(|row| row.position as usize);
                let turn = (rope, &mut positions as &mut dyn Iterator<Item = usize>);
                self.attention_input(weights, x, turn, qkv, &mut buffers.scratch);
            }
            let mut first = 0;
            for run in rows.chunk_by(|a, b| a.slot == b.slot && a.position + 1 == b.position) {
                let qkv = &qkv[first * heads.row()..(first + run.len()) * heads.row()];
                let out = &mut attention[first * width..(first + run.len()) * width];
                first += run.len();
                for head in 0..heads.keys {
                    let index = shape.index(layer, run[0].slot as usize, head);
                    let keys = index * shape.key_len()..(index + 1) * shape.key_len();
                    let values = index * shape.value_len()..(index + 1) * shape.value_len();
                    // SAFETY: a slot's rows are all in one share.
                    let (keys, values) =
                        unsafe { (cache.keys.part(keys), cache.values.part(values)) };
                    for (row, qkv) in run.iter().zip(qkv.chunks_exact(heads.row())) {
                        let (key, value) = heads.key_value(qkv, head);
                        store_key(key, row.position as usize, keys);
                        store_value(value, row.position as usize, values);
                    }
                    let first_position = run[0].position as usize;
                    let cached = Cached { keys, values, head, first_position };
                    attend_cached(heads, qkv, cached, out, &mut buffers.scratch);
                }
            }
            let chunks = x.chunks_mut(CHUNK * hidden).zip(attention.chunks(CHUNK * width));
            for (x, attention) in chunks {
                let rows = x.len() / hidden;
                let middle = &mut middle[..rows * hidden];
                let gate_up = &mut gate_up[..rows * 2 * inner];
                middle.copy_from_slice(x);
                let scratch = &mut buffers.scratch;
                self.attention_output(weights, attention, middle, gate_up, x, scratch);
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
            let normal = buffers.scratch.grow(x.len());
            self.logits(&weights.packed, x, normal, logits);
        }
    }
}

/// Cuts the rows into about equal shares between sequences.
fn share_rows(rows: &[Row], threads: usize, shares: &mut Vec<Share>) {
    shares.clear();
    let mut share = Share { first: 0, end: 0, wanted: 0 };
    let mut wanted = 0;
    for (index, row) in rows.iter().enumerate() {
        let due = (shares.len() + 1) * rows.len() / threads;
        if index >= due && index > share.first && rows[index - 1].slot != row.slot {
            shares.push(Share { end: index, ..share });
            share = Share { first: index, end: index, wanted };
        }
        wanted += usize::from(row.wants_logits);
    }
    if !rows.is_empty() {
        shares.push(Share { end: rows.len(), ..share });
    }
}
