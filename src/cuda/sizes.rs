//! The sizes that memory on a GPU follows from, for those who take it and for those who plan it.
//!
//! Contract: numbers alone, and compiled also without the feature `cuda`, so that a program without GPUs
//! plans for them.

/// Buffers of an arena start at multiples of this many bytes: enough for every library and vector load.
pub const ALIGNMENT: usize = 256;
/// The most bytes of a device that no arena takes by itself: for what libraries load on first use, and the
/// channels of NCCL.
pub const RESERVE: usize = 2 << 30;
/// Bytes that products work in: what NVIDIA recommends for Hopper.
pub const PRODUCTS: usize = 32 << 20;
/// Elements whose squares one block sums: part of the order of the sums.
pub const SQUARES: usize = 64 * 1024;
/// Most partial sums of a column: part of the order of the sums, so the same on every device. Two
/// blocks for each multiprocessor of an H100.
pub const PARTS: usize = 264;
/// Positions in a block of the cache.
pub const BLOCK_TOKENS: usize = 32;
/// Keys of a split of decoding, as `kernels/attention_decode.cu` has it.
const SPLIT: usize = 512;
/// Bytes of a tile of attention.
pub const TILE: usize = 12;
/// Bytes of the statistics of a row of logits.
pub const STATISTICS: usize = 16;
/// Bytes of the gradient by the scores of a target.
pub const SCORE_GRADIENT: usize = 12;
/// Bytes of the settings of a draw.
pub const ROW_SAMPLING: usize = 40;
/// Bytes that a plan of cuDNN's may need while it runs: far more than any needs for a pack of known segments.
pub(crate) const ATTENTION_WORKSPACE: usize = 16 << 20;

/// Integers of a table of segments begin at multiples of this many: 16 bytes.
const TABLE_ALIGNMENT: usize = 4;

/// Bytes of a buffer of `bytes` in an arena.
pub(crate) fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Splits of the attention of a sequence with a table of `table_width` blocks.
pub(crate) fn splits(table_width: usize) -> usize {
    (table_width * BLOCK_TOKENS).div_ceil(SPLIT).max(1)
}

/// Elements of the partial results of a sequence with a table of `table_width` blocks: none where it is
/// one split at most.
pub(crate) fn partials_len(queries: usize, head_dim: usize, table_width: usize) -> usize {
    match splits(table_width) {
        1 => 0,
        splits => queries * splits * (head_dim + 4),
    }
}

/// The declared size of a pack that cuDNN attends over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSizes {
    /// The most segments of a pack.
    pub segments: usize,
    /// The most tokens of a segment, and of a pack.
    pub length: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl AttentionSizes {
    /// Elements of a pack with a vector for every query head.
    pub(crate) fn query_len(&self) -> usize {
        self.length * self.heads * self.head_dim
    }

    /// Integers of the table of segments.
    pub fn table_len(&self) -> usize {
        4 * self.part()
    }

    /// Integers from one part of the table to the next.
    pub(crate) fn part(&self) -> usize {
        (self.segments + 1).next_multiple_of(TABLE_ALIGNMENT)
    }

    /// Bytes of row sums.
    pub(crate) fn row_sum_bytes(&self) -> usize {
        (self.length * self.heads * size_of::<f32>()).next_multiple_of(ALIGNMENT)
    }

    /// Bytes of a gradient of every query head: f32 as in NVIDIA's front end, also of keys and values,
    /// which are stored in 16 bits.
    pub(crate) fn full_head_bytes(&self) -> usize {
        (self.query_len() * size_of::<f32>()).next_multiple_of(ALIGNMENT)
    }

    /// Bytes that both directions work in: row sums, three gradients of full heads, the plans' own.
    pub fn scratch_bytes(&self) -> usize {
        self.row_sum_bytes() + 3 * self.full_head_bytes() + ATTENTION_WORKSPACE
    }
}
