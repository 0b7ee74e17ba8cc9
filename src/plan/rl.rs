//! The plan of a GRPO run: what sampling and updating take beside the model and its optimizer.
//!
//! A key-value cache smaller than all sequences could fill makes some wait and changes nothing else, so
//! the plan counts what goes beyond the smallest as elastic. Left out: the judge's processes.

use super::{Device, Phase, Plan, PlannedBuffer, Work, cpu_work, gpu, shape, state};
use crate::engine::EngineConfig;
use crate::model::{BLOCK_TOKENS, Decoder, KvCache, Recompute};
use crate::train::rl;
use anyhow::Result;

impl Plan {
    /// The plan of a reinforcement run.
    pub fn for_grpo(config: &rl::Config) -> Result<Self> {
        config.check()?;
        let decoder = Decoder::new(shape(&config.model)?);
        let device = Device::new(config.train.device, &config.plan);
        let of = |recompute| updating(&decoder, config, device, recompute).bytes();
        let rollouts_per_step = config.rollout.num_prompts * config.rollout.n;
        let held = held(&decoder, config, device);
        let sampling = sampling(&decoder, config, device);
        let before = super::bytes_in(&held);
        let by_recompute = [Recompute::None, Recompute::Selective, Recompute::Layer]
            .map(|recompute| (recompute, before + sampling.bytes().max(of(recompute))));
        let mut plan = Self {
            device,
            ranks: config.train.ranks,
            buffers: held,
            host: gpu::host(&decoder, device, config.policy.needs_reference()),
            phases: vec![sampling, updating(&decoder, config, device, config.train.recompute)],
            by_recompute: by_recompute.to_vec(),
            total_steps: config.train.total_steps,
            max_tokens_per_step: rollouts_per_step * config.longest(),
            rollouts_per_step,
            ..Self::of_model(decoder.config())
        };
        plan.advice = plan.advice_for_grpo(&decoder, config);
        Ok(plan)
    }

