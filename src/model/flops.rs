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
}
