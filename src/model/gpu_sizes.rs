//! What a model takes of a GPU's memory, computed in advance and without a GPU.
//!
//! [`TrainingMemory`] and [`GenerationMemory`] count the buffers that the phases of `model::cuda` take of
//! an arena, to the byte; tests compare them. Parameters, gradients, moments and the workspace of products
//! outlast a phase and are counted elsewhere.

use super::{BLOCK_TOKENS, BatchSize, Decoder, KvCache, ModelConfig, Recompute};
use crate::cuda::sizes::{
    AttentionSizes, PARTS, ROW_SAMPLING, SCORE_GRADIENT, STATISTICS, TILE, aligned, partials_len,
};

/// Products have a multiple of this many rows: the rows of a tile.
pub(crate) const ROWS: usize = 128;
/// A training batch has at most this many rows: the limit of a launch of SwiGLU, in whole tiles.
pub const MOST_ROWS: usize = (1 << 16) - ROWS;
/// A head chunk has at most this many logits: with their gradients they take 1.5 GiB.
const HEAD_LOGITS: usize = 1 << 28;
/// cuDNN's plans are made for this many sequences in a batch. Empty sequences cost time too.
pub(crate) const SEGMENTS: usize = 32;
/// Where sequences may be long enough to be split, attention is computed for at most this many rows of a
/// pass at a time.
pub(crate) const SPLIT_ROWS: usize = 256;
/// At most this many rows are penalised at a time: about one for each multiprocessor of a GPU.
pub(crate) const PENALIZED: usize = 128;

/// Returns `count` rows of a training batch, rounded up to whole tiles.
pub(crate) fn padded(count: usize) -> usize {
    count.max(1).next_multiple_of(ROWS)
}

/// Returns the rows of a generation pass that has `rows` rows: a power of two, or a multiple of 32. So at
/// most 31 rows are added, and each has its own place in a block.
pub(crate) fn filled(rows: usize) -> usize {
    match rows {
        0 => 0,
        1..BLOCK_TOKENS => rows.next_power_of_two(),
        _ => rows.next_multiple_of(BLOCK_TOKENS),
    }
}

/// Returns how many targets have logits at the same time.
pub(crate) fn head_chunk(vocab: usize, targets: usize) -> usize {
    (HEAD_LOGITS / vocab / ROWS * ROWS).clamp(ROWS, padded(targets))
}

/// Returns the sizes for which cuDNN's attention is compiled.
pub(crate) fn attention_sizes(decoder: &Decoder, rows: usize) -> AttentionSizes {
    let heads = decoder.heads();
    AttentionSizes {
        segments: SEGMENTS,
        length: rows,
        heads: heads.queries,
        kv_heads: heads.keys,
        head_dim: heads.dim,
    }
}

/// Returns the elements of the keys of one block in one layer; its values have as many.
pub(crate) fn block_len(config: &ModelConfig) -> usize {
    config.num_kv_heads * BLOCK_TOKENS * config.head_dim
}

/// Returns the bytes of one block of the cache in all layers.
pub(crate) fn block_bytes(config: &ModelConfig) -> usize {
    2 * 2 * config.num_layers * block_len(config)
}

/// Returns the bytes in an arena of `len` numbers of 16 bits.
fn halves(len: usize) -> usize {
    aligned(2 * len)
}

/// Returns the bytes in an arena of `len` numbers of 32 bits.
fn words(len: usize) -> usize {
    aligned(4 * len)
}

/// The bytes of a training phase, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainingMemory {
    /// What the forward keeps for the backward.
    pub activations: usize,
    /// The gradients of activations.
    pub backward: usize,
    /// One chunk of the head, above all its logits.
    pub head: usize,
    /// The working memory of attention.
    pub attention: usize,
    /// The inputs of a batch: tokens, positions and the like.
    pub batch: usize,
}

