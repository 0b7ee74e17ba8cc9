//! Reads `config.json` of a Hugging Face model of one of the [`super::families`].
//!
//! The original text is kept and returned byte for byte. A key that changes the numbers in a way that the
//! decoder does not compute is refused by name. Both the older layout (`rope_theta`, `rope_scaling`) and
//! the newer one (`rope_parameters`) are read. Sliding windows shorter than the model's positions are
//! refused, and so are sequences so long that dynamic rope would begin to scale.

use super::config_keys::{Keys, MOST_HEADS, MOST_LAYERS, MOST_TOKENS, WIDEST};
use super::families::Family;
use crate::base::error::usage;
use crate::ops::rope::Llama3Scaling;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What distinguishes the model's family from the others.
    pub family: &'static Family,
    /// The rows of the embedding table.
    pub vocab_size: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// The width of the gate, and of up, in the feed-forward network.
    pub intermediate_size: usize,
    pub num_layers: usize,
    /// The number of query heads.
    pub num_heads: usize,
    /// The number of key heads, and of value heads.
    pub num_kv_heads: usize,
    /// The elements of a head.
    pub head_dim: usize,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched, if they are.
    pub rope_scaling: Option<Llama3Scaling>,
    /// Is added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Whether the head uses the embedding table as its weights.
    pub tie_word_embeddings: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether query heads and key heads are normalised.
    pub has_head_norm: bool,
    /// The longest sequence that the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// The standard deviation of fresh weights.
    pub initializer_range: f32,
    /// The tokens that end a sequence; `generation_config.json` may name others.
    pub eos_token_ids: Vec<u32>,
    json: String,
}

