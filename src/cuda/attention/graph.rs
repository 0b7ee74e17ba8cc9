//! Attention as cuDNN takes it: a graph of small operations that the library fuses to one kernel.
//!
//! Contract: the graphs are composed as NVIDIA's own front end composes them, from operations that
//! cuDNN has since 9.5; the library recognises the pattern, so an operation more or less means that no
//! engine supports it. Tensors have the dimensions `[segments, heads, length, width]` whatever their
//! order in memory; a packed tensor names the offset of each segment's first element ("ragged").

use super::Sizes;
use super::backend::{
    Backend, DataType, Descriptor, Kind, PointwiseMode, ReductionOperator, attribute,
};
use anyhow::{Context, Result};

/// Tensors that a caller binds to memory; the numbers are their identifiers in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(super) enum Role {
    QueryOffsets = 1,
    KeyOffsets,
    StatsOffsets,
    Query,
    Key,
    Value,
    QueryLengths,
    KeyLengths,
    Output,
    Stats,
    OutputGradient,
    QueryGradient,
    KeyGradient,
    ValueGradient,
    /// Row sums of output gradient times output.
    RowSums,
    /// The query gradient while it is summed, in f32.
    QueryGradientSums,
    /// The key gradient of each query head.
    KeyGradientHeads,
    /// The value gradient of each query head.
    ValueGradientHeads,
}

/// Identifiers of what no caller binds begin here.
const FIRST_INNER: i64 = 100;

type Shape = [i64; 4];

/// A tensor of a graph.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    /// Its place among the graph's descriptors.
    place: usize,
    dims: Shape,
    strides: Shape,
}

/// A graph of operations on tensors, and the scalars that it was built with.
#[derive(Debug)]
pub(super) struct Graph {
    backend: &'static Backend,
    tensors: Vec<Descriptor>,
    /// What operations refer to besides tensors.
    settings: Vec<Descriptor>,
    operations: Vec<Descriptor>,
    scalars: Vec<(i64, f32)>,
    next_inner: i64,
}

/// Everything about a packed tensor but its dimensions.
struct Packed {
    role: Role,
    data_type: DataType,
    heads: i64,
    width: i64,
    offsets: Tensor,
}

impl Graph {
    fn new(backend: &'static Backend) -> Self {
        Self {
            backend,
            tensors: Vec::new(),
            settings: Vec::new(),
            operations: Vec::new(),
            scalars: Vec::new(),
            next_inner: FIRST_INNER,
        }
    }

    /// The operations, in order.
    pub(super) fn operations(&self) -> &[Descriptor] {
        &self.operations
    }

    /// Constants that have to be bound by value.
    pub(super) fn scalars(&self) -> &[(i64, f32)] {
        &self.scalars
    }

    // Tensors.

    fn describe(
        &self,
        id: i64,
        data_type: DataType,
        dims: Shape,
        strides: Shape,
    ) -> Result<Descriptor> {
        let tensor = Descriptor::new(self.backend, Kind::Tensor)?;
        tensor.set(attribute::TENSOR_DATA_TYPE, &[data_type])?;
        tensor.set(attribute::TENSOR_DIMENSIONS, &dims)?;
        tensor.set(attribute::TENSOR_STRIDES, &strides)?;
        tensor.set(attribute::TENSOR_UNIQUE_ID, &[id])?;
        tensor.set(attribute::TENSOR_BYTE_ALIGNMENT, &[16i64])?;
        Ok(tensor)
    }

    fn keep(&mut self, descriptor: Descriptor, dims: Shape, strides: Shape) -> Result<Tensor> {
        self.tensors.push(descriptor.finalize().context("describing a tensor")?);
        Ok(Tensor { place: self.tensors.len() - 1, dims, strides })
    }

    /// One integer for each of `count` segments.
    fn integers(&mut self, role: Role, count: i64) -> Result<Tensor> {
        let (dims, strides) = ([count, 1, 1, 1], [1; 4]);
        let descriptor = self.describe(role as i64, DataType::Int32, dims, strides)?;
        self.keep(descriptor, dims, strides)
    }

    /// Rows of tokens, `heads * width` wide, packed without gaps.
    fn packed(&mut self, sizes: &Sizes, packed: &Packed) -> Result<Tensor> {
        let (segments, length) = (sizes.segments as i64, sizes.length as i64);
        let row = packed.heads * packed.width;
        let dims = [segments, packed.heads, length, packed.width];
        let strides = [length * row, packed.width, row, 1];
        self.ragged(packed, dims, strides)
    }

