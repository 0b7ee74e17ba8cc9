//! Causal grouped-query attention over packed sequences of any lengths.
//!
//! Contract: a query's scores, softmax and weighted sum are computed whole, in ascending key order,
//! by one function ([`attend`]) for training, prefill and decoding, so its bits depend only on its
//! own sequence. Scores are never stored: the backward recomputes them from the log-sum-exp.
//! Keys are held as panels of sixteen positions (`[panel][head_dim][16]`), values as rows of
//! [`padded`] floats, both in pages of whole panels that may lie anywhere; where they lie changes no
//! bit. Packed sequences that begin alike may share the rows of their beginning ([`Sequences`]): the
//! forward has the bits of whole sequences. Left out: sliding windows, dropout and other masks.

mod backward;

pub use backward::{Attended, attention_backward};

use super::buffer::{Buffer, aligned, parts};
use super::matmul::{PANEL, Start, TILE, finish, load_tile, tile, tile_onto, with_tile_rows};
use super::parallel::{SharedMut, for_each};
use super::simd::{
    LANES, Simd, exp, load_partial, max_lanes, prefetch, simd_fn, store_partial, sum_lanes,
};
use std::ops::Range;

/// The heads of a layer. A row of queries, keys and values is `[heads, kv_heads, kv_heads]` heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; each serves `queries / keys` consecutive query heads.
    pub keys: usize,
    /// Elements of a head.
    pub dim: usize,
}

impl Heads {
    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.queries / self.keys
    }

    /// Floats of a row of queries, keys and values.
    pub fn row(&self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }

    /// The key and the value of one key head in a row.
    pub fn key_value<'a>(&self, row: &'a [f32], head: usize) -> (&'a [f32], &'a [f32]) {
        let (keys, values) = self.offsets();
        (&row[keys + head * self.dim..][..self.dim], &row[values + head * self.dim..][..self.dim])
    }

    /// Where the first key head, and the first value head, starts in a row.
    fn offsets(&self) -> (usize, usize) {
        (self.queries * self.dim, (self.queries + self.keys) * self.dim)
    }
}

/// Floats between value rows: whole panels.
pub const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PANEL)
}

/// Floats between rows of scores; an odd number of cache lines, so that a column does not map to
/// few cache sets.
const fn score_stride(len: usize) -> usize {
    (len.div_ceil(PANEL) | 1) * PANEL
}

/// Writes a key into its column of the panels.
#[inline(always)]
pub fn store_key(key: &[f32], position: usize, panels: &mut [f32]) {
    let first = position / PANEL * PANEL * key.len() + position % PANEL;
    for (slot, &value) in panels[first..].iter_mut().step_by(PANEL).zip(key) {
        *slot = value;
    }
}

/// Copies a head into a row of [`padded`] floats.
#[inline(always)]
fn store_padded(head: &[f32], row: &mut [f32]) {
    row[..head.len()].copy_from_slice(head);
    row[head.len()..].fill(0.0);
}

/// Writes a value into its row.
#[inline(always)]
pub fn store_value(value: &[f32], position: usize, rows: &mut [f32]) {
    let stride = padded(value.len());
    store_padded(value, &mut rows[position * stride..][..stride]);
}

/// `out = rows of left · panels` for the first `columns` columns (rounded up to whole panels).
///
/// # Safety
/// `left` has `rows` rows of `depth` floats, `out` `rows` rows of whole panels, at their strides.
#[inline(always)]
unsafe fn times_panels<S: Simd>(
    s: S,
    (left, left_stride): (&[f32], usize),
    rows: usize,
    (panels, depth, columns): (&[f32], usize, usize),
    (out, out_stride): (&mut [f32], usize),
) {
    debug_assert!(panels.len() >= columns.div_ceil(PANEL) * PANEL * depth);
    for first in (0..columns).step_by(PANEL) {
        for row in (0..rows).step_by(TILE) {
            // SAFETY: the caller's promise, for each tile of it.
            unsafe {
                let left = left.as_ptr().add(row * left_stride);
                let panel = panels.as_ptr().add(first * depth);
                let target = out.as_mut_ptr().add(row * out_stride + first);
                with_tile_rows!(rows - row, R => {
                    let sums = tile::<S, f32, R>(s, depth, left, (left_stride, 1), panel, PANEL);
                    finish(s, sums, Start::Zero, target, out_stride, PANEL);
                });
            }
        }
    }
}

