//! Llama 3, 3.1 and 3.2. The other families are described by what differs from it.

use super::{Family, Names, QkvNames, Window};

pub(crate) const FAMILY: Family = Family {
    class: "LlamaForCausalLM",
    model_type: "llama",
    defaults: &[("max_position_embeddings", 2048)],
    window: Window::Switched,
    names: Names {
        embedding: "model.embed_tokens.weight",
        input_norm: "input_layernorm",
        qkv: QkvNames::Apart { names: QKV, has_bias: false },
        head_norms: None,
        output: "self_attn.o_proj",
        post_norm: "post_attention_layernorm",
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        down: "mlp.down_proj",
        head: "lm_head.weight",
    },
};

pub(crate) const QKV: [&str; 3] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
