//! Where each tensor is in the flat parameter buffer, under its Hugging Face name.
//!
//! Gradients and moments have the same layout. Matrices that are multiplied together (queries, keys and
//! values; gate and up) are neighbours, so that each group is one matrix. Some families store rows in
//! another order, which [`RowOrder`] describes; the order in the buffer is the same for every family. Fresh
//! weights depend only on the configuration and the seed.

use super::ModelConfig;
use super::families::QkvNames;
use crate::base::rng;
use rayon::prelude::*;
use std::ops::Range;

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its Hugging Face name.
    pub name: String,
    /// Its row-major shape.
    pub shape: Vec<usize>,
    /// Its elements in the flat buffer.
    pub range: Range<usize>,
    /// The order of its rows in a file.
    pub order: RowOrder,
}

/// Which row of a tensor in a file is which row in the flat buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowOrder {
    /// The order is the same in both.
    #[default]
    Same,
    /// The order of InternLM2's `wqkv`: for each key head, the rows of its queries, of its key and of its
    /// value. The buffer has all queries, then all keys, then all values.
    Grouped {
        /// The number of key heads.
        groups: usize,
        /// The number of query heads for each.
        queries: usize,
        /// The rows of a head.
        head_dim: usize,
    },
    /// llama.cpp's queries and keys of a Llama: the two rows of a head that rotary positions turn together
    /// are neighbours; in the buffer they are half a head apart.
    Paired {
        /// Rows of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// Returns the row of the file's tensor that is row `row` in the buffer.
    pub fn file_row(self, row: usize) -> usize {
        let (groups, queries, head_dim) = match self {
            Self::Same => return row,
            Self::Grouped { groups, queries, head_dim } => (groups, queries, head_dim),
            Self::Paired { head_dim } => {
                let (first, within) = (row - row % head_dim, row % head_dim);
                let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                return first + 2 * pair + half;
            }
        };
        let (head, within) = (row / head_dim, row % head_dim);
        let all_queries = groups * queries;
        let (group, member) = match head {
            _ if head < all_queries => (head / queries, head % queries),
            _ if head < all_queries + groups => (head - all_queries, queries),
            _ => (head - all_queries - groups, queries + 1),
        };
        (group * (queries + 2) + member) * head_dim + within
    }

    /// Returns how many neighbouring rows stay neighbours; `None` where all do.
    pub fn run(self) -> Option<usize> {
        match self {
            Self::Same => None,
            Self::Grouped { head_dim, .. } => Some(head_dim),
            Self::Paired { .. } => Some(1),
        }
    }
}

impl TensorSpec {
    /// Returns the elements of a row. A vector has rows of one element.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Returns whether weight decay applies: it does to matrices, not to norms and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }

    /// Returns whether this is the table of token embeddings, which every family has first.
    pub fn is_embedding(&self) -> bool {
        self.range.start == 0
    }
}

/// All tensors, in the order of the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The tensors, ascending and without gaps.
    pub tensors: Vec<TensorSpec>,
    /// The elements of the flat buffer.
    pub len: usize,
}

/// Where the matrices and vectors of one layer are, with neighbours joined.
#[derive(Clone, Debug)]
pub(crate) struct LayerRanges {
    pub(crate) input_norm: Range<usize>,
    pub(crate) qkv: Range<usize>,
    pub(crate) qkv_bias: Option<Range<usize>>,
    /// The norm of query heads, then that of key heads.
    pub(crate) head_norm: Option<Range<usize>>,
    pub(crate) output: Range<usize>,
    pub(crate) post_norm: Range<usize>,
    pub(crate) gate_up: Range<usize>,
    pub(crate) down: Range<usize>,
}

/// Where everything is that the decoder computes with.
#[derive(Clone, Debug)]
pub(crate) struct Ranges {
    pub(crate) embedding: Range<usize>,
    pub(crate) layers: Vec<LayerRanges>,
    pub(crate) norm: Range<usize>,
    pub(crate) head: Range<usize>,
}

