//! Tensors that follow from others, in files that store them all the same.
//!
//! Their values decide. A head that equals the embedding is tied to it, as `config.json` says. A head with
//! other values is used and saved as a head of its own, with a warning. Rotary frequencies that differ from
//! those of `config.json` cause a warning and are not used: they are computed again, as in transformers.

use super::shards::{Shards, has_weights, is_frequencies};
use crate::model::{Layout, ModelConfig};
use crate::ops::element::{Dtype, Elements};
use crate::ops::rope::Rope;
use anyhow::Result;
use std::path::Path;

/// Numbers are compared this many at a time.
const PART: usize = 1 << 20;

/// Returns the shape of the model in `dir`, from its `config.json` and from its weights, if it has any.
pub(crate) fn read_config(dir: &Path) -> Result<ModelConfig> {
    let config = ModelConfig::from_dir(dir)?;
    if !has_weights(dir) {
        return Ok(config);
    }
    let shards = Shards::map(dir)?;
    check_frequencies(&shards, &config);
    if !config.tie_word_embeddings || is_tied(&shards, &config) {
        return Ok(config);
    }
    tracing::warn!(
        "{}: config.json says tie_word_embeddings, but the weights have a head of other values than the \
         embedding's: it is used, and saved, as a head of its own",
        dir.display()
    );
    Ok(config.untied())
}

/// Returns whether the head equals the embedding, or is not stored.
fn is_tied(shards: &Shards, config: &ModelConfig) -> bool {
    let layout = Layout::new(&config.untied());
    let [Some(embedding), Some(head)] = [layout.tensors.first(), layout.tensors.last()] else {
        return true;
    };
    match (shards.find(&embedding.name), shards.find(&head.name)) {
        (Some(embedding), Some(head)) => is_equal(embedding, head),
        _ => true,
    }
}

fn is_equal(one: Elements<'_>, other: Elements<'_>) -> bool {
    if one.dtype == other.dtype {
        return one.bytes == other.bytes;
    }
    let len = one.len();
    len == other.len()
        && (0..len).step_by(PART).all(|start| {
            let count = PART.min(len - start);
            let [mut a, mut b] = [vec![0.0; count], vec![0.0; count]];
            one.slice(start, count).widen(&mut a);
            other.slice(start, count).widen(&mut b);
            a == b
        })
}

fn check_frequencies(shards: &Shards, config: &ModelConfig) {
    let rope = Rope::new(config.head_dim, config.rope_theta, config.rope_scaling);
    let found = shards.names().filter(|name| is_frequencies(name));
    let differs = |name: &&str| {
        let stored = shards.find(name);
        stored.is_none_or(|stored| differ(stored, rope.frequencies()))
    };
    if let Some(name) = found.filter(differs).min() {
        tracing::warn!(
            "tensor {name} has other rotary frequencies than config.json (rope_theta, rope_scaling) gives; \
             config.json decides, as in transformers"
        );
    }
}

fn differ(stored: Elements<'_>, expected: &[f32]) -> bool {
    let mut values = vec![0.0; stored.len()];
    stored.widen(&mut values);
    let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= tolerance(stored.dtype) * b + 1e-7;
    values.len() != expected.len() || !values.iter().zip(expected).all(is_near)
}

/// Returns how far a stored number may be from the number that it stands for.
fn tolerance(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => 1e-5,
        Dtype::F16 => 1e-3,
        Dtype::Bf16 => 4e-3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs::write_atomic;
    use safetensors::tensor::{Dtype as Format, TensorView};
    use serde_json::json;

    const VOCAB: usize = 4;
    const HIDDEN: usize = 8;

    /// Makes a directory with the config of a tied model, an embedding, and the tensors `more`.
    fn model(more: &[(&str, Vec<usize>, Vec<f32>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({
            "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": true,
        });
        write_atomic(&dir.path().join("config.json"), config.to_string().as_bytes()).unwrap();
        let embedding = ("model.embed_tokens.weight", vec![VOCAB, HIDDEN], embedding());
        let all: Vec<(String, Vec<usize>, Vec<u8>)> = more
            .iter()
            .chain([&embedding])
            .map(|(name, shape, values)| {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                ((*name).to_owned(), shape.clone(), bytes)
            })
            .collect();
        let views = all.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Format::F32, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
        dir
    }

    fn embedding() -> Vec<f32> {
        (0..VOCAB * HIDDEN).map(|i| i as f32).collect()
    }

    #[test]
    fn a_head_of_other_values_than_the_embedding_is_not_tied() {
        let tied = |head: Option<Vec<f32>>| {
            let head = head.map(|values| ("lm_head.weight", vec![VOCAB, HIDDEN], values));
            let dir = model(head.as_slice());
            read_config(dir.path()).unwrap().tie_word_embeddings
        };
        assert!(tied(None));
        assert!(tied(Some(embedding())));
        let mut other = embedding();
        other[VOCAB * HIDDEN - 1] += 1.0;
        assert!(!tied(Some(other)));
    }

    #[test]
    fn a_model_with_a_head_of_its_own_says_so_in_its_config() {
        let head = ("lm_head.weight", vec![VOCAB, HIDDEN], vec![0.5; VOCAB * HIDDEN]);
        let config = read_config(model(&[head]).path()).unwrap();
        let again = ModelConfig::from_json(config.to_json()).unwrap();
        assert!(!again.tie_word_embeddings);
        assert_eq!(Layout::new(&again).tensors.last().unwrap().name, "lm_head.weight");
    }

    #[test]
    fn a_head_in_another_format_is_compared_by_value() {
        let half: Vec<u8> =
            embedding().iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        let full = embedding();
        let stored = Elements { dtype: Dtype::Bf16, bytes: &half };
        assert!(is_equal(stored, Elements::from(full.as_slice())));
        assert!(!is_equal(stored, Elements::from(&full[1..])));
    }

    #[test]
    fn frequencies_are_told_from_others_within_their_format() {
        let dir = model(&[]);
        let config = read_config(dir.path()).unwrap();
        let rope = Rope::new(config.head_dim, config.rope_theta, config.rope_scaling);
        assert_eq!(rope.frequencies(), [1.0, 0.01]);
        assert!(!differ(Elements::from(&[1.0, 0.01][..]), rope.frequencies()));
        assert!(differ(Elements::from(&[1.0, 0.02][..]), rope.frequencies()));
        assert!(differ(Elements::from(&[1.0][..]), rope.frequencies()));
        let half: Vec<u8> =
            [1.0, 0.01].iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        assert!(!differ(Elements { dtype: Dtype::Bf16, bytes: &half }, rope.frequencies()));
    }
}
