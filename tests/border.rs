//! What the program refuses before any work, in one line and without a trace: outputs that cannot be
//! written, numbers and sizes that mean nothing, malformed lines, limits of the process.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod support;

use nix::sys::resource::{Resource, setrlimit};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Place, done, expect_mistake, lines, problem, stderr};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A place with the demo's base model, its configurations and some problems.
fn place() -> Place {
    let place = Place::new();
    for (name, target) in [("base", "data/demo/base"), ("configs", "configs"), ("data", "data")] {
        std::os::unix::fs::symlink(Path::new(ROOT).join(target), place.path(name)).unwrap();
    }
    place.write("problems.jsonl", &lines(&[problem(0), problem(1)]));
    place
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_anything_is_read() {
    let place = place();
    let files = [
        "score --model absent --data absent.jsonl",
        "judge --problems absent.jsonl --solutions absent.jsonl",
        "eval gtg --model absent --data absent.jsonl",
        "eval cases --model absent --data absent.jsonl",
        "data solvability --model absent --data absent.jsonl",
        "report absent",
    ];
    for command in files {
        for out in ["tmp", "problems.jsonl/out", "/proc/out", "tmp/"] {
            place.mistake(&format!("{command} --out {out}"), &[&format!("cannot write {out}")]);
        }
    }
    for command in ["data generate", "data tokenizer --from absent.jsonl"] {
        for out in ["base", "problems.jsonl", "problems.jsonl/out", "/proc/out", "."] {
            place.mistake(&format!("{command} --out {out}"), &[&format!("cannot make {out}")]);
        }
    }
    for command in ["sft", "grpo"] {
        let words =
            format!("{command} --config configs/demo/{command}.toml --set model.path='base'");
        place.mistake(&format!("{words} --out problems.jsonl"), &["problems.jsonl is a file"]);
        place.mistake(&format!("{words} --out /proc/out"), &["cannot make", "/proc/out"]);
    }
}

#[test]
fn an_output_is_never_one_of_the_inputs() {
    let place = place();
    for command in ["score", "eval gtg", "data solvability"] {
        let words = format!("{command} --model base --data problems.jsonl --out problems.jsonl");
        place.mistake(&words, &["cannot write", "also the input"]);
    }
}

#[test]
fn missing_parent_directories_of_an_output_are_made() {
    let place = place();
    place.write("ids.jsonl", "{\"input_ids\":[5,4]}\n");
    done(&mut place.train("score --model base --data ids.jsonl --out new/parents/scores.jsonl"));
    assert!(place.path("new/parents/scores.jsonl").is_file());
}

#[test]
fn a_directory_of_something_else_is_no_place_for_a_demo() {
    let place = place();
    place.mistake("demo --quick --out .", &["choose a new directory"]);
    place.mistake("demo --quick --overwrite --out base", &["base holds", "not of a demo"]);
    fs::create_dir_all(place.path("used/sft")).unwrap();
    place.mistake("demo --quick --out used", &["used already holds a demo", "--overwrite"]);
    place.mistake("demo --quick --out problems.jsonl", &["cannot use --out problems.jsonl"]);
}

#[test]
fn numbers_that_mean_nothing_are_named() {
    let place = place();
    place.write("ids.jsonl", "{\"input_ids\":[5,4]}\n");
    let generate = "generate --model base --prompt x";
    let gtg = "eval gtg --model base --data problems.jsonl";
    for number in ["inf", "nan", "-1"] {
        let score = "score --model base --data ids.jsonl --out scores.jsonl";
        place.mistake(&format!("{score} --temperature={number}"), &["--temperature"]);
        for flag in ["--temperature", "--top-p", "--min-p", "--repetition-penalty"] {
            place.mistake(&format!("{generate} {flag}={number}"), &[flag]);
        }
        place.mistake(&format!("{gtg} --temperature={number}"), &["temperature"]);
    }
    for absurd in ["4294967295", "18446744073709551615"] {
        place.mistake(&format!("{generate} -n {absurd}"), &["-n"]);
        place.mistake(&format!("{generate} --max-new-tokens {absurd}"), &["--max-new-tokens"]);
        place.mistake(&format!("{gtg} --rollouts {absurd}"), &["rollouts"]);
        place.mistake(&format!("{gtg} --max-new-tokens {absurd}"), &["max_new_tokens"]);
        place.mistake(&format!("{gtg} --max-sequences {absurd}"), &["max_sequences"]);
    }
}

#[test]
fn a_model_of_absurd_size_is_refused_by_its_key() {
    let place = place();
    fs::create_dir(place.path("model")).unwrap();
    for file in fs::read_dir(place.path("base")).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(file.path(), place.path("model").join(file.file_name())).unwrap();
    }
    let text = fs::read_to_string(place.path("base/config.json")).unwrap();
    let config = fs::read_to_string(place.path("configs/demo/sft.toml")).unwrap();
    let fresh = "init = 'model/config.json'\ntokenizer = 'base'";
    place.write("sft.toml", &config.replace("path = \"data/demo/base\"", fresh));
    let sizes = [
        ("num_hidden_layers", 1_000_000_000_000_u64),
        ("hidden_size", 1 << 40),
        ("head_dim", 1 << 62),
    ];
    for (key, absurd) in sizes {
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config[key] = json!(absurd);
        place.write("model/config.json", &config.to_string());
        place.mistake("generate --model model --prompt x", &["model/config.json", key]);
        place.mistake("sft --config sft.toml --out run", &["model/config.json", key]);
    }
}

