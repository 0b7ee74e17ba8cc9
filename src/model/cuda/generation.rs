//! This file generates with a cache on a GPU: a pass adds new tokens to many sequences, prompts and
//! single steps mixed.
//!
//! Contract: it is the twin of [`Decoder::extend`], in one phase of the arena. All rows of a pass
//! write their keys and values before any are read, so that a part of a prompt may be in a pass.
//! Attention treats a token of a response as a sequence of its own, as long as its position says,
//! and reads tokens of a prompt by tiles in which rows do not mix. No kernel reads other rows for a
//! row's result. A row's bits therefore depend on its sequence and on the algorithm that cuBLASLt
//! chooses for a product of so many rows. Passes are filled up to one of a few numbers of rows
//! ([`filled`]), so that there are few such algorithms; only a GPU can show whether they agree. A
//! pass of single steps that all want logits, which is decoding, is recorded when its size comes
//! the second time, and from then on launched as one graph. None of this has run on a GPU yet.

mod draw;
mod pass;

use super::cache::DeviceCache;
use super::matrix::Matrix;
use super::{DeviceModel, RopeTable, Weights, heads};
use crate::base::error::usage;
use crate::cuda::gemm::{Linear, Start};
use crate::cuda::kernels::decode::{Cache, partials_len};
use crate::cuda::kernels::rope::CacheWrite;
use crate::cuda::{Graph, Phase, Stream, Tools};
use crate::model::extend::assert_writes_are_private;
use crate::model::gpu_sizes::{GenerationSize, SPLIT_ROWS, filled};
use crate::model::{Decoder, KvCache, Row};
use anyhow::{Result, ensure};
use draw::Drawing;
use pass::{Inputs, PassSize};
use std::collections::HashMap;

/// Every kernel has a grid for passes of so many rows.
const MOST_PASS_ROWS: usize = 1 << 15;

/// A phase of generation: the cache and the buffers of passes, on a model's GPU.
pub struct Generation<'a> {
    decoder: &'a Decoder,
    weights: Weights<'a>,
    rope: &'a RopeTable,
    stream: &'a Stream,
    tools: &'a mut Tools,
    inputs: Inputs<'a>,
    buffers: Buffers<'a>,
    drawing: Drawing<'a>,
    cache: DeviceCache<'a>,
    /// Recorded passes of single steps, by number of rows. An entry is `None` after the first pass
    /// of its size.
    graphs: HashMap<usize, Option<Graph>>,
    /// The current pass has so many tables that hold each block.
    uses: Vec<u32>,
}

/// The activations of a pass, with memory for the largest.
struct Buffers<'a> {
    x: Matrix<'a>,
    normal: Matrix<'a>,
    qkv: Matrix<'a>,
    attended: Matrix<'a>,
    /// The partial results of attention over long sequences.
    partials: Matrix<'a, f32>,
    /// It holds the output of attention, then of the feed-forward network, before it is added to
    /// the residual stream.
    branch: Matrix<'a>,
    gate_up: Matrix<'a>,
    product: Matrix<'a>,
    /// It holds the rows that want logits, after the last norm.
    wanted: Matrix<'a>,
    logits: Matrix<'a, f32>,
}

impl<'a> Buffers<'a> {
    /// Takes memory for passes of `rows` rows, of which `logits` want logits, with tables of
    /// `table_width` blocks.
    fn take(
        phase: &mut Phase<'a>,
        decoder: &Decoder,
        (rows, logits): (usize, usize),
        table_width: usize,
    ) -> Result<Self> {
        let (config, qkv) = (decoder.config(), heads(decoder).row());
        let (split_rows, partials) =
            (rows.min(SPLIT_ROWS), partials_len(heads(decoder), table_width));
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            x: Matrix::take(phase, "residual stream", rows, hidden)?,
            normal: Matrix::take(phase, "norm", rows, hidden)?,
            qkv: Matrix::take(phase, "queries, keys and values", rows, qkv)?,
            attended: Matrix::take(phase, "attention", rows, decoder.attention_width())?,
            partials: Matrix::take(phase, "splits of attention", split_rows, partials)?,
            branch: Matrix::take(phase, "output of a block", rows, hidden)?,
            gate_up: Matrix::take(phase, "gate and up", rows, 2 * inner)?,
            product: Matrix::take(phase, "SwiGLU product", rows, inner)?,
            wanted: Matrix::take(phase, "rows of logits", logits, hidden)?,
            logits: Matrix::take(phase, "logits", logits, config.vocab_size)?,
        })
    }
}

