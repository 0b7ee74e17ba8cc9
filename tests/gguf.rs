//! GGUF files: models go into them and come out the same, and what is wrong with one is said in a line.

#![cfg(feature = "candle")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod support;

use codeseq::checkpoint::{GgufFormat, LanguageModel, StoredModel, hf, write_gguf};
use codeseq::tokenizer::Tokenizer;
use half::f16;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use support::{Place, done, expect_mistake};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A tiny random model of a family, one of `scripts/golden/parity.py`.
fn golden(name: &str) -> PathBuf {
    root().join("tests/golden/parity").join(name).join("model")
}

const FAMILIES: [&str; 8] = [
    "llama3",
    "llama3.2",
    "mistral",
    "qwen2.5-tied",
    "qwen2.5-untied",
    "qwen3",
    "r1-distill-qwen",
    "internlm2.5",
];

fn convert(model: &Path, format: GgufFormat, to: &Path) {
    write_gguf(&StoredModel::open(model).unwrap(), format, to).unwrap();
}

#[test]
fn every_family_comes_out_of_a_file_of_floats_with_the_same_weights_and_shape() {
    let place = Place::new();
    let file = place.path("model.gguf");
    for name in FAMILIES {
        let before = LanguageModel::open(&golden(name)).unwrap();
        convert(&golden(name), GgufFormat::F32, &file);
        let after = LanguageModel::open(&file).unwrap();
        assert!(before.params == after.params, "{name}: weights");
        let shape = |model: &LanguageModel| {
            let c = model.decoder.config();
            let sizes = [c.vocab_size, c.hidden_size, c.num_kv_heads, c.max_position_embeddings];
            (sizes, c.head_dim, c.rope_theta, c.rope_scaling, c.rms_norm_eps, c.tie_word_embeddings)
        };
        assert_eq!(shape(&before), shape(&after), "{name}");
        let ends = after.stop_ids();
        assert!(before.stop_ids().iter().all(|id| ends.contains(id)), "{name}: {ends:?}");
    }
}

#[test]
fn weights_that_16_bits_hold_exactly_stay_what_they_are() {
    let place = Place::new();
    let model = LanguageModel::open(&golden("llama3.2")).unwrap();
    let params: Vec<f32> = model.params.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    let dir = place.path("model");
    fs::create_dir(&dir).unwrap();
    let json = model.decoder.config().to_json();
    hf::save_model(&dir, json, &model.decoder.layout().tensors, &params, &model.tokenizer).unwrap();
    let file = place.path("model.gguf");
    convert(&dir, GgufFormat::F16, &file);
    assert!(LanguageModel::open(&file).unwrap().params == params);
}

#[test]
fn quantized_weights_are_near_what_they_were() {
    let place = Place::new();
    let file = place.path("model.gguf");
    // Rows of 64, which is two blocks of 32, and of 256, which is one of the larger blocks.
    for (hidden, format, most) in [
        (64, GgufFormat::Q8_0, 0.01),
        (64, GgufFormat::Q4_0, 0.15),
        (64, GgufFormat::Q4KM, 0.1),
        (256, GgufFormat::Q4KM, 0.12),
    ] {
        let shape = json!({
            "model_type": "llama", "vocab_size": 1536, "hidden_size": hidden, "intermediate_size": hidden,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        });
        let config = place.path("config.json");
        fs::write(&config, shape.to_string()).unwrap();
        let model = LanguageModel::init(&config, &root().join("data/demo/tokenizer"), 1).unwrap();
        let dir = place.path("model");
        fs::create_dir_all(&dir).unwrap();
        let specs = &model.decoder.layout().tensors;
        hf::save_model(&dir, &shape.to_string(), specs, &model.params, &model.tokenizer).unwrap();
        convert(&dir, format, &file);
        let after = LanguageModel::open(&file).unwrap().params;
        for spec in specs {
            let [a, b] = [&model.params, &after].map(|all| &all[spec.range.clone()]);
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
            let error =
                norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied());
            assert!(error.sqrt() < most, "{format:?}: {}: {}", spec.name, error.sqrt());
        }
    }
}