/// A copy of the demo's base model, some keys of one of its JSON files changed.
fn base_with(place: &Place, file: &str, keys: &Value) -> PathBuf {
    let model = place.path("changed");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(place.path("base")).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    change(&model.join(file), keys);
    model
}

fn change(file: &Path, keys: &Value) {
    let mut object: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    object.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    fs::write(file, object.to_string()).unwrap();
}

#[test]
fn a_damaged_or_unknown_gguf_file_is_named_as_what_it_is() {
    let place = place();
    place.write("q4.gguf", "GGUF");
    let reason: &[&str] = match cfg!(feature = "candle") {
        true => &["damaged, cut short"],
        false => &["built without candle"],
    };
    for words in [
        "generate --model q4.gguf --prompt x",
        "data inspect --tokenizer q4.gguf --data data/demo/sft.jsonl",
    ] {
        place.mistake(words, &[&["q4.gguf", "GGUF"], reason].concat());
    }
}

#[test]
fn files_of_a_tokenizer_that_disagree_are_named() {
    let place = place();
    let model = base_with(&place, "tokenizer_config.json", &json!({}));
    fs::write(model.join("special_tokens_map.json"), r#"{"eos_token": "<|endoftext|>"}"#).unwrap();
    let words = "data inspect --data data/demo/sft.jsonl --tokenizer changed -n 1";
    let said = stderr(&place.train(words).output().unwrap());
    assert!(said.contains("disagree about eos_token"), "{said}");
}

/// The log-probabilities are those of transformers 5.24, which does not tie such a head either.
#[test]
fn a_head_of_other_values_is_used_though_the_config_ties_it() {
    let place = place();
    let model = base_with(&place, "config.json", &json!({})).join("model.safetensors");
    let whole = fs::read(&model).unwrap();
    let tensors = SafeTensors::deserialize(&whole).unwrap();
    let embedding = tensors.tensor("model.embed_tokens.weight").unwrap();
    let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    let head: Vec<u8> =
        embedding.data().chunks(4).flat_map(|x| (0.5 * number(x) + 0.01).to_le_bytes()).collect();
    let head = TensorView::new(Dtype::F32, embedding.shape().to_vec(), &head).unwrap();
    let mut all = tensors.tensors();
    all.push(("lm_head.weight".to_owned(), head));
    fs::write(&model, safetensors::serialize(all, None).unwrap()).unwrap();
    let ids: Vec<u32> = (5..30).collect();
    place.write("ids.jsonl", &lines(&[json!({"input_ids": ids})]));
    let mut score = place.train("score --model changed --data ids.jsonl --out scores.jsonl");
    let said = stderr(&score.output().unwrap());
    assert!(said.contains("head of other values"), "{said}");
    let scores = fs::read_to_string(place.path("scores.jsonl")).unwrap();
    let scores: Value = serde_json::from_str(&scores).unwrap();
    for (i, expected) in [-8.49698, -7.73728, -7.75593, -7.986].into_iter().enumerate() {
        let ours = scores["logprobs"][i + 1].as_f64().unwrap();
        assert!((ours - expected).abs() < 1e-3, "{i}: {ours}, not {expected}");
    }
}

#[test]
fn a_checkpoint_ends_responses_where_the_turns_of_its_template_end() {
    let place = place();
    let ends = json!({"eos_token_id": 0});
    let model = base_with(&place, "generation_config.json", &ends);
    change(&model.join("config.json"), &ends);
    change(&model.join("tokenizer_config.json"), &json!({"eos_token": "<|endoftext|>"}));
    let ask = "generate --model changed --messages asked.jsonl --max-new-tokens 1";
    let asked = json!({"role": "user", "content": "Say yes"});
    place.write("asked.jsonl", &lines(&[json!({"messages": [asked]})]));
    let said = stderr(&place.train(ask).output().unwrap());
    assert!(said.contains("--stop-id 1") && said.contains("<|im_end|>"), "{said}");
    let said = stderr(&place.train(&format!("{ask} --stop-id 1")).output().unwrap());
    assert!(!said.contains("WARN"), "{said}");

    let answered = json!([asked, {"role": "assistant", "content": "yes"}]);
    place.write("answered.jsonl", &lines(&[json!({"messages": answered})]));
    let sft = "sft --config configs/demo/sft.toml --out run --set model.path='changed' \
               --set data.files=['answered.jsonl'] --set train.total_steps=1";
    let output = place.train(sft).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("no end of sequence"), "{}", stderr(&output));
    let saved = place.path("run/checkpoints/step-000001/generation_config.json");
    let saved: Value = serde_json::from_str(&fs::read_to_string(saved).unwrap()).unwrap();
    assert_eq!(saved["eos_token_id"], json!([0, 1]));
}