impl Layout {
    pub fn new(config: &ModelConfig) -> Self {
        Builder::build(config).0
    }

    /// Returns the elements of the wanted tensors, as ascending and disjoint ranges.
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
    pub(crate) fn new(config: &ModelConfig) -> Self {
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
        self.add_ordered(name, shape, RowOrder::Same)
    }

    fn add_ordered(&mut self, name: String, shape: &[usize], order: RowOrder) -> Range<usize> {
        let range = self.len..self.len + shape.iter().product::<usize>();
        self.len = range.end;
        self.tensors.push(TensorSpec { name, shape: shape.to_vec(), range: range.clone(), order });
        range
    }

    /// Appends tensors that are neighbours, and returns the range of all of them.
    fn join<const N: usize>(&mut self, parts: [(String, &[usize]); N]) -> Range<usize> {
        let start = self.len;
        for (name, shape) in parts {
            self.add(name, shape);
        }
        start..self.len
    }

    fn build(config: &ModelConfig) -> (Layout, Ranges) {
        let mut builder = Self::default();
        let names = &config.family.names;
        let hidden = config.hidden_size;
        let vocab = [config.vocab_size, hidden];
        let embedding = builder.add(names.embedding.into(), &vocab);
        let layers = (0..config.num_layers)
            .map(|layer| {
                let name = |tensor: &str| format!("model.layers.{layer}.{tensor}.weight");
                let queries = config.num_heads * config.head_dim;
                let inner = config.intermediate_size;
                LayerRanges {
                    input_norm: builder.add(name(names.input_norm), &[hidden]),
                    qkv: builder.qkv(config, layer),
                    qkv_bias: builder.qkv_bias(config, layer),
                    head_norm: names.head_norms.map(|[query, key]| {
                        let dim = config.head_dim;
                        builder.join([(name(query), &[dim]), (name(key), &[dim])])
                    }),
                    output: builder.add(name(names.output), &[hidden, queries]),
                    post_norm: builder.add(name(names.post_norm), &[hidden]),
                    gate_up: builder.join([
                        (name(names.gate), &[inner, hidden]),
                        (name(names.up), &[inner, hidden]),
                    ]),
                    down: builder.add(name(names.down), &[hidden, inner]),
                }
            })
            .collect();
        let norm = builder.add("model.norm.weight".into(), &[hidden]);
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            builder.add(names.head.into(), &vocab)
        };
        let layout = Layout { tensors: builder.tensors, len: builder.len };
        (layout, Ranges { embedding, layers, norm, head })
    }

    fn qkv(&mut self, config: &ModelConfig, layer: usize) -> Range<usize> {
        let hidden = config.hidden_size;
        let [queries, keys, values] = qkv_rows(config);
        let name = |tensor: &str| format!("model.layers.{layer}.{tensor}.weight");
        match config.family.names.qkv {
            QkvNames::Apart { names: [query, key, value], .. } => self.join([
                (name(query), &[queries, hidden]),
                (name(key), &[keys, hidden]),
                (name(value), &[values, hidden]),
            ]),
            QkvNames::Grouped(tensor) => {
                let order = RowOrder::Grouped {
                    groups: config.num_kv_heads,
                    queries: config.num_heads / config.num_kv_heads,
                    head_dim: config.head_dim,
                };
                self.add_ordered(name(tensor), &[queries + keys + values, hidden], order)
            }
        }
    }

    fn qkv_bias(&mut self, config: &ModelConfig, layer: usize) -> Option<Range<usize>> {
        let QkvNames::Apart { names: [query, key, value], has_bias: true } =
            config.family.names.qkv
        else {
            return None;
        };
        let [queries, keys, values] = qkv_rows(config);
        let name = |tensor: &str| format!("model.layers.{layer}.{tensor}.bias");
        Some(self.join([(name(query), &[queries]), (name(key), &[keys]), (name(value), &[values])]))
    }
}