/// The demo's tokenizer in a model directory, with another way to cut text.
fn model_that_cuts(dir: &Path, changes: &[(&str, Value)]) -> Tokenizer {
    fs::create_dir_all(dir).unwrap();
    for file in fs::read_dir(root().join("data/demo/base")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.join(file.file_name())).unwrap();
    }
    let path = dir.join("tokenizer.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in changes {
        *json.pointer_mut(key).unwrap() = value.clone();
    }
    fs::write(&path, json.to_string()).unwrap();
    Tokenizer::load(dir).unwrap()
}

const TEXTS: [&str; 6] = [
    "Hello, world! It's 2026; they'll pay 12345 coins.",
    "def f(n):\n    return n * (n + 1) // 2\n\n\nprint(f(10))  # ok",
    "cafe\u{301} \u{212b} naïve  \t\t tabs\r\nand lines ",
    "日本語テスト १२३ Ⅷ ½",
    "<|im_end|>x<|user|> y",
    "",
];

#[test]
fn a_tokenizer_that_llama_cpp_names_is_built_from_its_parts() {
    let place = Place::new();
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |numbers: &str| {
        let regex = [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            numbers,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ];
        let cut = json!({"type": "Split", "pattern": {"Regex": regex.concat()}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [cut, bytes(false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let kinds = [
        ("gpt-2", bytes(true), None, false),
        (
            "smollm",
            json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}),
            None,
            false,
        ),
        ("llama-bpe", split(r"\p{N}{1,3}"), None, true),
        ("qwen2", split(r"\p{N}"), Some(json!({"type": "NFC"})), false),
    ];
    for (name, pre_tokenizer, normalizer, ignore_merges) in kinds {
        let dir = place.path(name);
        let before = model_that_cuts(
            &dir,
            &[
                ("/pre_tokenizer", pre_tokenizer),
                ("/normalizer", normalizer.unwrap_or_default()),
                ("/model/ignore_merges", ignore_merges.into()),
            ],
        );
        let file = place.path("model.gguf");
        convert(&dir, GgufFormat::F16, &file);
        let bytes = fs::read(&file).unwrap();
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(has(name) && !has("tokenizer.huggingface.json"), "{name}");
        let after = StoredModel::open(&file).unwrap().tokenizer;
        for text in TEXTS {
            assert_eq!(before.encode(text).unwrap(), after.encode(text).unwrap(), "{name}: {text}");
        }
        assert_eq!(before.eos_ids(), after.eos_ids());
    }
}

#[test]
fn a_tokenizer_that_llama_cpp_does_not_have_travels_whole() {
    let place = Place::new();
    let dir = place.path("model");
    let before = model_that_cuts(&dir, &[]);
    let file = place.path("model.gguf");
    convert(&dir, GgufFormat::Q8_0, &file);
    let after = StoredModel::open(&file).unwrap().tokenizer;
    for text in TEXTS {
        assert_eq!(before.encode(text).unwrap(), after.encode(text).unwrap(), "{text}");
    }
    let turn = [codeseq::tokenizer::Message::new("user", "Hi")];
    let prompt = |tokenizer: &Tokenizer| tokenizer.encode_prompt(&turn).unwrap();
    assert_eq!(prompt(&before), prompt(&after));
}

#[test]
fn the_program_converts_a_model_and_answers_with_it_alike() {
    let place = Place::new();
    let dir = root().join("data/demo/base");
    let mut convert = place.train("convert");
    convert.arg("--model").arg(&dir).args(["--quantize", "f32", "--out", "model.gguf"]);
    assert!(done(&mut convert).starts_with("model.gguf: "));
    let answer = |model: &Path| {
        let mut generate = place.train("generate");
        generate.arg("--model").arg(model).args(["--prompt", "2 4 6", "--max-new-tokens", "8"]);
        done(&mut generate)
    };
    assert_eq!(answer(&dir), answer(Path::new("model.gguf")));
    let mut sft = place.train("sft");
    fs::write(
        place.path("chats.jsonl"),
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
    )
    .unwrap();
    fs::write(
        place.path("mine.toml"),
        "model.path = \"model.gguf\"\ndata = { files = [\"chats.jsonl\"], max_length = 64 }\n\
         train = { total_steps = 1, seq_len = 64 }\noptim.lr = 1e-5\n",
    )
    .unwrap();
    let trained = done(sft.args(["--config", "mine.toml", "--out", "run"]));
    assert!(!answer(&place.path(trained.trim())).is_empty());
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let place = Place::new();
    let file = place.path("model.gguf");
    convert(&root().join("data/demo/base"), GgufFormat::F16, &file);
    let mut generate = place.train("generate");
    generate.arg("--model").arg(&file).args(["--prompt", "a", "--tokenizer"]);
    expect_mistake(generate.arg(golden("llama3")), &["does not belong to", "model.gguf", "token "]);
    let mut generate = place.train("generate");
    generate.arg("--model").arg(&file).args([
        "--prompt",
        "a",
        "--max-new-tokens",
        "1",
        "--tokenizer",
    ]);
    done(generate.arg(root().join("data/demo/tokenizer")));
    let mut generate = place.train("generate");
    generate.arg("--model").arg(golden("llama3")).args(["--prompt", "a", "--tokenizer", "x"]);
    expect_mistake(&mut generate, &["only a GGUF file takes the tokenizer"]);
}

/// A file by hand: counts, then whatever follows.
fn file(num_tensors: u64, num_keys: u64, rest: &[Vec<u8>]) -> Vec<u8> {
    let counts = [num_tensors, num_keys].map(u64::to_le_bytes).concat();
    [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &rest.concat()].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name), &kind.to_le_bytes()[..], value].concat()
}

fn number(name: &str, value: u64) -> Vec<u8> {
    key(name, 10, &value.to_le_bytes())
}

fn word(name: &str, value: &str) -> Vec<u8> {
    key(name, 8, &text(value))
}

fn words(name: &str, values: &[&str]) -> Vec<u8> {
    let count = (values.len() as u64).to_le_bytes();
    let values: Vec<Vec<u8>> = values.iter().map(|value| text(value)).collect();
    key(name, 9, &[&8u32.to_le_bytes(), &count[..], &values.concat()].concat())
}

fn tensor(name: &str, shape: &[u64], dtype: u32, offset: u64) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().rev().flat_map(|dim| dim.to_le_bytes()).collect();
    let count = (shape.len() as u32).to_le_bytes();
    [&text(name), &count[..], &dims, &dtype.to_le_bytes(), &offset.to_le_bytes()].concat()
}

