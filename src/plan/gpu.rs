//! What a run takes of one GPU's memory and of the host's, and how long it would take.
//!
//! Contract: of the arena, what `trainer::workers::cuda` and `model::cuda` take of it, to the byte, and
//! known without either of them, so that a program without GPUs plans for them: both follow
//! [`crate::model::gpu_sizes`]. Tests on an emulated GPU compare (`tests/cuda_generation.rs`,
//! `tests/cuda_train.rs`). Left out: prompts of validation that are longer than those of training may be.

use super::{Device, PlannedBuffer, Workload};
use crate::cuda::sizes::{ALIGNMENT, PRODUCTS, RESERVE, SQUARES, aligned};
use crate::engine::EngineConfig;
use crate::model::flops::{H100_TFLOPS, ModelFlops};
use crate::model::gpu_sizes::{GenerationMemory, GenerationSize, TrainingMemory, block_bytes};
use crate::model::{BLOCK_TOKENS, Decoder, Recompute};
use crate::ranks::Shards;
use crate::trainer::GPU_BUCKET;
use crate::trainer::device::{GradientSums, Moments};

/// What time is estimated with.
pub(crate) const FLOPS_PER_SEC: f64 = 0.40 * H100_TFLOPS * 1e12;
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
    let memory = TrainingMemory::new(decoder, workload.batch(), workload.recompute, true);
    [
        ("gradients", aligned(2 * decoder.layout().len)),
        ("activations", memory.activations),
        ("gradients of activations", memory.backward),
        ("chunk of logits", memory.head),
        ("attention", memory.attention),
        ("tokens and positions", memory.batch),
    ]
    .map(|(name, bytes)| PlannedBuffer { name, bytes })
    .to_vec()
}

/// What a phase of generation takes with an engine of these sizes.
pub(crate) fn sampling(decoder: &Decoder, engine: &EngineConfig) -> Vec<PlannedBuffer> {
    let size = GenerationSize {
        rows: engine.max_sequences + engine.prefill_tokens,
        logits: engine.max_logits(),
        length: engine.max_length,
        blocks: engine.cache_blocks,
    };
    let memory = GenerationMemory::new(decoder, size);
    [
        ("key-value cache", memory.cache),
        ("activations of a pass", memory.activations),
        ("splits of attention", memory.splits),
        ("logits", memory.logits),
        ("draws", memory.draws),
        ("tokens, positions, tiles and tables", memory.inputs),
    ]
    .map(|(name, bytes)| PlannedBuffer { name, bytes })
    .to_vec()
}

/// Bytes of the keys and values of a token, in all layers.
pub(crate) fn cache_bytes_per_token(decoder: &Decoder) -> usize {
    block_bytes(decoder.config()) / BLOCK_TOKENS
}

/// Seconds of all updates, with every row one sample; recomputed layers cost a forward more, and so do rows that are
/// scored first.
pub(crate) fn estimated_secs(workload: &Workload) -> Option<f64> {
    let Device::Gpu { .. } = workload.device else { return None };
    let row = ModelFlops::new(&workload.shape).training(workload.row_tokens);
    let recomputed = if workload.recompute == Recompute::Layer { 1.0 / 3.0 } else { 0.0 };
    let scored = if workload.scores_first { 1.0 / 3.0 } else { 0.0 };
    let rows_per_step = (workload.max_tokens_per_step / workload.row_tokens) as f64;
    let rows = rows_per_step * workload.total_steps as f64;
    Some(rows * row * (1.0 + recomputed + scored) / (workload.ranks as f64 * FLOPS_PER_SEC))
}
