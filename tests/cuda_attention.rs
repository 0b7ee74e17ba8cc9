//! This file tests attention for training through cuDNN, forward and backward, against plain sums
//! in f64, and whole small models with it against the CPU. It runs on a GPU with cuDNN if there is
//! one, else on the emulated driver with the stand-in that runs graphs operation by operation. It
//! is apart from the tests without cuDNN, because a process either has cuDNN or not.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]
#![expect(clippy::print_stdout, reason = "says where it runs, and when it is skipped")]

mod cuda_support;
#[path = "cuda_support/models.rs"]
mod models;

use bytemuck::Pod;
use codeseq::base::rng;
use codeseq::cuda::cudnn::{
    Attention, Gradients, Operands, Results, Segments, Sizes, is_deterministic, version,
};
use codeseq::cuda::{
    Arena, DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu, Half, HalfFormat, Phase, Stream, Tools,
    Transfer,
};
use codeseq::model::cuda::TrainingMemory;
use codeseq::model::{BatchSize, Recompute};
use cuda_support::driver_with_cudnn;
use models::*;

const FORMATS: [HalfFormat; 2] = [HalfFormat::Bf16, HalfFormat::Fp16];

/// These are declared sizes with the lengths of segments in them. Segments fill the pack or not;
/// they have one token, none, or odd numbers; they are fewer than declared; four or other numbers
/// of query heads share a key head.
const PACKS: [(Sizes, &[usize]); 6] = [
    (Sizes { segments: 1, length: 64, heads: 2, kv_heads: 2, head_dim: 32 }, &[64]),
    (Sizes { segments: 1, length: 40, heads: 4, kv_heads: 1, head_dim: 64 }, &[17]),
    (Sizes { segments: 7, length: 100, heads: 8, kv_heads: 2, head_dim: 32 }, &[1, 17, 0, 33, 5]),
    (Sizes { segments: 5, length: 70, heads: 3, kv_heads: 3, head_dim: 64 }, &[0, 0, 31, 38, 1]),
    (Sizes { segments: 3, length: 48, heads: 6, kv_heads: 2, head_dim: 128 }, &[16, 31]),
    (Sizes { segments: 32, length: 33, heads: 4, kv_heads: 1, head_dim: 32 }, &[1]),
];

/// Device memory that nobody has written holds this byte.
const POISON: u8 = 0xff;

/// The inputs in one format.
struct Inputs {
    format: HalfFormat,
    sizes: Sizes,
    lengths: &'static [usize],
    query: Vec<Half>,
    key: Vec<Half>,
    value: Vec<Half>,
    d_output: Vec<Half>,
}