    /// The same with its last two dimensions exchanged.
    fn packed_transposed(&mut self, sizes: &Sizes, packed: &Packed) -> Result<Tensor> {
        let (segments, length) = (sizes.segments as i64, sizes.length as i64);
        let row = packed.heads * packed.width;
        let dims = [segments, packed.heads, packed.width, length];
        let strides = [length * row, packed.width, 1, row];
        self.ragged(packed, dims, strides)
    }

    fn ragged(&mut self, packed: &Packed, dims: Shape, strides: Shape) -> Result<Tensor> {
        let descriptor = self.describe(packed.role as i64, packed.data_type, dims, strides)?;
        let offsets = self.tensors[packed.offsets.place].raw();
        descriptor.set(attribute::TENSOR_RAGGED_OFFSET_DESC, &[offsets])?;
        self.keep(descriptor, dims, strides)
    }

    /// A constant.
    fn scalar(&mut self, value: f32) -> Result<Tensor> {
        let id = self.inner();
        let descriptor = self.describe(id, DataType::Float, [1; 4], [1; 4])?;
        descriptor.set(attribute::TENSOR_IS_BY_VALUE, &[true])?;
        self.scalars.push((id, value));
        self.keep(descriptor, [1; 4], [1; 4])
    }

    /// A tensor that never exists in memory.
    fn inside(&mut self, data_type: DataType, dims: Shape, strides: Shape) -> Result<Tensor> {
        let id = self.inner();
        let descriptor = self.describe(id, data_type, dims, strides)?;
        descriptor.set(attribute::TENSOR_IS_VIRTUAL, &[true])?;
        self.keep(descriptor, dims, strides)
    }

    /// One like `other` that never exists in memory.
    fn inside_like(&mut self, data_type: DataType, other: Tensor) -> Result<Tensor> {
        self.inside(data_type, other.dims, other.strides)
    }

    fn inner(&mut self) -> i64 {
        self.next_inner += 1;
        self.next_inner - 1
    }

    // Operations.

    fn operation(&self, kind: Kind, operands: &[(i32, Tensor)]) -> Result<Descriptor> {
        let operation = Descriptor::new(self.backend, kind)?;
        for (attribute, tensor) in operands {
            operation.set(*attribute, &[self.tensors[tensor.place].raw()])?;
        }
        Ok(operation)
    }

    /// Finishes an operation with its setting.
    fn push(&mut self, operation: Descriptor, setting: Option<(i32, Descriptor)>) -> Result<()> {
        if let Some((attribute, setting)) = setting {
            let setting = setting.finalize()?;
            operation.set(attribute, &[setting.raw()])?;
            self.settings.push(setting);
        }
        self.operations.push(operation.finalize()?);
        Ok(())
    }

    fn pointwise(
        &mut self,
        mode: PointwiseMode,
        math: DataType,
        axis: Option<i64>,
        operands: &[(i32, Tensor)],
    ) -> Result<()> {
        let setting = Descriptor::new(self.backend, Kind::Pointwise)?;
        setting.set(attribute::POINTWISE_MODE, &[mode])?;
        setting.set(attribute::POINTWISE_MATH_PREC, &[math])?;
        if let Some(axis) = axis {
            setting.set(attribute::POINTWISE_AXIS, &[axis])?;
        }
        let operation = self.operation(Kind::OperationPointwise, operands)?;
        self.push(operation, Some((attribute::OPERATION_POINTWISE_PW_DESCRIPTOR, setting)))
            .with_context(|| format!("describing {mode:?}"))
    }

    /// `y = mode(x)` in f32.
    fn unary_to(&mut self, mode: PointwiseMode, x: Tensor, y: Tensor) -> Result<Tensor> {
        let operands =
            [(attribute::OPERATION_POINTWISE_XDESC, x), (attribute::OPERATION_POINTWISE_YDESC, y)];
        self.pointwise(mode, DataType::Float, None, &operands)?;
        Ok(y)
    }

    fn unary(&mut self, mode: PointwiseMode, x: Tensor) -> Result<Tensor> {
        let y = self.inside_like(DataType::Float, x)?;
        self.unary_to(mode, x, y)
    }

