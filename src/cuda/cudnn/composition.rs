//! This file composes attention of the small operations whose pattern cuDNN recognises.
//!
//! Contract: the graphs are those of NVIDIA's own front end for cuDNN 9.19, operation for
//! operation. With one operation more or less, no engine takes them. Later versions take them too.
//! They were compared with the calls that front end 1.32 logs for packed segments with a causal and
//! a padding mask: all tensors and settings are equal, except that the front end also sets factors
//! of 1 and an unordered reduction, which are the defaults.

use super::Sizes;
use super::backend::{Backend, DataType, PointwiseMode, ReductionOperator, attribute};
use super::graph::{Graph, Packed, Role, Shape, Tensor};
use crate::cuda::half::HalfFormat;
use anyhow::Result;

impl Graph {
    /// Masks scores beyond a segment's end, and those of tokens that come after the query.
    fn mask(&mut self, scores: Tensor, inputs: &Inputs) -> Result<Tensor> {
        use PointwiseMode::{CompareGreaterEqual, CompareLess, LogicalAnd};
        let row = self.index(scores, 2, DataType::Int32)?;
        let column = self.index(scores, 3, DataType::Int32)?;
        let is_query = self.compare(CompareLess, row, inputs.query_lengths)?;
        let is_key = self.compare(CompareLess, column, inputs.key_lengths)?;
        let is_inside = self.compare(LogicalAnd, is_query, is_key)?;
        let scores = self.keep_where(is_inside, scores)?;
        let row = self.index(scores, 2, DataType::Float)?;
        let column = self.index(scores, 3, DataType::Float)?;
        let is_past = self.compare(CompareGreaterEqual, row, column)?;
        self.keep_where(is_past, scores)
    }

    /// Adds the inputs that both directions have.
    fn inputs(&mut self, sizes: &Sizes, format: HalfFormat) -> Result<Inputs> {
        let segments = sizes.segments as i64;
        Ok(Inputs {
            query_offsets: self.integers(Role::QueryOffsets, segments + 1)?,
            key_offsets: self.integers(Role::KeyOffsets, segments + 1)?,
            stats_offsets: self.integers(Role::StatsOffsets, segments + 1)?,
            query_lengths: self.integers(Role::QueryLengths, segments)?,
            key_lengths: self.integers(Role::KeyLengths, segments)?,
            scale: self.scalar(sizes.scale())?,
            half: half_type(format),
        })
    }

    /// Describes `output = softmax(scale · query · keyᵀ) · value`, and `stats`, the log-sum-exp of
    /// each row of scores.
    pub(crate) fn forward(
        backend: &'static Backend,
        sizes: &Sizes,
        format: HalfFormat,
    ) -> Result<Self> {
        use PointwiseMode::{Add, Div, Exp, Log, Mul, Sub};
        let mut graph = Self::new(backend);
        let g = &mut graph;
        let inputs = g.inputs(sizes, format)?;
        let query = g.packed(sizes, &inputs.query(Role::Query, sizes))?;
        let key = g.packed_transposed(sizes, &inputs.key(Role::Key, sizes))?;
        let value = g.packed(sizes, &inputs.key(Role::Value, sizes))?;
        let output = g.packed(sizes, &inputs.query(Role::Output, sizes))?;
        let stats = g.packed(sizes, &inputs.row(Role::Stats, sizes))?;

        let scores = g.inside(DataType::Float, sizes.score_dims(), sizes.score_strides())?;
        let scores = g.matmul([query, key, scores], inputs.rows_and_columns())?;
        let scores = g.binary(Mul, scores, inputs.scale)?;
        let scores = g.mask(scores, &inputs)?;
        let row = || (sizes.row_dims(), sizes.row_strides());
        let (dims, strides) = row();
        let largest = g.inside(DataType::Float, dims, strides)?;
        let largest = g.reduce(ReductionOperator::Max, scores, largest)?;
        let shifted = g.binary(Sub, scores, largest)?;
        let exponentials = g.unary(Exp, shifted)?;
        let (dims, strides) = row();
        let sum = g.inside(DataType::Float, dims, strides)?;
        let sum = g.reduce(ReductionOperator::Add, exponentials, sum)?;
        let log_sum = g.unary(Log, sum)?;
        g.binary_to(Add, DataType::Float, [largest, log_sum, stats])?;
        let weights = g.inside_like(inputs.half, exponentials)?;
        let weights = g.binary_to(Div, DataType::Float, [exponentials, sum, weights])?;
        g.matmul([weights, value, output], inputs.rows_and_depth())?;
        Ok(graph)
    }

