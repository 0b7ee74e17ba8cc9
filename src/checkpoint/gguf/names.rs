//! What llama.cpp calls the tensors of our families.

use crate::model::families::{Family, QkvNames};

/// The factors that stretch rotary frequencies, where a model has them.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The head, which a model that ties it to the embedding does not have.
pub(crate) const HEAD: &str = "output.weight";

/// The table of embeddings.
pub(crate) const EMBEDDING: &str = "token_embd.weight";

/// Queries, keys and values.
pub(crate) const QKV: [&str; 3] = ["attn_q", "attn_k", "attn_v"];

/// Returns llama.cpp's name of a tensor that a family calls `name`. There is none for a tensor that holds
/// queries, keys and values together.
pub(crate) fn gguf_name(family: &Family, name: &str) -> Option<String> {
    let names = &family.names;
    if name == names.embedding {
        return Some(EMBEDDING.to_owned());
    }
    if name == names.head {
        return Some(HEAD.to_owned());
    }
    if name == "model.norm.weight" {
        return Some("output_norm.weight".to_owned());
    }
    let (layer, name) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (name, kind) = name.rsplit_once('.')?;
    let [query_norm, key_norm] = names.head_norms.unwrap_or([""; 2]);
    let mut known = vec![
        (names.input_norm, "attn_norm"),
        (names.output, "attn_output"),
        (names.post_norm, "ffn_norm"),
        (names.gate, "ffn_gate"),
        (names.up, "ffn_up"),
        (names.down, "ffn_down"),
        (query_norm, "attn_q_norm"),
        (key_norm, "attn_k_norm"),
    ];
    if let QkvNames::Apart { names, .. } = names.qkv {
        known.extend(names.into_iter().zip(QKV));
    }
    let (_, theirs) = known.into_iter().find(|(ours, _)| *ours == name)?;
    Some(format!("blk.{layer}.{theirs}.{kind}"))
}
