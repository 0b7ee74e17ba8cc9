//! Every committed configuration is one that its command accepts.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

use codeseq::config::{Resolved, differences, load, schema};
use codeseq::model::ModelConfig;
use codeseq::run::RunConfig;
use codeseq::train::{dpo, rl, sft};
use std::path::{Path, PathBuf};
use toml::Table;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below `configs` whose names end with `end`; there are some.
fn configs(end: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, files) } else { files.push(path) }
        }
    }
    let mut files = Vec::new();
    walk(&root().join("configs"), &mut files);
    files.retain(|file| file.to_string_lossy().ends_with(end));
    assert!(!files.is_empty(), "no configuration ends with {end}");
    files
}

fn grpo(files: &[PathBuf], sets: &[&str]) -> Resolved<rl::Config> {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    let resolved = rl::Config::load(files, &sets).unwrap_or_else(|e| panic!("{files:?}: {e:#}"));
    resolved.value.check().unwrap_or_else(|e| panic!("{files:?} {sets:?}: {e:#}"));
    resolved
}

fn sft(files: &[PathBuf], sets: &[&str]) -> Resolved<sft::Config> {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    let resolved = load::<sft::Config>(files, &sets).unwrap_or_else(|e| panic!("{files:?}: {e:#}"));
    resolved.value.check().unwrap_or_else(|e| panic!("{files:?} {sets:?}: {e:#}"));
    resolved
}

fn dpo(files: &[PathBuf], sets: &[&str]) -> Resolved<dpo::Config> {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    let resolved = load::<dpo::Config>(files, &sets).unwrap_or_else(|e| panic!("{files:?}: {e:#}"));
    resolved.value.check().unwrap_or_else(|e| panic!("{files:?} {sets:?}: {e:#}"));
    resolved
}

fn demo(name: &str) -> PathBuf {
    root().join("configs/demo").join(name)
}

#[test]
fn every_file_is_a_configuration_of_a_command_or_lies_over_or_under_one() {
    for file in configs(".toml") {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let profile = format!("profile={name}");
        match name.as_str() {
            "grpo" => grpo(&[file], &[]).to_toml(),
            "dapo" => grpo(&[demo("grpo.toml"), file], &[]).to_toml(),
            "dpo" => dpo(&[file], &[]).to_toml(),
            "sft" | "pretrain" => sft(&[file], &[]).to_toml(),
            _ if file.parent().unwrap().ends_with("profiles") => {
                grpo(&[demo("grpo.toml")], &[&profile]).to_toml()
            }
            _ => panic!("{} names no training command: add it here", file.display()),
        };
    }
}

#[test]
fn dapo_samples_until_groups_teach_and_punishes_long_responses() {
    let dapo = grpo(&[demo("grpo.toml"), demo("dapo.toml")], &[]).value;
    assert!(dapo.rollout.max_rounds > 1 && dapo.overlong.is_some());
    assert!(dapo.policy.clip_high > dapo.policy.clip_low);
}

#[test]
fn editors_read_the_schema_of_the_types() {
    for (name, schema) in [
        ("sft", schema::<sft::Config>().unwrap()),
        ("dpo", schema::<dpo::Config>().unwrap()),
        ("grpo", schema::<rl::Config>().unwrap()),
    ] {
        let file = root().join(format!("docs/schema/{name}.schema.json"));
        assert!(
            std::fs::read_to_string(&file).unwrap() == schema,
            "train config schema {name} > docs/schema/{name}.schema.json"
        );
    }
    let files = [("/sft", "sft"), ("/pretrain", "sft"), ("/dpo", "dpo"), ("/grpo", "grpo")];
    for (end, name) in files {
        for file in configs(&format!("{end}.toml")) {
            let text = std::fs::read_to_string(&file).unwrap();
            let (_, schema) = text.lines().next().unwrap().split_once("#:schema ").unwrap();
            let named = file.parent().unwrap().join(schema).canonicalize().unwrap();
            assert!(named.ends_with(format!("docs/schema/{name}.schema.json")), "{text}");
        }
    }
}

/// The settings that a resumed run may change, of those that `config` gives another value than the fixed
/// one.
fn changeable<C: RunConfig>(config: &C) -> Vec<String> {
    let tables = [Table::try_from(config), Table::try_from(config.unchangeable())];
    let mut keys: Vec<String> =
        differences(&tables.map(Result::unwrap)).into_iter().map(|(key, _)| key).collect();
    keys.sort();
    keys
}

#[test]
fn a_resumed_run_may_change_how_work_is_laid_out_and_what_is_kept() {
    let both = [
        "checkpoint.every=7",
        "checkpoint.keep_every=21",
        "checkpoint.keep_last=2",
        "plan.gpu_memory_gb=40.0",
        "train.device=cuda",
        "train.gpu.gradient_sums=full",
        "train.gpu.moments=bf16",
        "train.micro_batch_size=2",
        "train.precision=bf16",
        "train.ranks=2",
        "train.recompute=layer",
    ];
    let keys = |more: &[&str]| -> Vec<String> {
        let sets = both.iter().chain(more);
        let mut keys: Vec<String> =
            sets.map(|set| set.split_once('=').unwrap().0.to_owned()).collect();
        keys.sort();
        keys
    };
    let of_sft = ["data.cache_dir=cache", "train.gradient_accumulation=3", "train.peak_tflops=1.0"];
    let tuned = sft(&[demo("sft.toml")], &[&both[..], &of_sft].concat()).value;
    assert_eq!(changeable(&tuned), keys(&of_sft));
    assert_eq!(tuned.rows_per_step(), Some(2 * 3 * 2));

    let of_grpo = ["rollout.kv_cache_tokens=100000", "rollout.max_sequences=3"];
    let tuned = grpo(&[demo("grpo.toml")], &[&both[..], &of_grpo].concat()).value;
    assert_eq!(changeable(&tuned), keys(&of_grpo));

    let averaged = ["policy.aggregation=micro-token-mean"];
    let tuned = grpo(&[demo("grpo.toml")], &[&both[..], &averaged].concat()).value;
    assert!(!changeable(&tuned).contains(&"train.micro_batch_size".to_owned()));
}

#[test]
fn every_model_configuration_is_one_the_decoder_computes() {
    for file in configs(".json") {
        let text = std::fs::read_to_string(&file).unwrap();
        ModelConfig::from_json(&text).unwrap_or_else(|e| panic!("{}: {e:#}", file.display()));
    }
}

#[test]
fn the_configuration_in_the_readme_is_accepted() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```toml\n").unwrap();
    let (config, _) = rest.split_once("```").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, config).unwrap();
    sft(&[file], &[]);
}
