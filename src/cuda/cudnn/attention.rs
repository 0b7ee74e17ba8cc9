//! This file computes attention for training through cuDNN: forward and backward over packed
//! segments, causal, with grouped query heads.
//!
//! Contract: tensors are row-major and packed. `query`, `output` and their gradients are `[tokens,
//! heads, head_dim]`; `key`, `value` and theirs are `[tokens, kv_heads, head_dim]`; all these are
//! 16-bit. `stats`, the natural log-sum-exp of each row of scores, is `[tokens, heads]` in f32. A
//! token sees itself and what comes before it in its segment. Gradients are overwritten. The sizes
//! of a pack are declared once ([`Sizes`]), so that a run compiles two kernels; a pack with fewer
//! segments is filled up with empty ones. The caller brings the memory: a table of segments and
//! [`Sizes::scratch_bytes`]. On Hopper the backward sums the query gradient in a fixed order
//! from cuDNN 9.25 on; before that, a fixed order would take too much memory. On other GPUs the order
//! is not fixed. Where the library is missing, opening fails with [`Absent`](crate::cuda::library::Absent), and the caller uses another implementation.
//! Left out: dropout, bias, sliding windows, and decoding, for which these engines are slow.
//!
//! None of this has run on a GPU yet. Tests build the plans of both directions for a described GPU,
//! and run the graphs by a stand-in for the library (`tests/emulated_gpu/interpreter.cpp`). NVIDIA
//! tests empty segments only from 9.25 on, but TransformerEngine has filled packs up with them, at
//! their end, since 9.6.

use super::Sizes;
use super::backend::{Backend, Descriptor, Handle, Kind, Knob, attribute};
use super::graph::{Graph, Role};
use super::plan::{Engine, Plan, Target};
use crate::cuda::half::{Half, HalfFormat};
use crate::cuda::host::Transfer;
use crate::cuda::memory::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Phase};
use crate::cuda::stream::Stream;
use anyhow::{Context, Result, ensure};

/// This engine's backward sums in a fixed order with these settings.
const DETERMINISTIC: Engine = Engine {
    index: 6,
    knobs: &[
        (Knob::TileM, 2),
        (Knob::TileN, 1),
        (Knob::KernelConfig, 2),
        (Knob::StreamK, 0),
        (Knob::TileCgaM, 0),
        (Knob::Stages, 4),
    ],
};

/// Plans were checked from this version on; some earlier ones compute wrong gradients in this
/// graph.
const OLDEST: usize = 91_900;

/// The backward can sum in a fixed order from this version on.
const DETERMINISTIC_SINCE: usize = 92_500;

/// Tells whether the backward of a cuDNN `version` sums in a fixed order on a GPU of this compute
/// capability: [`DETERMINISTIC`] is an engine for Hopper.
pub fn is_deterministic(version: usize, (major, _): (i32, i32)) -> bool {
    version >= DETERMINISTIC_SINCE && major == 9
}

/// The table that says where the segments of a pack begin, in device memory.
#[derive(Debug)]
pub struct Segments<'a> {
    sizes: Sizes,
    /// The table has four parts: lengths in tokens, then offsets in elements of queries, of keys,
    /// and of stats.
    table: DeviceBuffer<'a, i32>,
    tokens: usize,
}

impl<'a> Segments<'a> {
    /// Takes memory for the table of any pack of `sizes`.
    pub fn take(phase: &mut Phase<'a>, sizes: Sizes) -> Result<Self> {
        let table = phase.take("segments of a pack", sizes.table_len())?;
        Ok(Self { sizes, table, tokens: 0 })
    }

    /// Replaces the segments by segments of `lengths` tokens, in this order.
    pub fn set(
        &mut self,
        stream: &Stream,
        transfer: &mut Transfer,
        lengths: &[usize],
    ) -> Result<()> {
        let table = table(self.sizes, lengths)?;
        transfer.upload(stream, &table, self.table.slice_mut())?;
        self.tokens = lengths.iter().sum();
        Ok(())
    }

    fn bindings(&self) -> [(Role, u64); 5] {
        let part = self.sizes.part();
        let at = |i: usize| self.table.slice().range(i * part..(i + 1) * part).address();
        [
            (Role::QueryLengths, at(0)),
            (Role::KeyLengths, at(0)),
            (Role::QueryOffsets, at(1)),
            (Role::KeyOffsets, at(2)),
            (Role::StatsOffsets, at(3)),
        ]
    }
}