    fn binary_to(
        &mut self,
        mode: PointwiseMode,
        math: DataType,
        [x, b, y]: [Tensor; 3],
    ) -> Result<Tensor> {
        let operands = [
            (attribute::OPERATION_POINTWISE_XDESC, x),
            (attribute::OPERATION_POINTWISE_BDESC, b),
            (attribute::OPERATION_POINTWISE_YDESC, y),
        ];
        self.pointwise(mode, math, None, &operands)?;
        Ok(y)
    }

    /// `mode(x, b)` in f32.
    fn binary(&mut self, mode: PointwiseMode, x: Tensor, b: Tensor) -> Result<Tensor> {
        let y = self.inside_like(DataType::Float, x)?;
        self.binary_to(mode, DataType::Float, [x, b, y])
    }

    /// `mode(x, b)` as truth values.
    fn compare(&mut self, mode: PointwiseMode, x: Tensor, b: Tensor) -> Result<Tensor> {
        let y = self.inside_like(DataType::Boolean, x)?;
        self.binary_to(mode, DataType::Boolean, [x, b, y])
    }

    /// The index of each element of `like` along `axis`.
    fn index(&mut self, like: Tensor, axis: i64, math: DataType) -> Result<Tensor> {
        let y = self.inside_like(DataType::Int32, like)?;
        let operands = [
            (attribute::OPERATION_POINTWISE_XDESC, like),
            (attribute::OPERATION_POINTWISE_YDESC, y),
        ];
        self.pointwise(PointwiseMode::GenIndex, math, Some(axis), &operands)?;
        Ok(y)
    }

    /// `x` where `mask` holds, else minus infinity.
    fn keep_where(&mut self, mask: Tensor, x: Tensor) -> Result<Tensor> {
        let never = self.scalar(f32::NEG_INFINITY)?;
        let y = self.inside_like(DataType::Float, x)?;
        let operands = [
            (attribute::OPERATION_POINTWISE_XDESC, x),
            (attribute::OPERATION_POINTWISE_BDESC, never),
            (attribute::OPERATION_POINTWISE_TDESC, mask),
            (attribute::OPERATION_POINTWISE_YDESC, y),
        ];
        self.pointwise(PointwiseMode::BinarySelect, DataType::Float, None, &operands)?;
        Ok(y)
    }

    /// `c = a · b`; `lengths` are the true sizes along two of the three directions.
    fn matmul(&mut self, [a, b, c]: [Tensor; 3], lengths: [(i32, Tensor); 2]) -> Result<Tensor> {
        let setting = Descriptor::new(self.backend, Kind::Matmul)?;
        setting.set(attribute::MATMUL_COMP_TYPE, &[DataType::Float])?;
        let operands = [
            (attribute::OPERATION_MATMUL_ADESC, a),
            (attribute::OPERATION_MATMUL_BDESC, b),
            (attribute::OPERATION_MATMUL_CDESC, c),
            lengths[0],
            lengths[1],
        ];
        let operation = self.operation(Kind::OperationMatmul, &operands)?;
        self.push(operation, Some((attribute::OPERATION_MATMUL_DESC, setting)))
            .context("describing a product")?;
        Ok(c)
    }

    /// Combines the elements of `x` along the dimensions in which `y` has one element or fewer heads.
    fn reduce(&mut self, operator: ReductionOperator, x: Tensor, y: Tensor) -> Result<Tensor> {
        let setting = Descriptor::new(self.backend, Kind::Reduction)?;
        setting.set(attribute::REDUCTION_COMP_TYPE, &[DataType::Float])?;
        setting.set(attribute::REDUCTION_OPERATOR, &[operator])?;
        let operands =
            [(attribute::OPERATION_REDUCTION_XDESC, x), (attribute::OPERATION_REDUCTION_YDESC, y)];
        let operation = self.operation(Kind::OperationReduction, &operands)?;
        self.push(operation, Some((attribute::OPERATION_REDUCTION_DESC, setting)))
            .with_context(|| format!("describing a reduction: {operator:?}"))?;
        Ok(y)
    }

    /// The elements of `x` seen as `y`.
    fn reshape(&mut self, x: Tensor, y: Tensor) -> Result<Tensor> {
        let operands =
            [(attribute::OPERATION_RESHAPE_XDESC, x), (attribute::OPERATION_RESHAPE_YDESC, y)];
        let operation = self.operation(Kind::OperationReshape, &operands)?;
        self.push(operation, None).context("describing a view")?;
        Ok(y)
    }

