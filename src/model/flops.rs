//! The floating-point operations of a model, for MFU and for estimates of time.
//!
//! It counts model FLOPs as PaLM does (Chowdhery et al. 2022, appendix B): what forward and backward need
//! once, without recomputation and with the causal half of attention,
//!
//! ```text
//! 6 · matrix parameters · tokens  +  6 · layers · attention width · Σ length²
//! ```
//!
//! where the matrices are those of the layers and the head (a tied one too), but not the embedding table,
//! and the sum runs over sequences. MFU is these FLOPs, divided by the time of the step and by the peak of
//! all ranks.

use crate::model::{Layout, ModelConfig, TensorSpec};

/// The dense bf16 peak of an H100 or H200 (SXM) in TFLOP/s, from NVIDIA's data sheet.
pub(crate) const H100_TFLOPS: f64 = 989.0;

/// Cards by words of the driver's name for them, and their TFLOP/s in dense bf16 with sums in f32. The
/// numbers are those of NVIDIA's data sheets and, for GeForce and RTX cards, architecture white papers.
/// Where several cards fit a name, the first one counts.
const CARDS: [(&str, f64); 16] = [
    ("B200", 2250.0),
    ("H200 NVL", 835.0),
    ("H200", H100_TFLOPS),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", H100_TFLOPS),
    ("A100", 312.0),
    ("A40", 149.7),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX A6000", 154.8),
    ("RTX 3090", 71.0),
    ("RTX 4090", 165.2),
    ("RTX 5090", 209.5),
];

/// Returns the TFLOP/s in dense bf16 of the card that the driver calls `name`, if they are known.
pub fn dense_tflops(name: &str) -> Option<f64> {
    let words =
        |text: &str| -> Vec<String> { text.split([' ', '-']).map(str::to_lowercase).collect() };
    let name = words(name);
    let is_named = |card: &str| {
        let card = words(card);
        name.windows(card.len()).any(|some| some == card)
    };
    CARDS.iter().find(|(card, _)| is_named(card)).map(|(_, tflops)| *tflops)
}

/// What decides the FLOPs of a model.
#[derive(Debug, Clone, Copy)]
pub struct ModelFlops {
    matrix_parameters: f64,
    /// The number of layers times the width of the attention output.
    attention: f64,
}

impl ModelFlops {
    pub fn new(shape: &ModelConfig) -> Self {
        let layout = Layout::new(shape);
        let is_of_layer = |t: &&TensorSpec| t.decays() && t.name.contains(".layers.");
        let of_layers: usize =
            layout.tensors.iter().filter(is_of_layer).map(|t| t.range.len()).sum();
        Self {
            matrix_parameters: (of_layers + shape.vocab_size * shape.hidden_size) as f64,
            attention: (shape.num_layers * shape.num_heads * shape.head_dim) as f64,
        }
    }

    /// Returns the FLOPs of training on one sequence of `length` tokens.
    pub fn training(&self, length: usize) -> f64 {
        let length = length as f64;
        6.0 * length * (self.matrix_parameters + self.attention * length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_8b_needs_what_is_published() {
        let shape = ModelConfig::from_json(
            r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8}"#,
        )
        .unwrap();
        let flops = ModelFlops::new(&shape);
        assert!((flops.matrix_parameters / 1e9 - 7.505).abs() < 0.001);
        // This is three times a forward of 76.85 + 6.87 TFLOP.
        assert!((flops.training(5120) / 5120.0 / 1e9 - 49.05).abs() < 0.05);
    }

    #[test]
    fn a_card_is_known_by_whole_words_of_its_name() {
        for (name, expected) in [
            ("NVIDIA H200", Some(989.0)),
            ("NVIDIA H100 80GB HBM3", Some(989.0)),
            ("NVIDIA H100 PCIe", Some(756.0)),
            ("NVIDIA A100-SXM4-40GB", Some(312.0)),
            ("NVIDIA L4", Some(121.0)),
            ("NVIDIA GeForce RTX 4090", Some(165.2)),
            ("NVIDIA A10G", None),
            ("Emulated GPU (no hardware)", None),
        ] {
            assert_eq!(dense_tflops(name), expected, "{name}");
        }
    }
}
