//! Weights laid out to compute with: matrices packed for products, vectors in f32, and the embedding table
//! by rows.
//!
//! They are packed once after each change of the parameters and then read by any number of products.
//! [`Weights`] come from a trainer's flat f32 buffer, whose embedding they borrow, or from stored tensors,
//! whose number format the matrices keep. Either way a product has the bits of the same weights in f32, and
//! nothing is held twice.

use super::layout::{LayerRanges, Layout, Ranges, TensorSpec};
use crate::ops::buffer::Buffer;
use crate::ops::element::{Dtype, Elements, Stored};
use crate::ops::matmul::{PANEL, Panels, pack, pack_panel, pack_transposed, packed_len};
use rayon::prelude::*;
use std::ops::Range;

/// A matrix of the model; those of a layer carry its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matrix {
    Qkv(usize),
    Output(usize),
    GateUp(usize),
    Down(usize),
    Head,
}

/// The weights of one layer.
#[derive(Clone, Copy)]
pub(crate) struct LayerWeights<'a> {
    pub(crate) all: &'a PackedWeights,
    pub(crate) layer: usize,
}

/// The product that the panels are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The product is `x · Wᵀ`.
    Forward,
    /// The product is `dy · W`.
    Backward,
}

/// Everything that generation reads, packed.
pub struct Weights<'p> {
    pub(crate) packed: PackedWeights,
    table: Table<'p>,
}

/// Where the rows of the embedding are.
enum Table<'p> {
    /// They are in the trainer's parameters.
    Parameters(&'p [f32]),
    /// They are in a copy with the number format of the file.
    Stored(Dtype, Buffer),
    /// They are in the head, which is the same matrix.
    Head,
}

/// The packed matrices of one pass; those of the forward pass have the vectors with them.
pub(crate) struct PackedWeights {
    pass: Pass,
    /// Four for each layer, then the head.
    matrices: Vec<PackedMatrix>,
    layers: Vec<LayerVectors>,
    norm: Vec<f32>,
}

/// The norms and the bias of one layer.
#[derive(Clone, Default)]
pub(crate) struct LayerVectors {
    pub(crate) input_norm: Vec<f32>,
    pub(crate) qkv_bias: Option<Vec<f32>>,
    pub(crate) head_norm: Option<Vec<f32>>,
    pub(crate) post_norm: Vec<f32>,
}

/// A packed matrix, and where its `[outputs, inputs]` source is in the flat buffer.
struct PackedMatrix {
    source: Range<usize>,
    outputs: usize,
    inputs: usize,
    dtype: Dtype,
    data: Buffer,
}

/// The tensors as they are stored.
pub(crate) struct Source<'a, F> {
    pub(crate) layout: &'a Layout,
    /// Returns a tensor with the rows in its file's order.
    pub(crate) tensor: F,
}

impl<'p> Weights<'p> {
    /// Lays out flat parameters.
    pub(crate) fn of_parameters(
        mut packed: PackedWeights,
        ranges: &Ranges,
        all: &'p [f32],
    ) -> Self {
        packed.fill(ranges, all);
        Self { packed, table: Table::Parameters(&all[ranges.embedding.clone()]) }
    }

    /// Writes the embedding of `token` to `out`, which has as many elements.
    pub(crate) fn embed(&self, token: u32, out: &mut [f32]) {
        let first = token as usize * out.len();
        match &self.table {
            Table::Parameters(table) => out.copy_from_slice(&table[first..first + out.len()]),
            Table::Stored(dtype, data) => elements(*dtype, data).slice(first, out.len()).widen(out),
            Table::Head => self.packed.panels(Matrix::Head).column(token as usize, out),
        }
    }
}