    // Attention.

    /// Hides what lies beyond a segment's end, and what a token must not see: its future.
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

    /// What both directions read.
    fn inputs(&mut self, sizes: &Sizes) -> Result<Inputs> {
        let segments = sizes.segments as i64;
        Ok(Inputs {
            query_offsets: self.integers(Role::QueryOffsets, segments + 1)?,
            key_offsets: self.integers(Role::KeyOffsets, segments + 1)?,
            stats_offsets: self.integers(Role::StatsOffsets, segments + 1)?,
            query_lengths: self.integers(Role::QueryLengths, segments)?,
            key_lengths: self.integers(Role::KeyLengths, segments)?,
            scale: self.scalar(sizes.scale())?,
        })
    }

    /// `output = softmax(scale · query · keyᵀ) · value` and `stats`, the log-sum-exp of each row.
    pub(super) fn forward(backend: &'static Backend, sizes: &Sizes) -> Result<Self> {
        use PointwiseMode::{Add, Div, Exp, Log, Mul, Sub};
        let mut graph = Self::new(backend);
        let g = &mut graph;
        let inputs = g.inputs(sizes)?;
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
        let weights = g.inside_like(DataType::BFloat16, exponentials)?;
        let weights = g.binary_to(Div, DataType::Float, [exponentials, sum, weights])?;
        g.matmul([weights, value, output], inputs.rows_and_depth())?;
        Ok(graph)
    }

    /// The gradients of query, key and value from that of the output.
    pub(super) fn backward(backend: &'static Backend, sizes: &Sizes) -> Result<Self> {
        use PointwiseMode::{Exp, Identity, Mul, Sub};
        let mut graph = Self::new(backend);
        let g = &mut graph;
        let inputs = g.inputs(sizes)?;
        let query = g.packed(sizes, &inputs.query(Role::Query, sizes))?;
        let key = g.packed_transposed(sizes, &inputs.key(Role::Key, sizes))?;
        let value = g.packed_transposed(sizes, &inputs.key(Role::Value, sizes))?;
        let output = g.packed(sizes, &inputs.query(Role::Output, sizes))?;
        let stats = g.packed(sizes, &inputs.row(Role::Stats, sizes))?;
        let d_output = g.packed(sizes, &inputs.query(Role::OutputGradient, sizes))?;
        let d_query = g.packed(sizes, &inputs.query(Role::QueryGradient, sizes))?;
        let d_key = g.packed(sizes, &inputs.key(Role::KeyGradient, sizes))?;
        let d_value = g.packed(sizes, &inputs.key(Role::ValueGradient, sizes))?;

        // Row sums of dO * O.
        let (dims, strides) = (query.dims, sizes.product_strides());
        let product = g.inside(DataType::Float, dims, strides)?;
        let product = g.binary_to(Mul, DataType::Float, [d_output, output, product])?;
        let sums = g.inside(DataType::Float, sizes.row_dims(), sizes.row_strides())?;
        let sums = g.reduce(ReductionOperator::Add, product, sums)?;
        let one = g.scalar(1.0)?;
        let row_sums = g.packed(sizes, &inputs.row(Role::RowSums, sizes))?;
        let row_sums = g.binary_to(Mul, DataType::Float, [sums, one, row_sums])?;

        // The weights once more, and dV from them.
        let scores = g.inside(DataType::Float, sizes.score_dims(), sizes.score_strides())?;
        let scores = g.matmul([query, key, scores], inputs.rows_and_columns())?;
        let scores = g.binary(Mul, scores, inputs.scale)?;
        let scores = g.binary(Sub, scores, stats)?;
        let scores = g.mask(scores, &inputs)?;
        let weights = g.unary(Exp, scores)?;
        let turned = g.inside(DataType::BFloat16, sizes.score_dims(), sizes.turned_strides())?;
        let turned = g.reshape(weights, turned)?;
        g.gradient_by_head([turned, d_output, d_value], Role::ValueGradientHeads, sizes, &inputs)?;

        // The gradient of the scores, and dK from it.
        let d_weights = g.inside(DataType::Float, sizes.score_dims(), sizes.score_strides())?;
        let d_weights = g.matmul([d_output, value, d_weights], inputs.rows_and_columns())?;
        let centred = g.binary(Sub, d_weights, row_sums)?;
        let d_scores = g.binary(Mul, centred, weights)?;
        let d_scores = g.binary(Mul, d_scores, inputs.scale)?;
        let turned = g.inside(DataType::BFloat16, sizes.score_dims(), sizes.turned_strides())?;
        let turned = g.reshape(d_scores, turned)?;
        g.gradient_by_head([turned, query, d_key], Role::KeyGradientHeads, sizes, &inputs)?;

        // dQ, summed in f32.
        let plain_key = g.plain_key(key, inputs.key_offsets)?;
        let wide =
            Packed { data_type: DataType::Float, ..inputs.query(Role::QueryGradientSums, sizes) };
        let sums = g.packed(sizes, &wide)?;
        let sums = g.matmul([d_scores, plain_key, sums], inputs.rows_and_depth())?;
        g.unary_to(Identity, sums, d_query)?;
        Ok(graph)
    }

