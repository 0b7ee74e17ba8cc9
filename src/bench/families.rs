//! This file groups kernels into families, and counts what each family has to do in a step of
//! training.
//!
//! Contract: work follows from the shapes of a model, as the kernels of `model::cuda` do it. Bytes
//! are those that cross the device's memory if no cache keeps anything; a product of two numbers
//! counts as two operations. What the backward computes again is counted, unlike in MFU, because a
//! kernel is compared here with what it was asked to do. Attention counts the lower half of the
//! square.

use crate::model::{ModelConfig, Recompute};
use std::ops::{Add, AddAssign, Mul};

/// Kernels that have one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// cuBLASLt multiplies matrices.
    Products,
    /// cuDNN or our kernels compute the attention of training.
    Attention,
    /// These are norms, and the sums over rows that are gradients of their weights and of biases.
    Norms,
    Rope,
    SwiGlu,
    /// These are log-probabilities of targets and their gradients.
    Scores,
    /// These look up rows of a table, and add up their gradients.
    Embedding,
    /// These copy and zero memory.
    Fills,
    /// These add up gradients, and compute their norm.
    Sums,
    AdamW,
    Other,
}

/// An operation belongs to a family if its name begins like this.
const NAMES: [(&str, Family); 17] = [
    ("product", Family::Products),
    ("attention", Family::Attention),
    ("cuDNN attention", Family::Attention),
    ("rms_norm", Family::Norms),
    ("head_norm", Family::Norms),
    ("column_partials", Family::Norms),
    ("add_column_sums", Family::Norms),
    ("rope", Family::Rope),
    ("swiglu", Family::SwiGlu),
    ("logprob", Family::Scores),
    ("embedding", Family::Embedding),
    ("copy", Family::Fills),
    ("fill", Family::Fills),
    ("accumulate", Family::Sums),
    ("square_partials", Family::Sums),
    ("sum_of_squares", Family::Sums),
    ("adamw", Family::AdamW),
];

impl Family {
    /// These are all families in the order of a measurement.
    pub const ALL: [Self; 11] = [
        Self::Products,
        Self::Attention,
        Self::Norms,
        Self::Rope,
        Self::SwiGlu,
        Self::Scores,
        Self::Embedding,
        Self::Fills,
        Self::Sums,
        Self::AdamW,
        Self::Other,
    ];

    /// Returns the family of an operation by its name in a profile.
    pub fn of(operation: &str) -> Self {
        let named = NAMES.iter().find(|(beginning, _)| operation.starts_with(beginning));
        named.map_or(Self::Other, |(_, family)| *family)
    }

    /// Returns the family's name in a measurement.
    pub fn name(self) -> &'static str {
        match self {
            Self::Products => "products (GEMM)",
            Self::Attention => "attention",
            Self::Norms => "norms, sums over rows",
            Self::Rope => "rope",
            Self::SwiGlu => "swiglu",
            Self::Scores => "logprob",
            Self::Embedding => "embedding",
            Self::Fills => "copies and zeros",
            Self::Sums => "accumulation, norm of gradients",
            Self::AdamW => "adamw",
            Self::Other => "other",
        }
    }
}

/// The work that something has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// The bytes are those read from and written to device memory.
    pub bytes: f64,
    /// These are floating-point operations.
    pub flops: f64,
}

impl Work {
    /// Counts `elements` of two bytes that are read or written.
    fn narrow(elements: f64) -> Self {
        Self { bytes: 2.0 * elements, flops: 0.0 }
    }

    /// Counts a product of `[rows, inputs]` and `[outputs, inputs]`.
    fn product(rows: f64, inputs: f64, outputs: f64) -> Self {
        let elements = rows * inputs + inputs * outputs + rows * outputs;
        Self { bytes: 2.0 * elements, flops: 2.0 * rows * inputs * outputs }
    }
}

impl Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, flops: self.flops + other.flops }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<f64> for Work {
    type Output = Self;
    fn mul(self, times: f64) -> Self {
        Self { bytes: self.bytes * times, flops: self.flops * times }
    }
}

/// A micro-step: the forward and backward of one sequence of `tokens`, each of which is a target.
#[derive(Clone, Copy, Debug)]
pub struct MicroStep<'c> {
    pub config: &'c ModelConfig,
    /// The sequence has so many tokens and as many targets.
    pub tokens: usize,
    pub recompute: Recompute,
    /// cuDNN computes attention; rope then also splits queries, keys and values into three tensors.
    pub has_cudnn: bool,
}

