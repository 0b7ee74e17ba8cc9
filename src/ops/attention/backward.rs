//! The backward of attention: it computes the gradients of queries, keys and values, one family of
//! sequences at a time.
//!
//! It reads only the output and the log-sum-exp of the forward; probabilities are computed again, in blocks
//! of rows. Sums over a family run in its order, so the bits are fixed.

use super::products::{Left, Right, Sum, times_panels, times_rows};
use super::{
    AttentionScratch, BACKWARD_ROWS, Block, Heads, Sequences, block_positions, exponentials,
    padded, score_stride, store_key, store_padded, store_value,
};
use crate::ops::buffer::parts;
use crate::ops::matmul::PANEL;
use crate::ops::parallel::{SharedMut, for_each};
use crate::ops::simd::{LANES, Simd, load_partial, simd_fn, store_partial, sum_lanes};
use std::ops::Range;

/// The results of the forward, and the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// The output, `[rows, queries, dim]`.
    pub out: &'a [f32],
    /// The log-sum-exp of each query's scores, `[rows, queries]`.
    pub lse: &'a [f32],
    /// The gradient of the output, `[rows, queries, dim]`.
    pub d_out: &'a [f32],
}

/// The work of one thread at a time: one key head of one family of sequences.
struct Item<'a> {
    sequences: Sequences<'a>,
    family: Range<usize>,
    head: usize,
}

/// Computes the backward of [`super::attention`] on the pool. It overwrites the queries, keys and values in
/// `qkv` with their gradients. Those of a trunk are summed over its family in order.
pub fn attention_backward<'a>(
    heads: Heads,
    qkv: &mut [f32],
    sequences: impl Into<Sequences<'a>>,
    forward: Attended<'_>,
    scratch: &mut [AttentionScratch],
) {
    let sequences = sequences.into();
    let qkv = SharedMut::new(qkv);
    for_each(sequences.num_families() * heads.keys, scratch, |item, scratch| {
        let (family, head) = (sequences.family(item / heads.keys), item % heads.keys);
        backward_item(heads, &qkv, Item { sequences, family, head }, forward, scratch);
    });
}

simd_fn!(
    fn backward_item(
        heads: Heads,
        qkv: &SharedMut<'_, f32>,
        item: Item<'_>,
        forward: Attended<'_>,
        scratch: &mut AttentionScratch,
    ) = backward_item_generic
);

#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sum = s.splat(0.0);
    for (a, b) in a.iter().zip(b) {
        sum = s.fma(s.load(a), s.load(b), sum);
    }
    sum_lanes(s, s.fma(load_partial(s, a_tail, 0.0), load_partial(s, b_tail, 0.0), sum))
}

/// Turns scores into probabilities, and gradients of probabilities into gradients of scores, for one row.
#[inline(always)]
fn score_gradients<S: Simd>(
    s: S,
    scores: &mut [f32],
    gradients: &mut [f32],
    visible: usize,
    lse: f32,
    delta: f32,
) {
    exponentials(s, scores, visible, lse);
    let delta = s.splat(delta);
    let (scores, scores_tail) = scores.as_chunks::<LANES>();
    let (gradients, gradients_tail) = gradients.as_chunks_mut::<LANES>();
    for (p, g) in scores.iter().zip(gradients) {
        s.store(s.mul(s.load(p), s.sub(s.load(g), delta)), g);
    }
    let g = s.sub(load_partial(s, gradients_tail, 0.0), delta);
    store_partial(s, s.mul(load_partial(s, scores_tail, 0.0), g), gradients_tail);
}

/// Computes one key head of a family: its trunk, then each sequence that continues it, whose keys follow
/// the trunk's.
#[inline(always)]
fn backward_item_generic<S: Simd>(
    s: S,
    heads: Heads,
    qkv: &SharedMut<'_, f32>,
    item: Item<'_>,
    forward: Attended<'_>,
    scratch: &mut AttentionScratch,
) {
    let Item { sequences, family, head } = item;
    let (dim, group, width) = (heads.dim, heads.group(), padded(heads.dim));
    let (key_offset, value_offset) = heads.offsets();
    let trunk = sequences.own(family.start);
    let longest_branch = family.clone().skip(1).map(|i| sequences.own(i).len()).max().unwrap_or(0);
    let len = trunk.len() + longest_branch;
    let panels = len.next_multiple_of(PANEL) * dim;
    let [key_panels, value_panels, keys, d_keys, d_values] =
        parts(&mut scratch.sequence, [panels, panels, len * width, len * width, len * width]);
    let most_rows = block_positions(BACKWARD_ROWS, group) * group;
    let of_rows = most_rows * width;
    let of_scores = most_rows * score_stride(len);
    let block = parts(&mut scratch.block, [of_rows, of_rows, of_rows, of_scores, of_scores]);
    let mut work = BackwardWork { key_panels, value_panels, keys, d_keys, d_values, block };
    // SAFETY: this item alone touches these heads of these rows, one part at a time.
    let part = move |row: usize, offset: usize| unsafe {
        let at = row * heads.row() + offset;
        qkv.part(at..at + dim)
    };
    for sequence in family {
        let own = sequences.own(sequence);
        let first_position = if own == trunk { 0 } else { trunk.len() };
        for (position, row) in (first_position..).zip(own.clone()) {
            let key = part(row, key_offset + head * dim);
            store_key(key, position, work.key_panels);
            store_value(key, position, work.keys);
            store_key(part(row, value_offset + head * dim), position, work.value_panels);
        }
        let new = first_position * width..(first_position + own.len()) * width;
        work.d_keys[new.clone()].fill(0.0);
        work.d_values[new].fill(0.0);
        sequence_backward(s, heads, head, own.clone(), first_position, &part, forward, &mut work);
        if own != trunk {
            work.write_gradients(own, first_position, heads, head, &part);
        }
    }
    work.write_gradients(trunk, 0, heads, head, &part);
}

