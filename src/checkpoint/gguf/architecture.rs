//! The shape of a model, from GGUF metadata to `config.json` and back.
//!
//! Contract: a key of the architecture that is not known here might change the numbers, so it is refused by
//! name. Rotary frequencies that a file gives as factors have to be those of Llama 3's scaling, whose
//! parameters are found again and checked against every factor.

use super::header::Header;
use super::names::{EMBEDDING, HEAD, ROPE_FACTORS};
use crate::base::error::usage;
use crate::model::ModelConfig;
use crate::model::families::Family;
use crate::ops::rope::{Llama3Scaling, Rope};
use anyhow::Result;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use serde_json::json;

/// llama.cpp's architectures that our families are, and the class that `config.json` calls each.
const ARCHITECTURES: [(&str, &str); 3] =
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")];

/// Keys of an architecture that are read, or that change nothing.
const KNOWN: [&str; 11] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
];

/// Returns llama.cpp's name of a family's architecture: Mistral and InternLM2 compute what Llama computes.
pub(crate) fn of_family(family: &Family) -> &'static str {
    let found = ARCHITECTURES.iter().find(|(_, class)| *class == family.class);
    found.map_or("llama", |(name, _)| name)
}

/// Returns whether an architecture's queries and keys lie with the rows side by side that turn together.
pub(crate) fn is_paired(architecture: &str) -> bool {
    architecture == "llama"
}

/// Returns the architecture that a file names.
pub(crate) fn name(header: &Header) -> Result<&str> {
    let key = "general.architecture";
    header.metadata.required(key, header.metadata.text(key)?)
}

/// Writes the `config.json` of the model in a file.
pub(crate) fn config_json(header: &Header) -> Result<String> {
    let Header { path, metadata, tensors, .. } = header;
    let name = name(header)?;
    let Some((_, class)) = ARCHITECTURES.iter().find(|(known, _)| *known == name) else {
        let known = ARCHITECTURES.map(|(name, _)| name).join(", ");
        return Err(usage(format!(
            "{}: general.architecture is {name}: models of this kind are not computed; GGUF files of {known} are",
            path.display()
        )));
    };
    if metadata.size("split.count")?.is_some_and(|count| count > 1) {
        return Err(usage(format!(
            "{}: split.count: this is one of several files of a model: join them with llama-gguf-split --merge",
            path.display()
        )));
    }
    let family = Family::find(Some(class), None)?;
    let key = |key: &str| format!("{name}.{key}");
    let size = |of: &str| metadata.required(&key(of), metadata.size(&key(of))?);
    let heads = size("attention.head_count")?;
    let hidden = size("embedding_length")?;
    let key_heads = metadata.size(&key("attention.head_count_kv"))?.unwrap_or(heads);
    let of_heads = hidden.checked_div(heads).unwrap_or(0);
    let head_dim = metadata.size(&key("attention.key_length"))?.unwrap_or(of_heads);
    check_others(header, name, head_dim)?;
    let theta = metadata.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let embedding = tensors.get(EMBEDDING).ok_or_else(|| missing(header, EMBEDDING))?;
    let eps = metadata.number(&key("attention.layer_norm_rms_epsilon"))?;
    let scaling = scaling(header, head_dim, theta)?;
    let mut config = json!({
        "architectures": [class],
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length")?,
        "num_hidden_layers": size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": size("context_length")?,
        "rms_norm_eps": metadata.required(&key("attention.layer_norm_rms_epsilon"), eps)?,
        "rope_theta": theta,
        "rope_scaling": scaling.map(|Llama3Scaling {
            factor, low_freq_factor, high_freq_factor, original_max_position_embeddings,
        }| json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        })),
        "tie_word_embeddings": !tensors.contains_key(HEAD),
        "torch_dtype": "float32",
    });
    for (ours, theirs) in [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")] {
        if let Some(id) = metadata.size(&format!("tokenizer.ggml.{theirs}"))? {
            config[ours] = id.into();
        }
    }
    Ok(format!("{config:#}\n"))
}