impl MicroStep<'_> {
    /// Returns the work of `family` in the micro-step.
    pub fn work(self, family: Family) -> Work {
        let c = self.config;
        let number = |size: usize| size as f64;
        let (tokens, hidden, inner) =
            (number(self.tokens), number(c.hidden_size), number(c.intermediate_size));
        let (vocab, layers) = (number(c.vocab_size), number(c.num_layers));
        let width = number(c.num_heads * c.head_dim);
        let turned = number((c.num_heads + c.num_kv_heads) * c.head_dim);
        let qkv = turned + number(c.num_kv_heads * c.head_dim);
        // The backward computes the forward of all layers but the last again.
        let again = if self.recompute == Recompute::Layer { layers - 1.0 } else { 0.0 };
        let forwards = layers + again;
        match family {
            Family::Products => {
                let blocks = Work::product(tokens, hidden, qkv)
                    + Work::product(tokens, width, hidden)
                    + Work::product(tokens, hidden, 2.0 * inner);
                let down = Work::product(tokens, inner, hidden);
                let head = Work::product(tokens, hidden, vocab);
                // Logits are f32, so they count twice.
                let wide = Work::narrow(tokens * vocab);
                (blocks + down) * (3.0 * layers) + blocks * again + head * 3.0 + wide
            }
            Family::Attention => {
                let half = Work { bytes: 0.0, flops: 2.0 * tokens * tokens * width };
                let forward = Work::narrow(tokens * (qkv + width)) + half;
                let backward = Work::narrow(2.0 * tokens * (qkv + width)) + half * 2.5;
                forward * forwards + backward * layers
            }
            Family::Norms => {
                let row = Work::narrow(tokens * hidden);
                let bias = if c.qkv_bias { Work::narrow(tokens * qkv) } else { Work::default() };
                // The first norm reads x and writes y; the two of each layer also read and write
                // the residual stream. In the backward each reads x, dy and dx, and writes y and
                // dx; only the last norm adds to no earlier dx.
                let forward = row * (2.0 + 8.0 * layers + 6.0 * again);
                let norms = forward + (row * 10.0 + bias) * layers + row * 4.0;
                if !c.has_head_norm {
                    return norms;
                }
                // Rows are read and written; in the backward those of queries and keys, and their
                // gradients.
                let (forward, backward) = (Work::narrow(2.0 * tokens * qkv), 3.0 * tokens * turned);
                norms + forward * forwards + Work::narrow(backward) * layers
            }
            Family::Rope => {
                let moved = if self.has_cudnn { qkv } else { turned };
                Work::narrow(2.0 * tokens * moved) * (forwards + layers)
            }
            Family::SwiGlu => Work::narrow(tokens * inner) * (9.0 * layers),
            // f32 logits are read twice, and their gradients are written once in 16 bits.
            Family::Scores => Work { bytes: 10.0 * tokens * vocab, flops: 0.0 },
            // Rows of tokens and of targets are copied, and added to their gradients.
            Family::Embedding => Work::narrow(tokens * hidden) * 10.0,
            Family::Fills => {
                let table = if c.tie_word_embeddings { 0.0 } else { vocab * hidden };
                Work::narrow(tokens * hidden + table)
            }
            Family::Sums | Family::AdamW | Family::Other => Work::default(),
        }
    }
}

/// Returns the work of `family` where a rank adds gradients of `parameters` elements to their sums
/// and updates the parameters with these sums.
pub fn update(family: Family, parameters: usize) -> Work {
    let bytes = |each: f64| Work { bytes: each * parameters as f64, flops: 0.0 };
    match family {
        // A sum is read and written beside the gradient, and read again for its norm.
        Family::Sums => bytes(10.0 + 4.0),
        // Weights and moments are read and written, the sum is read, and the parameter is written.
        Family::AdamW => bytes(30.0),
        Family::Fills => bytes(4.0),
        _ => Work::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes;
    use crate::model::flops::ModelFlops;

    fn llama(config: &ModelConfig, recompute: Recompute) -> MicroStep<'_> {
        MicroStep { config, tokens: 5120, recompute, has_cudnn: true }
    }

    #[test]
    fn products_and_attention_have_the_operations_of_a_model() {
        let config = shapes::find("llama3-8b").unwrap();
        let step = llama(&config, Recompute::Selective);
        let [products, attention] =
            [Family::Products, Family::Attention].map(|f| step.work(f).flops);
        let model = ModelFlops::new(&config).training(5120);
        // Attention's backward has five products for the forward's two, which MFU counts as four.
        let difference = attention - attention * 6.0 / 7.0;
        assert!(((products + attention - difference) / model - 1.0).abs() < 1e-3);
    }

    #[test]
    fn layers_that_are_computed_again_do_a_third_more() {
        let config = shapes::find("llama3-8b").unwrap();
        let [once, again] = [Recompute::Selective, Recompute::Layer]
            .map(|recompute| llama(&config, recompute).work(Family::Products).flops);
        assert!((1.20..1.34).contains(&(again / once)), "{}", again / once);
    }

    #[test]
    fn every_kernel_has_a_family() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda/kernels");
        let of_decoding = [
            "attention_decode",
            "attention_prompt",
            "penalize_repetition",
            "sample",
            "widen",
            "narrow",
        ];
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let names =
                text.split("let names = [").skip(1).chain(text.split("let names =\n").skip(1));
            for names in names.map(|rest| rest.split(']').next().unwrap_or_default()) {
                for name in names.split('"').skip(1).step_by(2) {
                    let is_known = Family::of(name) != Family::Other
                        || of_decoding.iter().any(|known| name.starts_with(known));
                    assert!(is_known, "{name} is of no family");
                }
            }
        }
    }
}