/// The keys of a tiny Llama.
fn llama() -> Vec<Vec<u8>> {
    let sizes = [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
    ];
    let mut keys = vec![word("general.architecture", "llama")];
    keys.extend(sizes.map(|(name, value)| number(&format!("llama.{name}"), value)));
    keys.push(key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()));
    keys
}

/// The same with more keys, and an embedding.
fn llama_and(more: &[Vec<u8>]) -> Vec<u8> {
    let mut rest = llama();
    rest.extend_from_slice(more);
    let num_keys = rest.len() as u64;
    rest.push(tensor("token_embd.weight", &[4, 32], 0, 0));
    rest.push(vec![0; 4 * 32 * 4 + 64]);
    file(1, num_keys, &rest)
}

#[test]
fn hostile_and_damaged_files_are_refused_in_a_line() {
    let place = Place::new();
    let huge = 1u64 << 60;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGUF".to_vec(), "damaged, cut short"),
        (file(0, 0, &[]), "general.architecture: the file does not have this key"),
        (file(huge, 0, &[]), "damaged, cut short"),
        (file(0, huge, &[]), "damaged, cut short"),
        (file(0, 1, &[key("a", 8, &huge.to_le_bytes())]), "damaged, cut short"),
        (
            file(0, 1, &[key("a", 9, &[&4u32.to_le_bytes()[..], &huge.to_le_bytes()].concat())]),
            "damaged, cut short",
        ),
        (file(0, 1, &[key("a", 99, &[0; 8])]), "damaged, cut short"),
        (file(0, 1, &[key("general.alignment", 4, &0u32.to_le_bytes())]), "damaged, cut short"),
        (file(0, 1, &[number("general.architecture", 7)]), "expected a text"),
        (file(0, 1, &[word("general.architecture", "mamba")]), "architecture is mamba"),
        (file(0, 1, &[word("general.architecture", "llama")]), "does not have this key"),
        (file(1, 0, &[tensor("t", &[huge, huge], 0, 0)]), "tensor t of shape"),
        (file(1, 0, &[tensor("t", &[4], 0, huge)]), "tensor t of shape"),
        (file(1, 0, &[tensor("t", &[4], 0, u64::MAX)]), "tensor t of shape"),
        (file(1, 0, &[tensor("t", &[4, 33], 2, 0), vec![0; 400]]), "not whole blocks of Q4_0"),
        (file(1, 0, &[tensor("t", &[4, 32], 20, 0), vec![0; 400]]), "is not read"),
        (llama_and(&[number("llama.expert_count", 8)]), "llama.expert_count: "),
        (llama_and(&[word("llama.rope.scaling.type", "yarn")]), "llama.rope.scaling.type: "),
        (llama_and(&[number("llama.attention.head_count_kv", huge)]), "num_key_value_heads"),
        (llama_and(&[number("split.count", 3)]), "llama-gguf-split"),
        (llama_and(&[]), "tensor blk.0.attn_norm.weight is missing"),
    ];
    for (bytes, said) in cases {
        fs::write(place.path("model.gguf"), bytes).unwrap();
        let mut generate = place.train("generate");
        generate.args(["--model", "model.gguf", "--prompt", "a"]);
        expect_mistake(&mut generate, &["model.gguf", said]);
    }
    let whole = {
        convert(&golden("qwen3"), GgufFormat::Q8_0, &place.path("whole.gguf"));
        fs::read(place.path("whole.gguf")).unwrap()
    };
    for sixteenth in 0..16 {
        let path = place.path("cut.gguf");
        fs::write(&path, &whole[..whole.len() * sixteenth / 16]).unwrap();
        let error = StoredModel::open(&path).err().unwrap();
        assert_eq!(codeseq::base::error::exit_code(&error), 2, "{error:#}");
    }
}

