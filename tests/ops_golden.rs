//! Every operation and its gradient against PyTorch (`scripts/golden/ops.py` made the file, in double
//! precision). `cargo test --test ops_golden -- --nocapture` prints the measured errors.

#![expect(clippy::print_stdout, reason = "the measured errors are worth reading")]

mod golden_support;

use codeseq::ops::adamw::AdamW;
use codeseq::ops::attention::{Attended, AttentionScratch, Heads, attention, attention_backward};
use codeseq::ops::buffer::Buffer;
use codeseq::ops::embedding::{embedding, embedding_backward};
use codeseq::ops::head_norm::{head_norm, head_norm_backward};
use codeseq::ops::logprob::{ScoreGradient, statistics, statistics_backward};
use codeseq::ops::matmul::{
    Panels, Start, matmul, pack, pack_transposed, packed_len, weight_gradient,
};
use codeseq::ops::reduce::{add_rows, sum_of_squares};
use codeseq::ops::rms_norm::{rms_norm, rms_norm_backward};
use codeseq::ops::rope::Rope;
use codeseq::ops::swiglu::{swiglu, swiglu_backward};
use codeseq::optim::AdamWConfig;
use golden_support::{Tensors, golden, read_tensors, relative_distance};

/// Of the Euclidean norm of a tensor.
const TOLERANCE: f64 = 1e-5;
/// The width of a row where the operation does not say otherwise.
const WIDTH: usize = 37;

/// The tensors of one operation.
struct Operation {
    name: &'static str,
    tensors: Tensors,
}

impl Operation {
    fn new(name: &'static str) -> Self {
        let prefix = format!("{name}.");
        let all = read_tensors(&golden("ops.safetensors")).into_iter();
        let own = all.filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.into(), value)));
        Self { name, tensors: own.collect() }
    }

    fn get(&self, tensor: &str) -> &[f32] {
        &self.tensors[tensor]
    }

    /// Whole numbers.
    fn integers(&self, tensor: &str) -> Vec<usize> {
        self.get(tensor).iter().map(|&x| x as usize).collect()
    }

    fn tokens(&self) -> Vec<u32> {
        self.get("tokens").iter().map(|&x| x as u32).collect()
    }

    fn zeros_like(&self, tensor: &str) -> Vec<f32> {
        vec![0.0; self.get(tensor).len()]
    }

    /// Expects `actual` to be the tensor.
    fn check(&self, tensor: &str, actual: &[f32]) {
        let error = relative_distance(actual, self.get(tensor));
        println!("{}: {tensor}: {error:.1e}", self.name);
        assert!(error < TOLERANCE, "{}: {tensor}: {error:.1e}", self.name);
    }
}

#[test]
fn rms_norm_is_that_of_pytorch() {
    let op = Operation::new("rms_norm");
    let (x, weight, eps) = (op.get("x"), op.get("weight"), 1e-5);
    let mut y = op.zeros_like("y");
    rms_norm(x, weight, eps, &mut y);
    op.check("y", &y);
    let (mut dx, mut d_weight) = (op.zeros_like("x"), op.zeros_like("weight"));
    let mut dy = op.get("dy").to_vec();
    rms_norm_backward(x, weight, eps, &mut dy, &mut dx, &mut d_weight);
    op.check("dx", &dx);
    op.check("d_weight", &d_weight);
}

#[test]
fn head_norm_is_that_of_pytorch() {
    let op = Operation::new("head_norm");
    let heads = Heads { queries: 3, keys: 2, dim: 13 };
    let (before, weight, eps) = (op.get("qkv"), op.get("weight"), 1e-5);
    let mut y = before.to_vec();
    head_norm(heads, weight, eps, &mut y);
    op.check("y", &y);
    let (mut d_qkv, mut d_weight) = (op.get("dy").to_vec(), op.zeros_like("weight"));
    head_norm_backward(heads, weight, eps, before, &mut d_qkv, &mut d_weight);
    op.check("d_qkv", &d_qkv);
    op.check("d_weight", &d_weight);
}

#[test]
fn rope_is_that_of_transformers() {
    let op = Operation::new("rope");
    let (heads, dim) = (3, 12);
    let mut rope = Rope::new(dim, 500_000.0, None);
    rope.grow(2048);
    let (mut y, mut dx) = (op.get("x").to_vec(), op.get("dy").to_vec());
    let positions = op.integers("positions");
    for (row, &position) in y.chunks_exact_mut(heads * dim).zip(&positions) {
        rope.forward(row, heads, position);
    }
    for (row, &position) in dx.chunks_exact_mut(heads * dim).zip(&positions) {
        rope.backward(row, heads, position);
    }
    op.check("y", &y);
    op.check("dx", &dx);
}

#[test]
fn attention_is_that_of_pytorch_within_each_sequence() {
    let op = Operation::new("attention");
    let heads = Heads { queries: 4, keys: 2, dim: 10 };
    let mut cu_seqlens = vec![0];
    for length in op.integers("lengths") {
        cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + length);
    }
    let mut qkv = op.get("qkv").to_vec();
    let (mut y, mut lse) = (op.zeros_like("y"), vec![0.0; op.get("y").len() / heads.dim]);
    let mut scratch = [AttentionScratch::default(), AttentionScratch::default()];
    attention(heads, &qkv, &cu_seqlens, &mut y, &mut lse, &mut scratch);
    op.check("y", &y);
    let forward = Attended { out: &y, lse: &lse, d_out: op.get("dy") };
    attention_backward(heads, &mut qkv, &cu_seqlens, forward, &mut scratch);
    op.check("d_qkv", &qkv);
}