/// How a product meets what the result holds.
#[derive(Clone, Copy, PartialEq)]
enum Sum {
    /// It replaces it.
    New,
    /// It is added to it.
    Add,
    /// It goes on from it, as if this and the earlier product were one sum.
    Continue,
}

/// `out (+)= left · right` where `right` is `depth` rows of `width` floats, whole panels.
///
/// # Safety
/// `left` is readable at `row * strides.0 + d * strides.1` for `rows` rows and `depth` d's, `right`
/// has `depth` rows and `out` `rows` rows of `width` floats.
#[inline(always)]
unsafe fn times_rows<S: Simd>(
    s: S,
    (left, strides): (&[f32], (usize, usize)),
    rows: usize,
    (right, depth, width): (&[f32], usize, usize),
    sum: Sum,
    out: &mut [f32],
) {
    debug_assert!(right.len() >= depth * width && out.len() >= rows * width);
    let start = if sum == Sum::Add { Start::Accumulate } else { Start::Zero };
    for row in (0..rows).step_by(TILE) {
        for first in (0..width).step_by(PANEL) {
            // SAFETY: the caller's promise, for each tile of it.
            unsafe {
                let left = left.as_ptr().add(row * strides.0);
                let right = right.as_ptr().add(first);
                let target = out.as_mut_ptr().add(row * width + first);
                with_tile_rows!(rows - row, R => {
                    let sums = match sum {
                        Sum::Continue => load_tile::<S, R>(s, target, width),
                        Sum::New | Sum::Add => [[s.splat(0.0); 2]; R],
                    };
                    let sums = tile_onto(s, sums, depth, left, strides, right, width);
                    finish(s, sums, start, target, width, PANEL);
                });
            }
        }
    }
}

/// exp(x - shift) of the first `visible` scores, zeros after them; returns the sum.
#[inline(always)]
fn exponentials<S: Simd>(s: S, scores: &mut [f32], visible: usize, shift: f32) -> f32 {
    let (seen, hidden) = scores.split_at_mut(visible);
    let shift = s.splat(shift);
    let (chunks, tail) = seen.as_chunks_mut::<LANES>();
    let mut sum = s.splat(0.0);
    for chunk in chunks {
        let e = exp(s, s.sub(s.load(chunk), shift));
        sum = s.add(sum, e);
        s.store(e, chunk);
    }
    if !tail.is_empty() {
        let e = exp(s, s.sub(load_partial(s, tail, f32::NEG_INFINITY), shift));
        sum = s.add(sum, e);
        store_partial(s, e, tail);
    }
    hidden.fill(0.0);
    sum_lanes(s, sum)
}

#[inline(always)]
fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut max = s.splat(f32::NEG_INFINITY);
    for chunk in chunks {
        max = s.max(max, s.load(chunk));
    }
    max_lanes(s, s.max(max, load_partial(s, tail, f32::NEG_INFINITY)))
}

/// Consecutive positions of one sequence and one key head, as queries of a block.
#[derive(Clone, Copy)]
struct Block {
    first_position: usize,
    positions: usize,
    group: usize,
}

impl Block {
    /// Query rows: the group's heads of each position.
    fn rows(&self) -> usize {
        self.positions * self.group
    }

    /// Keys that query row `row` sees.
    fn visible(&self, row: usize) -> usize {
        self.first_position + row / self.group + 1
    }

    /// Keys that the last row sees.
    fn keys(&self) -> usize {
        self.first_position + self.positions
    }
}

/// Positions of a block of about `rows` query rows.
fn block_positions(rows: usize, group: usize) -> usize {
    rows.div_ceil(group)
}