#[test]
fn a_line_that_cannot_be_scored_is_named_with_what_is_wrong() {
    let place = place();
    let wrong: [(&str, &[&str]); 8] = [
        ("{\"input_ids\":[1,\"a\"]}", &["invalid type: string \"a\"", "u32"]),
        ("{\"input_ids\":[1,-4]}", &["-4"]),
        ("{\"input_ids\":[1,70000]}", &["token 1 is 70000", "vocab_size"]),
        ("{\"input_ids\":[]}", &["no token"]),
        ("{\"ids\":[1]}", &["unknown field `ids`", "input_ids"]),
        ("{\"prompt\":\"x\"}", &["prompt and completion"]),
        ("{\"input_ids\":[1],\"messages\":[]}", &["either input_ids"]),
        ("[1, 2", &["3:"]),
    ];
    for (line, parts) in wrong {
        place.write("lines.jsonl", &format!("{{\"input_ids\":[5,4]}}\n\n{line}\n"));
        let parts = [&["lines.jsonl:3:"], parts].concat();
        place.mistake("score --model base --data lines.jsonl --out scores.jsonl", &parts);
    }
    place.write("lines.jsonl", "\n");
    place.mistake("score --model base --data lines.jsonl --out s.jsonl", &["no lines"]);
    place.mistake(
        "generate --model base --messages lines.jsonl",
        &["lines.jsonl", "no conversation"],
    );
    let long = json!({"input_ids": vec![5; 1025]});
    place.write("lines.jsonl", &lines(&[json!({"input_ids": vec![5; 1024]}), long]));
    let too_long = ["lines.jsonl:2:", "1025 tokens", "1024 positions", "max_position_embeddings"];
    place.mistake("score --model base --data lines.jsonl --out s.jsonl", &too_long);
}

#[test]
fn a_prompt_that_does_not_show_the_problem_is_refused() {
    let place = place();
    place.write("prompt.txt", "Write a program. {{ problem.description }}");
    let missing = ["prompt.txt", "{{ problem.input_requirement }}"];
    place.mistake("data generate --prompt prompt.txt --out new", &missing);
    place.mistake("data stats --prompt prompt.txt problems.jsonl", &missing);
}

/// The program under a limit of the shell's.
fn limited(place: &Place, words: &str, resource: Resource, limit: u64) -> Command {
    let mut command = place.train(words);
    // SAFETY: a system call that a new process may make before it starts.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(resource, limit, limit)?));
    }
    command
}

#[test]
fn limits_of_the_process_that_are_too_low_are_named() {
    let place = place();
    place.write("solutions.jsonl", "{\"problem_id\":\"p0\",\"code\":\"print(1)\"}\n");
    let judge = "judge --problems problems.jsonl --solutions solutions.jsonl --out verdicts.jsonl";
    for (resource, limit, name) in [
        (Resource::RLIMIT_NOFILE, 20, "ulimit -n"),
        (Resource::RLIMIT_AS, 400 << 20, "ulimit -v"),
        (Resource::RLIMIT_FSIZE, 1 << 16, "ulimit -f"),
        (Resource::RLIMIT_CPU, 3, "ulimit -t"),
    ] {
        expect_mistake(&mut limited(&place, judge, resource, limit), &[name, "raise it"]);
        let doctor = limited(&place, "doctor", resource, limit).output().unwrap();
        assert_eq!(doctor.status.code(), Some(1), "{}", stderr(&doctor));
        assert!(String::from_utf8_lossy(&doctor.stdout).contains(name));
    }
    assert!(!place.path("verdicts.jsonl").exists());
}

#[test]
fn a_stack_that_is_too_small_is_named_and_a_low_soft_limit_raised() {
    let place = place();
    let mut doctor = limited(&place, "doctor", Resource::RLIMIT_STACK, 64 << 10);
    expect_mistake(&mut doctor, &["ulimit -s", "64 kB", "raise it"]);
    let mut doctor = place.train("doctor");
    // SAFETY: a system call that a new process may make before it starts.
    unsafe {
        doctor.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_STACK, 64 << 10, 64 << 20)?));
    }
    done(&mut doctor);
}

#[test]
fn a_low_soft_limit_on_files_is_raised() {
    let place = place();
    let mut doctor = place.train("doctor");
    // SAFETY: a system call that a new process may make before it starts.
    unsafe {
        doctor.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_NOFILE, 20, 1024)?));
    }
    done(&mut doctor);
}

#[test]
fn a_doctor_that_finds_no_judge_says_so_and_fails() {
    let place = place();
    for (words, is_json) in [("doctor --python nope", false), ("doctor --json --python nope", true)]
    {
        let output = place.train(words).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(text.contains("cannot judge with nope"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).is_ok(), is_json);
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    }
}
