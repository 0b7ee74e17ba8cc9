//! This file measures what bounds a GPU: the bandwidth of a copy and the rate of a square product.

use super::clock::Clock;
use super::measurement::{Limits, Line, Measurement};
use crate::base::rng;
use crate::cuda::gemm::{Linear, Start};
use crate::cuda::{DeviceBuffer, Gpu, Half, Phase, Stream, Tools, Transfer};
use crate::model::ModelConfig;
use anyhow::Result;

/// The sizes of the copy and of the product.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub copy_bytes: usize,
    /// The matrices have so many rows and columns.
    pub square: usize,
}

impl Sizes {
    /// Chooses sizes large enough for the best rates, or small ones for a model so small that its
    /// times mean nothing.
    pub fn new(config: &ModelConfig) -> Self {
        if is_real(config) {
            Self { copy_bytes: 2 << 30, square: 8192 }
        } else {
            Self { copy_bytes: 1 << 20, square: 64 }
        }
    }
}

/// Tells whether a model is so large that times mean something.
pub fn is_real(config: &ModelConfig) -> bool {
    config.hidden_size >= 1024
}

/// Measures the limits at sizes that suit a model, and adds them to `measurement`.
pub fn add(
    gpu: &mut Gpu,
    config: &ModelConfig,
    clock: &Clock,
    measurement: &mut Measurement,
) -> Result<()> {
    let [copy, product] = measure(gpu, clock, Sizes::new(config))?;
    measurement.limits = Some(Limits::measured(&copy, [&product]));
    measurement.lines.extend([copy, product]);
    Ok(())
}

/// Measures a copy and a square product. Memory is taken only while it measures.
pub fn measure(gpu: &mut Gpu, clock: &Clock, sizes: Sizes) -> Result<[Line; 2]> {
    let Gpu { stream, arena, tools, .. } = gpu;
    Ok([
        copy(&mut arena.phase(), (stream, tools), clock, sizes.copy_bytes)?,
        product(&mut arena.phase(), (stream, tools), clock, sizes.square)?,
    ])
}

impl Limits {
    /// Derives limits from a copy and the fastest of some products.
    pub fn measured<'l>(copy: &Line, products: impl IntoIterator<Item = &'l Line>) -> Self {
        let best = products.into_iter().map(Line::teraflops).fold(0.0, f64::max);
        let bytes_per_second = copy.gigabytes_per_second() * 1e9;
        Self { bytes_per_second, flops_per_second: best * 1e12 }
    }
}

fn copy(
    phase: &mut Phase<'_>,
    (stream, tools): (&Stream, &mut Tools),
    clock: &Clock,
    bytes: usize,
) -> Result<Line> {
    let from = random(phase, (stream, &mut tools.transfer), bytes / 2)?;
    let mut to = phase.take::<Half>("a copy", bytes / 2)?;
    let milliseconds = clock.time(stream, || stream.copy(to.slice_mut(), from.slice()))?;
    Ok(Line { name: "copy".to_owned(), milliseconds, bytes: 2.0 * bytes as f64, flops: 0.0 })
}

fn product(
    phase: &mut Phase<'_>,
    (stream, tools): (&Stream, &mut Tools),
    clock: &Clock,
    size: usize,
) -> Result<Line> {
    let len = size * size;
    let x = random(phase, (stream, &mut tools.transfer), len)?;
    let weight = random(phase, (stream, &mut tools.transfer), len)?;
    let mut y = phase.take::<Half>("a product", len)?;
    let sizes = Linear { rows: size, inputs: size, outputs: size };
    let milliseconds = clock.time(stream, || {
        tools.gemm.forward(stream, sizes, x.slice(), weight.slice(), Start::Zero, y.slice_mut())
    })?;
    let (bytes, flops) = (6.0 * len as f64, 2.0 * (size as f64).powi(3));
    Ok(Line { name: "square product".to_owned(), milliseconds, bytes, flops })
}

/// Takes `len` random numbers: a multiplier that gets constants draws less power and runs faster.
pub(crate) fn random<'p>(
    phase: &mut Phase<'p>,
    (stream, transfer): (&Stream, &mut Transfer),
    len: usize,
) -> Result<DeviceBuffer<'p, Half>> {
    const CHUNK: usize = 1 << 16;
    let format = stream.device().half_format();
    let number = |i| format.narrow(2.0 * rng::uniform(7, i) - 1.0);
    let numbers: Vec<Half> = (0..len.min(CHUNK) as u64).map(number).collect();
    let mut buffer = phase.take::<Half>("random numbers", len)?;
    for start in (0..len).step_by(CHUNK) {
        let end = len.min(start + CHUNK);
        let to = buffer.slice_mut().into_range(start..end);
        transfer.upload(stream, &numbers[..end - start], to)?;
    }
    Ok(buffer)
}
