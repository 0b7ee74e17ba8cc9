//! The families of models that the decoder computes, one file each.
//!
//! A family is data: how `config.json` names it, what its missing keys mean, what its layers have, and how
//! its files name the tensors. A family that needs no new operation is one file here and its entry in
//! [`ALL`]. What all families share is in `super::config` and `super::layout`.

mod internlm2;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use crate::base::error::usage;
use anyhow::Result;

/// All families, in the order in which messages name them.
pub static ALL: [&Family; 5] =
    [&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY, &internlm2::FAMILY];

/// What is particular to one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its class under `architectures` in `config.json`.
    pub class: &'static str,
    /// Its `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The values that transformers gives to keys that are absent from `config.json`. A key that is null
    /// stays null.
    pub(crate) defaults: &'static [(&'static str, u64)],
    pub(crate) window: Window,
    pub(crate) names: Names,
}

/// Which key says whether attention has a window. The decoder does not compute windows and refuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// `use_sliding_window` says it, or `layer_types` in its place.
    Switched,
    /// `sliding_window` says it: there is a window unless it is null.
    Given,
}

/// How the family's files name tensors. The names of a layer's tensors stand between `model.layers.N.` and
/// `.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    pub(crate) input_norm: &'static str,
    pub(crate) qkv: QkvNames,
    /// The norms of query heads and of key heads, in models that have them.
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
    /// They are three tensors; each may have a bias.
    Apart { names: [&'static str; 3], has_bias: bool },
    /// They are one tensor, which holds for each key head its queries, its key and its value.
    Grouped(&'static str),
}

impl Family {
    /// Finds the family that a `config.json` names by its class (`architectures`), its `model_type`, or
    /// both, which then have to agree: transformers goes by the type, vLLM by the class. Refuses any other,
    /// and names the families that are supported.
    pub(crate) fn find(class: Option<&str>, model_type: Option<&str>) -> Result<&'static Self> {
        let is_named = |family: &&&Self| {
            (class.is_some() || model_type.is_some())
                && class.is_none_or(|class| class == family.class)
                && model_type.is_none_or(|model_type| model_type == family.model_type)
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

    /// Returns whether queries, keys and values have biases.
    pub(crate) fn has_qkv_bias(&self) -> bool {
        matches!(self.names.qkv, QkvNames::Apart { has_bias: true, .. })
    }
}
