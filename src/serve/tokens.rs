//! Routes around the tokenizer: `/tokenize`, `/detokenize`, `/tokenizer_info`.
//!
//! Contract: vLLM's forms, by which lm-eval finds a remote tokenizer, and llama.cpp's requests beside them.

use super::App;
use super::chat;
use super::error::ApiError;
use super::fields::Fields;
use serde_json::{Value, json};

/// Turns a text or a conversation into tokens.
pub(crate) fn tokenize(app: &App, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    let tokenizer = &app.model.tokenizer;
    let with_strings = fields.boolean("return_token_strs")?.unwrap_or(false);
    let text = match (fields.text("prompt")?, fields.text("content")?) {
        (Some(prompt), None) => Some((prompt, true)),
        // llama.cpp's.
        (None, Some(content)) => Some((content, false)),
        (None, None) => None,
        (Some(_), Some(_)) => return Err(ApiError::field("content", "give it or prompt")),
    };
    let tokens = match text {
        None => chat::prompt(&mut fields, tokenizer)?,
        Some((text, is_special)) => {
            let adds_special = match fields.boolean("add_special")? {
                None => fields.boolean("add_special_tokens")?.unwrap_or(is_special),
                Some(adds) => adds,
            };
            let tokens = match adds_special {
                true => tokenizer.encode_with_special_tokens(&text),
                false => tokenizer.encode(&text),
            };
            tokens.map_err(|e| ApiError::of("prompt", &e))?
        }
    };
    fields.ignore_rest();
    let spell = |&id: &u32| String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned();
    let strings: Option<Vec<String>> = with_strings.then(|| tokens.iter().map(spell).collect());
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": app.model.max_length,
        "tokens": tokens,
        "token_strs": strings,
    }))
}

/// Turns tokens into text.
pub(crate) fn detokenize(app: &App, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    let ids = fields.take("tokens").unwrap_or_default();
    let ids = app.model.token_ids("tokens", &ids)?;
    fields.ignore_rest();
    let text = app.model.tokenizer.decode_with_special_tokens(&ids);
    let text = text.map_err(|e| ApiError::of("tokens", &e))?;
    Ok(json!({"prompt": text, "content": text}))
}

/// Returns what lm-eval asks of a tokenizer.
pub(crate) fn info(app: &App) -> Value {
    let tokenizer = &app.model.tokenizer;
    let spell = |id: Option<&u32>| {
        id.map(|&id| String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned())
    };
    let eos = spell(app.model.end_ids.last());
    // What the tokenizer puts before a text is its beginning of a sequence.
    let bos = tokenizer.encode_with_special_tokens("").unwrap_or_default();
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "bos_token": spell(bos.first()),
        "pad_token": eos,
        "chat_template": null,
        "model_max_length": app.model.max_length,
        "vocab_size": tokenizer.vocab_size(),
    })
}
