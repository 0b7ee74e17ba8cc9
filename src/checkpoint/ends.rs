//! The tokens that end a response, as a model's files name them.

use crate::model::ModelConfig;
use crate::tokenizer::Tokenizer;

/// Returns the token that ends a turn of the chat template, if it ends no response.
pub(crate) fn unended_turn(config: &ModelConfig, tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.turn_end().filter(|id| !stop_ids(config, tokenizer).contains(id))
}

/// Warns where responses would run on after their turn: the token that ends a turn of the chat template is
/// neither a stop id of the model nor one of `extra`.
pub(crate) fn warn_of_run_on(config: &ModelConfig, tokenizer: &Tokenizer, extra: &[u32]) {
    if let Some(id) = unended_turn(config, tokenizer).filter(|id| !extra.contains(id)) {
        tracing::warn!(
            "{}: the chat template ends a turn with token {id} ({}), which ends no response here: what \
             follows it counts as part of the response. --stop-id {id} ends responses there, and so does \
             eos_token_id in generation_config.json",
            tokenizer.dir().display(),
            tokenizer.decode_with_special_tokens(&[id]).unwrap_or_default(),
        );
    }
}

/// Returns the ids of the tokens that end a response, from the model's config and its generation config.
pub fn stop_ids(config: &ModelConfig, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = config.eos_token_ids.clone();
    ids.extend_from_slice(tokenizer.eos_ids());
    ids.sort_unstable();
    ids.dedup();
    ids
}
