//! Causal grouped-query attention over packed sequences of any lengths.
//!
//! One function ([`attend`]) computes a query's scores, softmax and weighted sum for training, prefill and
//! decoding, in ascending order of keys, so the bits depend only on the query's own sequence. Scores are
//! never stored: the backward computes them again from the log-sum-exp (as FlashAttention does, Dao et al.
//! 2022).
//!
//! Keys lie in panels of sixteen positions (`[panel][head_dim][16]`), values in rows of [`padded`] floats.
//! Both lie in pages of whole panels, which may be anywhere; where they are changes no bit. Packed
//! sequences that begin alike may share the rows of their beginning ([`Sequences`]), and the forward has
//! the bits of whole sequences. There are no sliding windows, no dropout and no other masks.

mod backward;
mod products;

pub use backward::{Attended, attention_backward};

use super::buffer::{Buffer, aligned, parts};
use super::matmul::PANEL;
use super::parallel::{SharedMut, for_each};
use super::simd::{
    LANES, Simd, exp, load_partial, max_lanes, prefetch, simd_fn, store_partial, sum_lanes,
};
use products::{Left, Right, Sum, times_panels, times_rows};
use std::ops::Range;

/// The heads of a layer. A row has `queries` query heads, then `keys` key heads, then `keys` value heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// The number of query heads.
    pub queries: usize,
    /// The number of key heads, and of value heads. Each serves `queries / keys` consecutive query heads.
    pub keys: usize,
    /// A head has this many elements.
    pub dim: usize,
}

impl Heads {
    /// Returns how many query heads share a key head.
    pub fn group(&self) -> usize {
        self.queries / self.keys
    }

    /// Returns the floats of a row of queries, keys and values.
    pub fn row(&self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }

    /// Returns the key and the value of key head `head` in a row.
    pub fn key_value<'a>(&self, row: &'a [f32], head: usize) -> (&'a [f32], &'a [f32]) {
        let (keys, values) = self.offsets();
        (&row[keys + head * self.dim..][..self.dim], &row[values + head * self.dim..][..self.dim])
    }

    /// Returns where the first key head and the first value head start in a row.
    fn offsets(&self) -> (usize, usize) {
        (self.queries * self.dim, (self.queries + self.keys) * self.dim)
    }
}

/// Returns the floats from one value row to the next: `head_dim` rounded up to whole panels.
pub const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PANEL)
}

/// Returns the floats from one row of scores to the next. It is an odd number of cache lines, so that a
/// column of scores does not fall into few cache sets.
const fn score_stride(len: usize) -> usize {
    (len.div_ceil(PANEL) | 1) * PANEL
}

/// Writes a key of `[dim]` into the column of `position` in the panels.
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

/// Writes a value of `[dim]` into the row of `position`.
#[inline(always)]
pub fn store_value(value: &[f32], position: usize, rows: &mut [f32]) {
    let stride = padded(value.len());
    store_padded(value, &mut rows[position * stride..][..stride]);
}

/// Replaces the first `visible` scores by exp(score - shift) and the others by 0. Returns the sum.
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

/// The queries of some consecutive positions of one sequence, for one key head.
#[derive(Clone, Copy)]
struct Block {
    first_position: usize,
    positions: usize,
    group: usize,
}

impl Block {
    /// Returns the number of query rows: for each position, the query heads of the group.
    fn rows(&self) -> usize {
        self.positions * self.group
    }

    /// Returns how many keys query row `row` sees.
    fn visible(&self, row: usize) -> usize {
        self.first_position + row / self.group + 1
    }

    /// Returns how many keys the last query row sees.
    fn keys(&self) -> usize {
        self.first_position + self.positions
    }
}

/// Returns how many positions make a block of about `rows` query rows.
fn block_positions(rows: usize, group: usize) -> usize {
    rows.div_ceil(group)
}

/// Computes the attention of a block of scaled queries (`[rows, dim]`) over pages of keys and values. `out`
/// is `[rows, padded(dim)]`; `lse` gets the log-sum-exp of each row's scores.
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
    // Pages may lie anywhere in memory, so the next page is fetched while the page before it is worked on.
    let num_pages = count.div_ceil(pages.len);
    for (page, first) in (0..count).step_by(pages.len).enumerate() {
        let next =
            if page + 1 < num_pages { pages.keys(page + 1, dim) } else { pages.values(0, dim) };
        prefetch(next);
        let columns = pages.len.min(count - first);
        let keys = Right { floats: pages.keys(page, dim), depth: dim, columns };
        let queries = Left::rows(queries, dim);
        // SAFETY: the assertion and the page cover all operands.
        unsafe { times_panels(s, queries, rows, keys, &mut scores[first..], stride) };
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
        let depth = pages.len.min(count - first);
        let values = Right { floats: pages.values(page, dim), depth, columns: width };
        let probabilities = Left::rows(&scores[first..], stride);
        let sum = if page == 0 { Sum::New } else { Sum::Continue };
        // SAFETY: the assertion and the page cover all operands.
        unsafe { times_rows(s, probabilities, rows, values, sum, out) };
    }
    for (out, inverse) in out.chunks_exact_mut(width).zip(inverse_sums) {
        let inverse = s.splat(inverse);
        for eight in out.as_chunks_mut::<LANES>().0 {
            s.store(s.mul(s.load(eight), inverse), eight);
        }
    }
}