impl Inputs {
    fn new(format: HalfFormat, (sizes, lengths): (Sizes, &'static [usize])) -> Self {
        let tokens: usize = lengths.iter().sum();
        let random = |seed: u64, heads: usize| -> Vec<Half> {
            let number = |i: usize| 4.0 * (rng::uniform(seed, i as u64) - 0.5);
            (0..tokens * heads * sizes.head_dim).map(|i| format.narrow(number(i))).collect()
        };
        let (heads, kv_heads) = (sizes.heads, sizes.kv_heads);
        Self {
            format,
            sizes,
            lengths,
            query: random(1, heads),
            key: random(2, kv_heads),
            value: random(3, kv_heads),
            d_output: random(4, heads),
        }
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn wide(&self, numbers: &[Half]) -> Vec<f64> {
        numbers.iter().map(|&number| f64::from(self.format.widen(number))).collect()
    }
}

/// The outputs are output, log-sum-exp, and the gradients of query, key and value.
type Outputs<T> = [Vec<T>; 5];

const NAMES: [&str; 5] = ["output", "log-sum-exp", "d query", "d key", "d value"];

/// Computes the same outputs by plain sums.
fn exact(inputs: &Inputs) -> Outputs<f64> {
    let Sizes { heads, kv_heads, head_dim: dim, .. } = inputs.sizes;
    let [query, key, value, d_output] =
        [&inputs.query, &inputs.key, &inputs.value, &inputs.d_output].map(|x| inputs.wide(x));
    let mut out = vec![0.0; query.len()];
    let mut stats = vec![0.0; inputs.tokens() * heads];
    let (mut d_query, mut d_key, mut d_value) =
        (vec![0.0; query.len()], vec![0.0; key.len()], vec![0.0; key.len()]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let add = |to: &mut [f64], factor: f64, from: &[f64]| {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
    };
    let scale = 1.0 / (dim as f64).sqrt();
    let mut start = 0;
    for &length in inputs.lengths {
        for (row, head) in (0..length).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let of_row = (start + row) * heads + head;
            let row_range = of_row * dim..(of_row + 1) * dim;
            let of_column = |column: usize| {
                let first = ((start + column) * kv_heads + head * kv_heads / heads) * dim;
                first..first + dim
            };
            let scores: Vec<f64> = (0..=row)
                .map(|column| scale * dot(&query[row_range.clone()], &key[of_column(column)]))
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
            stats[of_row] = most + sum.ln();
            let weights: Vec<f64> =
                scores.iter().map(|score| (score - stats[of_row]).exp()).collect();
            for (column, weight) in weights.iter().enumerate() {
                add(&mut out[row_range.clone()], *weight, &value[of_column(column)]);
            }
            let gradient = &d_output[row_range.clone()];
            let of_out = dot(gradient, &out[row_range.clone()]);
            for (column, weight) in weights.iter().enumerate() {
                let d_weight = dot(gradient, &value[of_column(column)]);
                let d_score = scale * weight * (d_weight - of_out);
                add(&mut d_value[of_column(column)], *weight, gradient);
                add(&mut d_key[of_column(column)], d_score, &query[row_range.clone()]);
                add(&mut d_query[row_range.clone()], d_score, &key[of_column(column)]);
            }
        }
        start += length;
    }
    [out, stats, d_query, d_key, d_value]
}

/// Memory for the declared length, of which the first part is used.
struct Room<'a, T> {
    all: DeviceBuffer<'a, T>,
    used: usize,
}

impl<'a, T: Pod> Room<'a, T> {
    fn take(phase: &mut Phase<'a>, declared: usize, used: usize) -> Self {
        Self { all: phase.take("an operand", declared).unwrap(), used }
    }

    fn slice(&self) -> DeviceSlice<'_, T> {
        self.all.slice().range(0..self.used)
    }

    fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        self.all.slice_mut().into_range(0..self.used)
    }

    /// Returns the used part, after a check that nothing was written behind it.
    fn read(&self, stream: &Stream, transfer: &mut Transfer) -> Vec<T> {
        let mut all = vec![T::zeroed(); self.all.len()];
        transfer.download(stream, self.all.slice(), &mut all).unwrap();
        let rest = bytemuck::cast_slice::<T, u8>(&all[self.used..]);
        assert!(rest.iter().all(|&byte| byte == POISON), "something was written to the padding");
        all.truncate(self.used);
        all
    }
}

/// Fills all free memory with NaNs, and gives it to a new phase.
fn poisoned<'a>(stream: &Stream, arena: &'a mut Arena) -> Phase<'a> {
    let mut phase = arena.phase();
    let mut all = phase.take::<u8>("everything", phase.free_bytes() / 256 * 256).unwrap();
    stream.fill(all.slice_mut(), POISON).unwrap();
    arena.phase()
}

