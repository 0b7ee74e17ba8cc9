//! The tokenizer of a GGUF file: its metadata as the files of a Hugging Face directory, and back.
//!
//! Contract: a tokenizer is built where the metadata decides everything: it holds `tokenizer.json` whole, or a
//! byte-level BPE whose way to cut text (`tokenizer.ggml.pre`) is one of [`KINDS`], taken from the models that
//! llama.cpp named it after. Anything else is refused, never guessed. Left out: unigram vocabularies
//! (`tokenizer.ggml.model` llama), and what llama.cpp itself makes of text.

use super::metadata::Metadata;
use crate::base::error::usage;
use crate::tokenizer::{Tokenizer, TokenizerParts};
use anyhow::Result;
use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, Value as Json, json};
use std::path::Path;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const TEMPLATE: &str = "tokenizer.chat_template";
/// A `tokenizer.json` whole, as the format's specification allows it.
const WHOLE: &str = "tokenizer.huggingface.json";

/// `tokenizer.ggml.model` of a byte-level BPE, and of a file whose tokenizer llama.cpp does not have.
const BPE: &str = "gpt2";
const NONE: &str = "none";

/// What `tokenizer.ggml.token_type` says of a token.
const NORMAL: u64 = 1;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;

/// Special tokens by our name and by llama.cpp's.
const NAMED: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
];
/// Another token that ends a response.
const EOT: &str = "tokenizer.ggml.eot_token_id";

/// A way to cut text before merging.
struct Kind {
    /// llama.cpp's names.
    pre: &'static [&'static str],
    normalizer: Option<&'static str>,
    /// Regular expressions one after another, each cutting what the one before left.
    splits: &'static [&'static str],
    ignore_merges: bool,
    /// Whether a sequence begins with a special token unless the file says otherwise.
    adds_bos: bool,
}

/// GPT-2's own, which the `ByteLevel` of the tokenizers library has built in.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// SmolLM's first cut.
const DIGITS: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const KINDS: [Kind; 4] = [
    Kind {
        pre: &["gpt-2"],
        normalizer: None,
        splits: &[GPT2],
        ignore_merges: false,
        adds_bos: false,
    },
    Kind {
        pre: &["smollm"],
        normalizer: None,
        splits: &[DIGITS, GPT2],
        ignore_merges: false,
        adds_bos: false,
    },
    Kind {
        pre: &["llama-bpe", "llama3", "llama-v3"],
        normalizer: None,
        splits: &[LLAMA3],
        ignore_merges: true,
        adds_bos: true,
    },
    Kind {
        pre: &["qwen2"],
        normalizer: Some("NFC"),
        splits: &[QWEN2],
        ignore_merges: false,
        adds_bos: false,
    },
];

/// Builds the tokenizer that the metadata of the file at `path` describes.
pub(crate) fn tokenizer(path: &Path, metadata: &Metadata) -> Result<Tokenizer> {
    let tokens = metadata.required(TOKENS, metadata.texts(TOKENS)?)?;
    let vocabulary = match metadata.text(WHOLE)? {
        Some(text) => text.to_owned(),
        None => vocabulary(metadata, &tokens)?.to_string(),
    };
    let token = |key: &str| -> Result<Option<(u64, &str)>> {
        let Some(id) = metadata.size(key)? else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        let missing = || metadata.wrong(key, &format!("there is no token {id}"));
        token.map(|token| Some((id, *token))).ok_or_else(missing)
    };
    let mut config = Map::new();
    for (name, key) in NAMED {
        config.extend(token(key)?.map(|(_, token)| (name.to_owned(), token.into())));
    }
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    if let Some(template) = metadata.text(TEMPLATE)? {
        config.insert("chat_template".to_owned(), template.into());
    }
    let [bos, eos, pad, _] = NAMED.map(|(_, key)| key);
    let ends = [token(eos)?, token(EOT)?].into_iter().flatten().map(|(id, _)| id);
    let mut generation = json!({"eos_token_id": ends.collect::<Vec<_>>()});
    for (name, key) in [("bos_token_id", bos), ("pad_token_id", pad)] {
        if let Some((id, _)) = token(key)? {
            generation[name] = id.into();
        }
    }
    let files = [
        ("tokenizer.json", vocabulary),
        ("tokenizer_config.json", format!("{:#}\n", Json::from(config))),
        ("generation_config.json", format!("{generation:#}\n")),
    ];
    let files = files.map(|(name, text)| (name.to_owned(), text.into_bytes())).to_vec();
    Tokenizer::of_files(path, files)
}

