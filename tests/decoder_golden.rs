//! Scores and gradients of tiny random Llama, Qwen2 and Qwen3 models against transformers
//! (`scripts/golden/decoder.py` made the files, in double precision).

use codeseq::model::{Decoder, ModelConfig, Packed, ScoreGradient, Target, TokenScores, Workspace};
use safetensors::SafeTensors;
use std::path::Path;

/// One golden file.
struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    fn load(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoder");
        let path = dir.join(format!("{name}.safetensors"));
        Self { bytes: std::fs::read(path).expect("the golden file is committed") }
    }

    fn metadata(&self, key: &str) -> String {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).expect("valid safetensors");
        metadata.metadata().as_ref().expect("metadata")[key].clone()
    }

    fn raw(&self, name: &str) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.bytes).expect("valid safetensors");
        tensors.tensor(name).expect("the tensor is in the file").data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let raw = self.raw(name);
        raw.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        let raw = self.raw(name);
        raw.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
    }
}

/// |a - e| over |e|, as vectors.
fn relative_error(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let norm = |terms: &mut dyn Iterator<Item = f64>| terms.map(|x| x * x).sum::<f64>().sqrt();
    let differences = actual.iter().zip(expected).map(|(a, e)| f64::from(*a) - f64::from(*e));
    norm(&mut { differences }) / norm(&mut expected.iter().map(|&e| f64::from(e)))
}

fn check(name: &str) {
    let golden = Golden::load(name);
    let config = ModelConfig::from_json(&golden.metadata("config")).expect("supported");
    let temperature: f32 = golden.metadata("temperature").parse().expect("a number");
    let decoder = Decoder::new(config);
    let mut params = vec![0.0; decoder.layout().len];
    for tensor in &decoder.layout().tensors {
        let values = golden.floats(&format!("parameter.{}", tensor.name));
        params[tensor.range.clone()].copy_from_slice(&values);
    }

    let tokens: Vec<u32> = golden.integers("tokens").iter().map(|&t| t as u32).collect();
    let mut batch = Packed { tokens, cu_seqlens: vec![0], ..Packed::default() };
    let mut targets = Vec::new();
    for len in golden.integers("lengths") {
        let start = batch.cu_seqlens[batch.cu_seqlens.len() - 1];
        let end = start + len as usize;
        batch.cu_seqlens.push(end);
        let rows = start..end - 1;
        targets.extend(rows.map(|row| Target { row, token: batch.tokens[row + 1] }));
    }

    let mut all = vec![TokenScores::default(); targets.len()];
    let weight = |index: usize| 2.0 * index as f32 / (targets.len() - 1) as f32 - 1.0;
    let mut objective = |first: usize, scores: &[TokenScores], gradients: &mut [ScoreGradient]| {
        all[first..first + scores.len()].copy_from_slice(scores);
        for (i, gradient) in gradients.iter_mut().enumerate() {
            gradient.logp = weight(first + i);
            gradient.entropy = -0.3 * weight(first + i);
        }
    };
    let mut grads = vec![0.0; params.len()];
    let ws = &mut Workspace::new();
    decoder.forward_backward(
        &params,
        &batch,
        &targets,
        temperature,
        &mut objective,
        &mut grads,
        ws,
    );

    let logps: Vec<f32> = all.iter().map(|score| score.logp).collect();
    let entropies: Vec<f32> = all.iter().map(|score| score.entropy).collect();
    for (what, actual, tensor) in [("logp", logps, "logp"), ("entropy", entropies, "entropy")] {
        let expected = golden.floats(tensor);
        for (a, e) in actual.iter().zip(&expected) {
            assert!((a - e).abs() < 1e-4 * (1.0 + e.abs()), "{name}: {what} {a} is not {e}");
        }
        assert!(relative_error(&actual, &expected) < 1e-5, "{name}: {what}");
    }
    for tensor in &decoder.layout().tensors {
        let expected = golden.floats(&format!("gradient.{}", tensor.name));
        let actual = &grads[tensor.range.clone()];
        assert!(actual.iter().any(|&g| g != 0.0), "{name}: {} receives no gradient", tensor.name);
        let error = relative_error(actual, &expected);
        assert!(error < 1e-4, "{name}: the gradient of {} is off by {error:e}", tensor.name);
    }
}

#[test]
fn llama_with_tied_embeddings_matches_transformers() {
    check("llama-tied");
}

#[test]
fn llama_with_its_own_head_matches_transformers() {
    check("llama-untied");
}

#[test]
fn qwen2_with_tied_embeddings_matches_transformers() {
    check("qwen2-tied");
}

#[test]
fn qwen2_with_its_own_head_matches_transformers() {
    check("qwen2-untied");
}

#[test]
fn qwen3_with_its_own_head_matches_transformers() {
    check("qwen3");
}
