//! What a run takes of one GPU's memory and of the host's, and how long it would take.
//!
//! The numbers for the arena are those that `trainer::workers::cuda` and `model::cuda` take, to the byte.
//! Both follow [`crate::model::gpu_sizes`], so a program without GPUs can plan for them. Tests on an
//! emulated GPU compare them (`tests/cuda_generation.rs`, `tests/cuda_train.rs`). A validation prompt that
//! is longer than those of training is not planned for.

use super::{Device, PlannedBuffer, Workload};
use crate::cuda::sizes::{ALIGNMENT, PRODUCTS, RESERVE, SQUARES, aligned};
use crate::engine::EngineConfig;
use crate::model::flops::{H100_TFLOPS, ModelFlops};
use crate::model::gpu_sizes::{GenerationMemory, GenerationSize, TrainingMemory, block_bytes};
use crate::model::{BLOCK_TOKENS, Decoder, Recompute};
use crate::ranks::Shards;
use crate::trainer::GPU_BUCKET;
use crate::trainer::device::{GradientSums, Moments};

/// The rate that estimates of time assume: 40 % of the peak.
pub(crate) const FLOPS_PER_SEC: f64 = 0.40 * H100_TFLOPS * 1e12;
/// Returns what the first rank, whose shard is the largest, holds all the time.
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

/// Returns what the ranks together hold on the host. A reference model is there while gradients take its
/// place on the GPUs.
pub(crate) fn host(decoder: &Decoder, workload: &Workload) -> Vec<PlannedBuffer> {
    let Device::Gpu { .. } = workload.device else { return Vec::new() };
    let len = decoder.layout().len;
    let mut host = vec![PlannedBuffer { name: "parameters, for checkpoints", bytes: 4 * len }];
    if workload.has_reference() {
        host.push(PlannedBuffer { name: "reference model", bytes: 2 * len });
    }
    host
}

/// Returns what a training phase takes with cuDNN's attention; without cuDNN it takes less.
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

/// Returns what a generation phase takes with an engine of these sizes.
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

/// Returns the bytes of a token's keys and values in all layers.
pub(crate) fn cache_bytes_per_token(decoder: &Decoder) -> usize {
    block_bytes(decoder.config()) / BLOCK_TOKENS
}

/// Returns the seconds of all updates, if every row is one sample. Recomputing layers costs another forward,
/// and so does scoring rows first.
pub(crate) fn estimated_secs(workload: &Workload) -> Option<f64> {
    let Device::Gpu { .. } = workload.device else { return None };
    let row = ModelFlops::new(&workload.shape).training(workload.row_tokens);
    let recomputed = if workload.recompute == Recompute::Layer { 1.0 / 3.0 } else { 0.0 };
    let scored = if workload.scores_first { 1.0 / 3.0 } else { 0.0 };
    let rows_per_step = (workload.max_tokens_per_step / workload.row_tokens) as f64;
    let rows = rows_per_step * workload.total_steps as f64;
    Some(rows * row * (1.0 + recomputed + scored) / (workload.ranks as f64 * FLOPS_PER_SEC))
}