/// Refuses a tokenizer whose tokens are not those of the file.
pub(crate) fn check_agrees(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<()> {
    let tokens = metadata.required(TOKENS, metadata.texts(TOKENS)?)?;
    let differs = |(id, token): &(u32, String)| tokens.get(*id as usize) != Some(&token.as_str());
    let Some((id, token)) = tokenizer.parts()?.tokens.into_iter().find(differs) else {
        return Ok(());
    };
    let theirs = tokens.get(id as usize).map_or("missing".to_owned(), |t| format!("{t:?}"));
    Err(usage(format!(
        "the tokenizer in {} does not belong to {}: token {id} is {token:?} there and {theirs} in the file",
        tokenizer.dir().display(),
        metadata.path.display()
    )))
}

/// Writes the `tokenizer.json` of a byte-level BPE.
fn vocabulary(metadata: &Metadata, tokens: &[&str]) -> Result<Json> {
    let advice = "give the directory of the model's tokenizer (--tokenizer DIR, model.tokenizer)";
    let model = metadata.required(MODEL, metadata.text(MODEL)?)?;
    if model != BPE {
        return Err(metadata.wrong(
            MODEL,
            &format!("tokenizers of kind {model} are not built from a GGUF file: {advice}"),
        ));
    }
    let pre = metadata.text(PRE)?.unwrap_or("missing");
    let kind = KINDS.iter().find(|kind| kind.pre.contains(&pre)).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().flat_map(|kind| kind.pre).copied().collect();
        metadata.wrong(
            PRE,
            &format!(
                "{pre}: how it cuts text is not known here ({} are): {advice}",
                known.join(", ")
            ),
        )
    })?;
    if metadata.flag(ADD_EOS)? == Some(true) {
        return Err(metadata.wrong(ADD_EOS, &format!("true: this is not built: {advice}")));
    }
    let types = metadata.required(TYPES, metadata.sizes(TYPES)?)?;
    if types.len() != tokens.len() {
        return Err(
            metadata.wrong(TYPES, &format!("{} types of {} tokens", types.len(), tokens.len()))
        );
    }
    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        match kind {
            NORMAL => {}
            CONTROL | USER_DEFINED => added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL,
            })),
            UNUSED => continue,
            _ => {
                return Err(metadata.wrong(
                    TYPES,
                    &format!(
                        "{kind}, of token {id}: a byte-level BPE has no such tokens: {advice}"
                    ),
                ));
            }
        }
        if vocabulary.insert((*token).to_owned(), id.into()).is_some() {
            return Err(metadata.wrong(TOKENS, &format!("token {id}, {token:?}, is there twice")));
        }
    }
    let merges = metadata.required(MERGES, metadata.texts(MERGES)?)?;
    let merges = merges.into_iter().map(|merge| merge.split_once(' '));
    let merges: Option<Vec<_>> = merges.collect();
    let merges = merges.ok_or_else(|| metadata.wrong(MERGES, "a merge is not two tokens"))?;
    let bos = metadata.size(NAMED[0].1)?;
    let adds_bos = metadata.flag(ADD_BOS)?.unwrap_or(kind.adds_bos);
    let first = bos.filter(|_| adds_bos).and_then(|id| tokens.get(usize::try_from(id).ok()?));
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": kind.normalizer.map(|name| json!({"type": name})),
        "pre_tokenizer": pre_tokenizer(kind),
        "post_processor": first.map(|token| json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {*token: {"id": token, "ids": [bos], "tokens": [token]}},
        })),
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": kind.ignore_merges, "vocab": vocabulary, "merges": merges,
        },
    }))
}

fn pre_tokenizer(kind: &Kind) -> Json {
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let ends_in_gpt2 = kind.splits.ends_with(&[GPT2]);
    let steps = kind.splits.iter().filter(|split| **split != GPT2).map(|split| match *split {
        DIGITS => json!({"type": "Digits", "individual_digits": true}),
        split => json!({
            "type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false,
        }),
    });
    let steps: Vec<Json> = steps.chain([bytes(ends_in_gpt2)]).collect();
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// Returns the kind of a tokenizer, if it is one that llama.cpp has a name for.
fn kind_of(json: &Json, has_plain_tokens: bool) -> Option<&'static Kind> {
    let model = &json["model"];
    let is_off = |value: &Json| value.is_null() || *value == "" || *value == false;
    let is_plain = model["type"] == "BPE"
        && ["unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"]
            .iter()
            .all(|key| is_off(&model[*key]))
        && json["decoder"]["type"] == "ByteLevel"
        && has_plain_tokens;
    let normalizer = &json["normalizer"];
    let splits = splits_of(&json["pre_tokenizer"])?;
    let is_kind = |kind: &&Kind| {
        kind.splits == splits
            && kind.ignore_merges == (model["ignore_merges"] == true)
            && match kind.normalizer {
                None => normalizer.is_null(),
                Some(name) => normalizer["type"] == name,
            }
    };
    KINDS.iter().filter(|_| is_plain).find(is_kind)
}

