//! This file divides a flat buffer among ranks: into buckets, and each bucket into one piece for
//! every rank.
//!
//! Contract: every element belongs to exactly one rank. One collective moves one bucket, whose
//! exchange can begin as soon as the backward has filled it. A rank's shard consists of its pieces,
//! one after the other. The last pieces of the last bucket are shorter, or empty.

use std::ops::Range;

/// A piece starts at a multiple of this many elements, which are a cache line of floats.
const ALIGNMENT: usize = 16;

/// Returns the elements of a bucket of `len` elements that belong to `rank` of `size` ranks.
pub fn piece(len: usize, size: usize, rank: usize) -> Range<usize> {
    let width = len.div_ceil(size).next_multiple_of(ALIGNMENT);
    (rank * width).min(len)..((rank + 1) * width).min(len)
}

/// A bucket and one rank's piece of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portion {
    /// The bucket has this range in the buffer.
    pub bucket: Range<usize>,
    /// The rank's piece has this range in the buffer.
    pub own: Range<usize>,
    /// The same piece has this range in the rank's shard.
    pub in_shard: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    len: usize,
    size: usize,
    bucket: usize,
}

impl Shards {
    /// A bucket has so many elements, which are 16 MiB of f32: enough to move at full speed.
    pub const BUCKET: usize = 4 << 20;

    /// Divides `len` elements among `size` ranks, in buckets of `bucket` elements.
    pub fn new(len: usize, size: usize, bucket: usize) -> Self {
        Self { len, size, bucket }
    }

    /// Returns the number of ranks.
    pub fn size(self) -> usize {
        self.size
    }

    /// Returns the elements of the whole buffer.
    pub fn total_len(self) -> usize {
        self.len
    }

    /// Returns the buckets in order.
    pub fn buckets(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.len).step_by(self.bucket).map(move |at| at..self.len.min(at + self.bucket))
    }

    /// Returns the pieces of `rank` in order; adjacent pieces are joined.
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

    /// Returns the number of elements in the shard of `rank`.
    pub fn shard_len(self, rank: usize) -> usize {
        self.pieces(rank).iter().map(ExactSizeIterator::len).sum()
    }

    /// Returns every bucket in order, with the piece of `rank`.
    pub fn portions(self, rank: usize) -> Vec<Portion> {
        let mut at = 0;
        let portion = |bucket: Range<usize>| {
            let own = piece(bucket.len(), self.size, rank);
            let in_shard = at..at + own.len();
            at = in_shard.end;
            Portion { own: bucket.start + own.start..bucket.start + own.end, bucket, in_shard }
        };
        self.buckets().map(portion).collect()
    }

    /// Returns the whole buffer in order, as parts of the ranks' shards.
    pub fn join<'a, T>(self, shards: &[&'a [T]]) -> Vec<&'a [T]> {
        let mut rests = shards.to_vec();
        let next = |(rank, len): (usize, usize)| rests[rank].split_off(..len);
        self.order().filter_map(next).collect()
    }

    /// Does the same as [`Shards::join`], for writing.
    pub fn join_mut<T>(self, mut shards: Vec<&mut [T]>) -> Vec<&mut [T]> {
        let next = |(rank, len): (usize, usize)| shards[rank].split_off_mut(..len);
        self.order().filter_map(next).collect()
    }

    /// Splits a whole buffer into the pieces of every rank, in order.
    pub fn split_mut<T>(self, mut whole: &mut [T]) -> Vec<Vec<&mut [T]>> {
        let mut pieces: Vec<Vec<&mut [T]>> = (0..self.size).map(|_| Vec::new()).collect();
        for (rank, len) in self.order() {
            pieces[rank].extend(whole.split_off_mut(..len));
        }
        pieces
    }

    /// Returns the rank and the length of each piece, in the order of the buffer.
    fn order(self) -> impl Iterator<Item = (usize, usize)> {
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

            let mut whole: Vec<usize> = (0..len).collect();
            let mut by_rank: Vec<Vec<usize>> =
                shards.split_mut(&mut whole).into_iter().map(|pieces| pieces.concat()).collect();
            for (rank, shard) in by_rank.iter().enumerate() {
                for Portion { own, in_shard, .. } in shards.portions(rank) {
                    prop_assert_eq!(shard[in_shard].to_vec(), own.collect::<Vec<_>>());
                }
            }
            let views: Vec<&[usize]> = by_rank.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(shards.join(&views).concat(), whole.clone());
            let views = by_rank.iter_mut().map(Vec::as_mut_slice).collect();
            prop_assert_eq!(shards.join_mut(views).concat(), whole);
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
