//! This file measures copies, products and kernels by themselves, at the shapes of a model (`bench
//! ops`).
//!
//! Contract: bytes are those that must cross the device's memory if no cache keeps anything. A
//! product of two numbers counts as two operations, and causal attention counts its lower half.
//! Inputs are random, because a multiplier that gets constants draws less power and runs faster.
//! Left out: cuDNN's attention, which `bench step` contains.

use super::clock::{Clock, Repeats};
use super::limits::{self, is_real};
use super::measurement::{Limits, Line, Measurement};
use super::optimizer::ADAMW;
use crate::base::rng;
use crate::cuda::gemm::{Linear, Start};
use crate::cuda::kernels::adamw::{DecayRange, Shard, StepInputs};
use crate::cuda::kernels::attention::{BACKWARD_ROWS, FORWARD_ROWS, Forward, tiles};
use crate::cuda::kernels::column_sums::{PARTS, SumOverRows};
use crate::cuda::kernels::decode::{Cache, partials_len};
use crate::cuda::kernels::flat::Flat;
use crate::cuda::kernels::logprob::{ScoreGradient, Shape, Statistics};
use crate::cuda::kernels::prompt;
use crate::cuda::kernels::rms_norm::{Norm, NormBackward};
use crate::cuda::kernels::rope::{Angles, BLOCK_TOKENS, Direction, Heads};
use crate::cuda::kernels::sample::{Kinds, RowSampling, Rows, Sampling};
use crate::cuda::{DeviceBuffer, Gpu, Half, Phase, Stream, Tools};
use crate::model::ModelConfig;
use anyhow::Result;
use bytemuck::Pod;

/// The sizes of the operations.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// A training batch is one packed sequence of so many tokens.
    pub rows: usize,
    /// A chunk of the head has so many targets.
    pub targets: usize,
    /// An optimizer shard has so many parameters.
    pub shard: usize,
    /// So many sequences are decoded at a time.
    pub batch: usize,
    /// Each decoded sequence has so many tokens.
    pub context: usize,
    /// The limits are measured at these sizes.
    pub limits: limits::Sizes,
}

impl Sizes {
    /// Chooses sizes of the paper's training step and decoding step, or small ones for a model so
    /// small that its times mean nothing.
    pub fn new(config: &ModelConfig, rows: usize) -> Self {
        let or = |real, small| if is_real(config) { real } else { small };
        Self {
            rows,
            targets: or(1024, 16).min(rows),
            shard: or(128 << 20, 1 << 12),
            batch: or(64, 2),
            context: or(1024, 64),
            limits: limits::Sizes::new(config),
        }
    }
}

/// The GPU's tools and what has been measured.
struct Bench<'a> {
    config: &'a ModelConfig,
    sizes: Sizes,
    heads: Heads,
    stream: &'a Stream,
    tools: &'a mut Tools,
    clock: Clock,
    lines: Vec<Line>,
}

/// Measures every operation on `gpu` and adds the times to `measurement`.
pub fn run(
    gpu: &mut Gpu,
    config: &ModelConfig,
    sizes: Sizes,
    repeats: Repeats,
    measurement: &mut Measurement,
) -> Result<()> {
    let heads =
        Heads { queries: config.num_heads, keys: config.num_kv_heads, dim: config.head_dim };
    let clock = Clock::new(&gpu.device, repeats)?;
    let lines = Vec::from(limits::measure(gpu, &clock, sizes.limits)?);
    let Gpu { stream, arena, tools, .. } = gpu;
    let mut bench = Bench { config, sizes, heads, stream, tools, clock, lines };
    bench.products(&mut arena.phase())?;
    bench.rows(&mut arena.phase())?;
    bench.attention(&mut arena.phase())?;
    bench.head(&mut arena.phase())?;
    bench.optimizer(&mut arena.phase())?;
    bench.prompt(&mut arena.phase())?;
    bench.decoding(&mut arena.phase())?;
    let lines = bench.lines;
    measurement.limits = Some(Limits::measured(&lines[0], &lines[1..]));
    measurement.fact("rows of a batch", sizes.rows);
    measurement.fact("targets of a chunk", sizes.targets);
    measurement.fact("parameters of a shard", sizes.shard);
    measurement
        .fact("sequences decoded, tokens of each", format!("{}, {}", sizes.batch, sizes.context));
    measurement.lines.extend(lines);
    Ok(())
}