/// The lengths from which the sizes of buffers follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrainingShape {
    /// The rows of the largest batch, in whole tiles.
    pub(crate) rows: usize,
    /// The number of targets that have logits at the same time.
    pub(crate) chunk: usize,
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) vocab: usize,
    /// The number of query heads.
    pub(crate) heads: usize,
    /// The elements of a row of attention output.
    pub(crate) width: usize,
    /// The elements of a row of queries, keys and values.
    pub(crate) qkv: usize,
    /// The number of layers whose activations exist at the same time.
    pub(crate) slots: usize,
    /// The elements of the weight that normalises heads; 0 in a model without one.
    pub(crate) head_norm: usize,
    /// The elements of the longest vector that is a sum over rows.
    pub(crate) sums: usize,
    pub(crate) layers: usize,
}

impl TrainingShape {
    pub(crate) fn new(decoder: &Decoder, size: BatchSize, recompute: Recompute) -> Self {
        let config = decoder.config();
        let heads = decoder.heads();
        let hidden = config.hidden_size;
        let head_norm = if config.has_head_norm { 2 * heads.dim } else { 0 };
        let bias = if config.qkv_bias { heads.row() } else { 0 };
        Self {
            rows: padded(size.tokens),
            chunk: head_chunk(config.vocab_size, size.targets),
            hidden,
            inner: config.intermediate_size,
            vocab: config.vocab_size,
            heads: heads.queries,
            width: decoder.attention_width(),
            qkv: heads.row(),
            slots: if recompute == Recompute::Layer { 1 } else { config.num_layers },
            head_norm,
            sums: hidden.max(bias).max(head_norm),
            layers: config.num_layers,
        }
    }

    /// Returns the elements of a matrix that holds the output of a block and later a gradient of attention.
    pub(crate) fn branch(&self) -> usize {
        self.hidden.max(self.width)
    }
}

impl TrainingMemory {
    /// Counts what a training phase takes of the arena, with cuDNN's attention or without.
    pub fn new(decoder: &Decoder, size: BatchSize, recompute: Recompute, has_cudnn: bool) -> Self {
        let shape = TrainingShape::new(decoder, size, recompute);
        let TrainingShape { rows, chunk, hidden, inner, vocab, heads, width, qkv, .. } = shape;
        let matrix = |rows: usize, width: usize| halves(rows * width);
        let residual = matrix(rows, hidden);
        let before_norm = if shape.head_norm > 0 { matrix(rows, qkv) } else { 0 };
        let layer = matrix(rows, qkv)
            + before_norm
            + matrix(rows, width)
            + words(rows * heads)
            + residual
            + matrix(rows, 2 * inner);
        let row_list = |count| 2 * words(count) + words(count + 1);
        let cudnn = || {
            let sizes = attention_sizes(decoder, rows);
            matrix(rows, qkv) + words(sizes.table_len()) + aligned(sizes.scratch_bytes())
        };
        Self {
            activations: (shape.layers + 1) * residual + shape.slots * layer,
            backward: 2 * residual
                + matrix(rows, shape.branch())
                + matrix(rows, inner)
                + matrix(rows, qkv)
                + words(PARTS * shape.sums),
            head: 2 * matrix(chunk, hidden)
                + matrix(chunk, vocab)
                + words(chunk * vocab)
                + aligned(STATISTICS * chunk)
                + aligned(SCORE_GRADIENT * chunk)
                + words(chunk)
                + 2 * words(chunk)
                + row_list(chunk),
            attention: words(rows * heads) + if has_cudnn { cudnn() } else { 0 },
            batch: 2 * words(rows) + row_list(rows) + 2 * aligned(TILE * rows),
        }
    }

    /// Returns the sum in bytes.
    pub fn total(&self) -> usize {
        self.activations + self.backward + self.head + self.attention + self.batch
    }
}

/// The largest sizes that occur in a generation phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationSize {
    /// The rows of a pass.
    pub rows: usize,
    /// The rows of a pass that want logits.
    pub logits: usize,
    /// The tokens of a sequence.
    pub length: usize,
    /// The blocks of the cache.
    pub blocks: usize,
}

