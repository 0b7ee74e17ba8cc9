//! Where each tensor lies in the flat parameter buffer, under its Hugging Face name.
//!
//! Contract: gradients and moments use the same layout. Matrices that are multiplied together
//! (queries, keys, values; gate, up) are neighbours, so each pair or triple is one matrix.
//! Fresh weights depend only on the configuration and the seed.

use super::ModelConfig;
use crate::base::rng;
use rayon::prelude::*;
use std::ops::Range;

/// The table of token embeddings.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face name.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Elements in the flat buffer.
    pub range: Range<usize>,
}

impl TensorSpec {
    /// Whether weight decay applies: to matrices, not to norms and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }

    /// Whether this is the table of token embeddings.
    pub fn is_embedding(&self) -> bool {
        self.name == EMBEDDING
    }
}

/// All tensors in the order of the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The tensors, ascending and without gaps.
    pub tensors: Vec<TensorSpec>,
    /// Elements of the flat buffer.
    pub len: usize,
}

/// The matrices and vectors of one layer, neighbours joined.
#[derive(Clone, Debug)]
pub(super) struct LayerRanges {
    pub(super) input_norm: Range<usize>,
    pub(super) qkv: Range<usize>,
    pub(super) qkv_bias: Option<Range<usize>>,
    pub(super) output: Range<usize>,
    pub(super) post_norm: Range<usize>,
    pub(super) gate_up: Range<usize>,
    pub(super) down: Range<usize>,
}

/// What the decoder multiplies by.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    pub(super) embedding: Range<usize>,
    pub(super) layers: Vec<LayerRanges>,
    pub(super) norm: Range<usize>,
    pub(super) head: Range<usize>,
}

impl Layout {
    /// The layout of a model.
    pub fn new(config: &ModelConfig) -> Self {
        Builder::build(config).0
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Whether weight decay applies to the tensor of that name: to matrices (embeddings among
    /// them), not to the 1-D norms and biases.
    pub fn decays(&self, name: &str) -> bool {
        self.get(name).is_some_and(TensorSpec::decays)
    }

    /// The elements of the tensors that are wanted: ascending, disjoint ranges.
    pub fn ranges(&self, is_wanted: impl Fn(&TensorSpec) -> bool) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for tensor in self.tensors.iter().filter(|tensor| is_wanted(tensor)) {
            match ranges.last_mut() {
                Some(last) if last.end == tensor.range.start => last.end = tensor.range.end,
                _ => ranges.push(tensor.range.clone()),
            }
        }
        ranges
    }
}

impl Ranges {
    pub(super) fn new(config: &ModelConfig) -> Self {
        Builder::build(config).1
    }
}

#[derive(Default)]
struct Builder {
    tensors: Vec<TensorSpec>,
    len: usize,
}

impl Builder {
    fn add(&mut self, name: String, shape: &[usize]) -> Range<usize> {
        let range = self.len..self.len + shape.iter().product::<usize>();
        self.len = range.end;
        self.tensors.push(TensorSpec { name, shape: shape.to_vec(), range: range.clone() });
        range
    }

    /// Adds neighbours and returns the range over all of them.
    fn join<const N: usize>(&mut self, parts: [(String, &[usize]); N]) -> Range<usize> {
        let start = self.len;
        for (name, shape) in parts {
            self.add(name, shape);
        }
        start..self.len
    }

    fn build(config: &ModelConfig) -> (Layout, Ranges) {
        let mut builder = Self::default();
        let hidden = config.hidden_size;
        let queries = config.num_heads * config.head_dim;
        let keys = config.num_kv_heads * config.head_dim;
        let inner = config.intermediate_size;
        let vocab = [config.vocab_size, hidden];
        let embedding = builder.add(EMBEDDING.into(), &vocab);
        let layers = (0..config.num_layers)
            .map(|layer| {
                let name = |tensor: &str| format!("model.layers.{layer}.{tensor}");
                LayerRanges {
                    input_norm: builder.add(name("input_layernorm.weight"), &[hidden]),
                    qkv: builder.join([
                        (name("self_attn.q_proj.weight"), &[queries, hidden]),
                        (name("self_attn.k_proj.weight"), &[keys, hidden]),
                        (name("self_attn.v_proj.weight"), &[keys, hidden]),
                    ]),
                    qkv_bias: config.qkv_bias.then(|| {
                        builder.join([
                            (name("self_attn.q_proj.bias"), &[queries]),
                            (name("self_attn.k_proj.bias"), &[keys]),
                            (name("self_attn.v_proj.bias"), &[keys]),
                        ])
                    }),
                    output: builder.add(name("self_attn.o_proj.weight"), &[hidden, queries]),
                    post_norm: builder.add(name("post_attention_layernorm.weight"), &[hidden]),
                    gate_up: builder.join([
                        (name("mlp.gate_proj.weight"), &[inner, hidden]),
                        (name("mlp.up_proj.weight"), &[inner, hidden]),
                    ]),
                    down: builder.add(name("mlp.down_proj.weight"), &[hidden, inner]),
                }
            })
            .collect();
        let norm = builder.add("model.norm.weight".into(), &[hidden]);
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            builder.add("lm_head.weight".into(), &vocab)
        };
        let layout = Layout { tensors: builder.tensors, len: builder.len };
        (layout, Ranges { embedding, layers, norm, head })
    }
}