/// Returns cuDNN's outputs, in memory that was NaNs before.
fn by_cudnn(gpu: &mut Gpu, plans: &mut Attention, inputs: &Inputs) -> Outputs<f32> {
    let Gpu { stream, arena, tools: Tools { transfer, .. }, .. } = gpu;
    let (sizes, tokens) = (inputs.sizes, inputs.tokens());
    let phase = &mut poisoned(stream, arena);
    let mut segments = Segments::take(phase, sizes).unwrap();
    segments.set(stream, transfer, inputs.lengths).unwrap();
    let mut scratch = phase.take::<u8>("scratch", sizes.scratch_bytes()).unwrap();
    let mut room = |heads: usize| {
        let width = heads * sizes.head_dim;
        Room::<Half>::take(phase, sizes.length * width, tokens * width)
    };
    let [mut query, mut output, mut d_output, mut d_query] = [(); 4].map(|()| room(sizes.heads));
    let [mut key, mut value, mut d_key, mut d_value] = [(); 4].map(|()| room(sizes.kv_heads));
    let mut stats =
        Room::<f32>::take(phase, sizes.length * sizes.heads, inputs.tokens() * sizes.heads);
    for (room, numbers) in [
        (&mut query, &inputs.query),
        (&mut key, &inputs.key),
        (&mut value, &inputs.value),
        (&mut d_output, &inputs.d_output),
    ] {
        transfer.upload(stream, numbers, room.slice_mut()).unwrap();
    }
    let operands = Operands { query: query.slice(), key: key.slice(), value: value.slice() };
    let results = (output.slice_mut(), stats.slice_mut());
    plans.forward(stream, &segments, operands, results, scratch.slice_mut()).unwrap();
    // The backward must not need what the forward left in its scratch memory.
    stream.fill(scratch.slice_mut(), POISON).unwrap();
    let results = Results { output: output.slice(), stats: stats.slice() };
    let gradients = Gradients {
        query: d_query.slice_mut(),
        key: d_key.slice_mut(),
        value: d_value.slice_mut(),
    };
    let forward = (operands, results);
    plans
        .backward(stream, &segments, forward, d_output.slice(), gradients, scratch.slice_mut())
        .unwrap();
    let mut read = |room: &Room<'_, Half>| -> Vec<f32> {
        let numbers = room.read(stream, transfer);
        numbers.into_iter().map(|number| inputs.format.widen(number)).collect()
    };
    let [output, d_query, d_key, d_value] = [&output, &d_query, &d_key, &d_value].map(&mut read);
    [output, stats.read(stream, transfer), d_query, d_key, d_value]
}

/// Returns a GPU with cuDNN, or `None` and a message where this program has none to run on.
fn gpu(format: HalfFormat) -> Option<Gpu> {
    if !has_cudnn() {
        return None;
    }
    let gpu = Gpu::open(0, format, Some(64 << 20));
    gpu.inspect_err(|refusal| println!("SKIPPED: {refusal:#}")).ok()
}

/// Tells whether this process has cuDNN or its stand-in, and prints a message if not.
fn has_cudnn() -> bool {
    let has = driver_with_cudnn().is_some();
    if !has {
        println!("SKIPPED: neither a GPU with cuDNN nor a C++ compiler");
    }
    has
}

/// Returns the length of the difference relative to that of `expected`, or to one if that is less.
fn error(actual: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let squares = |terms: &mut dyn Iterator<Item = f64>| terms.map(|x| x * x).sum::<f64>();
    let distance = squares(
        &mut actual.iter().zip(expected).map(|(&actual, expected)| f64::from(actual) - expected),
    );
    (distance / squares(&mut expected.iter().copied()).max(1.0)).sqrt()
}

#[test]
fn cuda_attention_and_its_gradients_are_those_of_plain_sums() {
    for format in FORMATS {
        let Some(mut gpu) = gpu(format) else { return };
        let tolerance = match format {
            HalfFormat::Bf16 => 5e-3,
            HalfFormat::Fp16 => 6e-4,
        };
        for pack in PACKS {
            let inputs = Inputs::new(format, pack);
            let mut plans = Attention::new(&gpu.stream, inputs.sizes).unwrap();
            let actual = by_cudnn(&mut gpu, &mut plans, &inputs);
            for ((name, actual), expected) in NAMES.iter().zip(&actual).zip(&exact(&inputs)) {
                let error = error(actual, expected);
                println!("{format:?}, {pack:?}: {name} is off by {error:.1e}");
                let tolerance = if *name == "log-sum-exp" { 1e-5 } else { tolerance };
                // A NaN is not below the tolerance.
                assert!(error < tolerance, "{pack:?}: {name}: {error}");
            }
        }
    }
}

