//! The matrices of the model, packed for the products of the forward or of the backward pass.
//!
//! Contract: packed once per change of the parameters and then read by any number of products.

use super::layout::{LayerRanges, Ranges};
use crate::ops::buffer::{Buffer, aligned};
use crate::ops::matmul::{Panels, pack, pack_transposed, packed_len};
use crate::ops::parallel::{SharedMut, for_each};
use std::ops::Range;

/// A matrix of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matrix {
    Qkv(usize),
    Output(usize),
    GateUp(usize),
    Down(usize),
    Head,
}

/// Which product the panels are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// `x · Wᵀ`
    Forward,
    /// `dy · W`
    Backward,
}

/// Where one packed matrix lies, and its `[outputs, inputs]` source.
#[derive(Clone, Debug)]
struct Entry {
    source: Range<usize>,
    outputs: usize,
    inputs: usize,
    packed: Range<usize>,
}

/// All matrices, packed.
pub struct PackedWeights {
    pass: Pass,
    /// Four a layer, then the head.
    entries: Vec<Entry>,
    buffer: Buffer,
}

impl PackedWeights {
    pub(super) fn new(ranges: &Ranges, hidden: usize, pass: Pass) -> Self {
        let mut entries = Vec::new();
        let mut end = 0;
        let mut add = |source: &Range<usize>, inputs: usize| {
            let outputs = source.len() / inputs;
            let len = match pass {
                Pass::Forward => packed_len(inputs, outputs),
                Pass::Backward => packed_len(outputs, inputs),
            };
            entries.push(Entry { source: source.clone(), outputs, inputs, packed: end..end + len });
            end += aligned(len);
        };
        for LayerRanges { qkv, output, gate_up, down, .. } in &ranges.layers {
            add(qkv, hidden);
            add(output, output.len() / hidden);
            add(gate_up, hidden);
            add(down, down.len() / hidden);
        }
        add(&ranges.head, hidden);
        Self { pass, entries, buffer: Buffer::zeros(end) }
    }

    /// Packs the matrices of `parameters`, on the pool.
    pub(super) fn fill(&mut self, parameters: &[f32]) {
        let shared = SharedMut::new(self.buffer.as_mut_slice());
        let mut threads = [(); 64];
        let threads = &mut threads[..rayon::current_num_threads().min(64)];
        for_each(self.entries.len(), threads, |item, ()| {
            let Entry { source, outputs, inputs, packed } = &self.entries[item];
            let source = &parameters[source.clone()];
            // SAFETY: the ranges of different matrices do not overlap.
            let packed = unsafe { shared.part(packed.clone()) };
            match self.pass {
                Pass::Forward => pack_transposed(source, *inputs, *outputs, packed),
                Pass::Backward => pack(source, *outputs, *inputs, packed),
            }
        });
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// The panels of one matrix.
    pub(super) fn panels(&self, matrix: Matrix) -> Panels<'_> {
        let index = match matrix {
            Matrix::Qkv(layer) => 4 * layer,
            Matrix::Output(layer) => 4 * layer + 1,
            Matrix::GateUp(layer) => 4 * layer + 2,
            Matrix::Down(layer) => 4 * layer + 3,
            Matrix::Head => self.entries.len() - 1,
        };
        let Entry { outputs, inputs, packed, .. } = &self.entries[index];
        let data = &self.buffer.as_slice()[packed.clone()];
        match self.pass {
            Pass::Forward => Panels { data, depth: *inputs, columns: *outputs },
            Pass::Backward => Panels { data, depth: *outputs, columns: *inputs },
        }
    }
}