impl<'a> Generation<'a> {
    pub(crate) fn new(model: &'a mut DeviceModel, size: GenerationSize) -> Result<Self> {
        let GenerationSize { rows, logits, length, blocks } = size;
        if rows > MOST_PASS_ROWS {
            return Err(usage(format!(
                "a pass would have {rows} rows (max_sequences and the tokens of prompts); a GPU takes at most {MOST_PASS_ROWS}"
            )));
        }
        let positions = model.rope.positions;
        ensure!(
            length <= positions,
            "sequences may have {length} positions, but the model was made for {positions}"
        );
        let DeviceModel { gpu, decoder, params, rope, .. } = model;
        let mut phase = gpu.arena.phase();
        let (rows, logits) = (filled(rows), filled(logits));
        let table_width = KvCache::blocks_for(length);
        Ok(Self {
            inputs: Inputs::take(&mut phase, heads(decoder), (rows, logits), table_width)?,
            buffers: Buffers::take(&mut phase, decoder, (rows, logits), table_width)?,
            drawing: Drawing::take(&mut phase, decoder, logits, length)?,
            // The cache gets the rest of the phase.
            cache: DeviceCache::take(&mut phase, decoder.config(), blocks)?,
            weights: Weights { params: params.slice(), eps: decoder.config().rms_norm_eps },
            decoder,
            rope,
            stream: &gpu.stream,
            tools: &mut gpu.tools,
            graphs: HashMap::new(),
            uses: Vec::new(),
        })
    }

    pub fn decoder(&self) -> &Decoder {
        self.decoder
    }

    /// Returns the number of blocks in the cache: as many as were asked for, or fewer where memory
    /// is short.
    pub fn num_blocks(&self) -> usize {
        self.cache.num_blocks()
    }

    /// Adds `rows` to their sequences, as [`Decoder::extend`] says. The logits of the rows that
    /// want them are kept, in order, until the next call. It returns when all work is queued.
    pub fn extend(&mut self, tables: &[&[u32]], rows: &[Row]) -> Result<()> {
        assert_writes_are_private(self.num_blocks(), tables, rows, &mut self.uses);
        let beside = self.cache.num_blocks();
        let transfer = &mut self.tools.transfer;
        let pass = self.inputs.set((self.stream, transfer), (tables, beside), rows)?;
        if pass.wanted < pass.rows || pass.tiles > 0 {
            return self.forward(pass);
        }
        match self.graphs.get(&pass.rows) {
            // In the first pass libraries load code, which cannot be recorded.
            None => {
                self.graphs.insert(pass.rows, None);
                return self.forward(pass);
            }
            Some(None) => {
                let stream = self.stream;
                let graph = stream.capture(|_| self.forward(pass))?;
                self.graphs.insert(pass.rows, Some(graph));
            }
            Some(Some(_)) => {}
        }
        match &self.graphs[&pass.rows] {
            // SAFETY: everything that a pass of this size reads and writes belongs to this phase and
            // has one place in it.
            Some(graph) => unsafe { graph.launch(self.stream) },
            None => Ok(()),
        }
    }

    /// Returns the logits `[vocab_size]` that were kept at `place`.
    pub fn logits(&mut self, place: usize) -> Result<Vec<f32>> {
        let vocab = self.decoder.config().vocab_size;
        let mut logits = vec![0.0; vocab];
        let row = self.buffers.logits.rows(place + 1).range(place * vocab..(place + 1) * vocab);
        self.tools.transfer.download(self.stream, row, &mut logits)?;
        Ok(logits)
    }