/// The bytes of a generation phase, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationMemory {
    /// The keys and values.
    pub cache: usize,
    /// What a pass computes.
    pub activations: usize,
    /// The partial results of attention.
    pub splits: usize,
    /// The logits, and the rows from which they are computed.
    pub logits: usize,
    /// What draws read and write.
    pub draws: usize,
    /// The tokens, positions, tiles and block tables of a pass.
    pub inputs: usize,
}

impl GenerationMemory {
    /// Counts what a generation phase takes of the arena, with a cache of all the blocks asked for.
    pub fn new(decoder: &Decoder, size: GenerationSize) -> Self {
        let config = decoder.config();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (vocab, heads, width) = (config.vocab_size, decoder.heads(), decoder.attention_width());
        let (rows, logits) = (filled(size.rows), filled(size.logits));
        let table_width = KvCache::blocks_for(size.length);
        let penalized = logits.min(PENALIZED);
        let matrix = |rows: usize, width: usize| halves(rows * width);
        // Rows that only fill up a pass write into one more block.
        let cached = (size.blocks + 1) * block_bytes(config);
        Self {
            cache: 2 * aligned(cached / 2),
            activations: 3 * matrix(rows, hidden)
                + matrix(rows, heads.row())
                + matrix(rows, width)
                + matrix(rows, 2 * inner)
                + matrix(rows, inner),
            splits: words(
                rows.min(SPLIT_ROWS) * partials_len(heads.queries, heads.dim, table_width),
            ),
            logits: matrix(logits, hidden) + words(logits * vocab),
            draws: aligned(ROW_SAMPLING * logits)
                + 2 * words(logits)
                + words(penalized * vocab)
                + words(penalized + 1)
                + words(penalized * size.length)
                + aligned(STATISTICS * penalized),
            inputs: words(rows * (6 + table_width) + logits),
        }
    }

    /// Returns the sum in bytes.
    pub fn total(&self) -> usize {
        self.cache + self.activations + self.splits + self.logits + self.draws + self.inputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bytes beside a training phase on one of eight ranks: parameters and gradients in 16
    /// bits, and an eighth of master weights, gradient sums and two moments in f32.
    fn lasting(decoder: &Decoder) -> usize {
        decoder.layout().len * (2 + 2 + 16 / 8)
    }

    fn decoder(text: &str) -> Decoder {
        Decoder::new(ModelConfig::from_json(text).unwrap())
    }

    #[test]
    fn models_of_8_and_7_billion_train_on_packs_of_5120_tokens_within_72_gb() {
        let size = BatchSize { tokens: 5120, longest: 5120, targets: 5120 };
        for model in [
            r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8}"#,
            r#"{"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
            "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4}"#,
        ] {
            let decoder = decoder(model);
            let memory = TrainingMemory::new(&decoder, size, Recompute::Selective, true);
            assert!(lasting(&decoder) + memory.total() < 72_000_000_000, "{memory:?}");
            let less = TrainingMemory::new(&decoder, size, Recompute::Layer, true);
            assert!(less.activations < memory.activations / 8, "{less:?}");
        }
    }

    #[test]
    fn chunks_of_the_head_are_whole_tiles_and_no_larger_than_the_targets_need() {
        assert_eq!(head_chunk(128_256, 5120), 2048);
        assert_eq!(head_chunk(152_064, 5120), 1664);
        assert_eq!(head_chunk(1536, 300), 384);
        assert_eq!(head_chunk(1 << 24, 300), ROWS);
        assert_eq!(head_chunk(1536, 0), ROWS);
    }

    #[test]
    fn passes_have_few_sizes_and_little_filling() {
        assert_eq!([0, 1, 2, 3, 5, 31, 32].map(filled), [0, 1, 2, 4, 8, 32, 32]);
        assert_eq!([33, 64, 65, 257].map(filled), [64, 64, 96, 288]);
        assert!((0..5000).all(|rows| filled(rows) - rows < BLOCK_TOKENS));
    }
}