/// Fresh parameters: norms 1, biases 0, matrices normal with the configuration's standard deviation
/// (those that write into the residual stream divided by √(2 · layers)).
pub fn init(config: &ModelConfig, seed: u64) -> Vec<f32> {
    let layout = Layout::new(config);
    let mut parameters = vec![0.0; layout.len];
    let std = f64::from(config.initializer_range);
    for (index, tensor) in layout.tensors.iter().enumerate() {
        let values = &mut parameters[tensor.range.clone()];
        if tensor.name.ends_with("norm.weight") {
            values.fill(1.0);
        } else if tensor.decays() {
            let residual =
                tensor.name.ends_with("o_proj.weight") || tensor.name.ends_with("down_proj.weight");
            let depth = if residual { (2.0 * config.num_layers as f64).sqrt() } else { 1.0 };
            let key = rng::key(seed, &[0x696e_6974, index as u64]);
            fill_normal(values, key, std / depth);
        }
    }
    parameters
}

/// Normal numbers by Box and Muller, a pair from each block of the keyed generator.
fn fill_normal(values: &mut [f32], key: u64, std: f64) {
    values.par_chunks_mut(2).enumerate().with_min_len(4096).for_each(|(pair, values)| {
        let block = rng::philox(key, [pair as u32, (pair as u64 >> 32) as u32, 0, 0]);
        let unit = |low: u32, high: u32| {
            ((u64::from(high) << 21 | u64::from(low) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let radius = (-2.0 * unit(block[0], block[1]).ln()).sqrt() * std;
        let (sin, cos) = (std::f64::consts::TAU * unit(block[2], block[3])).sin_cos();
        for (value, turn) in values.iter_mut().zip([cos, sin]) {
            *value = (radius * turn) as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: &str, tied: bool) -> ModelConfig {
        let text = format!(
            r#"{{"model_type": "{kind}", "vocab_size": 32, "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
            "tie_word_embeddings": {tied}}}"#
        );
        ModelConfig::from_json(&text).unwrap()
    }

    #[test]
    fn tensors_cover_the_buffer_without_gaps() {
        for (kind, tied, count) in [("llama", true, 20), ("qwen2", false, 27)] {
            let layout = Layout::new(&config(kind, tied));
            assert_eq!(layout.tensors.len(), count);
            let mut end = 0;
            for tensor in &layout.tensors {
                assert_eq!(tensor.range.start, end);
                assert_eq!(tensor.range.len(), tensor.shape.iter().product::<usize>());
                end = tensor.range.end;
            }
            assert_eq!(end, layout.len);
        }
    }

    #[test]
    fn norms_and_biases_do_not_decay() {
        let layout = Layout::new(&config("qwen2", false));
        assert!(
            layout.decays("lm_head.weight") && layout.decays("model.layers.1.mlp.up_proj.weight")
        );
        assert!(!layout.decays("model.norm.weight"));
        assert!(!layout.decays("model.layers.0.self_attn.q_proj.bias"));
        let decayed: usize =
            layout.ranges(TensorSpec::decays).iter().map(ExactSizeIterator::len).sum();
        let expected: usize =
            layout.tensors.iter().filter(|t| layout.decays(&t.name)).map(|t| t.range.len()).sum();
        assert_eq!(decayed, expected);
    }

    #[test]
    fn fresh_weights_are_normal_and_depend_only_on_the_seed() {
        let config = config("llama", false);
        let (a, b, c) = (init(&config, 1), init(&config, 1), init(&config, 2));
        assert_eq!(a, b);
        assert_ne!(a, c);
        let layout = Layout::new(&config);
        let spread = |name: &str| {
            let values = &a[layout.get(name).unwrap().range.clone()];
            let squares: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
            (squares / values.len() as f64).sqrt()
        };
        assert!((spread("model.embed_tokens.weight") - 0.02).abs() < 0.002);
        assert!((spread("model.layers.0.mlp.down_proj.weight") - 0.01).abs() < 0.001);
        assert_eq!(spread("model.norm.weight"), 1.0);
    }
}
