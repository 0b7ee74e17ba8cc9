//! One rank at work: gradients of its share of the batch, and the update of its share of the
//! optimizer (ZeRO-1).
//!
//! Contract: every rank has all parameters and all gradients of its own micro-batches, and the
//! moments of its shard only. Gradients are summed over ranks by bucket, each rank updates its
//! shard, and the shards are gathered; so all ranks hold the same parameters to the bit. Waiting for
//! others happens on the rank's own thread, computing on its own part of the cores.

use crate::base::threads;
use crate::data::pack::Batch;
use crate::dist::{Comm, Shards};
use crate::model::{
    Decoder, Layout, Packed, Recompute, ScoreGradient, Target, TokenScores, Workspace,
};
use crate::ops::adamw::AdamW;
use crate::ops::reduce::sum_of_squares;
use anyhow::Result;
use rayon::ThreadPool;
use std::ops::Range;

/// Rows of samples that go through the model together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MicroBatch {
    packed: Packed,
    targets: Vec<Target>,
}

impl MicroBatch {
    /// Joins packed rows.
    pub fn of(rows: &[Batch]) -> Self {
        let mut joined = Self::default();
        joined.packed.cu_seqlens.push(0);
        for row in rows {
            let start = joined.packed.tokens.len();
            joined.packed.tokens.extend_from_slice(&row.tokens);
            let ends = row.cu_seqlens.iter().skip(1).map(|&end| start + end as usize);
            joined.packed.cu_seqlens.extend(ends);
            let target = |&(row, token): &(u32, u32)| Target { row: start + row as usize, token };
            joined.targets.extend(row.targets.iter().map(target));
        }
        joined
    }

    /// A row without samples.
    pub(super) fn empty() -> Self {
        let packed = Packed { cu_seqlens: vec![0], cu_families: vec![0], ..Packed::default() };
        Self { packed, targets: Vec::new() }
    }

    /// Adds a prompt and responses to it, of at least one token each, all of which are targets in
    /// order. Several responses share the prompt's rows; nothing is read of their last tokens.
    pub(super) fn push(&mut self, prompt: &[u32], responses: &[&[u32]]) {
        let Packed { tokens, cu_seqlens, cu_families } = &mut self.packed;
        tokens.extend_from_slice(prompt);
        let last_of_prompt = tokens.len() - 1;
        let mut predict = |rows: &mut dyn Iterator<Item = usize>, response: &[u32]| {
            let target = |(row, &token): (usize, &u32)| Target { row, token };
            self.targets.extend(rows.zip(response).map(target));
        };
        if let [response] = responses {
            predict(&mut (last_of_prompt..), response);
            tokens.extend_from_slice(response);
            cu_seqlens.push(tokens.len());
        } else {
            cu_seqlens.push(tokens.len());
            for response in responses {
                predict(&mut std::iter::once(last_of_prompt).chain(tokens.len()..), response);
                if let [read @ .., _] = response
                    && !read.is_empty()
                {
                    tokens.extend_from_slice(read);
                    cu_seqlens.push(tokens.len());
                }
            }
        }
        cu_families.push(cu_seqlens.len() - 1);
    }

    /// Scores of its targets under other parameters than those being trained.
    pub(super) fn score(
        &self,
        decoder: &Decoder,
        params: &[f32],
        temperature: f32,
        workspace: &mut Workspace,
    ) -> Vec<TokenScores> {
        decoder.score(params, &self.packed, &self.targets, temperature, workspace)
    }
}

/// Consecutive targets of one micro-batch and their scores.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// Which micro-batch of the step.
    pub batch: usize,
    /// Index of the first target in it.
    pub first: usize,
    /// A score for each target.
    pub scores: &'a [TokenScores],
}

/// What a rank owns besides its parameters.
pub(super) struct Rank {
    pub(super) comm: Box<dyn Comm>,
    /// First and second moments of the rank's shard.
    pub(super) moments: [Vec<f32>; 2],
    grads: Vec<f32>,
    /// Its part of the cores; none where it has them all.
    pool: Option<ThreadPool>,
    workspace: Workspace,
    recompute: Recompute,
}

/// What all ranks found of their summed gradients.
pub(super) struct Reduced {
    /// Norm of the whole gradient, unnormalised.
    pub(super) norm: f64,
    /// Tensors with a non-finite gradient in this rank's shard, by index; looked for only if the
    /// norm is not finite.
    pub(super) culprits: Vec<usize>,
}

impl Rank {
    pub(super) fn new(comm: Box<dyn Comm>, shards: Shards, recompute: Recompute) -> Result<Self> {
        let size = comm.size();
        let pool = (size > 1).then(|| threads::of_rank(size)).transpose()?;
        let shard = shards.shard_len(comm.rank());
        Ok(Self {
            moments: [vec![0.0; shard], vec![0.0; shard]],
            grads: vec![0.0; shards.total_len()],
            pool,
            workspace: Workspace::with_recompute(recompute),
            recompute,
            comm,
        })
    }