    /// What would make a run on GPUs fit that does not: for each phase the first change that does.
    fn advice_for_grpo(&self, decoder: &Decoder, config: &rl::Config) -> Option<String> {
        let Device::Gpu { memory_bytes } = self.device else { return None };
        let free = memory_bytes - super::bytes_in(&self.buffers) as f64;
        let mut advice = Vec::new();
        for phase in self.phases.iter().filter(|phase| phase.bytes() as f64 > free) {
            let over = phase.bytes() as f64 - free;
            let change = if phase.elastic_bytes as f64 >= over {
                let cache = phase.buffers[0].bytes as f64 - over;
                let block = BLOCK_TOKENS * gpu::cache_bytes_per_token(decoder);
                // The one beside those that were asked for stays.
                let blocks = (cache / block as f64) as usize - 1;
                format!("rollout.kv_cache_tokens={}", blocks * BLOCK_TOKENS)
            } else if phase.name == UPDATING
                && updating(decoder, config, self.device, Recompute::Layer).bytes() as f64 <= free
            {
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

/// What exists all the time.
fn held(decoder: &Decoder, config: &rl::Config, device: Device) -> Vec<PlannedBuffer> {
    let num_parameters = decoder.layout().len;
    if let Device::Gpu { .. } = device {
        return gpu::lasting(decoder, work(config, config.train.recompute));
    }
    let mut held = state(num_parameters, config.train.ranks);
    if config.policy.needs_reference() {
        held.push(PlannedBuffer { name: "reference model", bytes: 4 * num_parameters });
    }
    held
}

/// Every rank's cache for the sequences that it may sample at the same time, and its passes.
fn sampling(decoder: &Decoder, config: &rl::Config, device: Device) -> Phase {
    let longest = config.longest();
    let roomy = EngineConfig::roomy(config.rollout.max_sequences, longest);
    let engine = match config.rollout.kv_cache_tokens {
        Some(tokens) => roomy.within(tokens),
        None => roomy,
    };
    let ranks = config.train.ranks;
    let (buffers, of_token, ranks) = match device {
        Device::Cpu => {
            let of_token = KvCache::bytes_for(decoder.config(), 1) as usize / BLOCK_TOKENS;
            (cpu_sampling(decoder, &engine, ranks), of_token, ranks)
        }
        Device::Gpu { .. } => {
            (gpu::sampling(decoder, &engine), gpu::cache_bytes_per_token(decoder), 1)
        }
    };
    let waiting = (engine.cache_blocks * BLOCK_TOKENS)
        .saturating_sub(EngineConfig::least_cache_tokens(longest));
    Phase { name: SAMPLING, buffers, elastic_bytes: waiting * of_token * ranks }
}

/// What the engines of all ranks allocate together.
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

/// The forward and backward of a packed row.
fn updating(decoder: &Decoder, config: &rl::Config, device: Device, recompute: Recompute) -> Phase {
    let work = work(config, recompute);
    let buffers = match device {
        Device::Cpu => cpu_work(decoder, work),
        Device::Gpu { .. } => gpu::training(decoder, work),
    };
    Phase { name: UPDATING, buffers, elastic_bytes: 0 }
}

fn work(config: &rl::Config, recompute: Recompute) -> Work {
    let rl::TrainConfig { seq_len, ranks, gpu, .. } = config.train;
    Work { tokens: seq_len, longest: config.longest(), ranks, recompute, gpu }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper's run of a model whose `config.json` lies in `dir`.
    fn config(dir: &std::path::Path, sets: &[&str]) -> rl::Config {
        let shape = r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8}"#;
        std::fs::write(dir.join("config.json"), shape).unwrap();
        let model = format!("model.path={}", dir.display());
        let sets = std::iter::once(model).chain(sets.iter().map(|&set| set.to_owned()));
        let table7 = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/llama3-8b/grpo.toml");
        rl::Config::load(&[table7.into()], &sets.collect::<Vec<_>>()).unwrap().value
    }

    fn plan(sets: &[&str]) -> Plan {
        let dir = tempfile::tempdir().unwrap();
        Plan::for_grpo(&config(dir.path(), sets)).unwrap()
    }

    #[test]
    fn the_papers_run_fits_a_gpu_and_its_larger_phase_decides() {
        let plan = plan(&[]);
        assert_eq!(plan.advice, None);
        let held: usize = plan.buffers.iter().map(|b| b.bytes).sum();
        let [sampling, updating] = [0, 1].map(|i| plan.phases[i].bytes());
        assert_eq!(plan.total_bytes(), held + sampling.max(updating));
        // 2 x 32 layers x 8 heads x 128 x 2 bytes a token, and a block of 32 beside them.
        assert_eq!(plan.phases[0].buffers[0].bytes, 131_072 * (196_608 + 32));
        // Parameters of 8.03e9 x 2 bytes, an eighth of 16 bytes, and 2 GiB for libraries.
        assert!((held as f64 - (16.06e9 + 16.06e9 + 2.147e9)).abs() < 0.05e9, "{held}");
        assert!(plan.lines().iter().any(|(label, _)| label.contains("in all, while ")));
    }

    #[test]
    fn a_cache_that_does_not_fit_comes_with_the_largest_that_does() {
        let too_much = plan(&["rollout.kv_cache_tokens=1000000", "plan.gpu_memory_gb=70.0"]);
        let advice = too_much.advice.unwrap();
        let (_, tokens) = advice.split_once("rollout.kv_cache_tokens=").unwrap();
        let tokens: String = tokens.chars().take_while(char::is_ascii_digit).collect();
        let with = |tokens: usize| {
            let set = format!("rollout.kv_cache_tokens={tokens}");
            plan(&[&set, "plan.gpu_memory_gb=70.0"]).advice.unwrap_or_default()
        };
        let tokens: usize = tokens.parse().unwrap();
        assert!(!with(tokens).contains("sampling"));
        assert!(with(tokens + 2 * BLOCK_TOKENS).contains("sampling"));
    }

    #[test]
    fn updates_that_do_not_fit_recompute_more_or_take_more_ranks() {
        let advice = |set: &str, gigabytes: &str| {
            let memory = format!("plan.gpu_memory_gb={gigabytes}");
            plan(&[set, &memory]).advice.unwrap()
        };
        assert!(advice("train.recompute=none", "62.0").contains("train.recompute=\"layer\""));
        assert!(advice("train.ranks=1", "62.0").contains("train.ranks=8"));
    }

    #[test]
    fn a_reference_model_takes_memory_of_the_host_and_none_of_a_gpu() {
        let (plain, with) = (plan(&[]), plan(&["policy.kl_coef=0.001"]));
        assert_eq!((&with.buffers, &with.phases), (&plain.buffers, &plain.phases));
        let host = |plan: &Plan| plan.host.iter().map(|b| b.bytes).sum::<usize>();
        assert_eq!(host(&plain), 4 * plain.num_parameters);
        assert_eq!(host(&with) - host(&plain), 2 * plain.num_parameters);
        assert!(with.lines().iter().any(|(label, _)| label == "  reference model"));
    }

    #[test]
    fn a_reference_model_and_ranks_on_a_cpu_are_counted() {
        let on_cpu = |more: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            let sets = [&["train.device=cpu"], more].concat();
            Plan::for_grpo(&config(dir.path(), &sets)).unwrap()
        };
        let held = |plan: &Plan| plan.buffers.iter().map(|b| b.bytes).sum::<usize>();
        let plain = on_cpu(&["train.ranks=1"]);
        let with = on_cpu(&["train.ranks=1", "policy.kl_coef=0.001"]);
        assert_eq!(held(&with) - held(&plain), 4 * plain.num_parameters);
        let two = on_cpu(&["train.ranks=2"]);
        assert_eq!(held(&two) - held(&plain), 8 * plain.num_parameters);
        assert_eq!(two.phases[0].buffers[0].bytes, 2 * plain.phases[0].buffers[0].bytes);
        let needed = plain.total_bytes() as u64;
        plain.check_fits(needed).unwrap();
        assert!(plain.check_fits(60_000_000_000).is_err());
    }
}
