//! The plan of a run that learns from its own samples: what sampling and updating take in turn, beside the
//! model and its optimizer.
//!
//! A key-value cache that is too small for all sequences makes some wait and changes nothing else. So the
//! plan counts as elastic what the cache takes beyond the smallest that works. The processes of the judge
//! are not planned.

use super::{Device, Phase, Plan, PlannedBuffer, Sampling, Workload, cpu_work, gpu, state};
use crate::engine::EngineConfig;
use crate::model::{BLOCK_TOKENS, Decoder, KvCache, Recompute};

impl Plan {
    /// Plans a run that samples.
    pub(crate) fn in_phases(workload: &Workload, sampled: &Sampling) -> Self {
        let decoder = Decoder::new(workload.shape.clone());
        let held = held(&decoder, workload);
        let sampling = sampling(&decoder, workload, sampled);
        let before = super::bytes_in(&held);
        let by_recompute =
            [Recompute::None, Recompute::Selective, Recompute::Layer].map(|recompute| {
                let updating = updating(&decoder, &Workload { recompute, ..workload.clone() });
                (recompute, before + sampling.bytes().max(updating.bytes()))
            });
        let mut plan = Self {
            buffers: held,
            phases: vec![sampling, updating(&decoder, workload)],
            by_recompute: by_recompute.to_vec(),
            rollouts_per_step: sampled.rollouts_per_step,
            ..Self::of_sizes(&decoder, workload)
        };
        plan.advice = plan.advice_for_phases(&decoder, workload);
        plan
    }

    /// Returns, for each phase that does not fit on the GPUs, the first change that makes it fit.
    fn advice_for_phases(&self, decoder: &Decoder, workload: &Workload) -> Option<String> {
        let Device::Gpu { memory_bytes } = self.device else { return None };
        let free = memory_bytes - super::bytes_in(&self.buffers) as f64;
        let by_layer =
            updating(decoder, &Workload { recompute: Recompute::Layer, ..workload.clone() });
        let mut advice = Vec::new();
        for phase in self.phases.iter().filter(|phase| phase.bytes() as f64 > free) {
            let over = phase.bytes() as f64 - free;
            let change = if phase.elastic_bytes as f64 >= over {
                let cache = phase.buffers[0].bytes as f64 - over;
                let block = BLOCK_TOKENS * gpu::cache_bytes_per_token(decoder);
                // One block stays in addition to those that were asked for.
                let blocks = (cache / block as f64) as usize - 1;
                format!("rollout.kv_cache_tokens={}", blocks * BLOCK_TOKENS)
            } else if phase.name == UPDATING && by_layer.bytes() as f64 <= free {
                "train.recompute=\"layer\"".to_owned()
            } else {
                format!("train.ranks={} or shorter responses", 8.max(2 * self.ranks))
            };
            advice.push(format!(
                "{:.1} GB too much while {}: it would fit with {change}",
                over / 1e9,
                phase.name
            ));
        }
        (!advice.is_empty()).then(|| advice.join("; "))
    }
}

const SAMPLING: &str = "sampling";
const UPDATING: &str = "updating";

/// Returns what exists all the time.
fn held(decoder: &Decoder, workload: &Workload) -> Vec<PlannedBuffer> {
    let num_parameters = decoder.layout().len;
    if let Device::Gpu { .. } = workload.device {
        return gpu::lasting(decoder, workload);
    }
    let mut held = state(num_parameters, workload.ranks);
    if workload.has_reference() {
        held.push(PlannedBuffer { name: "reference model", bytes: 4 * num_parameters });
    }
    held
}

/// Returns the sampling phase: each rank's cache for the sequences that it samples at the same time, and
/// its passes.
fn sampling(decoder: &Decoder, workload: &Workload, sampled: &Sampling) -> Phase {
    let engine = &sampled.engine;
    let (buffers, of_token, ranks) = match workload.device {
        Device::Cpu => {
            let of_token = KvCache::bytes_for(decoder.config(), 1) as usize / BLOCK_TOKENS;
            (cpu_sampling(decoder, engine, workload.ranks), of_token, workload.ranks)
        }
        Device::Gpu { .. } => {
            (gpu::sampling(decoder, engine), gpu::cache_bytes_per_token(decoder), 1)
        }
    };
    let waiting = (engine.cache_blocks * BLOCK_TOKENS)
        .saturating_sub(EngineConfig::least_cache_tokens(workload.longest));
    Phase { name: SAMPLING, buffers, elastic_bytes: waiting * of_token * ranks }
}

/// Returns what the engines of all ranks allocate together.
fn cpu_sampling(decoder: &Decoder, engine: &EngineConfig, ranks: usize) -> Vec<PlannedBuffer> {
    let shape = decoder.config();
    let rows = engine.max_sequences + engine.prefill_tokens;
    let heads = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    let of_row = shape.hidden_size + heads + shape.num_heads * shape.head_dim;
    [
        ("key-value cache", engine.cache_bytes(shape) as usize * ranks),
        ("weights packed for sampling", decoder.decoding_weights_bytes()),
        ("logits", 4 * engine.max_logits() * shape.vocab_size * ranks),
        ("activations of a pass", 4 * rows * of_row * ranks),
    ]
    .map(|(name, bytes)| PlannedBuffer { name, bytes })
    .to_vec()
}

/// Returns the updating phase: the forward and backward of a packed row.
fn updating(decoder: &Decoder, workload: &Workload) -> Phase {
    let buffers = match workload.device {
        Device::Cpu => cpu_work(decoder, workload),
        Device::Gpu { .. } => gpu::training(decoder, workload),
    };
    Phase { name: UPDATING, buffers, elastic_bytes: 0 }
}