#[test]
fn a_model_for_which_there_is_no_memory_is_refused_before_it_is_read() {
    let place = Place::new();
    let (hidden, inner) = (1u64 << 16, 1u64 << 18);
    let mut rest = vec![
        word("general.architecture", "llama"),
        number("llama.block_count", 1),
        number("llama.context_length", 64),
        number("llama.embedding_length", hidden),
        number("llama.feed_forward_length", inner),
        number("llama.attention.head_count", 64),
        key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()),
        word("tokenizer.ggml.model", "gpt2"),
        word("tokenizer.ggml.pre", "gpt-2"),
        words("tokenizer.ggml.tokens", &["a"]),
        key(
            "tokenizer.ggml.token_type",
            9,
            &[&5u32.to_le_bytes()[..], &1u64.to_le_bytes(), &1i32.to_le_bytes()].concat(),
        ),
        words("tokenizer.ggml.merges", &[]),
    ];
    let num_keys = rest.len() as u64;
    let layer = |name: &str| format!("blk.0.{name}.weight");
    let square =
        ["attn_q", "attn_k", "attn_v", "attn_output"].map(|n| (layer(n), vec![hidden, hidden]));
    let norms = [layer("attn_norm"), layer("ffn_norm"), "output_norm.weight".into()]
        .map(|n| (n, vec![hidden]));
    let wide = ["ffn_gate", "ffn_up"].map(|n| (layer(n), vec![inner, hidden]));
    let others =
        [(layer("ffn_down"), vec![hidden, inner]), ("token_embd.weight".into(), vec![32, hidden])];
    let tensors: Vec<(String, Vec<u64>)> =
        square.into_iter().chain(norms).chain(wide).chain(others).collect();
    // All in the same place: what counts is what they become.
    rest.extend(tensors.iter().map(|(name, shape)| tensor(name, shape, 0, 0)));
    let bytes = file(tensors.len() as u64, num_keys, &rest);
    let path = place.path("model.gguf");
    fs::write(&path, &bytes).unwrap();
    let length = bytes.len() as u64 + hidden * inner * 4 + 64;
    fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
    let mut generate = place.train("generate");
    generate.args(["--model", "model.gguf", "--prompt", "a"]);
    expect_mistake(&mut generate, &["model.gguf needs", "of memory"]);
}