#[test]
fn swiglu_is_that_of_pytorch() {
    let op = Operation::new("swiglu");
    let mut gate_up = op.get("gate_up").to_vec();
    let mut y = op.zeros_like("y");
    swiglu(&gate_up, WIDTH, &mut y);
    op.check("y", &y);
    let mut dy = op.get("dy").to_vec();
    swiglu_backward(&mut gate_up, WIDTH, &mut dy);
    op.check("d_gate_up", &gate_up);
}

#[test]
fn embedding_is_that_of_pytorch() {
    let op = Operation::new("embedding");
    let (mut y, mut d_table) = (op.zeros_like("y"), op.zeros_like("table"));
    embedding(op.get("table"), WIDTH, &op.tokens(), &mut y);
    op.check("y", &y);
    embedding_backward(op.get("dy"), WIDTH, &op.tokens(), &mut d_table);
    op.check("d_table", &d_table);
}

#[test]
fn log_probability_and_entropy_are_those_of_pytorch_at_any_temperature() {
    let op = Operation::new("logprob");
    let mut d_logits = op.get("logits").to_vec();
    let (mut logp, mut entropy) = (Vec::new(), Vec::new());
    let rows = d_logits.chunks_exact_mut(op.get("logits").len() / op.tokens().len());
    for ((i, row), token) in rows.enumerate().zip(op.tokens()) {
        let statistics = statistics(row, op.get("temperature")[i]);
        logp.push(statistics.logp(row[token as usize]));
        entropy.push(statistics.entropy);
        let (logp, entropy) = (op.get("d_logp")[i], op.get("d_entropy")[i]);
        let gradient = ScoreGradient { logp, entropy, mean_logp: 0.0 };
        statistics_backward(row, statistics, token, gradient);
    }
    op.check("logp", &logp);
    op.check("entropy", &entropy);
    op.check("d_logits", &d_logits);
}

#[test]
fn matrix_products_and_their_gradients_are_those_of_pytorch() {
    let op = Operation::new("matmul");
    let (x, weight, bias, dy) = (op.get("x"), op.get("weight"), op.get("bias"), op.get("dy"));
    let columns = bias.len();
    let (rows, depth) = (dy.len() / columns, weight.len() / columns);
    let mut packed = Buffer::zeros(packed_len(depth, columns));
    pack_transposed(weight, depth, columns, packed.as_mut_slice());
    let panels = Panels { data: packed.as_slice().into(), depth, columns };
    let mut y = op.zeros_like("y");
    matmul(x, depth, rows, panels, Start::Bias(bias), &mut y, columns);
    op.check("y", &y);

    let mut packed = Buffer::zeros(packed_len(columns, depth));
    pack(weight, columns, depth, packed.as_mut_slice());
    let panels = Panels { data: packed.as_slice().into(), depth: columns, columns: depth };
    let mut dx = op.zeros_like("x");
    matmul(dy, columns, rows, panels, Start::Zero, &mut dx, depth);
    op.check("dx", &dx);

    let (mut d_weight, mut d_bias) = (op.zeros_like("weight"), op.zeros_like("bias"));
    let scratch = &mut [Buffer::default(), Buffer::default()];
    weight_gradient(dy, x, rows, &mut d_weight, scratch);
    op.check("d_weight", &d_weight);
    add_rows(dy, &mut d_bias);
    op.check("d_bias", &d_bias);
}

#[test]
fn five_clipped_steps_of_adamw_are_those_of_pytorch() {
    let op = Operation::new("adamw");
    let config = AdamWConfig {
        lr: 0.01,
        betas: (0.9, 0.95),
        eps: 1e-8,
        weight_decay: 0.1,
        max_grad_norm: 10.0,
        ..AdamWConfig::default()
    };
    let mut parameters = op.get("start").to_vec();
    let (mut m, mut v) = (op.zeros_like("start"), op.zeros_like("start"));
    let (decays, mut norms) = (0..op.integers("decaying")[0], Vec::new());
    for (i, gradients) in op.get("gradients").chunks_exact(parameters.len()).enumerate() {
        let norm = sum_of_squares(gradients).sqrt();
        norms.push(norm as f32);
        let adamw = AdamW {
            learning_rate: config.lr as f32,
            beta1: config.betas.0 as f32,
            beta2: config.betas.1 as f32,
            epsilon: config.eps as f32,
            weight_decay: config.weight_decay as f32,
            gradient_scale: config.clip_factor(norm) as f32,
            step: i as u64 + 1,
        };
        adamw.step(&mut parameters, gradients, &mut m, &mut v, std::slice::from_ref(&decays));
    }
    op.check("norms", &norms);
    op.check("parameters", &parameters);
    op.check("first_moments", &m);
    op.check("second_moments", &v);
}