/// Returns the table of segments as the library reads it.
fn table(sizes: Sizes, lengths: &[usize]) -> Result<Vec<i32>> {
    let tokens: usize = lengths.iter().sum();
    ensure!(
        lengths.len() <= sizes.segments && tokens <= sizes.length,
        "a pack has {} segments and {tokens} tokens; at most {} and {} were declared",
        lengths.len(),
        sizes.segments,
        sizes.length
    );
    let part = sizes.part();
    let mut table = vec![0i32; 4 * part];
    let row = sizes.heads * sizes.head_dim;
    let widths = [row, sizes.kv_heads * sizes.head_dim, sizes.heads];
    let mut start = 0;
    for segment in 0..=sizes.segments {
        for (i, width) in widths.iter().enumerate() {
            table[(i + 1) * part + segment] = i32::try_from(start * width)?;
        }
        let length = lengths.get(segment).copied().unwrap_or(0);
        if segment < sizes.segments {
            table[segment] = length as i32;
        }
        start += length;
    }
    Ok(table)
}

/// Attention on one device, on one stream at a time.
#[derive(Debug)]
pub struct Attention {
    sizes: Sizes,
    backend: &'static Backend,
    forward: Plan,
    backward: Plan,
    handle: Handle,
}

/// The inputs of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// It has shape `[tokens, heads, head_dim]`.
    pub query: DeviceSlice<'a, Half>,
    /// It has shape `[tokens, kv_heads, head_dim]`.
    pub key: DeviceSlice<'a, Half>,
    /// It has the shape of `key`.
    pub value: DeviceSlice<'a, Half>,
}

/// The outputs of the forward pass, which the backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Results<'a> {
    /// It has shape `[tokens, heads, head_dim]`.
    pub output: DeviceSlice<'a, Half>,
    /// It has shape `[tokens, heads]`.
    pub stats: DeviceSlice<'a, f32>,
}

/// The outputs of the backward pass.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// It has shape `[tokens, heads, head_dim]`.
    pub query: DeviceSliceMut<'a, Half>,
    /// It has shape `[tokens, kv_heads, head_dim]`.
    pub key: DeviceSliceMut<'a, Half>,
    /// It has the shape of `key`.
    pub value: DeviceSliceMut<'a, Half>,
}

impl Attention {
    /// Opens the library and compiles both directions for the device of `stream`.
    pub fn new(stream: &Stream, sizes: Sizes) -> Result<Self> {
        let backend = Backend::get()?;
        ensure!(
            backend.version() >= OLDEST,
            "attention was not checked with cuDNN {}: it needs {OLDEST} (9.19) or newer",
            backend.version()
        );
        stream.device().bind()?;
        let handle = Handle::new(backend)?;
        let capability = stream.device().properties().capability;
        let is_deterministic = is_deterministic(backend.version(), capability);
        let format = stream.device().half_format();
        let [forward, backward] =
            plans(backend, (&sizes, format), &Target::Device(&handle), is_deterministic)?;
        Ok(Self { sizes, backend, handle, forward, backward })
    }

    /// Returns the sizes that it was compiled for.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Computes `output` and `stats` from `operands`.
    ///
    /// # Panics
    /// This and [`Self::backward`] panic when a length does not follow from the segments.
    pub fn forward(
        &mut self,
        stream: &Stream,
        segments: &Segments<'_>,
        operands: Operands<'_>,
        (mut output, mut stats): (DeviceSliceMut<'_, Half>, DeviceSliceMut<'_, f32>),
        scratch: DeviceSliceMut<'_, u8>,
    ) -> Result<()> {
        self.check(segments, operands, output.len(), stats.len());
        if segments.tokens == 0 {
            return Ok(());
        }
        stream.device().bind()?;
        let mut bindings = segments.bindings().to_vec();
        bindings.extend(operands.bindings());
        bindings.push((Role::Output, output.address()));
        bindings.push((Role::Stats, stats.address()));
        let workspace = self.scratch(scratch)[4];
        // SAFETY: the lengths are checked above, the scratch is sized for this plan.
        stream.operation("cuDNN attention", || unsafe {
            self.forward.execute(self.backend, &self.handle, stream, &bindings, workspace)
        })
    }

    /// Computes `gradients` from the gradient of the output and from the operands and results of
    /// the forward pass.
    pub fn backward(
        &mut self,
        stream: &Stream,
        segments: &Segments<'_>,
        (operands, results): (Operands<'_>, Results<'_>),
        output_gradient: DeviceSlice<'_, Half>,
        gradients: Gradients<'_>,
        scratch: DeviceSliceMut<'_, u8>,
    ) -> Result<()> {
        self.check(segments, operands, results.output.len(), results.stats.len());
        let Gradients { mut query, mut key, mut value } = gradients;
        assert_eq!(output_gradient.len(), results.output.len(), "length of the gradient");
        assert_eq!(
            [query.len(), key.len(), value.len()],
            [operands.query.len(), operands.key.len(), operands.value.len()],
            "lengths of the gradients"
        );
        if segments.tokens == 0 {
            return Ok(());
        }
        stream.device().bind()?;
        let [row_sums, d_query, d_key, d_value, workspace] = self.scratch(scratch);
        let mut bindings = segments.bindings().to_vec();
        bindings.extend(operands.bindings());
        bindings.extend([
            (Role::Output, results.output.address()),
            (Role::Stats, results.stats.address()),
            (Role::OutputGradient, output_gradient.address()),
            (Role::QueryGradient, query.address()),
            (Role::KeyGradient, key.address()),
            (Role::ValueGradient, value.address()),
            (Role::RowSums, row_sums),
            (Role::QueryGradientSums, d_query),
        ]);
        if self.sizes.heads != self.sizes.kv_heads {
            bindings.extend([(Role::KeyGradientHeads, d_key), (Role::ValueGradientHeads, d_value)]);
        }
        // SAFETY: the lengths are checked above, the scratch is sized for this plan.
        stream.operation("cuDNN attention backward", || unsafe {
            self.backward.execute(self.backend, &self.handle, stream, &bindings, workspace)
        })
    }

