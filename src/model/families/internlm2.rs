//! InternLM2 and 2.5: Llama under other names, with queries, keys and values in one tensor.

use super::{Family, Names, QkvNames, llama};

pub(crate) const FAMILY: Family = Family {
    class: "InternLM2ForCausalLM",
    model_type: "internlm2",
    names: Names {
        embedding: "model.tok_embeddings.weight",
        input_norm: "attention_norm",
        qkv: QkvNames::Grouped("attention.wqkv"),
        head_norms: None,
        output: "attention.wo",
        post_norm: "ffn_norm",
        gate: "feed_forward.w1",
        up: "feed_forward.w3",
        down: "feed_forward.w2",
        head: "output.weight",
    },
    ..llama::FAMILY
};
