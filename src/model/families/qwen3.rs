//! Qwen3 (the dense models): Llama with a norm of every query head and key head, and heads whose width is
//! a key of its own.

use super::{Family, Names, llama};

pub(crate) const FAMILY: Family = Family {
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    defaults: &[
        ("head_dim", 128),
        ("max_position_embeddings", 32_768),
        ("num_key_value_heads", 32),
        ("sliding_window", 4096),
    ],
    names: Names {
        head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
        ..llama::FAMILY.names
    },
    ..llama::FAMILY
};