impl Weights<'static> {
    /// Lays out stored tensors. `done` is called for each tensor when it is no longer needed.
    pub(crate) fn of_stored<'a>(
        ranges: &Ranges,
        hidden: usize,
        source: &Source<'a, impl Fn(&'a TensorSpec) -> Stored<'a> + Sync>,
        done: impl Fn(&'a TensorSpec) + Sync,
    ) -> Self {
        let matrices = matrices(ranges, hidden)
            .into_par_iter()
            .with_max_len(1)
            .map(|(range, inputs)| {
                let matrix = PackedMatrix::of_stored(range.clone(), inputs, source);
                source.specs(&range).for_each(&done);
                matrix
            })
            .collect();
        let vector = |range: &Range<usize>| {
            let vector = source.vector(range);
            source.specs(range).for_each(&done);
            vector
        };
        let layers = ranges.layers.iter().map(|layer| LayerVectors {
            input_norm: vector(&layer.input_norm),
            qkv_bias: layer.qkv_bias.as_ref().map(vector),
            head_norm: layer.head_norm.as_ref().map(vector),
            post_norm: vector(&layer.post_norm),
        });
        let layers = layers.collect();
        let norm = vector(&ranges.norm);
        let table = if ranges.embedding == ranges.head {
            Table::Head
        } else {
            let table = source.copy(&ranges.embedding);
            source.specs(&ranges.embedding).for_each(&done);
            table
        };
        Self { packed: PackedWeights { pass: Pass::Forward, matrices, layers, norm }, table }
    }
}

impl<'a, F: Fn(&'a TensorSpec) -> Stored<'a> + Sync> Source<'a, F> {
    /// Returns the tensors that a range of the flat buffer joins.
    fn specs(&self, range: &Range<usize>) -> impl Iterator<Item = &'a TensorSpec> {
        let range = range.clone();
        self.layout.tensors.iter().filter(move |spec| range.contains(&spec.range.start))
    }

    fn vector(&self, range: &Range<usize>) -> Vec<f32> {
        let mut values = vec![0.0; range.len()];
        for spec in self.specs(range) {
            let at = spec.range.start - range.start;
            (self.tensor)(spec).elements().widen(&mut values[at..at + spec.range.len()]);
        }
        values
    }

    fn copy(&self, range: &Range<usize>) -> Table<'static> {
        let spec = self.specs(range).next().expect("invariant: an embedding is one tensor");
        let stored = (self.tensor)(spec);
        let mut data = Buffer::zeros(stored.bytes.len().div_ceil(size_of::<f32>()));
        let bytes = &mut bytemuck::cast_slice_mut(data.as_mut_slice())[..stored.bytes.len()];
        let chunk = 1 << 22;
        bytes
            .par_chunks_mut(chunk)
            .zip(stored.bytes.par_chunks(chunk))
            .for_each(|(to, from)| to.copy_from_slice(from));
        Table::Stored(stored.dtype, data)
    }
}

/// Returns the range and the depth of each matrix: four for each layer, then the head.
fn matrices(ranges: &Ranges, hidden: usize) -> Vec<(Range<usize>, usize)> {
    let mut matrices = Vec::new();
    for LayerRanges { qkv, output, gate_up, down, .. } in &ranges.layers {
        matrices.push((qkv.clone(), hidden));
        matrices.push((output.clone(), output.len() / hidden));
        matrices.push((gate_up.clone(), hidden));
        matrices.push((down.clone(), down.len() / hidden));
    }
    matrices.push((ranges.head.clone(), hidden));
    matrices
}

