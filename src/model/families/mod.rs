//! The families of models that the decoder computes, a file each.
//!
//! Contract: a family is data: how `config.json` names it, what its missing keys mean, what its layers
//! have, and what its files call the tensors. A family that needs no new operation is one file here and
//! its line in [`ALL`]. Left out: what families have in common (`super::config`, `super::layout`).

mod internlm2;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use crate::base::error::usage;
use anyhow::Result;

/// The families, in the order in which messages name them.
pub static ALL: [&Family; 5] =
    [&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY, &internlm2::FAMILY];

/// What a family has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// The class under `architectures`.
    pub class: &'static str,
    /// The `model_type`.
    pub model_type: &'static str,
    /// Keys with the values that transformers gives them where `config.json` does not have them at all
    /// (a key that is null keeps its null).
    pub(crate) defaults: &'static [(&'static str, u64)],
    pub(crate) window: Window,
    pub(crate) names: Names,
}

/// Which key tells whether attention is limited to a window, which the decoder does not compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// `use_sliding_window`, or `layer_types` in its place.
    Switched,
    /// `sliding_window` alone, unless it is null.
    Given,
}

/// What a family calls its tensors. Those of a layer are between `model.layers.N.` and `.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    pub(crate) input_norm: &'static str,
    pub(crate) qkv: QkvNames,
    /// The norms of query heads and of key heads, where there are such.
    pub(crate) head_norms: Option<[&'static str; 2]>,
    pub(crate) output: &'static str,
    pub(crate) post_norm: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) head: &'static str,
}

/// How queries, keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QkvNames {
    /// As three tensors, with or without a bias each.
    Apart { names: [&'static str; 3], has_bias: bool },
    /// As one tensor that holds, for each key head, its queries, its key and its value.
    Grouped(&'static str),
}

impl Family {
    /// Finds the family that a `config.json` names by its class (`architectures`), or without that by its
    /// `model_type`.
    pub(crate) fn find(class: Option<&str>, model_type: Option<&str>) -> Result<&'static Self> {
        let is_named = |family: &&&Self| match class {
            Some(class) => class == family.class,
            None => model_type == Some(family.model_type),
        };
        ALL.iter().find(is_named).copied().ok_or_else(|| {
            let supported = ALL.map(|family| format!("{} ({})", family.class, family.model_type));
            let [class, model_type] = [class, model_type]
                .map(|text| text.map_or("missing".to_owned(), |text| format!("\"{text}\"")));
            usage(format!(
                "`architectures` is {class} and `model_type` is {model_type}; supported are {}",
                supported.join(", ")
            ))
        })
    }

    /// Whether queries, keys and values have biases.
    pub(crate) fn has_qkv_bias(&self) -> bool {
        matches!(self.names.qkv, QkvNames::Apart { has_bias: true, .. })
    }
}