/// The buffers of one item.
struct BackwardWork<'a> {
    key_panels: &'a mut [f32],
    value_panels: &'a mut [f32],
    keys: &'a mut [f32],
    d_keys: &'a mut [f32],
    d_values: &'a mut [f32],
    /// Five parts: queries, gradients of the output, gradients of queries, probabilities, gradients of
    /// scores.
    block: [&'a mut [f32]; 5],
}

impl BackwardWork<'_> {
    /// Writes the summed gradients of keys and values to `rows`, the first of which is at `first_position`.
    fn write_gradients<'q>(
        &self,
        rows: Range<usize>,
        first_position: usize,
        heads: Heads,
        head: usize,
        part: &impl Fn(usize, usize) -> &'q mut [f32],
    ) {
        let (key_offset, value_offset) = heads.offsets();
        for (position, row) in (first_position..).zip(rows) {
            let at = position * padded(heads.dim)..position * padded(heads.dim) + heads.dim;
            part(row, key_offset + head * heads.dim).copy_from_slice(&self.d_keys[at.clone()]);
            part(row, value_offset + head * heads.dim).copy_from_slice(&self.d_values[at]);
        }
    }
}

/// Works through the queries of `own` rows, the first of which is at `first_position`. It writes their
/// gradients, and adds their part to the gradients of all keys and values up to them.
#[inline(always)]
fn sequence_backward<'q, S: Simd>(
    s: S,
    heads: Heads,
    head: usize,
    own: Range<usize>,
    first_position: usize,
    part: &impl Fn(usize, usize) -> &'q mut [f32],
    forward: Attended<'_>,
    work: &mut BackwardWork<'_>,
) {
    let Attended { out, lse, d_out } = forward;
    let (dim, group, width) = (heads.dim, heads.group(), padded(heads.dim));
    let scale = 1.0 / (dim as f32).sqrt();
    let BackwardWork { key_panels, value_panels, keys, d_keys, d_values, block } = work;
    let [queries, d_outs, d_queries, probabilities, d_scores] = block;
    let most = block_positions(BACKWARD_ROWS, group);
    for first in (0..own.len()).step_by(most) {
        let positions = most.min(own.len() - first);
        let block = Block { first_position: first_position + first, positions, group };
        let (rows, count, stride) = (block.rows(), block.keys(), score_stride(block.keys()));
        let out_at = |row: usize| {
            let token = own.start + first + row / group;
            let at = (token * heads.queries + head * group + row % group) * dim;
            at..at + dim
        };
        let query_at =
            |row: usize| part(own.start + first + row / group, (head * group + row % group) * dim);
        for row in 0..rows {
            let query = &mut queries[row * width..][..width];
            store_padded(query_at(row), query);
            query.iter_mut().for_each(|q| *q *= scale);
            store_padded(&d_out[out_at(row)], &mut d_outs[row * width..][..width]);
        }
        // SAFETY: all buffers were cut for as many rows as a block has and all keys.
        unsafe {
            let keys = Right { floats: key_panels, depth: dim, columns: count };
            let values = Right { floats: value_panels, depth: dim, columns: count };
            times_panels(s, Left::rows(queries, width), rows, keys, probabilities, stride);
            times_panels(s, Left::rows(d_outs, width), rows, values, d_scores, stride);
        }
        for row in 0..rows {
            let delta = dot(s, &out[out_at(row)], &d_out[out_at(row)]);
            let lse = lse[out_at(row).start / dim];
            let at = row * stride..row * stride + count;
            let visible = block.visible(row);
            let probabilities = &mut probabilities[at.clone()];
            score_gradients(s, probabilities, &mut d_scores[at], visible, lse, delta);
        }
        // SAFETY: as above; the transposed operands are read at `key + row * stride`.
        unsafe {
            let keys = Right { floats: keys, depth: count, columns: width };
            times_rows(s, Left::rows(d_scores, stride), rows, keys, Sum::New, d_queries);
            let queries = Right { floats: queries, depth: rows, columns: width };
            let d_scores = Left::transposed(d_scores, stride);
            times_rows(s, d_scores, count, queries, Sum::Add, d_keys);
            let d_outs = Right { floats: d_outs, depth: rows, columns: width };
            let probabilities = Left::transposed(probabilities, stride);
            times_rows(s, probabilities, count, d_outs, Sum::Add, d_values);
        }
        for (row, d_query) in d_queries.chunks_exact(width).take(rows).enumerate() {
            query_at(row).iter_mut().zip(d_query).for_each(|(q, d)| *q = d * scale);
        }
    }
}