    /// Describes the gradients of query, key and value from that of the output.
    pub(crate) fn backward(
        backend: &'static Backend,
        sizes: &Sizes,
        format: HalfFormat,
    ) -> Result<Self> {
        use PointwiseMode::{Exp, Identity, Mul, Sub};
        let mut graph = Self::new(backend);
        let g = &mut graph;
        let inputs = g.inputs(sizes, format)?;
        let query = g.packed(sizes, &inputs.query(Role::Query, sizes))?;
        let key = g.packed_transposed(sizes, &inputs.key(Role::Key, sizes))?;
        let value = g.packed_transposed(sizes, &inputs.key(Role::Value, sizes))?;
        let output = g.packed(sizes, &inputs.query(Role::Output, sizes))?;
        let stats = g.packed(sizes, &inputs.row(Role::Stats, sizes))?;
        let d_output = g.packed(sizes, &inputs.query(Role::OutputGradient, sizes))?;
        let d_query = g.packed(sizes, &inputs.query(Role::QueryGradient, sizes))?;
        let d_key = g.packed(sizes, &inputs.key(Role::KeyGradient, sizes))?;
        let d_value = g.packed(sizes, &inputs.key(Role::ValueGradient, sizes))?;

        // Row sums of dO * O are computed first.
        let (dims, strides) = (query.dims, sizes.product_strides());
        let product = g.inside(DataType::Float, dims, strides)?;
        let product = g.binary_to(Mul, DataType::Float, [d_output, output, product])?;
        let sums = g.inside(DataType::Float, sizes.row_dims(), sizes.row_strides())?;
        let sums = g.reduce(ReductionOperator::Add, product, sums)?;
        let one = g.scalar(1.0)?;
        let row_sums = g.packed(sizes, &inputs.row(Role::RowSums, sizes))?;
        let row_sums = g.binary_to(Mul, DataType::Float, [sums, one, row_sums])?;

        // The weights are computed again, and dV from them.
        let scores = g.inside(DataType::Float, sizes.score_dims(), sizes.score_strides())?;
        let scores = g.matmul([query, key, scores], inputs.rows_and_columns())?;
        let scores = g.binary(Mul, scores, inputs.scale)?;
        let scores = g.binary(Sub, scores, stats)?;
        let scores = g.mask(scores, &inputs)?;
        let weights = g.unary(Exp, scores)?;
        let turned = g.inside(inputs.half, sizes.score_dims(), sizes.turned_strides())?;
        let turned = g.reshape(weights, turned)?;
        g.gradient_by_head([turned, d_output, d_value], Role::ValueGradientHeads, sizes, &inputs)?;

        // The gradient of the scores is computed, and dK from it.
        let d_weights = g.inside(DataType::Float, sizes.score_dims(), sizes.score_strides())?;
        let d_weights = g.matmul([d_output, value, d_weights], inputs.rows_and_columns())?;
        let centred = g.binary(Sub, d_weights, row_sums)?;
        let d_scores = g.binary(Mul, centred, weights)?;
        let d_scores = g.binary(Mul, d_scores, inputs.scale)?;
        let turned = g.inside(inputs.half, sizes.score_dims(), sizes.turned_strides())?;
        let turned = g.reshape(d_scores, turned)?;
        g.gradient_by_head([turned, query, d_key], Role::KeyGradientHeads, sizes, &inputs)?;

        // dQ is summed in f32.
        let plain_key = g.plain_key(key, inputs.key_offsets)?;
        let wide =
            Packed { data_type: DataType::Float, ..inputs.query(Role::QueryGradientSums, sizes) };
        let sums = g.packed(sizes, &wide)?;
        let sums = g.matmul([d_scores, plain_key, sums], inputs.rows_and_depth())?;
        g.unary_to(Identity, sums, d_query)?;
        Ok(graph)
    }