/// Attention of a block of scaled queries (`[rows, dim]`) over pages of keys and values;
/// `out` is `[rows, padded(dim)]`; `lse` gets each row's log-sum-exp of scores.
#[inline(always)]
fn attend<S: Simd>(
    s: S,
    block: Block,
    dim: usize,
    queries: &[f32],
    pages: Pages<'_>,
    scores: &mut [f32],
    out: &mut [f32],
    mut lse: impl FnMut(usize, f32),
) {
    let (rows, count, width) = (block.rows(), block.keys(), padded(dim));
    let stride = score_stride(count);
    let scores = &mut scores[..rows * stride];
    assert!(queries.len() >= rows * dim && out.len() >= rows * width);
    // Pages lie anywhere: the memory's latency of one hides behind the work on the page before.
    let num_pages = count.div_ceil(pages.len);
    for (page, first) in (0..count).step_by(pages.len).enumerate() {
        let next =
            if page + 1 < num_pages { pages.keys(page + 1, dim) } else { pages.values(0, dim) };
        prefetch(next);
        let panels = (pages.keys(page, dim), dim, pages.len.min(count - first));
        // SAFETY: the assertion and the page cover all operands.
        unsafe { times_panels(s, (queries, dim), rows, panels, (&mut scores[first..], stride)) };
    }
    let mut inverse_sums = [0.0f32; MAX_ROWS];
    for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
        let visible = block.visible(row);
        let max = largest(s, &scores[..visible]);
        let sum = exponentials(s, &mut scores[..count], visible, max);
        inverse_sums[row] = 1.0 / sum;
        lse(row, max + sum.ln());
    }
    for (page, first) in (0..count).step_by(pages.len).enumerate() {
        if page + 1 < num_pages {
            prefetch(pages.values(page + 1, dim));
        }
        let values = (pages.values(page, dim), pages.len.min(count - first), width);
        let sum = if page == 0 { Sum::New } else { Sum::Continue };
        // SAFETY: the assertion and the page cover all operands.
        unsafe { times_rows(s, (&scores[first..], (stride, 1)), rows, values, sum, out) };
    }
    for (out, inverse) in out.chunks_exact_mut(width).zip(inverse_sums) {
        let inverse = s.splat(inverse);
        for eight in out.as_chunks_mut::<LANES>().0 {
            s.store(s.mul(s.load(eight), inverse), eight);
        }
    }
}

/// Query rows of a block in the forward pass; enough to reuse keys from the nearest cache.
const FORWARD_ROWS: usize = 24;
/// Query rows of a block in the backward pass, where they are also the depth of products.
const BACKWARD_ROWS: usize = 48;
/// Most rows of a block: a block holds at least one position of a whole group.
const MAX_ROWS: usize = 256;

/// Where the keys and values of one key head of a sequence lie.
#[derive(Clone, Copy)]
pub struct Pages<'a> {
    keys: &'a SharedMut<'a, f32>,
    values: &'a SharedMut<'a, f32>,
    table: &'a [u32],
    heads: usize,
    head: usize,
    len: usize,
}

impl<'a> Pages<'a> {
    /// Page `table[i]` holds positions `i * len` to `(i + 1) * len`, `len` being whole panels, of
    /// `heads` heads, of which `head` is meant. `keys` holds `[page][head][len * dim]` panels, `values`
    /// `[page][head][len]` rows of [`padded`] floats.
    ///
    /// # Safety
    /// Nobody writes these pages while they are read through the result.
    pub unsafe fn new(
        (keys, values): (&'a SharedMut<'a, f32>, &'a SharedMut<'a, f32>),
        table: &'a [u32],
        (heads, head): (usize, usize),
        len: usize,
    ) -> Self {
        assert!(len > 0 && len.is_multiple_of(PANEL), "pages of whole panels");
        Self { keys, values, table, heads, head, len }
    }

    fn part(&self, of: &'a SharedMut<'a, f32>, page: usize, floats: usize) -> &'a [f32] {
        let index = self.table[page] as usize * self.heads + self.head;
        // SAFETY: nobody writes there, by the promise given to `new`.
        unsafe { of.read(index * floats..(index + 1) * floats) }
    }

    /// The panels of keys of page `page`.
    fn keys(&self, page: usize, dim: usize) -> &'a [f32] {
        self.part(self.keys, page, self.len * dim)
    }

    /// The rows of values of page `page`.
    fn values(&self, page: usize, dim: usize) -> &'a [f32] {
        self.part(self.values, page, self.len * padded(dim))
    }
}

/// Attention of consecutive positions of one sequence, from its cached keys and values.
#[derive(Clone, Copy)]
pub struct Cached<'a> {
    /// Keys and values of one key head, those of the rows themselves included.
    pub pages: Pages<'a>,
    /// Which key head.
    pub head: usize,
    /// Position of the first row.
    pub first_position: usize,
}