impl ModelConfig {
    /// Reads `config.json` in a model directory. Its errors name the file and the key.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|error| {
            usage(format!("{}: {error}; a model directory has a config.json", path.display()))
        })?;
        Self::from_json(&text).with_context(|| path.display().to_string())
    }

    /// Reads the text of a `config.json`. Its errors name the key.
    pub fn from_json(text: &str) -> Result<Self> {
        let mut value: Value = serde_json::from_str(text)
            .map_err(|error| usage(format!("config.json is not valid JSON: {error}")))?;
        let keys = Keys(&value);
        let family = Family::find(keys.first_architecture(), keys.text("model_type")?)?;
        for &(key, default) in family.defaults {
            if value.get(key).is_none() {
                value[key] = default.into();
            }
        }
        let keys = Keys(&value);
        keys.refuse_unsupported(family.window)?;
        let vocab_size = keys.size("vocab_size", MOST_TOKENS)?;
        let hidden_size = keys.size("hidden_size", WIDEST)?;
        let num_heads = keys.size("num_attention_heads", MOST_HEADS)?;
        let num_kv_heads = keys.size_or("num_key_value_heads", num_heads, MOST_HEADS)?;
        let head_dim = keys.size_or("head_dim", hidden_size / num_heads, WIDEST / num_heads)?;
        if num_heads % num_kv_heads != 0 {
            return Err(usage(format!(
                "`num_key_value_heads` ({num_kv_heads}) does not divide `num_attention_heads` ({num_heads})"
            )));
        }
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(usage(format!("`head_dim` ({head_dim}) must be even and above 0")));
        }
        let rope = keys.rope()?;
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", WIDEST)?,
            num_layers: keys.size("num_hidden_layers", MOST_LAYERS)?,
            num_heads,
            num_kv_heads,
            head_dim,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6, 0.0..=1.0)? as f32,
            tie_word_embeddings: keys.flag_or("tie_word_embeddings", false)?,
            qkv_bias: family.has_qkv_bias(),
            has_head_norm: family.names.head_norms.is_some(),
            max_position_embeddings: keys.max_position_embeddings()?,
            initializer_range: keys.number_or("initializer_range", 0.02, 0.0..=1e3)? as f32,
            eos_token_ids: keys.tokens_below("eos_token_id", vocab_size)?,
            json: text.to_owned(),
        })
    }

    /// Returns the text that this configuration was read from.
    pub fn to_json(&self) -> &str {
        &self.json
    }

    /// Returns the configuration of the same model with a head of its own, in its text too.
    pub(crate) fn untied(&self) -> Self {
        let mut text: Value =
            serde_json::from_str(&self.json).expect("invariant: it was read from it");
        text["tie_word_embeddings"] = false.into();
        Self { tie_word_embeddings: false, json: format!("{text:#}\n"), ..self.clone() }
    }

    /// Refuses a sequence of more tokens than the model has positions, in training, scoring and generation
    /// alike. The model has not seen positions beyond that, and with dynamic scaling they would change all
    /// the others.
    pub fn check_length(&self, tokens: usize) -> Result<()> {
        let positions = self.max_position_embeddings;
        if tokens <= positions {
            return Ok(());
        }
        Err(usage(format!(
            "{tokens} tokens, but the model has {positions} positions (max_position_embeddings)"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "rope_theta": 500000.0,
        "rms_norm_eps": 1e-05, "eos_token_id": [3, 4], "rope_scaling": null}"#;

    #[test]
    fn a_llama_config_is_read_and_given_back_byte_for_byte() {
        let config = ModelConfig::from_json(LLAMA).unwrap();
        assert_eq!(config.family.model_type, "llama");
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
        assert_eq!((config.family.model_type, config.qkv_bias), ("qwen2", true));
        assert_eq!(config.rope_theta, 1e6);
    }

    #[test]
    fn llama3_scaling_is_read_in_both_spellings() {
        let scaling = r#""rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192"#;
        let older = LLAMA.replace("null", &format!("{{{scaling}}}"));
        let newer = LLAMA.replace(
            r#""rope_theta": 500000.0"#,
            &format!(r#""rope_parameters": {{"rope_theta": 500000.0, {scaling}}}"#),
        );
        for text in [older, newer] {
            let config = ModelConfig::from_json(&text).unwrap();
            assert_eq!(config.rope_theta, 500_000.0);
            let scaling = config.rope_scaling.unwrap();
            assert_eq!((scaling.factor, scaling.high_freq_factor), (8.0, 4.0));
            assert_eq!(scaling.original_max_position_embeddings, 8192.0);
        }
    }

    #[test]
    fn a_sequence_beyond_the_models_positions_is_refused_with_and_without_scaling() {
        let text =
            LLAMA.replace("\"vocab_size\"", "\"max_position_embeddings\": 64, \"vocab_size\"");
        for scaling in ["null", r#"{"type": "dynamic", "factor": 2.0}"#] {
            let config = ModelConfig::from_json(&text.replace("null", scaling)).unwrap();
            assert!(config.check_length(64).is_ok());
            let error = config.check_length(65).unwrap_err();
            assert_eq!(crate::base::error::exit_code(&error), 2);
            assert!(error.to_string().contains("has 64 positions"), "{error}");
        }
    }

    /// Reads the Llama configuration above with `changes` to some keys.
    fn llama_with(changes: &Value) -> Result<ModelConfig> {
        let mut config: Value = serde_json::from_str(LLAMA).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelConfig::from_json(&config.to_string())
    }

    #[test]
    fn keys_that_are_null_or_do_nothing_change_nothing() {
        let plain = ModelConfig::from_json(LLAMA).unwrap();
        let same = [
            json!({"head_dim": null, "attention_bias": null, "mlp_bias": null, "bias": null}),
            json!({"tie_word_embeddings": null, "quantization_config": null, "hidden_act": null}),
            json!({"sliding_window": null, "use_sliding_window": false, "layer_types": null}),
            json!({"sliding_window": 8, "use_sliding_window": false, "max_window_layers": 1}),
            json!({"sliding_window": null, "use_sliding_window": true, "max_window_layers": 1}),
            json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2}),
            json!({"layer_types": ["full_attention", "full_attention"]}),
            json!({"sliding_window": 2048, "use_sliding_window": true, "max_window_layers": 1}),
            json!({"rope_scaling": {"rope_type": "default"}}),
            json!({"rope_scaling": {"type": "default", "factor": 1.0}}),
            json!({"rope_scaling": {"type": "linear", "factor": 1.0}}),
            json!({"rope_scaling": {"rope_type": null, "factor": null, "type": "default"}}),
            json!({"rope_scaling": {}, "rope_parameters": null}),
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500_000}}),
            json!({"rope_theta": null, "rope_parameters": {"rope_theta": 500_000.0}}),
            json!({"rope_scaling": {}, "rope_theta": 1.0, "rope_parameters": {"rope_theta": 5e5}}),
            json!({"partial_rotary_factor": 1.0, "torch_dtype": "bfloat16", "dtype": "float16"}),
            json!({"torch_dtype": null, "dtype": null, "pretraining_tp": 1}),
        ];
        for changes in same {
            let read = llama_with(&changes).unwrap();
            assert_eq!(ModelConfig { json: LLAMA.to_owned(), ..read }, plain, "{changes}");
        }
    }

    #[test]
    fn key_heads_that_are_null_are_as_many_as_query_heads() {
        for model_type in ["llama", "mistral", "qwen2", "qwen3", "internlm2"] {
            let changes = json!({"architectures": null, "model_type": model_type,
                "num_key_value_heads": null, "sliding_window": null});
            let config = llama_with(&changes).unwrap();
            assert_eq!((config.family.model_type, config.num_kv_heads), (model_type, 6));
        }
    }

    #[test]
    fn missing_keys_mean_what_they_mean_in_transformers() {
        let of = |model_type: &str| {
            let text = format!(
                r#"{{"model_type": "{model_type}", "vocab_size": 32, "hidden_size": 64,
                "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 32,
                "sliding_window": null}}"#
            );
            let config = ModelConfig::from_json(&text).unwrap();
            (config.num_kv_heads, config.head_dim, config.max_position_embeddings)
        };
        assert_eq!(of("llama"), (32, 2, 2048));
        assert_eq!(of("mistral"), (8, 2, 131_072));
        assert_eq!(of("qwen2"), (32, 2, 32_768));
        assert_eq!(of("qwen3"), (32, 128, 32_768));
    }

    #[test]
    fn the_window_of_a_mistral_is_refused_given_or_not() {
        let mistral = LLAMA.replace("LlamaFor", "MistralFor").replace("\"llama\"", "\"mistral\"");
        for (text, said) in [
            (mistral.clone(), "`sliding_window` is 4096"),
            (mistral.replace("\"rope_scaling\"", "\"sliding_window\""), ""),
            (
                mistral.replace("\"rope_scaling\": null", "\"sliding_window\": 32"),
                "is 32; supported: null",
            ),
            (mistral.replace("\"rope_scaling\": null", "\"sliding_window\": 131072"), ""),
        ] {
            let error = ModelConfig::from_json(&text).err().map(|error| error.to_string());
            assert_eq!(error.is_some(), !said.is_empty());
            assert!(error.unwrap_or_default().contains(said), "{said}");
        }
    }

    #[test]
    fn a_class_and_a_type_of_different_families_are_refused() {
        let error = llama_with(&json!({"model_type": "qwen2"})).unwrap_err().to_string();
        assert!(error.contains("\"LlamaForCausalLM\" and `model_type` is \"qwen2\""), "{error}");
    }

    #[test]
    fn sizes_that_no_memory_holds_are_refused_by_name() {
        let with = |key: &str, value: &Value| llama_with(&json!({key: value}));
        let sizes = [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
        ];
        for key in sizes {
            for absurd in [1u64 << 40, 1 << 62, 1 << 63, u64::MAX].map(Value::from) {
                let error = with(key, &absurd).unwrap_err();
                assert_eq!(crate::base::error::exit_code(&error), 2);
                assert!(error.to_string().contains(key), "{error}");
            }
        }
        for (key, absurd) in [("rms_norm_eps", -1.0), ("rope_theta", 0.0), ("rope_theta", 1e300)] {
            assert!(with(key, &absurd.into()).unwrap_err().to_string().contains(key));
        }
        let mut largest: Value = serde_json::from_str(LLAMA).unwrap();
        for (key, most) in [
            ("hidden_size", WIDEST),
            ("intermediate_size", WIDEST),
            ("num_hidden_layers", MOST_LAYERS),
            ("num_attention_heads", MOST_HEADS),
            ("num_key_value_heads", MOST_HEADS),
            ("head_dim", WIDEST / MOST_HEADS),
            ("vocab_size", MOST_TOKENS),
        ] {
            largest[key] = most.into();
        }
        let largest = ModelConfig::from_json(&largest.to_string()).unwrap();
        let parameters = crate::model::Layout::new(&largest).len;
        assert!(parameters.checked_mul(64).is_some(), "{parameters} parameters with their moments");
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let cases = [
            (
                r#""rope_scaling": null"#,
                r#""rope_scaling": {"rope_type": "yarn", "factor": 4.0}"#,
                "rope_scaling.rope_type",
            ),
            (
                r#""rope_scaling": null"#,
                r#""rope_scaling": {"rope_type": "llama3", "factor": 8.0}"#,
                "rope_scaling.low_freq_factor",
            ),
            (
                r#""rope_scaling": null"#,
                r#""use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1"#,
                "use_sliding_window",
            ),
            (
                r#""rope_scaling": null"#,
                r#""rope_scaling": {"type": "linear", "factor": 2.0}"#,
                "`rope_scaling.factor` is 2.0; supported: 1.0",
            ),
            (
                r#""rope_scaling": null"#,
                r#""rope_parameters": {"full_attention": {"rope_theta": 1e6}}"#,
                "rope_parameters.full_attention",
            ),
            (
                r#""rope_scaling": null"#,
                r#""layer_types": ["full_attention", "sliding_attention"]"#,
                "`layer_types` is \"sliding_attention\"",
            ),
            (
                r#""rope_scaling": null"#,
                r#""layer_types": ["full_attention"]"#,
                "`layer_types` has 1 entries, but `num_hidden_layers` is 2",
            ),
            ("[3, 4]", "[3, 32]", "`eos_token_id` is 32, but must be a token id below 32"),
            (r#""rope_scaling": null"#, r#""rope_scaling": 5"#, "`rope_scaling` is 5"),
            (r#""rope_scaling": null"#, r#""rope_scaling": []"#, "`rope_scaling` is []"),
            (
                r#""rope_scaling": null"#,
                r#""partial_rotary_factor": 0.5"#,
                "`partial_rotary_factor` is 0.5",
            ),
            (
                r#""rope_scaling": null"#,
                r#""quantization_config": {"bits": 4}"#,
                "quantization_config",
            ),
            (r#""rope_scaling": null"#, r#""hidden_act": "gelu""#, "hidden_act"),
            (r#""rope_scaling": null"#, r#""attention_bias": true"#, "attention_bias"),
            (r#""vocab_size": 32"#, r#""vocab_size": "many""#, "vocab_size"),
            (r#""vocab_size": 32,"#, "", "vocab_size"),
            (
                "LlamaForCausalLM",
                "MambaForCausalLM",
                "`architectures` is \"MambaForCausalLM\" and `model_type` is missing",
            ),
        ];
        for (from, to, name) in cases {
            let text = LLAMA.replace(from, to).replace("\"model_type\": \"llama\",", "");
            let error = ModelConfig::from_json(&text).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(crate::base::error::exit_code(&error), 2);
        }
    }
}
