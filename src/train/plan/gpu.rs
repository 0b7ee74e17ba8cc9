//! What a run takes of one GPU's memory, and how long it would take.
//!
//! Contract: of the arena, the buffers that `rank::cuda` and `model::cuda` take of it, to the byte.

use super::{Device, PlannedBuffer, Work};
use crate::dist::Shards;
use crate::model::{Decoder, Recompute};
use crate::train::device::{GradientSums, Moments};
use crate::train::flops::ModelFlops;
use crate::train::rank::GPU_BUCKET;
use crate::train::settings::{H100_TFLOPS, TrainConfig};

/// What time is estimated with.
pub(super) const FLOPS_PER_SEC: f64 = 0.40 * H100_TFLOPS * 1e12;
/// Outside of the arena: CUDA's context, what cuBLAS and cuDNN load, the channels of NCCL.
const RESERVE: usize = 2 << 30;
/// Workspace of products.
const PRODUCTS: usize = 32 << 20;
/// Buffers of the arena are multiples of this many bytes.
const ALIGNMENT: usize = 256;
/// Elements whose squares are summed at a time.
const SQUARES: usize = 64 << 10;

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// What the first rank, whose shard is the largest, holds all the time.
pub(super) fn lasting(decoder: &Decoder, work: Work) -> Vec<PlannedBuffer> {
    let Work { longest, ranks, gpu, .. } = work;
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
        ("gradients", aligned(2 * layout.len)),
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

/// What a forward and backward takes.
pub(super) fn training(decoder: &Decoder, work: Work) -> Vec<PlannedBuffer> {
    let Work { tokens, recompute, .. } = work;
    let config = decoder.config();
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let width = config.num_heads * config.head_dim;
    let row = width + 2 * config.num_kv_heads * config.head_dim;
    // Two bytes each, but four for the log-sum-exp of a head.
    let input = 2 * hidden;
    let layer = 2 * (row + width + hidden + 2 * inner) + 4 * config.num_heads;
    let outputs = 2 * (2 * hidden + inner);
    let layers = config.num_layers;
    let activations = match recompute {
        Recompute::None => layers * (input + layer + outputs),
        Recompute::Selective => layers * (input + layer),
        Recompute::Layer => layers * input + layer,
    };
    let backward = 2 * (3 * hidden + width + inner);
    let attention = 4 * (3 * width + config.num_heads);
    let chunk = tokens.min(1024);
    [
        ("activations", activations * tokens),
        ("gradients of activations", backward * tokens),
        ("chunk of logits", 4 * chunk * config.vocab_size),
        ("attention workspace", attention * tokens),
    ]
    .map(|(name, bytes)| PlannedBuffer { name, bytes })
    .to_vec()
}

/// Seconds of all updates, with every row one sample; recomputed layers cost a forward more.
pub(super) fn estimated_secs(
    decoder: &Decoder,
    train: &TrainConfig,
    device: Device,
) -> Option<f64> {
    let Device::Gpu { .. } = device else { return None };
    let row = ModelFlops::new(decoder.config()).training(train.seq_len);
    let forwards = if train.recompute == Recompute::Layer { 4.0 / 3.0 } else { 1.0 };
    let rows = train.rows_per_step() as f64 * train.total_steps as f64;
    Some(rows * row * forwards / (train.ranks as f64 * FLOPS_PER_SEC))
}
