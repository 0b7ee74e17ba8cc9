//! This file says which models the GPU kernels can compute.
//!
//! Contract: it needs no GPU, so that a run is refused when it is planned. The limits are those of
//! [`crate::cuda::sizes`], which the launchers of the kernels enforce.

use super::ModelConfig;
use crate::base::error::usage;
use crate::cuda::sizes::{HEAD_DIMS, MOST_CHOICES, MOST_GROUP, MOST_WIDTH, VECTOR};
use anyhow::Result;

/// Refuses, as a mistake of the user, a shape that the kernels cannot compute.
pub fn check_shape(config: &ModelConfig) -> Result<()> {
    let ModelConfig { num_heads, num_kv_heads, head_dim, hidden_size, vocab_size, .. } = config;
    let refuse = |what: String| Err(usage(format!("device cuda: {what}")));
    if !HEAD_DIMS.contains(head_dim) {
        return refuse(format!(
            "heads of {head_dim} elements; there are kernels for {HEAD_DIMS:?}"
        ));
    }
    if num_heads / num_kv_heads > MOST_GROUP {
        return refuse(format!(
            "{num_heads} query heads on {num_kv_heads} key heads: at most {MOST_GROUP} share one"
        ));
    }
    if *hidden_size > MOST_WIDTH {
        return refuse(format!("`hidden_size` {hidden_size}: at most {MOST_WIDTH}"));
    }
    if *vocab_size > MOST_CHOICES {
        return refuse(format!("`vocab_size` {vocab_size}: at most {MOST_CHOICES}"));
    }
    for (key, width) in [
        ("hidden_size", hidden_size),
        ("intermediate_size", &config.intermediate_size),
        ("vocab_size", vocab_size),
    ] {
        if !width.is_multiple_of(VECTOR) {
            return refuse(format!("`{key}` {width} is not a multiple of {VECTOR}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    #[test]
    fn a_shape_without_kernels_is_a_mistake_that_names_its_key() {
        let check = |key: &str, value: usize| {
            let text = r#"{"model_type": "llama", "vocab_size": 96, "hidden_size": 64,
                "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 16,
                "num_key_value_heads": 4, "head_dim": 32}"#;
            let mut config: serde_json::Value = serde_json::from_str(text).unwrap();
            config[key] = value.into();
            check_shape(&ModelConfig::from_json(&config.to_string()).unwrap())
        };
        check("num_hidden_layers", 2).unwrap();
        for (key, value, said) in [
            ("head_dim", 40, "heads of 40 elements"),
            ("num_key_value_heads", 1, "16 query heads on 1 key heads"),
            ("hidden_size", 8200, "`hidden_size` 8200: at most 8192"),
            ("hidden_size", 68, "`hidden_size` 68 is not a multiple of 8"),
            ("intermediate_size", 81, "`intermediate_size` 81"),
            ("vocab_size", 97, "`vocab_size` 97 is not"),
            ("vocab_size", 300_000, "`vocab_size` 300000: at most"),
        ] {
            let refusal = check(key, value).unwrap_err();
            assert!(format!("{refusal:#}").contains(said), "{refusal:#}");
            assert_eq!(exit_code(&refusal), 2);
        }
    }
}