simd_fn!(
    /// For each row of `qkv` (turned queries), the attention of the group of query heads of
    /// `cached.head` into the same heads of `out` (`[rows, queries * dim]`).
    ///
    /// # Safety
    /// Nobody else uses these heads of `out`.
    pub unsafe fn attend_cached(
        heads: Heads,
        qkv: &[f32],
        cached: Cached<'_>,
        out: &SharedMut<'_, f32>,
        scratch: &mut Buffer,
    ) = cached_generic
);

/// # Safety
/// As for [`attend_cached`].
#[inline(always)]
unsafe fn cached_generic<S: Simd>(
    s: S,
    heads: Heads,
    qkv: &[f32],
    cached: Cached<'_>,
    out: &SharedMut<'_, f32>,
    scratch: &mut Buffer,
) {
    let rows = qkv.len() / heads.row();
    sequence_forward(
        s,
        heads,
        &cached,
        rows,
        scratch,
        |row| &qkv[row * heads.row()..],
        out,
        |_, _, _| {},
    );
}

/// Attention of `count` positions from `cached.first_position`, in blocks.
#[inline(always)]
fn sequence_forward<'q, S: Simd>(
    s: S,
    heads: Heads,
    cached: &Cached<'_>,
    count: usize,
    scratch: &mut Buffer,
    query_row: impl Fn(usize) -> &'q [f32],
    out: &SharedMut<'_, f32>,
    mut lse: impl FnMut(usize, usize, f32),
) {
    let (dim, group, width) = (heads.dim, heads.group(), padded(heads.dim));
    let most = block_positions(FORWARD_ROWS, group);
    let total = cached.first_position + count;
    let [queries, scores, results] = parts(
        scratch,
        [most * group * dim, most * group * score_stride(total), most * group * width],
    );
    let scale = 1.0 / (dim as f32).sqrt();
    for first in (0..count).step_by(most) {
        let positions = most.min(count - first);
        let block = Block { first_position: cached.first_position + first, positions, group };
        let start = cached.head * group * dim;
        for (i, queries) in queries.chunks_exact_mut(group * dim).take(positions).enumerate() {
            let source = &query_row(first + i)[start..start + group * dim];
            queries.iter_mut().zip(source).for_each(|(q, x)| *q = x * scale);
        }
        attend(s, block, dim, queries, cached.pages, scores, results, |row, x| {
            lse(first + row / group, cached.head * group + row % group, x);
        });
        for (row, result) in results.chunks_exact(width).take(block.rows()).enumerate() {
            let at = (first + row / group) * heads.queries * dim + start + row % group * dim;
            // SAFETY: each item writes only its own group's heads of its own positions.
            unsafe { out.part(at..at + dim) }.copy_from_slice(&result[..dim]);
        }
    }
}

/// How packed rows make sequences, some of which may begin alike.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a> {
    /// Where the rows of each sequence start, and the end of the last.
    pub cu_seqlens: &'a [usize],
    /// Which consecutive sequences are a family: the first one of each, and the number of sequences.
    /// The first is a trunk that the others continue: a row of theirs sees the trunk's rows, then its
    /// own up to itself. Empty where every sequence is alone.
    pub cu_families: &'a [usize],
}

impl<'a, T: AsRef<[usize]> + ?Sized> From<&'a T> for Sequences<'a> {
    /// Sequences that are alone.
    fn from(cu_seqlens: &'a T) -> Self {
        Self { cu_seqlens: cu_seqlens.as_ref(), cu_families: &[] }
    }
}

impl Sequences<'_> {
    fn count(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    fn num_families(&self) -> usize {
        if self.cu_families.is_empty() { self.count() } else { self.cu_families.len() - 1 }
    }

    /// The sequences of a family, the trunk first.
    fn family(&self, index: usize) -> Range<usize> {
        match self.cu_families {
            [] => index..index + 1,
            families => families[index]..families[index + 1],
        }
    }

    /// The rows of a sequence itself.
    fn own(&self, sequence: usize) -> Range<usize> {
        self.cu_seqlens[sequence]..self.cu_seqlens[sequence + 1]
    }

    /// The rows before those of a sequence that continues a trunk; none of one that does not.
    fn before(&self, sequence: usize) -> Range<usize> {
        let after = self.cu_families.partition_point(|&first| first <= sequence);
        match after.checked_sub(1).map(|family| self.cu_families[family]) {
            Some(trunk) if trunk < sequence => self.own(trunk),
            _ => 0..0,
        }
    }

    /// The position of the first row of a sequence.
    pub fn first_position(&self, sequence: usize) -> usize {
        self.before(sequence).len()
    }
}

