//! What a user gets wrong is named in one line and leaves no trace.

use crate::*;

#[cfg(not(feature = "cuda"))]
#[test]
fn a_program_built_without_gpus_says_so() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    place.write("grpo.toml", &grpo_config());
    for command in ["sft", "grpo"] {
        let words =
            format!("{command} --config @{command}.toml --out @run --set train.device=cuda");
        place.mistake(&words, &["built without GPUs", "--features cuda"]);
    }
}

#[test]
fn mistakes_in_a_configuration_are_named() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    place.write("unknown.toml", &sft_config().replace("lr = 1e-2", "lrr = 1e-2"));
    place.mistake("sft --config @unknown.toml", &["unknown.toml:9", "`optim.lrr`", "`optim.lr`"]);
    place.write("type.toml", &sft_config().replace("seq_len = 200", "seq_len = 'long'"));
    place.mistake("sft --config @type.toml", &["type.toml:18", "`train.seq_len`", "long"]);
    place.mistake("sft --config @absent.toml", &["absent.toml"]);
    for key in ["train.total_steps", "train.gradient_accumulation"] {
        place.mistake(&format!("sft --config @sft.toml --set {key}=0"), &[key]);
    }
    place.write("grpo.toml", &grpo_config());
    for (set, part) in [
        ("rollout.n=0", "rollout.n"),
        ("rollout.max_sequences=0", "rollout.max_sequences"),
        ("rollout.temperature=0.0", "rollout.temperature"),
        ("train.seq_len=191", "= 192"),
        ("overlong={buffer=0,factor=1.0}", "overlong.buffer"),
        ("profile=verl-0.1", "profile"),
        ("optim.lr=nan", "optim.lr"),
        ("optim.betas=[2,2]", "optim.betas[0]"),
        ("schedule.warmup={ratio=3}", "schedule.warmup.ratio"),
        ("reward.eps=-1", "reward.eps"),
        ("judge.recursion=1", "judge.recursion"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last"),
        ("rollout.num_prompts=5", "rollout.num_prompts"),
        ("rollout.kv_cache_tokens=100", "rollout.kv_cache_tokens"),
        ("policy.importance_sampling_cap=0.5", "policy.importance_sampling_cap"),
    ] {
        place.mistake(&format!("grpo --config @grpo.toml --set {set}"), &[part]);
    }
}

#[test]
fn mistakes_in_data_are_named() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    place.write("grpo.toml", &grpo_config());
    let samples = fs::read_to_string(INPUTS.join("samples.jsonl")).unwrap();
    let (first, _) = samples.split_once('\n').unwrap();
    let with = |command: &str, file: &str| {
        format!("{command} --config @{command}.toml --out @run --set data.files=['{file}']")
    };
    place.write("cut.jsonl", &format!("{first}\n{}\n", &first[..30]));
    place.mistake(&with("sft", "cut.jsonl"), &["cut.jsonl:2:"]);
    place.write("role.jsonl", r#"{"messages":[{"role":"bard","content":"O"}]}"#);
    place.mistake(&with("sft", "role.jsonl"), &["role.jsonl", "sample 1", "bard"]);
    place.mistake(&with("sft", "absent.jsonl"), &["absent.jsonl"]);
    let mut unsolved = problem(0);
    unsolved.as_object_mut().unwrap().remove("solvability");
    place.write("unsolved.jsonl", &unsolved.to_string());
    place.mistake(&with("grpo", "unsolved.jsonl"), &["data.files", "p0", "data solvability"]);
    place.write("no-tests.jsonl", r#"{"problem_id": "a"}"#);
    place.mistake(&with("grpo", "no-tests.jsonl"), &["no-tests.jsonl:1:", "tests"]);
}

#[test]
fn models_that_are_absent_damaged_or_foreign_are_named() {
    let place = Place::new();
    let weights = fs::read(model().join("model.safetensors")).unwrap();
    for name in ["truncated", "foreign", "small"] {
        fs::create_dir(place.path(name)).unwrap();
        for file in fs::read_dir(model()).unwrap().map(|entry| entry.unwrap().path()) {
            if file.is_file() {
                fs::copy(&file, place.path(name).join(file.file_name().unwrap())).unwrap();
            }
        }
    }
    fs::write(place.path("truncated/model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let tensors = SafeTensors::deserialize(&weights).unwrap().tensors();
    let others = tensors.into_iter().filter(|(name, _)| name != "model.norm.weight");
    safetensors::serialize_to_file(others, None, &place.path("foreign/model.safetensors")).unwrap();
    place.write("small/config.json", &shape(300).to_string());
    place.write("small.json", &shape(300).to_string());

    let mistakes: [(&str, &[&str]); 4] = [
        ("absent", &["absent", "config.json"]),
        ("truncated", &["truncated/model.safetensors", "truncated"]),
        ("foreign", &["foreign", "model.norm.weight", "missing"]),
        ("small", &["small/model.safetensors", "model.embed_tokens.weight", "300"]),
    ];
    let by_path = sft_config().replace("tokenizer = ", "# ").replace("init = ", "path = ");
    for (name, parts) in mistakes {
        let from = format!("{}/model.json", INPUTS.display());
        place.write("sft.toml", &by_path.replace(&from, name));
        place.mistake("sft --config @sft.toml --out @run", parts);
        place.mistake(&format!("generate --model @{name} --prompt x"), parts);
    }
    place.write("init.toml", &sft_config());
    place.mistake(
        "sft --config @init.toml --set model.init='small.json' --out @run",
        &["the tokenizer in", "only 300"],
    );
}

#[test]
fn a_run_directory_in_use_is_kept() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let run = SFT.display();
    let used = format!("sft --config @sft.toml --out {run}");
    place.mistake(&used, &["--resume", "--overwrite"]);
    place.mistake(&format!("{used} --resume --set seed=9"), &["seed was 3, is 9"]);
    assert_eq!(metrics(&SFT, SFT_STEPS).len() as u64, SFT_STEPS);
}