    /// Adds the gradients of `batches`, of which the first is number `first` of the step, and
    /// returns what the objective gathered in each.
    pub(super) fn accumulate<M: Default + Send>(
        &mut self,
        decoder: &Decoder,
        params: &[f32],
        (first, batches): (usize, &[MicroBatch]),
        temperature: f32,
        objective: &(impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M) + Sync),
    ) -> Vec<M> {
        let Self { grads, workspace, pool, .. } = self;
        let one = |(index, batch): (usize, &MicroBatch)| {
            let mut gathered = M::default();
            decoder.forward_backward(
                params,
                &batch.packed,
                &batch.targets,
                temperature,
                &mut |at, scores, gradients| {
                    let chunk = Chunk { batch: first + index, first: at, scores };
                    objective(chunk, gradients, &mut gathered);
                },
                grads,
                workspace,
            );
            gathered
        };
        on_pool(pool.as_ref(), || batches.iter().enumerate().map(one).collect())
    }

    /// Sums the gradients over the ranks; this rank's shard holds the sums then.
    pub(super) fn reduce(&mut self, shards: Shards, layout: &Layout) -> Result<Reduced> {
        for bucket in shards.buckets() {
            self.comm.reduce_scatter(&mut self.grads[bucket])?;
        }
        let (grads, pieces) = (&self.grads, shards.pieces(self.comm.rank()));
        let squares = || pieces.iter().map(|own| sum_of_squares(&grads[own.clone()])).sum();
        let mut square = [on_pool(self.pool.as_ref(), squares)];
        self.comm.all_reduce(&mut square)?;
        let norm = square[0].sqrt();
        let culprits = if norm.is_finite() { Vec::new() } else { culprits(grads, &pieces, layout) };
        Ok(Reduced { norm, culprits })
    }

    /// Updates this rank's shard, of which `decayed` are the elements with weight decay, and
    /// gathers the others'.
    pub(super) fn step(
        &mut self,
        params: &mut [f32],
        shards: Shards,
        adamw: AdamW,
        decayed: &[Range<usize>],
    ) -> Result<()> {
        let Self { moments: [first, second], grads, pool, comm, .. } = self;
        let pieces = shards.pieces(comm.rank());
        on_pool(pool.as_ref(), || {
            let mut at = 0;
            for own in pieces {
                let of_shard = at..at + own.len();
                at = of_shard.end;
                adamw.step(
                    &mut params[own.clone()],
                    &grads[own.clone()],
                    &mut first[of_shard.clone()],
                    &mut second[of_shard],
                    &within(decayed, &own),
                );
            }
        });
        for bucket in shards.buckets() {
            comm.all_gather(&mut params[bucket])?;
        }
        Ok(())
    }

    /// Drops the buffers of the forward and backward.
    pub(super) fn release_memory(&mut self) {
        self.workspace = Workspace::with_recompute(self.recompute);
    }

    /// Forgets the gradients.
    pub(super) fn clear(&mut self) {
        self.grads.fill(0.0);
    }
}

fn on_pool<T: Send>(pool: Option<&ThreadPool>, work: impl FnOnce() -> T + Send) -> T {
    match pool {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// The parts of `ranges` in `piece`, counted from its start.
fn within(ranges: &[Range<usize>], piece: &Range<usize>) -> Vec<Range<usize>> {
    ranges
        .iter()
        .map(|range| range.start.max(piece.start)..range.end.min(piece.end))
        .filter(|range| !range.is_empty())
        .map(|range| range.start - piece.start..range.end - piece.start)
        .collect()
}

/// The tensors whose gradient is not finite somewhere in `pieces`.
fn culprits(grads: &[f32], pieces: &[Range<usize>], layout: &Layout) -> Vec<usize> {
    let is_bad = |range: &Range<usize>| {
        pieces.iter().any(|piece| {
            within(std::slice::from_ref(range), piece)
                .into_iter()
                .any(|part| grads[piece.clone()][part].iter().any(|gradient| !gradient.is_finite()))
        })
    };
    (0..layout.tensors.len()).filter(|&index| is_bad(&layout.tensors[index].range)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_rows_keep_their_sequences_and_targets() {
        let row = |token: u32| Batch {
            tokens: vec![token; 3],
            cu_seqlens: vec![0, 1, 3],
            targets: vec![(1, token)],
            ..Batch::default()
        };
        let joined = MicroBatch::of(&[row(5), row(6)]);
        assert_eq!(joined.packed.tokens, [5, 5, 5, 6, 6, 6]);
        assert_eq!(joined.packed.cu_seqlens, [0, 1, 3, 4, 6]);
        let targets = [(1, 5), (4, 6)].map(|(row, token)| Target { row, token });
        assert_eq!(joined.targets, targets);
    }

    #[test]
    fn responses_to_one_prompt_share_its_rows() {
        let mut row = MicroBatch::empty();
        row.push(&[1, 2], &[&[3, 4]]);
        row.push(&[5, 6], &[&[7, 8, 9], &[10], &[11, 12]]);
        let Packed { tokens, cu_seqlens, cu_families } = &row.packed;
        assert_eq!(*tokens, [1, 2, 3, 4, 5, 6, 7, 8, 11]);
        assert_eq!((&cu_seqlens[..], &cu_families[..]), (&[0, 4, 6, 8, 9][..], &[0, 1, 4][..]));
        let targets: Vec<(usize, u32)> = row.targets.iter().map(|t| (t.row, t.token)).collect();
        let alone = [(1, 3), (2, 4)];
        let shared = [(5, 7), (6, 8), (7, 9), (5, 10), (5, 11), (8, 12)];
        assert_eq!(targets, [&alone[..], &shared].concat());
    }

    #[test]
    fn ranges_are_cut_to_a_piece() {
        assert_eq!(within(&[0..4, 6..9, 20..30], &(2..8)), [0..2, 4..6]);
    }
}