    /// Copies the block `from` of the cache to the block `to`.
    pub fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        self.cache.copy_block(self.stream, from, to)
    }

    /// Queues a pass whose inputs are uploaded.
    fn forward(&mut self, pass: PassSize) -> Result<()> {
        let PassSize { rows, wanted, .. } = pass;
        let (hidden, vocab) = (self.decoder.config().hidden_size, self.decoder.config().vocab_size);
        let ranges = &self.decoder.ranges;
        let Self { weights, stream, tools, inputs, buffers, .. } = self;
        let embedding = &tools.kernels.embedding;
        let (table, x) = (weights.params.range(ranges.embedding.clone()), &mut buffers.x);
        embedding.forward(stream, table, inputs.tokens(pass), hidden, x.rows_mut(rows))?;
        let (norm, normal) = (weights.norm(&ranges.layers[0].input_norm), &mut buffers.normal);
        tools.kernels.rms_norm.forward(stream, norm, x.rows(rows), normal.rows_mut(rows))?;
        for layer in 0..ranges.layers.len() {
            self.attention(layer, pass)?;
            self.feed_forward(layer, rows)?;
        }
        if wanted == 0 {
            return Ok(());
        }
        let Self { weights, stream, tools, inputs, buffers, .. } = self;
        let (normal, chosen) = (buffers.normal.rows(rows), buffers.wanted.rows_mut(wanted));
        let embedding = &tools.kernels.embedding;
        embedding.forward(stream, normal, inputs.wanted(pass), hidden, chosen)?;
        tools.gemm.forward(
            stream,
            Linear { rows: wanted, inputs: hidden, outputs: vocab },
            buffers.wanted.rows(wanted),
            weights.params.range(ranges.head.clone()),
            Start::Zero,
            buffers.logits.rows_mut(wanted),
        )
    }

    /// Computes the first half of a layer, from the norm of its input to the norm of the
    /// feed-forward network's input.
    fn attention(&mut self, layer: usize, pass: PassSize) -> Result<()> {
        let (rows, hidden) = (pass.rows, self.decoder.config().hidden_size);
        let (heads, ranges) = (heads(self.decoder), &self.decoder.ranges.layers[layer]);
        let width = self.decoder.attention_width();
        let Self { weights, rope, stream, tools, inputs, buffers, cache, .. } = self;
        let Tools { kernels, gemm, .. } = &mut **tools;
        let bias = ranges.qkv_bias.clone().map(|range| weights.params.range(range));
        gemm.forward(
            stream,
            Linear { rows, inputs: hidden, outputs: heads.row() },
            buffers.normal.rows(rows),
            weights.params.range(ranges.qkv.clone()),
            bias.map_or(Start::Zero, Start::Bias),
            buffers.qkv.rows_mut(rows),
        )?;
        if let Some(range) = &ranges.head_norm {
            let (norm, qkv) = (weights.norm(range), buffers.qkv.rows_mut(rows));
            kernels.head_norm.forward_in_place(stream, heads, norm, qkv)?;
        }
        let (keys, values) = cache.layer(layer);
        let write = CacheWrite { keys, values, slots: inputs.slots(pass) };
        let angles = rope.angles(inputs.positions(pass));
        kernels.rope.write(stream, heads, angles, buffers.qkv.rows_mut(rows), &write)?;
        let CacheWrite { keys, values, .. } = write;
        let cached = |[lengths, tables]: [_; 2]| Cache {
            keys: keys.as_slice(),
            values: values.as_slice(),
            tables,
            lengths,
        };
        let (qkv, attended) = (buffers.qkv.rows(pass.singles), &mut buffers.attended);
        let partials = buffers.partials.rows_mut(pass.singles.min(SPLIT_ROWS));
        let singles = cached(inputs.singles(pass));
        kernels.decode.attend(
            stream,
            heads,
            qkv,
            singles,
            partials,
            attended.rows_mut(pass.singles),
        )?;
        let (qkv, tiles) = (buffers.qkv.rows(rows), inputs.tiles(pass));
        let tiled = cached(inputs.tiled(pass));
        kernels.prompt.attend(stream, heads, qkv, tiled, tiles, attended.rows_mut(rows))?;
        gemm.forward(
            stream,
            Linear { rows, inputs: width, outputs: hidden },
            buffers.attended.rows(rows),
            weights.params.range(ranges.output.clone()),
            Start::Zero,
            buffers.branch.rows_mut(rows),
        )?;
        let (x, normal) = (buffers.x.rows_mut(rows), buffers.normal.rows_mut(rows));
        let (norm, branch) = (weights.norm(&ranges.post_norm), buffers.branch.rows(rows));
        kernels.rms_norm.forward_add(stream, norm, x, branch, normal)
    }

    /// Computes the second half of a layer, up to the norm of the next layer's input or the last
    /// norm.
    fn feed_forward(&mut self, layer: usize, rows: usize) -> Result<()> {
        let config = self.decoder.config();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let ranges = &self.decoder.ranges;
        let next = ranges.layers.get(layer + 1).map_or(&ranges.norm, |next| &next.input_norm);
        let Self { weights, stream, tools, buffers, .. } = self;
        let Tools { kernels, gemm, .. } = &mut **tools;
        gemm.forward(
            stream,
            Linear { rows, inputs: hidden, outputs: 2 * inner },
            buffers.normal.rows(rows),
            weights.params.range(ranges.layers[layer].gate_up.clone()),
            Start::Zero,
            buffers.gate_up.rows_mut(rows),
        )?;
        let product = buffers.product.rows_mut(rows);
        kernels.swiglu.forward(stream, buffers.gate_up.rows(rows), inner, product)?;
        gemm.forward(
            stream,
            Linear { rows, inputs: inner, outputs: hidden },
            buffers.product.rows(rows),
            weights.params.range(ranges.layers[layer].down.clone()),
            Start::Zero,
            buffers.branch.rows_mut(rows),
        )?;
        let (x, normal) = (buffers.x.rows_mut(rows), buffers.normal.rows_mut(rows));
        let (norm, branch) = (weights.norm(next), buffers.branch.rows(rows));
        kernels.rms_norm.forward_add(stream, norm, x, branch, normal)
    }
}