/// Attention within each sequence of packed rows `qkv` (turned), on the pool: `out` is
/// `[tokens, queries * dim]`, `lse` `[tokens, queries]`.
pub fn attention<'a>(
    heads: Heads,
    qkv: &[f32],
    sequences: impl Into<Sequences<'a>>,
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [AttentionScratch],
) {
    let sequences = sequences.into();
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    for_each(sequences.count() * heads.keys, scratch, |item, scratch| {
        let (sequence, head) = (item / heads.keys, item % heads.keys);
        let rows = (sequences.before(sequence), sequences.own(sequence));
        forward_item(heads, qkv, (rows, head), &out, &lse, scratch);
    });
}

/// The buffers of one thread.
#[derive(Default)]
pub struct AttentionScratch {
    sequence: Buffer,
    block: Buffer,
}

impl AttentionScratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.sequence.bytes() + self.block.bytes()
    }
}

/// Floats of the two buffers of a thread's scratch after forward and backward of a sequence of
/// `longest` tokens.
pub fn scratch_len(heads: Heads, longest: usize) -> [usize; 2] {
    let (dim, group, width) = (heads.dim, heads.group(), padded(heads.dim));
    let panels = aligned(longest.next_multiple_of(PANEL) * dim);
    let sequence = 2 * panels + 3 * aligned(longest * width);
    let stride = score_stride(longest);
    let forward = block_positions(FORWARD_ROWS, group) * group;
    let backward = block_positions(BACKWARD_ROWS, group) * group;
    let forward = aligned(forward * dim) + aligned(forward * stride) + aligned(forward * width);
    let backward = 3 * aligned(backward * width) + 2 * aligned(backward * stride);
    [sequence, forward.max(backward)]
}

simd_fn!(
    fn forward_item(
        heads: Heads,
        qkv: &[f32],
        item: ((Range<usize>, Range<usize>), usize),
        out: &SharedMut<'_, f32>,
        lse: &SharedMut<'_, f32>,
        scratch: &mut AttentionScratch,
    ) = forward_item_generic
);