    /// Describes `to = turned · right`, summed over the query heads that share a key head.
    fn gradient_by_head(
        &mut self,
        [turned, right, to]: [Tensor; 3],
        role: Role,
        sizes: &Sizes,
        inputs: &Inputs,
    ) -> Result<()> {
        if sizes.heads == sizes.kv_heads {
            self.matmul([turned, right, to], inputs.columns_and_depth())?;
            return Ok(());
        }
        // Offsets count rows of keys here, although rows are wider by the size of the group.
        let heads = Packed { offsets: inputs.key_offsets, ..inputs.query(role, sizes) };
        let heads = self.packed(sizes, &heads)?;
        let heads = self.matmul([turned, right, heads], inputs.columns_and_depth())?;
        self.reduce(ReductionOperator::Add, heads, to)?;
        Ok(())
    }
}

fn half_type(format: HalfFormat) -> DataType {
    match format {
        HalfFormat::Bf16 => DataType::BFloat16,
        HalfFormat::Fp16 => DataType::Half,
    }
}

/// The inputs that both directions have besides their tensors.
struct Inputs {
    query_offsets: Tensor,
    key_offsets: Tensor,
    stats_offsets: Tensor,
    query_lengths: Tensor,
    key_lengths: Tensor,
    scale: Tensor,
    half: DataType,
}

impl Inputs {
    /// Describes a tensor that has a vector for every token and query head.
    fn query(&self, role: Role, sizes: &Sizes) -> Packed {
        let (heads, width) = (sizes.heads as i64, sizes.head_dim as i64);
        Packed { role, data_type: self.half, heads, width, offsets: self.query_offsets }
    }

    /// Describes a tensor that has a vector for every token and key head.
    fn key(&self, role: Role, sizes: &Sizes) -> Packed {
        let (heads, width) = (sizes.kv_heads as i64, sizes.head_dim as i64);
        Packed { role, data_type: self.half, heads, width, offsets: self.key_offsets }
    }

    /// Describes a tensor that has one number for every token and query head. Its order is
    /// token-major: with a head-major one the backward gives zeros.
    fn row(&self, role: Role, sizes: &Sizes) -> Packed {
        let heads = sizes.heads as i64;
        Packed { role, data_type: DataType::Float, heads, width: 1, offsets: self.stats_offsets }
    }

    // These functions give the true sizes of a product, along two of its rows (M), columns (N) and
    // depth (K).

    fn rows_and_columns(&self) -> [(i32, Tensor); 2] {
        [
            (attribute::OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, self.query_lengths),
            (attribute::OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, self.key_lengths),
        ]
    }

    fn rows_and_depth(&self) -> [(i32, Tensor); 2] {
        [
            (attribute::OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, self.query_lengths),
            (attribute::OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, self.key_lengths),
        ]
    }

    /// In this product rows are keys.
    fn columns_and_depth(&self) -> [(i32, Tensor); 2] {
        [
            (attribute::OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, self.key_lengths),
            (attribute::OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, self.query_lengths),
        ]
    }
}

impl Sizes {
    /// Scores are multiplied by this factor.
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn score_dims(&self) -> Shape {
        [self.segments as i64, self.heads as i64, self.length as i64, self.length as i64]
    }

    fn score_strides(&self) -> Shape {
        let (heads, length) = (self.heads as i64, self.length as i64);
        [heads * length * length, length * length, length, 1]
    }

    /// Returns the strides of the transposed scores.
    fn turned_strides(&self) -> Shape {
        let [segment, head, row, column] = self.score_strides();
        [segment, head, column, row]
    }

    fn row_dims(&self) -> Shape {
        [self.segments as i64, self.heads as i64, self.length as i64, 1]
    }

    fn row_strides(&self) -> Shape {
        let (heads, length) = (self.heads as i64, self.length as i64);
        [heads * length, length, 1, 1]
    }

    /// Returns the strides of the product of the output and its gradient, which is never in memory.
    fn product_strides(&self) -> Shape {
        let (heads, length, width) = (self.heads as i64, self.length as i64, self.head_dim as i64);
        [heads * length * width, length * width, heads * width, 1]
    }
}