/// Returns the rows of queries, of keys and of values.
fn qkv_rows(config: &ModelConfig) -> [usize; 3] {
    [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        .map(|heads| heads * config.head_dim)
}

/// Returns fresh parameters: norms are 1, biases 0, and matrices normal with the configuration's standard
/// deviation. Matrices that write into the residual stream are divided by √(2 · layers), as in GPT-2.
pub fn init(config: &ModelConfig, seed: u64) -> Vec<f32> {
    let layout = Layout::new(config);
    let names = &config.family.names;
    let mut parameters = vec![0.0; layout.len];
    let std = f64::from(config.initializer_range);
    for (index, tensor) in layout.tensors.iter().enumerate() {
        let values = &mut parameters[tensor.range.clone()];
        if tensor.name.ends_with("norm.weight") {
            values.fill(1.0);
        } else if tensor.decays() {
            let writes = |name: &str| tensor.name.contains(name);
            let depth = if writes(names.output) || writes(names.down) {
                (2.0 * config.num_layers as f64).sqrt()
            } else {
                1.0
            };
            let key = rng::key(seed, &[0x696e_6974, index as u64]);
            fill_normal(values, key, std / depth);
        }
    }
    parameters
}

/// Fills `values` with normal numbers by the method of Box and Muller, a pair from each block of the keyed
/// generator.
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

    fn tensor<'l>(layout: &'l Layout, name: &str) -> &'l TensorSpec {
        layout.tensors.iter().find(|tensor| tensor.name == name).unwrap()
    }

    #[test]
    fn tensors_cover_the_buffer_without_gaps() {
        for (kind, tied, count) in [
            ("llama", true, 20),
            ("qwen2", false, 27),
            ("qwen3", false, 25),
            ("internlm2", false, 17),
        ] {
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
    fn internlm2_groups_the_rows_of_each_key_value_head() {
        let layout = Layout::new(&config("internlm2", false));
        let tensor = tensor(&layout, "model.layers.1.attention.wqkv.weight");
        assert_eq!((tensor.shape.as_slice(), tensor.row_len()), ([40, 24].as_slice(), 24));
        // Heads have 4 rows. In the buffer, queries are heads 0 to 5, keys 6 and 7, values 8 and 9.
        let file_heads: Vec<usize> =
            (0..10).map(|head| tensor.order.file_row(4 * head + 3) / 4).collect();
        assert_eq!(file_heads, [0, 1, 2, 5, 6, 7, 3, 8, 4, 9]);
        let mut rows: Vec<usize> = (0..40).map(|row| tensor.order.file_row(row)).collect();
        rows.sort_unstable();
        assert!(rows.into_iter().eq(0..40));
    }

    #[test]
    fn llama_cpp_has_the_rows_side_by_side_that_turn_together() {
        let order = RowOrder::Paired { head_dim: 6 };
        let rows: Vec<usize> = (0..12).map(|row| order.file_row(row)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn norms_and_biases_do_not_decay() {
        let layout = Layout::new(&config("qwen2", false));
        let decays = |name: &str| tensor(&layout, name).decays();
        assert!(decays("lm_head.weight") && decays("model.layers.1.mlp.up_proj.weight"));
        assert!(!decays("model.norm.weight") && !decays("model.layers.0.self_attn.q_proj.bias"));
    }

    #[test]
    fn fresh_weights_are_normal_and_depend_only_on_the_seed() {
        let config = config("llama", false);
        let (a, b, c) = (init(&config, 1), init(&config, 1), init(&config, 2));
        assert_eq!(a, b);
        assert_ne!(a, c);
        let layout = Layout::new(&config);
        let spread = |name: &str| {
            let values = &a[tensor(&layout, name).range.clone()];
            let squares: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
            (squares / values.len() as f64).sqrt()
        };
        assert!((spread("model.embed_tokens.weight") - 0.02).abs() < 0.002);
        assert!((spread("model.layers.0.mlp.down_proj.weight") - 0.01).abs() < 0.001);
        assert_eq!(spread("model.norm.weight"), 1.0);
    }
}
