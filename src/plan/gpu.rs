//! What a run takes of one GPU's memory and of the host's, and how long it would take.
//!
//! Contract: of the arena, what `rank::cuda` and `model::cuda` take of it, to the byte, and known without
//! either of them, so that a program without GPUs plans for them. Tests compare the two: here, and on an
//! emulated GPU in `tests/cuda_generation.rs` and `tests/cuda_train.rs`. Left out: prompts of validation
//! that are longer than those of training may be.

use super::{Device, PlannedBuffer, Workload};
use crate::engine::EngineConfig;
use crate::model::flops::{H100_TFLOPS, ModelFlops};
use crate::model::{BLOCK_TOKENS, Decoder, KvCache, Recompute};
use crate::ranks::Shards;
use crate::trainer::GPU_BUCKET;
use crate::trainer::device::{GradientSums, Moments};

/// What time is estimated with.
pub(crate) const FLOPS_PER_SEC: f64 = 0.40 * H100_TFLOPS * 1e12;
/// Outside of the arena: CUDA's context, what cuBLAS and cuDNN load, the channels of NCCL.
const RESERVE: usize = 2 << 30;
/// Workspace of products.
const PRODUCTS: usize = 32 << 20;
/// Buffers of the arena are multiples of this many bytes.
const ALIGNMENT: usize = 256;
/// Elements whose squares are summed at a time.
const SQUARES: usize = 64 << 10;
/// Rows of activations come in multiples of this.
const ROWS: usize = 128;
/// Most logits that exist at a time.
const LOGITS: usize = 1 << 28;
/// Partial sums of a column.
const COLUMN_SUMS: usize = 264;
/// What cuDNN's plans may work in.
const CUDNN_WORKSPACE: usize = 16 << 20;
/// Integers of the table of 32 segments.
const CUDNN_TABLE: usize = 4 * 36;
/// Cached keys that are attended to at a time, and rows with partial results of such splits.
const SPLIT: (usize, usize) = (512, 256);
/// Rows of logits that a repetition penalty is put on at a time.
const PENALIZED: usize = 128;

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Bytes of a matrix of 16 bits.
fn matrix(rows: usize, width: usize) -> usize {
    aligned(2 * rows * width)
}

/// Bytes of numbers of 32 bits.
fn words(len: usize) -> usize {
    aligned(4 * len)
}

/// What the first rank, whose shard is the largest, holds all the time.
pub(crate) fn lasting(decoder: &Decoder, workload: &Workload) -> Vec<PlannedBuffer> {
    let Workload { longest, ranks, gpu, .. } = *workload;
    let layout = decoder.layout();
    let shards = Shards::new(layout.len, ranks, GPU_BUCKET);
    let shard = shards.shard_len(0);
    let of_moment = match gpu.moments {
        Moments::F32 => size_of::<f32>(),
        Moments::Bf16 => 2,
    };
    let sums = match gpu.gradient_sums {
        GradientSums::Sharded => shard,
        GradientSums::Full => layout.len,
    };
    let squares: usize =
        shards.portions(0).iter().map(|portion| portion.own.len().div_ceil(SQUARES)).sum();
    let table = longest * decoder.config().head_dim / 2;
    [
        ("parameters", aligned(2 * layout.len)),
        ("master weights, sharded", aligned(4 * shard)),
        ("moments of AdamW, sharded", 2 * aligned(of_moment * shard)),
        ("sums of gradients", aligned(4 * sums)),
        ("workspace of products", PRODUCTS),
        (
            "rotary table and scratch",
            2 * aligned(4 * table)
                + aligned(16 * layout.tensors.len())
                + aligned(8 * squares)
                + 2 * ALIGNMENT,
        ),
        ("CUDA, cuBLAS and NCCL, assumed", RESERVE),
    ]
    .map(|(name, bytes)| PlannedBuffer { name, bytes })
    .to_vec()
}

