//! `config.json` of a Hugging Face model: the Llama and Qwen2 shapes that the decoder computes.
//!
//! Contract: the original text is kept and given back byte for byte; a key that would change the
//! numbers in a way the decoder does not compute is refused by name. Both the older layout
//! (`rope_theta`, `rope_scaling`) and the newer one (`rope_parameters`) are read.

use crate::base::error::usage;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// The family a checkpoint belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`
    Llama,
    /// `Qwen2ForCausalLM`: Llama with biases on queries, keys and values.
    Qwen2,
}

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Model family.
    pub architecture: Architecture,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of gate and up.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square.
    pub rms_norm_eps: f32,
    /// The head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
    /// Tokens that end a sequence (`generation_config.json` may say otherwise).
    pub eos_token_ids: Vec<u32>,
    json: String,
}

impl ModelConfig {
    /// Reads `config.json` in a model directory.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|error| {
            usage(format!("{}: {error}; a model directory has a config.json", path.display()))
        })?;
        Self::from_json(&text).with_context(|| path.display().to_string())
    }

    /// Reads the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| usage(format!("config.json is not valid JSON: {error}")))?;
        let keys = Keys(&value);
        let architecture = match (keys.text("model_type")?, keys.first_architecture()) {
            (Some("llama"), None | Some("LlamaForCausalLM")) => Architecture::Llama,
            (Some("qwen2"), None | Some("Qwen2ForCausalLM")) => Architecture::Qwen2,
            (_, Some("LlamaForCausalLM")) => Architecture::Llama,
            (_, Some("Qwen2ForCausalLM")) => Architecture::Qwen2,
            (model_type, architecture) => {
                return Err(usage(format!(
                    "`architectures` is {architecture:?} and `model_type` {model_type:?}; supported \
                     are LlamaForCausalLM (llama) and Qwen2ForCausalLM (qwen2)"
                )));
            }
        };
        keys.refuse_unsupported()?;
        let hidden_size = keys.size("hidden_size")?;
        let num_heads = keys.size("num_attention_heads")?;
        let num_kv_heads = keys.size_or("num_key_value_heads", num_heads)?;
        let head_dim = keys.size_or("head_dim", hidden_size / num_heads)?;
        if num_heads % num_kv_heads != 0 {
            return Err(usage(format!(
                "`num_key_value_heads` ({num_kv_heads}) does not divide `num_attention_heads` ({num_heads})"
            )));
        }
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(usage(format!("`head_dim` ({head_dim}) must be even and above 0")));
        }
        Ok(Self {
            architecture,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_layers: keys.size("num_hidden_layers")?,
            num_heads,
            num_kv_heads,
            head_dim,
            rope_theta: keys.rope_theta()?,
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)? as f32,
            tie_word_embeddings: keys.flag_or("tie_word_embeddings", false)?,
            qkv_bias: architecture == Architecture::Qwen2,
            max_position_embeddings: keys.size_or("max_position_embeddings", 2048)?,
            initializer_range: keys.number_or("initializer_range", 0.02)? as f32,
            eos_token_ids: keys.tokens("eos_token_id")?,
            json: text.to_owned(),
        })
    }

    /// The text that this configuration was read from.
    pub fn to_json(&self) -> &str {
        &self.json
    }

    /// The number of parameters.
    pub fn num_parameters(&self) -> usize {
        super::Layout::new(self).len
    }
}

