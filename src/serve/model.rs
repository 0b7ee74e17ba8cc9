//! The model that is served, as protocol handlers know it.

use super::error::ApiError;
use crate::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::sync::Arc;

/// A model under its name.
pub(crate) struct ServedModel {
    /// Requests call it by this name.
    pub(crate) name: String,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// These tokens end its responses.
    pub(crate) end_ids: Vec<u32>,
    /// A prompt and its answer have at most so many tokens together.
    pub(crate) max_length: usize,
    /// It was opened at this time, in seconds of Unix time.
    pub(crate) created: i64,
}

impl ServedModel {
    /// Returns the model as `/v1/models` lists it.
    pub(crate) fn card(&self) -> Value {
        json!({
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "codeseq",
            "root": self.name,
            "parent": null,
            "max_model_len": self.max_length,
            "permission": [],
        })
    }

    /// Returns how many tokens an answer to a prompt may have: `asked`, or all that fit.
    pub(crate) fn room(
        &self,
        param: &'static str,
        prompt: usize,
        asked: Option<usize>,
    ) -> Result<usize, ApiError> {
        let limit = self.max_length;
        let wanted = asked.unwrap_or(1).max(1);
        if prompt == 0 {
            return Err(ApiError::field(param, "the prompt is empty: give it at least one token"));
        }
        if prompt + wanted > limit {
            return Err(ApiError::too_long(
                param,
                format!(
                    "the context of this model has {limit} tokens, but the prompt has {prompt} and \
                     {wanted} are to be generated: {} in all. Shorten the prompt or lower max_tokens",
                    prompt + wanted
                ),
            ));
        }
        Ok(asked.unwrap_or(limit - prompt).max(1))
    }
}
