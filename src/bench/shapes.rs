//! This file finds the model that is measured: by name, or by the path of a `config.json`.

use crate::base::error::usage;
use crate::base::fs::read_text;
use crate::model::ModelConfig;
use anyhow::{Context, Result};
use std::path::Path;

/// These are the `config.json` of the paper's models, and of one that a CPU computes at once.
const KNOWN: [(&str, &str); 3] = [
    (
        "llama3-8b",
        r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "rope_theta": 500000.0, "max_position_embeddings": 8192}"#,
    ),
    (
        "qwen2.5-7b",
        r#"{"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
        "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "rope_theta": 1000000.0, "max_position_embeddings": 32768}"#,
    ),
    (
        "tiny",
        r#"{"model_type": "llama", "vocab_size": 256, "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2}"#,
    ),
];

/// Returns the model called `name`, or described by the file at that path.
pub fn find(name: &str) -> Result<ModelConfig> {
    let text = match KNOWN.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => (*text).to_owned(),
        None if Path::new(name).exists() => read_text(Path::new(name))?,
        None => {
            let names: Vec<_> = KNOWN.iter().map(|(known, _)| *known).collect();
            let names = names.join(", ");
            return Err(usage(format!(
                "there is no model {name}: give one of {names}, or the path of a config.json"
            )));
        }
    };
    ModelConfig::from_json(&text).with_context(|| format!("the model {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Layout;

    #[test]
    fn known_models_have_their_number_of_parameters() {
        let parameters = |name| Layout::new(&find(name).unwrap()).len as f64 / 1e9;
        assert!((parameters("llama3-8b") - 8.030).abs() < 0.001);
        assert!((parameters("qwen2.5-7b") - 7.616).abs() < 0.001);
    }

    #[test]
    fn an_unknown_model_is_a_mistake_of_the_user_that_lists_the_known() {
        let refusal = find("llama9").unwrap_err();
        assert_eq!(crate::base::error::exit_code(&refusal), 2);
        assert!(refusal.to_string().contains("qwen2.5-7b"), "{refusal}");
    }
}