    /// `to = turned · right`, summed over the query heads that share a key head.
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
        // Its offsets are those of the keys, counted in rows that are wider by the group.
        let heads = Packed { offsets: inputs.key_offsets, ..inputs.query(role, sizes) };
        let heads = self.packed(sizes, &heads)?;
        let heads = self.matmul([turned, right, heads], inputs.columns_and_depth())?;
        self.reduce(ReductionOperator::Add, heads, to)?;
        Ok(())
    }

    /// The key with its last two dimensions in their usual order.
    fn plain_key(&mut self, key: Tensor, offsets: Tensor) -> Result<Tensor> {
        let usual = |[a, b, c, d]: Shape| [a, b, d, c];
        let (dims, strides) = (usual(key.dims), usual(key.strides));
        let id = self.inner();
        let descriptor = self.describe(id, DataType::Float, dims, strides)?;
        descriptor.set(attribute::TENSOR_IS_VIRTUAL, &[true])?;
        let offsets = self.tensors[offsets.place].raw();
        descriptor.set(attribute::TENSOR_RAGGED_OFFSET_DESC, &[offsets])?;
        let plain = self.keep(descriptor, dims, strides)?;
        self.reshape(key, plain)
    }
}

/// What both directions read besides their tensors.
struct Inputs {
    query_offsets: Tensor,
    key_offsets: Tensor,
    stats_offsets: Tensor,
    query_lengths: Tensor,
    key_lengths: Tensor,
    scale: Tensor,
}

impl Inputs {
    /// A tensor with a vector for every token and query head.
    fn query(&self, role: Role, sizes: &Sizes) -> Packed {
        let (heads, width) = (sizes.heads as i64, sizes.head_dim as i64);
        Packed { role, data_type: DataType::BFloat16, heads, width, offsets: self.query_offsets }
    }

    /// A tensor with a vector for every token and key head.
    fn key(&self, role: Role, sizes: &Sizes) -> Packed {
        let (heads, width) = (sizes.kv_heads as i64, sizes.head_dim as i64);
        Packed { role, data_type: DataType::BFloat16, heads, width, offsets: self.key_offsets }
    }

    /// A tensor with a number for every token and query head. Its order is token-major: backward
    /// gives zeros where it is head-major.
    fn row(&self, role: Role, sizes: &Sizes) -> Packed {
        let heads = sizes.heads as i64;
        Packed { role, data_type: DataType::Float, heads, width: 1, offsets: self.stats_offsets }
    }

    // The true sizes of a product: of its rows (M), columns (N) or depth (K).

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

    /// The same for a product whose rows are keys.
    fn columns_and_depth(&self) -> [(i32, Tensor); 2] {
        [
            (attribute::OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, self.key_lengths),
            (attribute::OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, self.query_lengths),
        ]
    }
}

impl Sizes {
    fn score_dims(&self) -> Shape {
        [self.segments as i64, self.heads as i64, self.length as i64, self.length as i64]
    }

    fn score_strides(&self) -> Shape {
        let (heads, length) = (self.heads as i64, self.length as i64);
        [heads * length * length, length * length, length, 1]
    }

    /// Strides of the transposed scores.
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

    /// Strides of the product of output and its gradient, which is never in memory.
    fn product_strides(&self) -> Shape {
        let (heads, length, width) = (self.heads as i64, self.length as i64, self.head_dim as i64);
        [heads * length * width, length * width, heads * width, 1]
    }
}