impl Bench<'_> {
    fn line(&mut self, name: impl Into<String>, milliseconds: f64, bytes: usize, flops: f64) {
        let (name, bytes) = (name.into(), bytes as f64);
        self.lines.push(Line { name, milliseconds, bytes, flops });
    }

    fn random<'p>(&mut self, phase: &mut Phase<'p>, len: usize) -> Result<DeviceBuffer<'p, Half>> {
        limits::random(phase, (self.stream, &mut self.tools.transfer), len)
    }

    fn put<'p, T: Pod>(
        &mut self,
        phase: &mut Phase<'p>,
        values: &[T],
    ) -> Result<DeviceBuffer<'p, T>> {
        let mut buffer = phase.take::<T>("inputs", values.len())?;
        self.tools.transfer.upload(self.stream, values, buffer.slice_mut())?;
        Ok(buffer)
    }

    fn products(&mut self, phase: &mut Phase<'_>) -> Result<()> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, .. } = *self.config;
        let Sizes { rows, targets, .. } = self.sizes;
        let width = self.heads.queries * self.heads.dim;
        let layers = [
            ("qkv", rows, hidden, self.heads.row()),
            ("attention output", rows, width, hidden),
            ("gate and up", rows, hidden, 2 * inner),
            ("down", rows, inner, hidden),
            ("head", targets, hidden, self.config.vocab_size),
        ];
        let most = |size: fn(&(&str, usize, usize, usize)) -> usize| {
            layers.iter().map(size).max().unwrap_or(0)
        };
        let x = self.random(phase, most(|(_, rows, inputs, _)| rows * inputs))?;
        let weight = self.random(phase, most(|(_, _, inputs, outputs)| inputs * outputs))?;
        let dy = self.random(phase, most(|(_, rows, _, outputs)| rows * outputs))?;
        let lens = [x.len(), weight.len(), dy.len()];
        let mut out = phase.take::<Half>("a product", lens.into_iter().max().unwrap_or(0))?;
        for (name, rows, inputs, outputs) in layers {
            let sizes = Linear { rows, inputs, outputs };
            let (x, weight) = (x.slice().range(0..rows * inputs), weight.slice());
            let weight = weight.range(0..inputs * outputs);
            let dy = dy.slice().range(0..rows * outputs);
            let (stream, gemm) = (self.stream, &mut self.tools.gemm);
            let forward = self.clock.time(stream, || {
                let y = out.slice_mut().into_range(0..rows * outputs);
                gemm.forward(stream, sizes, x, weight, Start::Zero, y)
            })?;
            let inputs_gradient = self.clock.time(stream, || {
                let dx = out.slice_mut().into_range(0..rows * inputs);
                gemm.input_gradient(stream, sizes, dy, weight, Start::Zero, dx)
            })?;
            let weight_gradient = self.clock.time(stream, || {
                let dw = out.slice_mut().into_range(0..inputs * outputs);
                gemm.weight_gradient(stream, sizes, dy, x, Start::Zero, dw)
            })?;
            let bytes = 2 * (rows * inputs + inputs * outputs + rows * outputs);
            let flops = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
            for (what, time) in [
                ("forward", forward),
                ("input gradient", inputs_gradient),
                ("weight gradient", weight_gradient),
            ] {
                self.line(format!("{name}: {what}"), time, bytes, flops);
            }
        }
        Ok(())
    }

    /// Measures the kernels that compute one row of a batch at a time.
    fn rows(&mut self, phase: &mut Phase<'_>) -> Result<()> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, .. } = *self.config;
        let (rows, heads) = (self.sizes.rows, self.heads);
        let (len, qkv_len) = (rows * hidden, rows * heads.row());
        let (x, weight) = (self.random(phase, len)?, self.random(phase, hidden)?);
        let norm = Norm { weight: weight.slice(), eps: 1e-5 };
        let (mut sum, mut y) = (phase.take::<Half>("sum", len)?, phase.take::<Half>("y", len)?);
        let (stream, kernels) = (self.stream, &self.tools.kernels);
        let forward = self.clock.time(stream, || {
            let (sum, y) = (sum.slice_mut(), y.slice_mut());
            kernels.rms_norm.forward_sum(stream, norm, x.slice(), x.slice(), sum, y)
        })?;
        let mut partials = phase.take::<f32>("partial sums", PARTS * hidden)?;
        let mut gradient = phase.take::<f32>("gradient", hidden)?;
        let backward = self.clock.time(stream, || {
            let (dy, dx) = (y.slice_mut(), sum.slice_mut());
            let rows = NormBackward { x: x.slice(), dy, dx, adds: true };
            let weight = SumOverRows {
                kernels: &kernels.column_sums,
                partials: partials.slice_mut(),
                gradient: gradient.slice_mut(),
            };
            kernels.rms_norm.backward(stream, norm, rows, weight)
        })?;
        self.line("rms_norm with residual", forward, 2 * 4 * len, 0.0);
        self.line("rms_norm backward", backward, 2 * 5 * len, 0.0);

        let mut qkv = self.random(phase, qkv_len)?;
        let positions: Vec<u32> = (0..rows as u32).collect();
        let positions = self.put(phase, &positions)?;
        let table = vec![0.5f32; rows * heads.dim / 2];
        let table = self.put(phase, &table)?;
        let angles =
            Angles { cosines: table.slice(), sines: table.slice(), positions: positions.slice() };
        let (stream, kernels) = (self.stream, &self.tools.kernels);
        let rope = self.clock.time(stream, || {
            kernels.rope.turn(stream, heads, angles, Direction::Forward, qkv.slice_mut())
        })?;
        self.line("rope", rope, 2 * 2 * rows * (heads.queries + heads.keys) * heads.dim, 0.0);

        let mut gate_up = self.random(phase, 2 * rows * inner)?;
        let mut product = phase.take::<Half>("product", rows * inner)?;
        let (stream, kernels) = (self.stream, &self.tools.kernels);
        let forward = self.clock.time(stream, || {
            kernels.swiglu.forward(stream, gate_up.slice(), inner, product.slice_mut())
        })?;
        let backward = self.clock.time(stream, || {
            kernels.swiglu.backward(stream, gate_up.slice_mut(), inner, product.slice_mut())
        })?;
        self.line("swiglu", forward, 2 * 3 * rows * inner, 0.0);
        self.line("swiglu backward", backward, 2 * 6 * rows * inner, 0.0);
        Ok(())
    }

    /// Measures our own attention over one sequence.
    fn attention(&mut self, phase: &mut Phase<'_>) -> Result<()> {
        let (rows, heads) = (self.sizes.rows, self.heads);
        let width = heads.queries * heads.dim;
        let qkv = self.random(phase, rows * heads.row())?;
        let d_out = self.random(phase, rows * width)?;
        let forward_tiles = self.put(phase, &tiles(&[0, rows], FORWARD_ROWS))?;
        let backward_tiles = self.put(phase, &tiles(&[0, rows], BACKWARD_ROWS))?;
        let mut out = phase.take::<Half>("out", rows * width)?;
        let mut lse = phase.take::<f32>("log-sum-exp", rows * heads.queries)?;
        let (stream, kernels) = (self.stream, &self.tools.kernels);
        let forward = self.clock.time(stream, || {
            let (out, lse) = (out.slice_mut(), lse.slice_mut());
            let tiles = forward_tiles.slice();
            kernels.attention.forward(stream, heads, qkv.slice(), tiles, out, lse)
        })?;
        let mut delta = phase.take::<f32>("delta", rows * heads.queries)?;
        let mut d_qkv = phase.take::<Half>("gradient", rows * heads.row())?;
        let inputs =
            Forward { qkv: qkv.slice(), out: out.slice(), lse: lse.slice(), d_out: d_out.slice() };
        let backward = self.clock.time(stream, || {
            let (delta, d_qkv) = (delta.slice_mut(), d_qkv.slice_mut());
            let tiles = backward_tiles.slice();
            kernels.attention.backward(stream, heads, inputs, tiles, delta, d_qkv)
        })?;
        // The forward has two products of half a square each; the backward has five.
        let flops = 2.0 * (rows * rows) as f64 * width as f64;
        let bytes = 2 * rows * (heads.row() + width);
        self.line("attention (own)", forward, bytes, flops);
        self.line("attention backward (own)", backward, 2 * bytes, 2.5 * flops);
        Ok(())
    }

    /// Measures the scores of a chunk of targets and their gradients.
    fn head(&mut self, phase: &mut Phase<'_>) -> Result<()> {
        let (rows, vocab) = (self.sizes.targets, self.config.vocab_size);
        let len = rows * vocab;
        let mut logits = self.random(phase, len)?;
        let targets = self.put(phase, &vec![1u32; rows])?;
        let gradients = self.put(phase, &vec![ScoreGradient::default(); rows])?;
        let mut statistics = phase.take::<Statistics>("statistics", rows)?;
        let mut logp = phase.take::<f32>("scores", rows)?;
        let shape = Shape { vocab, stride: vocab, temperature: 1.0 };
        let (stream, kernels) = (self.stream, &self.tools.kernels);
        let forward = self.clock.time(stream, || {
            let (statistics, logp) = (statistics.slice_mut(), logp.slice_mut());
            let (logits, targets) = (logits.slice(), targets.slice());
            kernels.logprob.forward(stream, shape, logits, targets, statistics, logp)
        })?;
        let backward = self.clock.time(stream, || {
            let (logits, targets) = (logits.slice_mut(), targets.slice());
            let (statistics, gradients) = (statistics.slice(), gradients.slice());
            let logprob = &kernels.logprob;
            logprob.backward_in_place(stream, shape, logits, targets, statistics, gradients)
        })?;
        self.line("logprob", forward, 2 * len, 0.0);
        self.line("logprob backward", backward, 2 * 2 * len, 0.0);
        Ok(())
    }

    /// Measures the kernels of one rank's share of the optimizer.
    fn optimizer(&mut self, phase: &mut Phase<'_>) -> Result<()> {
        let len = self.sizes.shard;
        let narrow = self.random(phase, len)?;
        let mut floats = || phase.take::<f32>("shard", len);
        let (mut master, mut first, mut second) = (floats()?, floats()?, floats()?);
        let mut sum = floats()?;
        let mut parameters = phase.take::<Half>("parameters", len)?;
        let mut partials = phase.take::<f64>("partial sums", Flat::square_parts(len))?;
        let (mut total, mut flag) = (phase.take::<f64>("sum", 1)?, phase.take::<u32>("flag", 1)?);
        let decays = [DecayRange { start: 0, end: len as u64 }];
        let decays = self.put(phase, &decays)?;
        let (stream, kernels) = (self.stream, &self.tools.kernels);
        for buffer in [&mut master, &mut first, &mut second, &mut sum] {
            stream.fill(buffer.slice_mut(), 0)?;
        }
        stream.fill(flag.slice_mut(), 0)?;
        let accumulate = self
            .clock
            .time(stream, || kernels.flat.accumulate(stream, narrow.slice(), sum.slice_mut()))?;
        let squares = self.clock.time(stream, || {
            let (partials, total) = (partials.slice_mut(), total.slice_mut());
            let flag = flag.slice_mut();
            kernels.flat.sum_of_squares(stream, [sum.slice()], partials, total, flag)
        })?;
        let step = self.clock.time(stream, || {
            let mut shard = Shard {
                start: 0,
                master: master.slice_mut(),
                first_moments: first.slice_mut(),
                second_moments: second.slice_mut(),
                parameters: parameters.slice_mut(),
            };
            let (gradients, decays) = (sum.slice(), decays.slice());
            let inputs = StepInputs { gradients, decays, not_finite: flag.slice() };
            kernels.adamw.step(stream, ADAMW, &mut shard, inputs, 0)
        })?;
        self.line("accumulate gradients", accumulate, 10 * len, 0.0);
        self.line("sum of squares", squares, 4 * len, 0.0);
        self.line("adamw", step, 30 * len, 0.0);
        Ok(())
    }

    /// Measures the attention of a prompt that is read in one pass.
    fn prompt(&mut self, phase: &mut Phase<'_>) -> Result<()> {
        let (Sizes { context, .. }, heads) = (self.sizes, self.heads);
        let blocks = context.div_ceil(BLOCK_TOKENS);
        let page = heads.keys * BLOCK_TOKENS * heads.dim;
        let keys = self.random(phase, blocks * page)?;
        let values = self.random(phase, blocks * page)?;
        let qkv = self.random(phase, context * heads.row())?;
        let all: Vec<_> = prompt::tiles(heads, 0..context).collect();
        let tables: Vec<u32> = all.iter().flat_map(|_| 0..blocks as u32).collect();
        let lengths: Vec<u32> = all.iter().map(|tile| tile.end as u32).collect();
        let tiles = self.put(phase, &prompt::numbers(&all))?;
        let (tables, lengths) = (self.put(phase, &tables)?, self.put(phase, &lengths)?);
        let width = heads.queries * heads.dim;
        let mut out = phase.take::<Half>("out", context * width)?;
        let cache = Cache {
            keys: keys.slice(),
            values: values.slice(),
            tables: tables.slice(),
            lengths: lengths.slice(),
        };
        let (stream, kernels) = (self.stream, &self.tools.kernels);
        let time = self.clock.time(stream, || {
            let (qkv, tiles) = (qkv.slice(), tiles.slice());
            kernels.prompt.attend(stream, heads, qkv, cache, tiles, out.slice_mut())
        })?;
        let bytes = 2 * context * (heads.row() + width);
        self.line("attention of a prompt", time, bytes, 2.0 * (context * context * width) as f64);
        Ok(())
    }

    /// Measures the attention and the sampling of a decoding step.
    fn decoding(&mut self, phase: &mut Phase<'_>) -> Result<()> {
        let (Sizes { batch, context, .. }, heads) = (self.sizes, self.heads);
        let vocab = self.config.vocab_size;
        let blocks = context.div_ceil(BLOCK_TOKENS);
        let page = heads.keys * BLOCK_TOKENS * heads.dim;
        let keys = self.random(phase, batch * blocks * page)?;
        let values = self.random(phase, batch * blocks * page)?;
        let qkv = self.random(phase, batch * heads.row())?;
        let tables: Vec<u32> = (0..(batch * blocks) as u32).collect();
        let (tables, lengths) =
            (self.put(phase, &tables)?, self.put(phase, &vec![context as u32; batch])?);
        let mut out = phase.take::<Half>("out", batch * heads.queries * heads.dim)?;
        let mut partials = phase.take::<f32>("splits", batch * partials_len(heads, blocks))?;
        let cache = Cache {
            keys: keys.slice(),
            values: values.slice(),
            tables: tables.slice(),
            lengths: lengths.slice(),
        };
        let (stream, kernels) = (self.stream, &self.tools.kernels);
        let attend = self.clock.time(stream, || {
            let partials = partials.slice_mut();
            kernels.decode.attend(stream, heads, qkv.slice(), cache, partials, out.slice_mut())
        })?;
        let flops = 4.0 * (batch * context * heads.queries * heads.dim) as f64;
        let cached = 2 * 2 * batch * context * heads.keys * heads.dim;
        self.line("attention of a decoding step", attend, cached, flops);

        let logits: Vec<f32> = (0..vocab as u64).map(|i| rng::uniform(8, i)).collect();
        let logits = self.put(phase, &logits.repeat(batch))?;
        let mut tokens = phase.take::<u32>("tokens", batch)?;
        let mut logp = phase.take::<f32>("scores", batch)?;
        for (name, top_p) in [("sampling", 1.0), ("sampling with top_p 0.95", 0.95)] {
            let sampling = Sampling { temperature: 1.0, top_k: 0, top_p, min_p: 0.0 };
            let of_rows = vec![RowSampling::new((1, 1), sampling, vocab); batch];
            let kinds = Kinds::of(&of_rows);
            let of_rows = self.put(phase, &of_rows)?;
            let (logits, sampling) = (logits.slice(), of_rows.slice());
            let rows = Rows { logits, stride: vocab, vocab, sampling, kinds };
            let (stream, kernels) = (self.stream, &self.tools.kernels);
            let time = self.clock.time(stream, || {
                let (tokens, logp) = (tokens.slice_mut(), logp.slice_mut());
                kernels.sample.sample(stream, rows, tokens, logp)
            })?;
            self.line(name, time, 4 * batch * vocab, 0.0);
        }
        Ok(())
    }
}
