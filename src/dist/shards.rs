//! How a flat buffer is divided among ranks: in buckets, and each bucket in a piece for every rank.
//!
//! Contract: every element belongs to exactly one rank. A bucket is what one collective moves: its
//! exchange can begin when the backward has filled it. A rank's shard is its pieces one after
//! another; the last pieces of the last bucket are shorter, or empty.

use std::ops::Range;

/// Pieces start at multiples of this many elements: a cache line of floats.
const ALIGNMENT: usize = 16;

/// The elements of a bucket of `len` that belong to `rank` of `size`.
pub fn piece(len: usize, size: usize, rank: usize) -> Range<usize> {
    let width = len.div_ceil(size).next_multiple_of(ALIGNMENT);
    (rank * width).min(len)..((rank + 1) * width).min(len)
}

/// The division of a flat buffer among ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    len: usize,
    size: usize,
    bucket: usize,
}

impl Shards {
    /// Elements of a bucket: 16 MiB of f32, large enough to move at full speed.
    pub const BUCKET: usize = 4 << 20;

    /// `len` elements among `size` ranks, in buckets of `bucket`.
    pub fn new(len: usize, size: usize, bucket: usize) -> Self {
        Self { len, size, bucket }
    }

    /// Elements of the whole buffer.
    pub fn total_len(self) -> usize {
        self.len
    }

    /// The buckets, in order.
    pub fn buckets(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.len).step_by(self.bucket).map(move |at| at..self.len.min(at + self.bucket))
    }

    /// The pieces of `rank`, in order; neighbours are one.
    pub fn pieces(self, rank: usize) -> Vec<Range<usize>> {
        let mut pieces: Vec<Range<usize>> = Vec::new();
        for bucket in self.buckets() {
            let own = piece(bucket.len(), self.size, rank);
            let own = bucket.start + own.start..bucket.start + own.end;
            match pieces.last_mut() {
                Some(last) if last.end == own.start => last.end = own.end,
                _ if own.is_empty() => {}
                _ => pieces.push(own),
            }
        }
        pieces
    }

    /// Elements of the shard of `rank`.
    pub fn shard_len(self, rank: usize) -> usize {
        self.pieces(rank).iter().map(ExactSizeIterator::len).sum()
    }

    /// The whole buffer as (rank, length of its next piece), in order.
    pub fn order(self) -> impl Iterator<Item = (usize, usize)> {
        self.buckets().flat_map(move |bucket| {
            (0..self.size).map(move |rank| (rank, piece(bucket.len(), self.size, rank).len()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_element_belongs_to_one_rank(
            len in 0usize..2000, size in 1usize..9, bucket in 1usize..500,
        ) {
            let shards = Shards::new(len, size, bucket);
            let mut owners = vec![None; len];
            for rank in 0..size {
                let pieces = shards.pieces(rank);
                prop_assert_eq!(pieces.iter().map(|p| p.len()).sum::<usize>(), shards.shard_len(rank));
                for at in pieces.into_iter().flatten() {
                    prop_assert_eq!(owners[at].replace(rank), None);
                }
            }
            let order = shards.order().flat_map(|(rank, len)| std::iter::repeat_n(Some(rank), len));
            prop_assert_eq!(owners, order.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_single_rank_has_everything_in_one_piece() {
        let pieces = Shards::new(1000, 1, 64).pieces(0);
        assert_eq!((pieces.len(), pieces[0].clone()), (1, 0..1000));
    }

    #[test]
    fn the_last_pieces_are_shorter_or_empty() {
        assert_eq!([0, 1, 2].map(|rank| piece(40, 3, rank)), [0..16, 16..32, 32..40]);
        assert_eq!([0, 1, 2].map(|rank| piece(20, 3, rank)), [0..16, 16..20, 20..20]);
    }
}