#[test]
fn cuda_attention_puts_out_the_same_bits_every_time() {
    for format in FORMATS {
        let Some(mut gpu) = gpu(format) else { return };
        let capability = gpu.device.properties().capability;
        let has_order = is_deterministic(version().unwrap().0, capability);
        for pack in PACKS {
            let inputs = Inputs::new(format, pack);
            let mut plans = Attention::new(&gpu.stream, inputs.sizes).unwrap();
            let mut bits = || {
                let outputs = by_cudnn(&mut gpu, &mut plans, &inputs);
                outputs.map(|numbers| numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let (first, second) = (bits(), bits());
            assert!(first == second || !has_order, "{format:?}, {pack:?}");
        }
    }
}

#[test]
fn cuda_plans_serve_packs_of_other_segments_one_after_another() {
    let Some(mut gpu) = gpu(HalfFormat::Bf16) else { return };
    let sizes = PACKS[2].0;
    let mut plans = Attention::new(&gpu.stream, sizes).unwrap();
    for lengths in [&[100][..], &[], &[3, 90], &[0], &[1, 1, 1, 1, 1, 1, 1]] {
        let inputs = Inputs::new(HalfFormat::Bf16, (sizes, lengths));
        let actual = by_cudnn(&mut gpu, &mut plans, &inputs);
        let expected = exact(&inputs);
        let errors = actual.iter().zip(&expected).map(|(actual, expected)| error(actual, expected));
        assert!(errors.fold(0.0, f64::max) < 5e-3, "{lengths:?}");
    }
}

#[test]
fn cuda_scores_and_every_gradient_through_cudnn_are_those_of_the_cpu_within_the_error_of_bf16() {
    if !has_cudnn() {
        return;
    }
    for kind in MODELS {
        assert_close(HalfFormat::Bf16, kind, (2e-2, 4e-3, 3e-2));
    }
}

#[test]
fn cuda_scores_and_every_gradient_through_cudnn_in_fp16_are_eight_times_closer() {
    if !has_cudnn() {
        return;
    }
    for kind in MODELS {
        assert_close(HalfFormat::Fp16, kind, (2.5e-3, 6e-4, 3e-2 / 8.0));
    }
}

#[test]
fn cuda_batches_of_many_and_of_few_sequences_take_turns_at_our_kernels_and_cudnn() {
    if !has_cudnn() {
        return;
    }
    let decoder = decoder(MODELS[0]);
    let params = parameters(&decoder);
    let Some(mut model) = model(&decoder, &params) else { return };
    let (few, many) = (batch(&LENGTHS), batch(&[3; 40]));
    let expected = [&few, &many].map(|batch| expected(&decoder, &params, batch).0);
    let mut training = model.training(SIZE, Recompute::Selective).unwrap();
    assert!(training.has_cudnn());
    for (batch, expected) in [(&few, &expected[0]), (&many, &expected[1]), (&few, &expected[0])] {
        let scores = training.score(&batch.0, &batch.1, 0.8).unwrap();
        let (largest, mean) = differences(&scores, expected, |score| score.logp);
        assert!(largest < 2e-2 && mean < 4e-3, "{largest}, mean {mean}");
    }
}

#[test]
fn cuda_gradients_through_cudnn_have_the_same_bits_every_time_whatever_is_recomputed() {
    if !has_cudnn() {
        return;
    }
    let decoder = decoder(MODELS[1]);
    let params = parameters(&decoder);
    let Some(mut model) = model(&decoder, &params) else { return };
    let batch = batch(&LENGTHS);
    let first = pass(&mut model, (SIZE, Recompute::Selective), &batch);
    for recompute in [Recompute::Selective, Recompute::None, Recompute::Layer] {
        assert!(pass(&mut model, (SIZE, recompute), &batch) == first, "{recompute:?}");
    }
}

#[test]
fn cuda_the_memory_of_training_through_cudnn_is_known_before() {
    if !has_cudnn() {
        return;
    }
    let decoder = decoder(MODELS[0]);
    let params = parameters(&decoder);
    let Some(mut model) = model(&decoder, &params) else { return };
    for (size, recompute) in
        [(SIZE, Recompute::None), (BatchSize { tokens: 129, ..SIZE }, Recompute::Layer)]
    {
        let taken = |arena: &Arena| -> usize { arena.taken().map(|(_, bytes)| bytes).sum() };
        model.split().1.arena.phase();
        let before = taken(&model.split().1.arena);
        assert!(model.training(size, recompute).unwrap().has_cudnn());
        let planned = TrainingMemory::new(&decoder, size, recompute, true);
        assert_eq!(taken(&model.split().1.arena) - before, planned.total(), "{recompute:?}");
    }
}