/// What the ranks together hold on the host; a reference model comes to the GPUs in the place of gradients.
pub(crate) fn host(decoder: &Decoder, workload: &Workload) -> Vec<PlannedBuffer> {
    let Device::Gpu { .. } = workload.device else { return Vec::new() };
    let len = decoder.layout().len;
    let mut host = vec![PlannedBuffer { name: "parameters, for checkpoints", bytes: 4 * len }];
    if workload.has_reference() {
        host.push(PlannedBuffer { name: "reference model", bytes: 2 * len });
    }
    host
}

/// What a phase of training takes, in cuDNN's attention; without cuDNN it takes less.
pub(crate) fn training(decoder: &Decoder, workload: &Workload) -> Vec<PlannedBuffer> {
    let (tokens, recompute) = (workload.batch().tokens, workload.recompute);
    let config = decoder.config();
    let (hidden, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let (heads, width) = (config.num_heads, config.num_heads * config.head_dim);
    let qkv = width + 2 * config.num_kv_heads * config.head_dim;
    let rows = tokens.max(1).next_multiple_of(ROWS);
    let chunk = (LOGITS / vocab / ROWS * ROWS).clamp(ROWS, rows);
    // Places, and the rows of each, by value.
    let row_list = |count: usize| 2 * words(count) + words(count + 1);
    let residual = matrix(rows, hidden);
    let (before_norm, head_norm) =
        if config.has_head_norm { (matrix(rows, qkv), 2 * config.head_dim) } else { (0, 0) };
    let layer = matrix(rows, qkv)
        + before_norm
        + matrix(rows, width)
        + words(rows * heads)
        + residual
        + matrix(rows, 2 * inner);
    let layers = config.num_layers;
    let slots = if recompute == Recompute::Layer { 1 } else { layers };
    let bias = if config.qkv_bias { qkv } else { 0 };
    [
        ("gradients", aligned(2 * decoder.layout().len)),
        ("activations", (layers + 1) * residual + slots * layer),
        (
            "gradients of activations",
            2 * residual
                + matrix(rows, hidden.max(width))
                + matrix(rows, inner)
                + matrix(rows, qkv)
                + words(COLUMN_SUMS * hidden.max(bias).max(head_norm)),
        ),
        (
            "chunk of logits",
            2 * matrix(chunk, hidden)
                + matrix(chunk, vocab)
                + words(chunk * vocab)
                + words(4 * chunk)
                + words(3 * chunk)
                + 3 * words(chunk)
                + row_list(chunk),
        ),
        ("attention", words(rows * heads) + cudnn(rows, (heads, width), qkv)),
        ("tokens and positions", 2 * words(rows) + row_list(rows) + 2 * words(3 * rows)),
    ]
    .map(|(name, bytes)| PlannedBuffer { name, bytes })
    .to_vec()
}

/// What cuDNN's attention takes: queries, keys and values apart, a table of segments, sums over rows,
/// gradients of every query head in f32, and a workspace.
fn cudnn(rows: usize, (heads, width): (usize, usize), qkv: usize) -> usize {
    let scratch = aligned(4 * rows * heads) + 3 * aligned(4 * rows * width) + CUDNN_WORKSPACE;
    aligned(2 * rows * qkv) + aligned(4 * CUDNN_TABLE) + aligned(scratch)
}

/// What a phase of generation takes with an engine of these sizes.
pub(crate) fn sampling(decoder: &Decoder, engine: &EngineConfig) -> Vec<PlannedBuffer> {
    let config = decoder.config();
    let (hidden, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let (heads, width) = (config.num_heads, config.num_heads * config.head_dim);
    let qkv = width + 2 * config.num_kv_heads * config.head_dim;
    let rows = filled(engine.max_sequences + engine.prefill_tokens);
    let logits = filled(engine.max_logits());
    let penalized = logits.min(PENALIZED);
    let table_width = KvCache::blocks_for(engine.max_length);
    let splits = match (table_width * BLOCK_TOKENS).div_ceil(SPLIT.0) {
        1 => 0,
        splits => rows.min(SPLIT.1) * heads * splits * (config.head_dim + 4),
    };
    // One block takes what rows write that only fill a pass up.
    let cached = (engine.cache_blocks + 1) * BLOCK_TOKENS * cache_bytes_per_token(decoder);
    [
        ("key-value cache", 2 * aligned(cached / 2)),
        (
            "activations of a pass",
            3 * matrix(rows, hidden)
                + matrix(rows, qkv)
                + matrix(rows, width)
                + matrix(rows, 2 * inner)
                + matrix(rows, inner),
        ),
        ("splits of attention", words(splits)),
        ("logits", matrix(logits, hidden) + words(logits * vocab)),
        (
            "draws",
            aligned(40 * logits)
                + 2 * words(logits)
                + words(penalized * vocab)
                + words(penalized + 1)
                + words(penalized * engine.max_length)
                + words(4 * penalized),
        ),
        ("tokens, positions, tiles and tables", words(rows * (6 + table_width) + logits)),
    ]
    .map(|(name, bytes)| PlannedBuffer { name, bytes })
    .to_vec()
}

/// Rows of a pass that is filled up: a power of two, or a multiple of a block.
fn filled(rows: usize) -> usize {
    if rows < BLOCK_TOKENS { rows.next_power_of_two() } else { rows.next_multiple_of(BLOCK_TOKENS) }
}

/// Keys and values of all layers.
pub(crate) fn cache_bytes_per_token(decoder: &Decoder) -> usize {
    let config = decoder.config();
    2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim
}

/// Seconds of all updates, with every row one sample; recomputed layers cost a forward more.
pub(crate) fn estimated_secs(workload: &Workload) -> Option<f64> {
    let Device::Gpu { .. } = workload.device else { return None };
    let row = ModelFlops::new(&workload.shape).training(workload.row_tokens);
    let forwards = if workload.recompute == Recompute::Layer { 4.0 / 3.0 } else { 1.0 };
    let rows_per_step = (workload.max_tokens_per_step / workload.row_tokens) as f64;
    let rows = rows_per_step * workload.total_steps as f64;
    Some(rows * row * forwards / (workload.ranks as f64 * FLOPS_PER_SEC))
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::model::cuda::TrainingMemory;
    use crate::model::{BatchSize, ModelConfig};
    use crate::trainer::device::GpuConfig;

    #[test]
    fn a_phase_of_training_is_planned_as_the_model_takes_it() {
        let shapes = [
            ("llama", 128_256, 4096, 14_336, 32, 32, 8),
            ("qwen2", 152_064, 3584, 18_944, 28, 28, 4),
            ("qwen3", 151_936, 4096, 12_288, 36, 32, 8),
            ("llama", 1536, 192, 512, 5, 6, 2),
        ];
        for (kind, vocab, hidden, inner, layers, heads, kv_heads) in shapes {
            let head_dim = if hidden < 1000 { 32 } else { 128 };
            let text = format!(
                r#"{{"model_type": "{kind}", "vocab_size": {vocab}, "hidden_size": {hidden},
                "intermediate_size": {inner}, "num_hidden_layers": {layers}, "head_dim": {head_dim},
                "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads}}}"#
            );
            let decoder = Decoder::new(ModelConfig::from_json(&text).unwrap());
            for (tokens, recompute) in [(5120, Recompute::Selective), (1000, Recompute::Layer)] {
                let gpu = GpuConfig::default();
                let work = Work { tokens, longest: tokens, ranks: 8, recompute, gpu };
                let planned: usize = training(&decoder, work).iter().map(|b| b.bytes).sum();
                let size = BatchSize { tokens, longest: tokens, targets: tokens };
                let taken = TrainingMemory::new(&decoder, size, recompute, true);
                assert_eq!(planned - aligned(2 * decoder.layout().len), taken.total(), "{text}");
            }
        }
    }
}