/// Refuses keys that would change what is computed.
fn check_others(header: &Header, name: &str, head_dim: u64) -> Result<()> {
    let metadata = &header.metadata;
    let prefix = format!("{name}.");
    for (key, value) in &metadata.values {
        let Some(of) = key.strip_prefix(&prefix) else { continue };
        let is_harmless = match of {
            "rope.dimension_count" | "attention.value_length" => {
                metadata.size(key)? == Some(head_dim)
            }
            "rope.scaling.type" => metadata.text(key)? == Some("none"),
            "rope.scaling.factor" => metadata.number(key)? == Some(1.0),
            "expert_count" | "expert_used_count" => metadata.size(key)? == Some(0),
            _ => KNOWN.contains(&of),
        };
        if !is_harmless {
            let shown: String = format!("{value:?}").chars().take(40).collect();
            return Err(metadata.wrong(
                key,
                &format!(
                    "{shown}: this is not computed, and leaving it out would change the numbers"
                ),
            ));
        }
    }
    Ok(())
}

fn missing(header: &Header, tensor: &str) -> anyhow::Error {
    usage(format!("{}: tensor {tensor} is missing", header.path.display()))
}

/// Finds the scaling of Llama 3 whose factors a file gives, if it gives any.
fn scaling(header: &Header, head_dim: u64, theta: f64) -> Result<Option<Llama3Scaling>> {
    let Some(place) = header.tensors.get(ROPE_FACTORS) else { return Ok(None) };
    let bytes = &header.map[place.bytes.clone()];
    let factors: Vec<f32> =
        bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect();
    let is_right = place.dtype == GgmlDType::F32 && head_dim / 2 == factors.len() as u64;
    let longest = factors.iter().copied().fold(1.0, f32::max);
    // The original context is the only number that factors do not show at once.
    let candidates = (6..=20).map(|power| Llama3Scaling {
        factor: longest,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: (1u32 << power) as f32,
    });
    let is_same = |scaling: &Llama3Scaling| {
        let expected = rope_factors(head_dim as usize, theta, *scaling);
        expected.iter().zip(&factors).all(|(a, b)| (a - b).abs() <= 1e-4 * a)
    };
    let found = is_right.then(|| candidates.into_iter().find(is_same)).flatten();
    found.map(Some).ok_or_else(|| {
        usage(format!(
            "{}: tensor {ROPE_FACTORS} has other factors than Llama 3's scaling of rotary positions gives: they \
             are not computed",
            header.path.display()
        ))
    })
}

/// Returns the numbers by which scaling divides the rotary frequencies.
fn rope_factors(head_dim: usize, theta: f64, scaling: Llama3Scaling) -> Vec<f32> {
    let [plain, scaled] = [None, Some(scaling)].map(|s| Rope::new(head_dim, theta, s));
    let of_both = plain.frequencies().iter().zip(scaled.frequencies());
    of_both.map(|(plain, scaled)| plain / scaled).collect()
}

/// Returns the metadata of a model's shape.
pub(crate) fn metadata(config: &ModelConfig) -> Vec<(String, Value)> {
    let name = of_family(config.family);
    let size = |key: &str, value: usize| (format!("{name}.{key}"), Value::U32(value as u32));
    vec![
        ("general.architecture".to_owned(), Value::String(name.to_owned())),
        size("block_count", config.num_layers),
        size("context_length", config.max_position_embeddings),
        size("embedding_length", config.hidden_size),
        size("feed_forward_length", config.intermediate_size),
        size("vocab_size", config.vocab_size),
        size("attention.head_count", config.num_heads),
        size("attention.head_count_kv", config.num_kv_heads),
        size("attention.key_length", config.head_dim),
        size("attention.value_length", config.head_dim),
        size("rope.dimension_count", config.head_dim),
        (format!("{name}.rope.freq_base"), Value::F32(config.rope_theta as f32)),
        (format!("{name}.attention.layer_norm_rms_epsilon"), Value::F32(config.rms_norm_eps)),
    ]
}

/// Returns the factors of [`ROPE_FACTORS`], if a model scales its frequencies.
pub(crate) fn factors(config: &ModelConfig) -> Option<Vec<f32>> {
    Some(rope_factors(config.head_dim, config.rope_theta, config.rope_scaling?))
}