/// Typed access to the keys of the JSON object, with errors that name the key.
struct Keys<'a>(&'a Value);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| wrong(key, "a string", value)))
            .transpose()
    }

    fn first_architecture(&self) -> Option<&'a str> {
        self.get("architectures")?.get(0)?.as_str()
    }

    fn size(&self, key: &str) -> Result<usize> {
        let value = self.get(key).ok_or_else(|| usage(format!("`{key}` is missing")))?;
        match value.as_u64() {
            Some(size) if size > 0 => Ok(size as usize),
            _ => Err(wrong(key, "an integer above 0", value)),
        }
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.size(key) } else { Ok(default) }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        self.get(key).map_or(Ok(default), |value| {
            value.as_f64().ok_or_else(|| wrong(key, "a number", value))
        })
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| wrong(key, "true or false", value))
        })
    }

    fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let token = |value: &Value| {
            value
                .as_u64()
                .and_then(|token| u32::try_from(token).ok())
                .ok_or_else(|| wrong(key, "a token id or a list of them", value))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(token).collect(),
            Some(value) => Ok(vec![token(value)?]),
        }
    }

    fn rope_theta(&self) -> Result<f64> {
        let newer = self.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
        match newer {
            Some(value) => {
                value.as_f64().ok_or_else(|| wrong("rope_parameters.rope_theta", "a number", value))
            }
            None => self.number_or("rope_theta", 10_000.0),
        }
    }

    /// Refuses what would change the numbers and is not computed.
    fn refuse_unsupported(&self) -> Result<()> {
        let unsupported = |key: &str, value: &Value, supported: &str| {
            Err(usage(format!("`{key}` is {value}; supported: {supported}")))
        };
        if let Some(value) = self.get("hidden_act")
            && value != "silu"
        {
            return unsupported("hidden_act", value, "\"silu\"");
        }
        for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
            if let Some(value) = self.get(key)
                && value != false
            {
                return unsupported(key, value, "false");
            }
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = self.get(key) else { continue };
            let kind = rope.get("rope_type").or_else(|| rope.get("type"));
            if let Some(kind) = kind
                && kind != "default"
            {
                return unsupported(&format!("{key}.rope_type"), kind, "\"default\"");
            }
            if let Some(factor) = rope.get("factor") {
                return unsupported(&format!("{key}.factor"), factor, "unscaled positions");
            }
            if let Some(partial) = rope.get("partial_rotary_factor")
                && partial.as_f64() != Some(1.0)
            {
                return unsupported(&format!("{key}.partial_rotary_factor"), partial, "1.0");
            }
        }
        if let Some(Value::Array(types)) = self.get("layer_types")
            && let Some(other) = types.iter().find(|kind| *kind != "full_attention")
        {
            return unsupported("layer_types", other, "\"full_attention\"");
        }
        Ok(())
    }
}

fn wrong(key: &str, expected: &str, value: &Value) -> anyhow::Error {
    usage(format!("`{key}` is {value}, but must be {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "rope_theta": 500000.0,
        "rms_norm_eps": 1e-05, "eos_token_id": [3, 4], "rope_scaling": null}"#;

    #[test]
    fn a_llama_config_is_read_and_given_back_byte_for_byte() {
        let config = ModelConfig::from_json(LLAMA).unwrap();
        assert_eq!(config.architecture, Architecture::Llama);
        assert_eq!((config.head_dim, config.num_kv_heads, config.qkv_bias), (4, 2, false));
        assert_eq!((config.rope_theta, config.rms_norm_eps), (500_000.0, 1e-5));
        assert_eq!(config.eos_token_ids, [3, 4]);
        assert_eq!(config.to_json(), LLAMA);
    }

    #[test]
    fn the_newer_rope_layout_and_qwen2_are_read() {
        let text = LLAMA
            .replace("LlamaForCausalLM", "Qwen2ForCausalLM")
            .replace("\"llama\"", "\"qwen2\"")
            .replace(
                "\"rope_theta\": 500000.0",
                r#""rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}"#,
            );
        let config = ModelConfig::from_json(&text).unwrap();
        assert_eq!((config.architecture, config.qkv_bias), (Architecture::Qwen2, true));
        assert_eq!(config.rope_theta, 1e6);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let cases = [
            (
                r#""rope_scaling": null"#,
                r#""rope_scaling": {"rope_type": "llama3"}"#,
                "rope_scaling.rope_type",
            ),
            (r#""rope_scaling": null"#, r#""hidden_act": "gelu""#, "hidden_act"),
            (r#""rope_scaling": null"#, r#""attention_bias": true"#, "attention_bias"),
            (r#""vocab_size": 32"#, r#""vocab_size": "many""#, "vocab_size"),
            (r#""vocab_size": 32,"#, "", "vocab_size"),
            ("LlamaForCausalLM", "MambaForCausalLM", "MambaForCausalLM"),
        ];
        for (from, to, name) in cases {
            let text = LLAMA.replace(from, to).replace("\"model_type\": \"llama\",", "");
            let error = ModelConfig::from_json(&text).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(crate::base::error::exit_code(&error), 2);
        }
    }
}