impl PackedMatrix {
    fn of_stored<'a>(
        range: Range<usize>,
        inputs: usize,
        source: &Source<'a, impl Fn(&'a TensorSpec) -> Stored<'a> + Sync>,
    ) -> Self {
        let parts: Vec<(&TensorSpec, Stored<'_>)> =
            source.specs(&range).map(|spec| (spec, (source.tensor)(spec))).collect();
        let first = parts[0].1.dtype;
        let dtype =
            if parts.iter().all(|(_, part)| part.dtype == first) { first } else { Dtype::F32 };
        let outputs = range.len() / inputs;
        let row = |row: usize| {
            let at = range.start + row * inputs;
            let is_of = |(spec, _): &&(&TensorSpec, Stored<'_>)| spec.range.contains(&at);
            let (spec, part) = parts.iter().find(is_of).expect("invariant: parts cover the range");
            let row = spec.order.file_row((at - spec.range.start) / inputs);
            part.elements().slice(row * inputs, inputs)
        };
        let bytes = packed_len(inputs, outputs) * dtype.size();
        let mut data = Buffer::zeros(bytes.div_ceil(size_of::<f32>()));
        bytemuck::cast_slice_mut::<f32, u8>(data.as_mut_slice())[..bytes]
            .par_chunks_mut(inputs * PANEL * dtype.size())
            .enumerate()
            .for_each(|(panel, out)| {
                let columns = panel * PANEL..outputs.min((panel + 1) * PANEL);
                let rows: Vec<Elements<'_>> = columns.map(row).collect();
                pack_panel(&rows, dtype, out);
            });
        Self { source: range, outputs, inputs, dtype, data }
    }
}

impl PackedWeights {
    /// Allocates the matrices of f32 parameters.
    pub(crate) fn new(ranges: &Ranges, hidden: usize, pass: Pass) -> Self {
        let matrices = matrices(ranges, hidden).into_iter().map(|(source, inputs)| {
            let outputs = source.len() / inputs;
            let len = match pass {
                Pass::Forward => packed_len(inputs, outputs),
                Pass::Backward => packed_len(outputs, inputs),
            };
            PackedMatrix { source, outputs, inputs, dtype: Dtype::F32, data: Buffer::zeros(len) }
        });
        let layers = vec![LayerVectors::default(); ranges.layers.len()];
        Self { pass, matrices: matrices.collect(), layers, norm: Vec::new() }
    }

    /// Packs the matrices of `parameters`, on the pool.
    pub(crate) fn fill(&mut self, ranges: &Ranges, parameters: &[f32]) {
        let pass = self.pass;
        self.matrices.par_iter_mut().with_max_len(1).for_each(|matrix| {
            let PackedMatrix { source, outputs, inputs, data, .. } = matrix;
            let source = &parameters[source.clone()];
            match pass {
                Pass::Forward => {
                    let len = packed_len(*inputs, *outputs);
                    pack_transposed(source, *inputs, *outputs, &mut data.as_mut_slice()[..len]);
                }
                Pass::Backward => {
                    let len = packed_len(*outputs, *inputs);
                    pack(source, *outputs, *inputs, &mut data.as_mut_slice()[..len]);
                }
            }
        });
        let copy = |range: &Range<usize>, to: &mut Vec<f32>| {
            to.clear();
            to.extend_from_slice(&parameters[range.clone()]);
        };
        for (vectors, ranges) in self.layers.iter_mut().zip(&ranges.layers) {
            copy(&ranges.input_norm, &mut vectors.input_norm);
            if let Some(bias) = &ranges.qkv_bias {
                copy(bias, vectors.qkv_bias.get_or_insert_default());
            }
            if let Some(norm) = &ranges.head_norm {
                copy(norm, vectors.head_norm.get_or_insert_default());
            }
            copy(&ranges.post_norm, &mut vectors.post_norm);
        }
        copy(&ranges.norm, &mut self.norm);
    }

    pub(crate) fn layer(&self, layer: usize) -> LayerWeights<'_> {
        LayerWeights { all: self, layer }
    }

    /// Returns the weight of the last norm.
    pub(crate) fn norm(&self) -> &[f32] {
        &self.norm
    }

    /// Returns the bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.matrices.iter().map(|matrix| matrix.data.bytes()).sum()
    }

    /// Returns the panels of one matrix.
    pub(crate) fn panels(&self, matrix: Matrix) -> Panels<'_> {
        let index = match matrix {
            Matrix::Qkv(layer) => 4 * layer,
            Matrix::Output(layer) => 4 * layer + 1,
            Matrix::GateUp(layer) => 4 * layer + 2,
            Matrix::Down(layer) => 4 * layer + 3,
            Matrix::Head => self.matrices.len() - 1,
        };
        let PackedMatrix { outputs, inputs, dtype, data, .. } = &self.matrices[index];
        let data = elements(*dtype, data);
        match self.pass {
            Pass::Forward => Panels { data, depth: *inputs, columns: *outputs },
            Pass::Backward => Panels { data, depth: *outputs, columns: *inputs },
        }
    }
}

impl<'a> LayerWeights<'a> {
    pub(crate) fn vectors(self) -> &'a LayerVectors {
        &self.all.layers[self.layer]
    }

    /// Returns the panels of one of the layer's matrices; `matrix` makes its name from the layer's index,
    /// as [`Matrix::Qkv`] does.
    pub(crate) fn panels(self, matrix: impl Fn(usize) -> Matrix) -> Panels<'a> {
        self.all.panels(matrix(self.layer))
    }
}

/// Returns the numbers that a buffer holds, which may have padding after them.
fn elements(dtype: Dtype, data: &Buffer) -> Elements<'_> {
    Elements { dtype, bytes: bytemuck::cast_slice(data.as_slice()) }
}