    /// Returns the addresses of the parts of the scratch memory: row sums, the f32 gradients of
    /// query, key and value with a vector for every query head, and the plans' workspace.
    fn scratch(&self, mut scratch: DeviceSliceMut<'_, u8>) -> [u64; 5] {
        assert_eq!(scratch.len(), self.sizes.scratch_bytes(), "bytes of scratch");
        let gradients = scratch.address() + self.sizes.row_sum_bytes() as u64;
        let full = self.sizes.full_head_bytes() as u64;
        let [query, key, value, workspace] = [0, 1, 2, 3].map(|i| gradients + i * full);
        [scratch.address(), query, key, value, workspace]
    }

    fn check(&self, segments: &Segments<'_>, operands: Operands<'_>, output: usize, stats: usize) {
        assert_eq!(segments.sizes, self.sizes, "sizes of the segments");
        let Sizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let tokens = segments.tokens;
        let (queries, keys) = (tokens * heads * head_dim, tokens * kv_heads * head_dim);
        assert_eq!(
            [operands.query.len(), operands.key.len(), operands.value.len(), output, stats],
            [queries, keys, keys, queries, tokens * heads],
            "lengths of query, key, value, output and stats for {tokens} tokens"
        );
    }
}

impl Operands<'_> {
    fn bindings(&self) -> [(Role, u64); 3] {
        [
            (Role::Query, self.query.address()),
            (Role::Key, self.key.address()),
            (Role::Value, self.value.address()),
        ]
    }
}

/// Builds the plans of forward and backward.
fn plans(
    backend: &'static Backend,
    (sizes, format): (&Sizes, HalfFormat),
    target: &Target<'_>,
    is_deterministic: bool,
) -> Result<[Plan; 2]> {
    let version = backend.version();
    ensure!(
        !is_deterministic || version >= DETERMINISTIC_SINCE,
        "cuDNN {version} has no deterministic backward; {DETERMINISTIC_SINCE} has"
    );
    let asked = is_deterministic.then_some(&DETERMINISTIC);
    let forward = Graph::forward(backend, sizes, format).context("describing attention")?;
    let backward =
        Graph::backward(backend, sizes, format).context("describing attention's backward")?;
    Ok([
        Plan::new(backend, forward, target, None).context("attention")?,
        Plan::new(backend, backward, target, asked).context("attention's backward")?,
    ])
}

/// The library's choice for one direction of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanReport {
    pub engine: i64,
    /// The engine needs a workspace of this size while it runs.
    pub workspace_bytes: usize,
}

/// Builds the plans of forward and backward for a described device, which needs no GPU.
/// `properties` is JSON as in cuDNN's documentation of deviceless compilation.
pub fn check_plans(
    sizes: &Sizes,
    format: HalfFormat,
    properties: &str,
    is_deterministic: bool,
) -> Result<[PlanReport; 2]> {
    let backend = Backend::get()?;
    let device = Descriptor::new(backend, Kind::DeviceProperties)?;
    device.set(attribute::DEVICEPROP_JSON_REPRESENTATION, properties.as_bytes())?;
    let device = device.finalize().context("describing a device")?;
    let plans = plans(backend, (sizes, format), &Target::Described(&device), is_deterministic)?;
    Ok(plans
        .map(|plan| PlanReport { engine: plan.engine(), workspace_bytes: plan.workspace_bytes() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { segments: 4, length: 100, heads: 6, kv_heads: 2, head_dim: 8 };

    #[test]
    fn a_table_has_lengths_and_offsets_and_fills_up_with_empty_segments() {
        let table = table(SIZES, &[10, 0, 7]).unwrap();
        let part = SIZES.part();
        assert_eq!(part, 8);
        assert_eq!(table[..4], [10, 0, 7, 0]);
        for (i, width) in [(1, 48), (2, 16), (3, 6)] {
            let expected = [0, 10, 10, 17, 17].map(|token| token * width);
            assert_eq!(table[i * part..i * part + 5], expected);
        }
    }

    #[test]
    fn a_pack_beyond_its_declared_size_is_refused() {
        for lengths in [&[1; 5][..], &[60, 41]] {
            let text = format!("{:#}", table(SIZES, lengths).unwrap_err());
            assert!(text.contains("were declared"), "{text}");
        }
    }
}
