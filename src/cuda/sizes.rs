//! This file holds the sizes from which the memory of a GPU run follows.
//!
//! Contract: it is arithmetic alone and is compiled without the feature `cuda` too, so that a
//! program without GPUs can plan for them. Both the plan and the code that takes the memory read
//! it.

/// Kernels load and store this many elements at a time, so widths are multiples of it.
pub const VECTOR: usize = 8;
/// There are kernels of attention for heads of these sizes.
pub const HEAD_DIMS: [usize; 3] = [32, 64, 128];
/// At most this many query heads may share a key head.
pub const MOST_GROUP: usize = 8;
/// A row of a norm may be this wide at most: it is one block of 1024 threads with eight elements each.
pub const MOST_WIDTH: usize = 8192;
/// A vocabulary may be this large at most: `kernels/sample.cu` has room for so many tiles.
pub const MOST_CHOICES: usize = 64 * 4096;
/// A buffer of an arena starts at a multiple of this many bytes, which is enough for every library
/// and vector load.
pub const ALIGNMENT: usize = 256;
/// An arena leaves at most this many bytes of a device to the code that libraries load on first use
/// and to the channels of NCCL.
pub const RESERVE: usize = 2 << 30;
/// The products' workspace has this many bytes, which NVIDIA recommends for Hopper.
pub const PRODUCTS: usize = 32 << 20;
/// One block sums the squares of this many elements. The number is part of the order of summation.
pub const SQUARES: usize = 64 * 1024;
/// A sum over rows has at most this many partial sums. The number is part of the order of
/// summation, so it is the same on every device; it is two blocks for each multiprocessor of an
/// H100.
pub const PARTS: usize = 264;
/// A block of the key-value cache holds this many positions.
pub const BLOCK_TOKENS: usize = 32;
/// One block of the decoding kernel reads at most this many keys, as `kernels/attention_decode.cu`
/// does.
const SPLIT: usize = 512;
/// A tile of attention takes this many bytes.
pub const TILE: usize = 12;
/// The statistics of one row of logits take this many bytes.
pub const STATISTICS: usize = 16;
/// The gradient by the scores of one target takes this many bytes.
pub const SCORE_GRADIENT: usize = 12;
/// The sampling settings of one row take this many bytes.
pub const ROW_SAMPLING: usize = 40;
/// A plan of cuDNN may use a workspace of this many bytes, far more than any plan for packed
/// segments needs.
pub(crate) const ATTENTION_WORKSPACE: usize = 16 << 20;

/// Each part of the table of segments begins at a multiple of this many integers, which is 16
/// bytes.
const TABLE_ALIGNMENT: usize = 4;

/// Rounds `bytes` up to what a buffer takes in an arena.
pub(crate) fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Returns into how many parts decoding splits the keys of a sequence with a table of `table_width`
/// blocks.
pub(crate) fn splits(table_width: usize) -> usize {
    (table_width * BLOCK_TOKENS).div_ceil(SPLIT).max(1)
}

/// Returns how many f32 of partial results a sequence with a table of `table_width` blocks needs.
/// It needs none where it is not split.
pub(crate) fn partials_len(queries: usize, head_dim: usize, table_width: usize) -> usize {
    match splits(table_width) {
        1 => 0,
        splits => queries * splits * (head_dim + 4),
    }
}

/// The largest pack of segments that cuDNN's attention is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSizes {
    /// A pack has at most so many segments.
    pub segments: usize,
    /// A segment, and a whole pack, have at most so many tokens.
    pub length: usize,
    pub heads: usize,
    /// Keys and values have so many heads each.
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl AttentionSizes {
    /// Returns the elements of a tensor that has a vector for every token and query head.
    pub(crate) fn query_len(&self) -> usize {
        self.length * self.heads * self.head_dim
    }

    /// Returns the integers of the table of segments.
    pub fn table_len(&self) -> usize {
        4 * self.part()
    }

    /// Returns the integers from the start of one part of the table to the start of the next.
    pub(crate) fn part(&self) -> usize {
        (self.segments + 1).next_multiple_of(TABLE_ALIGNMENT)
    }

    /// Returns the bytes of the row sums, one f32 for each token and query head.
    pub(crate) fn row_sum_bytes(&self) -> usize {
        (self.length * self.heads * size_of::<f32>()).next_multiple_of(ALIGNMENT)
    }

    /// Returns the bytes of an f32 gradient with a vector for every token and query head. Gradients
    /// of keys and values have this size too while they are summed, as in NVIDIA's front end.
    pub(crate) fn full_head_bytes(&self) -> usize {
        (self.query_len() * size_of::<f32>()).next_multiple_of(ALIGNMENT)
    }

    /// Returns the bytes of scratch memory that forward and backward share: row sums, three
    /// gradients with a vector for every query head, and the workspace of cuDNN's plans.
    pub fn scratch_bytes(&self) -> usize {
        self.row_sum_bytes() + 3 * self.full_head_bytes() + ATTENTION_WORKSPACE
    }
}
