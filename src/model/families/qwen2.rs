//! Qwen2, Qwen2.5 and R1-Distill-Qwen: Llama with biases on queries, keys and values.

use super::{Family, Names, QkvNames, llama};

pub(crate) const FAMILY: Family = Family {
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    defaults: &[
        ("max_position_embeddings", 32_768),
        ("num_key_value_heads", 32),
        ("sliding_window", 4096),
    ],
    names: Names {
        qkv: QkvNames::Apart { names: llama::QKV, has_bias: true },
        ..llama::FAMILY.names
    },
    ..llama::FAMILY
};
