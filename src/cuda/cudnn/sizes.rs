//! The declared size of a pack, and the memory that attention over it takes.
//!
//! Contract: numbers of elements and bytes alone; nothing here needs the library or a device.

/// Bytes that a plan may need while it runs: far more than any needs for a pack of known segments.
pub(crate) const WORKSPACE: usize = 16 << 20;

/// Integers of a table begin at multiples of this many: 16 bytes.
const TABLE_ALIGNMENT: usize = 4;

/// The declared size of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
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

impl Sizes {
    /// What scores are multiplied with.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Elements of a pack with a vector for every query head.
    pub(crate) fn query_len(&self) -> usize {
        self.length * self.heads * self.head_dim
    }

    /// Integers of the table of [`Segments`].
    pub fn table_len(&self) -> usize {
        4 * self.part()
    }

    /// Integers from one part of the table to the next.
    pub(crate) fn part(&self) -> usize {
        (self.segments + 1).next_multiple_of(TABLE_ALIGNMENT)
    }

    /// Bytes of row sums.
    pub(crate) fn row_sum_bytes(&self) -> usize {
        (self.length * self.heads * size_of::<f32>()).next_multiple_of(256)
    }

    /// Bytes of a gradient of every query head: f32 as in NVIDIA's front end, also of keys and values,
    /// which are stored in 16 bits.
    pub(crate) fn full_head_bytes(&self) -> usize {
        (self.query_len() * size_of::<f32>()).next_multiple_of(256)
    }

    /// Bytes that both directions work in: row sums, three gradients of full heads, the plans' own.
    pub fn scratch_bytes(&self) -> usize {
        self.row_sum_bytes() + 3 * self.full_head_bytes() + WORKSPACE
    }
}
