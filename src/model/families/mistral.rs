//! Mistral 7B from v0.2 on, Mistral Nemo and their relatives: Llama with other defaults. The window of
//! v0.1 (`sliding_window`) is refused.

use super::{Family, Window, llama};

pub(crate) const FAMILY: Family = Family {
    class: "MistralForCausalLM",
    model_type: "mistral",
    defaults: &[
        ("max_position_embeddings", 131_072),
        ("num_key_value_heads", 8),
        ("sliding_window", 4096),
    ],
    window: Window::Given,
    ..llama::FAMILY
};
