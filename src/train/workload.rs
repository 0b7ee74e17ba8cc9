//! What each loop's settings ask of the machine, for the plan of a run.

use super::{dpo, rl, sft};
use crate::checkpoint::{LanguageModel, ModelSource, Origin};
use crate::engine::EngineConfig;
use crate::model::ModelConfig;
use crate::plan::{Device, Sampling, Workload};
use anyhow::Result;

impl sft::Config {
    /// Returns what the run asks of the machine. Refuses settings with which the run could not be made.
    pub fn workload(&self) -> Result<Workload> {
        self.check()?;
        let train = &self.train;
        Ok(Workload {
            shape: shape(&self.model)?,
            device: Device::new(train.device, &self.plan),
            ranks: train.ranks,
            gpu: train.gpu,
            recompute: train.recompute,
            row_tokens: train.seq_len,
            rows_at_once: train.micro_batch_size,
            longest: train.seq_len,
            total_steps: train.total_steps,
            max_tokens_per_step: train.seq_len * train.rows_per_step(),
            scores_first: false,
            sampling: None,
        })
    }
}

impl dpo::Config {
    /// Returns what the run asks of the machine. Refuses settings with which the run could not be made.
    pub fn workload(&self) -> Result<Workload> {
        self.check()?;
        let (train, longest) = (&self.train, self.data.max_length);
        Ok(Workload {
            shape: shape(&self.model)?,
            device: Device::new(train.device, &self.plan),
            ranks: train.ranks,
            gpu: train.gpu,
            recompute: train.recompute,
            row_tokens: train.seq_len,
            rows_at_once: 1,
            longest,
            total_steps: train.total_steps,
            max_tokens_per_step: 2 * longest * train.pairs_per_step,
            scores_first: true,
            sampling: None,
        })
    }
}

impl rl::Config {
    /// Returns what the run asks of the machine. Refuses settings with which the run could not be made.
    pub fn workload(&self) -> Result<Workload> {
        self.check()?;
        let (train, rollout, longest) = (&self.train, &self.rollout, self.longest());
        let roomy = EngineConfig::roomy(rollout.max_sequences, longest);
        let rollouts_per_step = rollout.num_prompts * rollout.n;
        Ok(Workload {
            shape: shape(&self.model)?,
            device: Device::new(train.device, &self.plan),
            ranks: train.ranks,
            gpu: train.gpu,
            recompute: train.recompute,
            row_tokens: train.seq_len,
            rows_at_once: 1,
            longest,
            total_steps: train.total_steps,
            max_tokens_per_step: rollouts_per_step * longest,
            scores_first: false,
            sampling: Some(Sampling {
                engine: match rollout.kv_cache_tokens {
                    Some(tokens) => roomy.within(tokens),
                    None => roomy,
                },
                rollouts_per_step,
                has_reference: self.policy.needs_reference(),
            }),
        })
    }
}

fn shape(model: &ModelSource) -> Result<ModelConfig> {
    match model.origin()? {
        Origin::Stored(place) => LanguageModel::shape(place),
        Origin::Random { config, .. } => LanguageModel::read_config(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BLOCK_TOKENS;
    use crate::plan::Plan;

    /// Returns the paper's configuration for a model whose `config.json` is in `dir`.
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
        Plan::new(&config(dir.path(), sets).workload().unwrap())
    }

    #[test]
    fn the_papers_run_fits_a_gpu_and_its_larger_phase_decides() {
        let plan = plan(&[]);
        assert_eq!(plan.advice, None);
        let held: usize = plan.buffers.iter().map(|b| b.bytes).sum();
        let [sampling, updating] = [0, 1].map(|i| plan.phases[i].bytes());
        assert_eq!(plan.total_bytes(), held + sampling.max(updating));
        // A token has 2 x 32 layers x 8 heads x 128 x 2 bytes, and there is one more block of 32 tokens.
        assert_eq!(plan.phases[0].buffers[0].bytes, 131_072 * (196_608 + 32));
        // It is 2 bytes for each of 8.03e9 parameters, an eighth of 16 bytes each, and 2 GiB for libraries.
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
            Plan::new(&config(dir.path(), &sets).workload().unwrap())
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