/// A block of the forward pass has about this many query rows: enough to use keys again while the nearest
/// cache holds them.
const FORWARD_ROWS: usize = 24;
/// A block of the backward pass has about this many query rows, which are also the depth of its products.
const BACKWARD_ROWS: usize = 48;
/// No block has more rows than this. A block holds at least one position of a whole group.
const MAX_ROWS: usize = 256;

/// Where the keys and values of one key head of one sequence lie.
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
    /// Describes key head `head` of `heads` for the sequence with block table `table`. Page `table[i]`
    /// holds positions `i * len` to `(i + 1) * len`, where `len` is a multiple of [`PANEL`]. `keys` holds
    /// panels `[page][head][len * dim]`, `values` rows `[page][head][len]` of [`padded`] floats.
    ///
    /// # Safety
    /// Nobody writes these pages while they are read through the result.
    pub unsafe fn new(
        keys: &'a SharedMut<'a, f32>,
        values: &'a SharedMut<'a, f32>,
        table: &'a [u32],
        heads: usize,
        head: usize,
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

    /// Returns the panels of keys of page `page`.
    fn keys(&self, page: usize, dim: usize) -> &'a [f32] {
        self.part(self.keys, page, self.len * dim)
    }

    /// Returns the rows of values of page `page`.
    fn values(&self, page: usize, dim: usize) -> &'a [f32] {
        self.part(self.values, page, self.len * padded(dim))
    }
}

/// The cached keys and values that some consecutive positions of one sequence attend to.
#[derive(Clone, Copy)]
pub struct Cached<'a> {
    /// The keys and values of one key head, those of the positions themselves among them.
    pub pages: Pages<'a>,
    /// The index of that key head.
    pub head: usize,
    /// The position of the first row.
    pub first_position: usize,
}

simd_fn!(
    /// Computes attention for the rows of `qkv`, whose queries are turned by their positions. It writes the
    /// query heads that belong to key head `cached.head` into the same heads of `out` (`[rows, queries *
    /// dim]`).
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

/// Computes the attention of `count` positions from `cached.first_position` on, block by block.
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

/// Which packed rows make up which sequence. Sequences that begin alike may share their first rows.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a> {
    /// The first row of each sequence, and the end of the last.
    pub cu_seqlens: &'a [usize],
    /// The families, each as the index of its first sequence, and the number of sequences at the end. The
    /// first sequence of a family is its trunk, which the others continue: a row of theirs sees the rows of
    /// the trunk, then the rows of its own sequence up to itself. It is empty where every sequence stands
    /// alone.
    pub cu_families: &'a [usize],
}

impl<'a, T: AsRef<[usize]> + ?Sized> From<&'a T> for Sequences<'a> {
    /// Makes every sequence stand alone.
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

    /// Returns the sequences of a family, the trunk first.
    fn family(&self, index: usize) -> Range<usize> {
        match self.cu_families {
            [] => index..index + 1,
            families => families[index]..families[index + 1],
        }
    }

    /// Returns the rows of a sequence itself.
    fn own(&self, sequence: usize) -> Range<usize> {
        self.cu_seqlens[sequence]..self.cu_seqlens[sequence + 1]
    }

    /// Returns the rows of the trunk that a sequence continues; none for a sequence that continues no
    /// trunk.
    fn before(&self, sequence: usize) -> Range<usize> {
        let after = self.cu_families.partition_point(|&first| first <= sequence);
        match after.checked_sub(1).map(|family| self.cu_families[family]) {
            Some(trunk) if trunk < sequence => self.own(trunk),
            _ => 0..0,
        }
    }

    /// Returns the position of a sequence's first row.
    pub fn first_position(&self, sequence: usize) -> usize {
        self.before(sequence).len()
    }
}

/// Computes attention within each sequence of the packed rows `qkv`, which are turned by their positions,
/// on the pool. `out` is `[tokens, queries * dim]` and `lse` is `[tokens, queries]`.
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

/// The scratch buffers of one thread.
#[derive(Default)]
pub struct AttentionScratch {
    sequence: Buffer,
    block: Buffer,
}

impl AttentionScratch {
    /// Returns the bytes that the buffers hold.
    pub fn bytes(&self) -> usize {
        self.sequence.bytes() + self.block.bytes()
    }
}

/// Returns the floats of the two buffers after forward and backward of a sequence of `longest` tokens.
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
    let pages = unsafe { Pages::new(&keys, &values, &[0], 1, 0, page_len) };
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

    /// Computes attention by its definition, in double precision.
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

    /// Returns the rows of two families with shared trunks, the same with all sequences written out, and
    /// where each row of the latter is among the former.
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

        // With whole sequences, only the last rows have a gradient, which no other sequence shares. The
        // rows of a trunk have theirs where the trunk stands alone.
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
            // The pages are one panel each, in any order, with other content before and between them.
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
                    let pages = unsafe { Pages::new(&keys, &values, &table, 1, 0, page) };
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