#[inline(always)]
fn forward_item_generic<S: Simd>(
    s: S,
    heads: Heads,
    qkv: &[f32],
    ((before, own), head): ((Range<usize>, Range<usize>), usize),
    out: &SharedMut<'_, f32>,
    lse: &SharedMut<'_, f32>,
    scratch: &mut AttentionScratch,
) {
    let (dim, row) = (heads.dim, heads.row());
    let (start, first_position) = (own.start, before.len());
    let [before, rows] = [&before, &own].map(|rows| &qkv[rows.start * row..rows.end * row]);
    let page_len = (first_position + own.len()).next_multiple_of(PANEL);
    let [keys, values] = parts(&mut scratch.sequence, [page_len * dim, page_len * padded(dim)]);
    let all = before.chunks_exact(row).chain(rows.chunks_exact(row));
    for (position, row) in all.enumerate() {
        let (key, value) = heads.key_value(row, head);
        store_key(key, position, keys);
        store_value(value, position, values);
    }
    let width = heads.queries * dim;
    // SAFETY: the item alone writes its group's heads of these rows; the parts are per row and head.
    let own_lse = |position: usize, query: usize, value: f32| unsafe {
        let at = (start + position) * heads.queries + query;
        lse.part(at..at + 1)[0] = value;
    };
    let (keys, values) = (SharedMut::new(keys), SharedMut::new(values));
    // SAFETY: they are only read from here on.
    let pages = unsafe { Pages::new((&keys, &values), &[0], (1, 0), page_len) };
    let cached = Cached { pages, head, first_position };
    let own_out = out.offset(start * width);
    sequence_forward(
        s,
        heads,
        &cached,
        own.len(),
        &mut scratch.block,
        |i| &rows[i * row..],
        &own_out,
        own_lse,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng;

    const HEADS: Heads = Heads { queries: 6, keys: 2, dim: 8 };

    fn random(len: usize, key: u64) -> Vec<f32> {
        (0..len).map(|i| rng::uniform(key, i as u64) * 2.0 - 1.0).collect()
    }

    /// Attention by its definition, in double precision.
    fn exact(qkv: &[f64], cu_seqlens: &[usize]) -> Vec<f64> {
        let (dim, row) = (HEADS.dim, HEADS.row());
        let (key_offset, value_offset) = HEADS.offsets();
        let mut out = Vec::new();
        for ends in cu_seqlens.windows(2) {
            for t in ends[0]..ends[1] {
                for head in 0..HEADS.queries {
                    let kv = head / HEADS.group() * dim;
                    let scores: Vec<f64> = (ends[0]..=t)
                        .map(|j| {
                            let q = &qkv[t * row + head * dim..][..dim];
                            let k = &qkv[j * row + key_offset + kv..][..dim];
                            let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                            (dot / (dim as f64).sqrt()).exp()
                        })
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for d in 0..dim {
                        let weighted = scores.iter().enumerate().map(|(j, p)| {
                            p / sum * qkv[(ends[0] + j) * row + value_offset + kv + d]
                        });
                        out.push(weighted.sum());
                    }
                }
            }
        }
        out
    }

    #[test]
    fn values_and_gradients_match_double_precision_differences() {
        let cu_seqlens = [0, 1, 20, 37];
        let qkv = random(37 * HEADS.row(), 1);
        let d_out = random(37 * 48, 2);
        let mut out = vec![0.0; 37 * 48];
        let mut lse = vec![0.0; 37 * 6];
        let mut scratch = [AttentionScratch::default(), AttentionScratch::default()];
        attention(HEADS, &qkv, &cu_seqlens, &mut out, &mut lse, &mut scratch);
        let double: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
        for (a, e) in out.iter().zip(exact(&double, &cu_seqlens)) {
            assert!((f64::from(*a) - e).abs() < 1e-6);
        }
        let mut gradients = qkv.clone();
        let forward = Attended { out: &out, lse: &lse, d_out: &d_out };
        attention_backward(HEADS, &mut gradients, &cu_seqlens, forward, &mut scratch);
        let loss = |qkv: &[f64]| -> f64 {
            exact(qkv, &cu_seqlens).iter().zip(&d_out).map(|(y, &d)| y * f64::from(d)).sum()
        };
        for i in (0..qkv.len()).step_by(7) {
            let (mut up, mut down) = (double.clone(), double.clone());
            up[i] += 1e-4;
            down[i] -= 1e-4;
            let slope = (loss(&up) - loss(&down)) / 2e-4;
            assert!(
                (f64::from(gradients[i]) - slope).abs() < 1e-5,
                "{i}: {} {slope}",
                gradients[i]
            );
        }
    }

    /// Rows of two families as they are shared, and of all their sequences written out, with the
    /// rows' places among the shared ones.
    const FAMILIES: Sequences<'_> =
        Sequences { cu_seqlens: &[0, 7, 26, 36, 37, 58, 63], cu_families: &[0, 3, 4, 6] };

    fn written_out() -> (Vec<usize>, Vec<usize>) {
        let (mut places, mut cu_seqlens) = (Vec::new(), vec![0]);
        for sequence in 0..FAMILIES.count() {
            places.extend(FAMILIES.before(sequence).chain(FAMILIES.own(sequence)));
            cu_seqlens.push(places.len());
        }
        (places, cu_seqlens)
    }

    #[test]
    fn sequences_that_share_their_beginning_have_the_bits_of_whole_ones() {
        let (places, cu_seqlens) = written_out();
        assert_eq!(cu_seqlens, [0, 7, 33, 50, 51, 72, 98]);
        assert_eq!((FAMILIES.first_position(2), FAMILIES.first_position(3)), (7, 0));
        let (row, width) = (HEADS.row(), HEADS.queries * HEADS.dim);
        let qkv = random(63 * row, 5);
        let expand = |rows: &[f32], width: usize| -> Vec<f32> {
            places.iter().flat_map(|&place| &rows[place * width..][..width]).copied().collect()
        };
        let mut scratch = [AttentionScratch::default(), AttentionScratch::default()];
        let (mut out, mut lse) = (vec![0.0; 63 * width], vec![0.0; 63 * HEADS.queries]);
        attention(HEADS, &qkv, FAMILIES, &mut out, &mut lse, &mut scratch);
        let whole = expand(&qkv, row);
        let mut whole_out = vec![0.0; 98 * width];
        let mut whole_lse = vec![0.0; 98 * HEADS.queries];
        attention(HEADS, &whole, &cu_seqlens, &mut whole_out, &mut whole_lse, &mut scratch);
        assert_eq!(expand(&out, width), whole_out);
        assert_eq!(expand(&lse, HEADS.queries), whole_lse);

        // Of whole sequences only the last rows, which are nobody else's, have a gradient; those of a
        // trunk have it where it stands alone.
        let d_out = random(63 * width, 6);
        let mut whole_d_out = vec![0.0; 98 * width];
        for sequence in 0..FAMILIES.count() {
            let own = FAMILIES.own(sequence);
            let at = (cu_seqlens[sequence + 1] - own.len()) * width;
            let d_own = &d_out[own.start * width..own.end * width];
            whole_d_out[at..at + d_own.len()].copy_from_slice(d_own);
        }
        let mut gradient = qkv.clone();
        let forward = Attended { out: &out, lse: &lse, d_out: &d_out };
        attention_backward(HEADS, &mut gradient, FAMILIES, forward, &mut scratch);
        let mut whole_gradient = whole.clone();
        let forward = Attended { out: &whole_out, lse: &whole_lse, d_out: &whole_d_out };
        attention_backward(HEADS, &mut whole_gradient, &cu_seqlens, forward, &mut scratch);
        let mut expected = vec![0.0; 63 * row];
        for (&place, whole) in places.iter().zip(whole_gradient.chunks_exact(row)) {
            let sum = &mut expected[place * row..][..row];
            sum.iter_mut().zip(whole).for_each(|(sum, g)| *sum += g);
        }
        for (i, (a, e)) in gradient.iter().zip(&expected).enumerate() {
            assert!((a - e).abs() < 1e-5, "{i}: {a} is not {e}");
        }
    }

    #[test]
    fn cached_attention_has_the_bits_of_packed_attention() {
        let len = 37;
        let (dim, row) = (HEADS.dim, HEADS.row());
        let (key_offset, value_offset) = HEADS.offsets();
        let qkv = random(len * row, 3);
        let mut out = vec![0.0; len * 48];
        let mut lse = vec![0.0; len * 6];
        let mut scratch = [AttentionScratch::default()];
        attention(HEADS, &qkv, &[0, len], &mut out, &mut lse, &mut scratch);
        for head in 0..HEADS.keys {
            // Pages of one panel in any order, with other content before and between.
            let (table, page) = ([4u32, 1, 3], PANEL);
            let mut keys = vec![9.0; 5 * page * dim];
            let mut values = vec![9.0; 5 * page * padded(dim)];
            let mut first = 0;
            for step in [1, 3, 17, 1, 15] {
                for position in first..first + step {
                    let row = &qkv[position * row..][..row];
                    let (number, within) = (table[position / page] as usize, position % page);
                    let key = &row[key_offset + head * dim..][..dim];
                    store_key(key, within, &mut keys[number * page * dim..]);
                    let value = &row[value_offset + head * dim..][..dim];
                    store_value(value, within, &mut values[number * page * padded(dim)..]);
                }
                let mut part = vec![0.0; step * 48];
                {
                    let (keys, values) = (SharedMut::new(&mut keys), SharedMut::new(&mut values));
                    // SAFETY: nobody writes them meanwhile.
                    let pages = unsafe { Pages::new((&keys, &values), &table, (1, 0), page) };
                    let cached = Cached { pages, head, first_position: first };
                    let rows = &qkv[first * row..(first + step) * row];
                    let (out, mut scratch) = (SharedMut::new(&mut part), Buffer::default());
                    // SAFETY: nobody else uses `part`.
                    unsafe { attend_cached(HEADS, rows, cached, &out, &mut scratch) };
                }
                let heads = head * 24..head * 24 + 24;
                for i in 0..step {
                    let expected = &out[(first + i) * 48..][..48][heads.clone()];
                    assert_eq!(&part[i * 48..][heads.clone()], expected);
                }
                first += step;
            }
        }
    }
}