/// Returns the regular expressions of a pre-tokenizer of the tokenizers library, if it is of nothing else.
fn splits_of(pre_tokenizer: &Json) -> Option<Vec<&str>> {
    match pre_tokenizer["type"].as_str()? {
        "Sequence" => {
            let steps = pre_tokenizer["pretokenizers"].as_array()?;
            Some(steps.iter().map(splits_of).collect::<Option<Vec<_>>>()?.concat())
        }
        "Digits" => (pre_tokenizer["individual_digits"] == true).then(|| vec![DIGITS]),
        "Split" if pre_tokenizer["behavior"] == "Isolated" && pre_tokenizer["invert"] != true => {
            Some(vec![pre_tokenizer["pattern"]["Regex"].as_str()?])
        }
        "ByteLevel" if pre_tokenizer["add_prefix_space"] == false => {
            Some(if pre_tokenizer["use_regex"] == false { vec![] } else { vec![GPT2] })
        }
        _ => None,
    }
}

/// Returns the metadata of a tokenizer for a model of `num_rows` embeddings.
///
/// llama.cpp gets a tokenizer of its own where it has one of this kind; a warning says where it has none.
pub(crate) fn metadata(tokenizer: &Tokenizer, num_rows: usize) -> Result<Vec<(String, Value)>> {
    let TokenizerParts { json, tokens, special, has_plain_tokens, template, named } =
        tokenizer.parts()?;
    let text = |key: &str, text: &str| (key.to_owned(), Value::String(text.to_owned()));
    let start = tokenizer.encode_with_special_tokens("")?;
    let bos = named.iter().find(|(name, _)| name == "bos_token");
    let bos = bos.and_then(|(_, token)| tokenizer.token_to_id(token));
    let adds_bos = match start[..] {
        [] => Some(false),
        [id] if Some(id) == bos => Some(true),
        _ => None,
    };
    let merges = json["model"]["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let merge = |merge: &Json| match merge {
        Json::Array(pair) => {
            Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?))
        }
        other => other.as_str().map(str::to_owned),
    };
    let merges: Option<Vec<Value>> = merges.iter().map(|m| merge(m).map(Value::String)).collect();
    let mut all = Vec::new();
    match (kind_of(&json, has_plain_tokens), adds_bos, merges) {
        (Some(kind), Some(adds_bos), Some(merges)) => {
            all.extend([text(MODEL, BPE), text(PRE, kind.pre[0])]);
            all.push((MERGES.to_owned(), Value::Array(merges)));
            all.push((ADD_BOS.to_owned(), Value::Bool(adds_bos)));
        }
        _ => {
            tracing::warn!(
                "{}: llama.cpp has no tokenizer of this kind: the file holds tokenizer.json whole, which \
                 this program reads, and llama.cpp takes and gives numbers of tokens only",
                tokenizer.dir().display()
            );
            all.extend([text(MODEL, NONE), text(WHOLE, &json.to_string())]);
        }
    }
    let mut spellings: Vec<String> = (0..num_rows).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED as i32; num_rows];
    for (id, token) in tokens {
        let is_added = special.get(&id);
        types[id as usize] = match is_added {
            Some(true) => CONTROL as i32,
            Some(false) => USER_DEFINED as i32,
            None => NORMAL as i32,
        };
        spellings[id as usize] = token;
    }
    all.push((TOKENS.to_owned(), Value::Array(spellings.into_iter().map(Value::String).collect())));
    all.push((TYPES.to_owned(), Value::Array(types.into_iter().map(Value::I32).collect())));
    let id_of = |name: &str| {
        let (_, token) = named.iter().find(|(n, _)| n == name)?;
        tokenizer.token_to_id(token)
    };
    let ends = tokenizer.eos_ids();
    let eos = id_of("eos_token").or(ends.first().copied());
    for (name, key) in NAMED {
        let id = if name == "eos_token" { eos } else { id_of(name) };
        all.extend(id.map(|id| (key.to_owned(), Value::U32(id))));
    }
    let mut others = ends.iter().filter(|id| Some(**id) != eos);
    all.extend(others.next().map(|&id| (EOT.to_owned(), Value::U32(id))));
    if let Some(id) = others.next() {
        tracing::warn!(
            "{}: a GGUF file names two tokens that end a response; token {id} is a third one, and is left out",
            tokenizer.dir().display()
        );
    }
    all.extend(template.map(|template| text(TEMPLATE, &template)));
    Ok(all)
}
