//! This file describes cuDNN's graphs: tensors, and operations on them.
//!
//! Contract: tensors have four dimensions, `[segments, heads, length, width]`, in any order in
//! memory. A packed ("ragged") tensor names the offset of each segment's first element. A tensor
//! that never exists in memory ("virtual") is called inside here: the library fuses the operations
//! around it into one kernel.

use super::Sizes;
use super::backend::{
    Backend, DataType, Descriptor, Kind, PointwiseMode, ReductionOperator, attribute,
};
use anyhow::{Context, Result};

/// The tensors that a caller binds to memory. The numbers are their identifiers in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum Role {
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
    /// The sums over each row of output gradient times output.
    RowSums,
    /// The query gradient in f32, while it is summed.
    QueryGradientSums,
    /// The key gradient of each query head, before it is summed over groups.
    KeyGradientHeads,
    /// The value gradient of each query head, before it is summed over groups.
    ValueGradientHeads,
}

/// Tensors and scalars that no caller binds have identifiers from here on.
const FIRST_INNER: i64 = 100;

pub(crate) type Shape = [i64; 4];

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor {
    /// The tensor is at this place among the graph's descriptors.
    place: usize,
    pub(crate) dims: Shape,
    pub(crate) strides: Shape,
}

/// A graph of operations on tensors, with the scalars that it was built with.
#[derive(Debug)]
pub(crate) struct Graph {
    backend: &'static Backend,
    tensors: Vec<Descriptor>,
    /// Operations refer to these descriptors besides tensors.
    settings: Vec<Descriptor>,
    operations: Vec<Descriptor>,
    scalars: Vec<(i64, f32)>,
    next_inner: i64,
}

/// The properties of a packed tensor, apart from its dimensions.
pub(crate) struct Packed {
    pub(crate) role: Role,
    pub(crate) data_type: DataType,
    pub(crate) heads: i64,
    pub(crate) width: i64,
    pub(crate) offsets: Tensor,
}

impl Graph {
    pub(crate) fn new(backend: &'static Backend) -> Self {
        Self {
            backend,
            tensors: Vec::new(),
            settings: Vec::new(),
            operations: Vec::new(),
            scalars: Vec::new(),
            next_inner: FIRST_INNER,
        }
    }

    /// Returns the operations in order.
    pub(crate) fn operations(&self) -> &[Descriptor] {
        &self.operations
    }

    /// Returns the constants, which must be bound by value.
    pub(crate) fn scalars(&self) -> &[(i64, f32)] {
        &self.scalars
    }

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

    /// Adds a tensor of `count` integers.
    pub(crate) fn integers(&mut self, role: Role, count: i64) -> Result<Tensor> {
        let (dims, strides) = ([count, 1, 1, 1], [1; 4]);
        let descriptor = self.describe(role as i64, DataType::Int32, dims, strides)?;
        self.keep(descriptor, dims, strides)
    }

    /// Adds a packed tensor: rows of tokens, `heads * width` wide, without gaps.
    pub(crate) fn packed(&mut self, sizes: &Sizes, packed: &Packed) -> Result<Tensor> {
        let (segments, length) = (sizes.segments as i64, sizes.length as i64);
        let row = packed.heads * packed.width;
        let dims = [segments, packed.heads, length, packed.width];
        let strides = [length * row, packed.width, row, 1];
        self.ragged(packed, dims, strides)
    }

    /// Adds a packed tensor with its last two dimensions exchanged.
    pub(crate) fn packed_transposed(&mut self, sizes: &Sizes, packed: &Packed) -> Result<Tensor> {
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

    /// Adds a constant.
    pub(crate) fn scalar(&mut self, value: f32) -> Result<Tensor> {
        let id = self.inner();
        let descriptor = self.describe(id, DataType::Float, [1; 4], [1; 4])?;
        descriptor.set(attribute::TENSOR_IS_BY_VALUE, &[true])?;
        self.scalars.push((id, value));
        self.keep(descriptor, [1; 4], [1; 4])
    }

    /// Adds a tensor that never exists in memory.
    pub(crate) fn inside(
        &mut self,
        data_type: DataType,
        dims: Shape,
        strides: Shape,
    ) -> Result<Tensor> {
        let id = self.inner();
        let descriptor = self.describe(id, data_type, dims, strides)?;
        descriptor.set(attribute::TENSOR_IS_VIRTUAL, &[true])?;
        self.keep(descriptor, dims, strides)
    }

    /// Adds a tensor with the dimensions of `other` that never exists in memory.
    pub(crate) fn inside_like(&mut self, data_type: DataType, other: Tensor) -> Result<Tensor> {
        self.inside(data_type, other.dims, other.strides)
    }

    fn inner(&mut self) -> i64 {
        self.next_inner += 1;
        self.next_inner - 1
    }

    fn operation(&self, kind: Kind, operands: &[(i32, Tensor)]) -> Result<Descriptor> {
        let operation = Descriptor::new(self.backend, kind)?;
        for (attribute, tensor) in operands {
            operation.set(*attribute, &[self.tensors[tensor.place].raw()])?;
        }
        Ok(operation)
    }

    /// Finishes an operation and its setting, and adds it to the graph.
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

    /// Adds `y = mode(x)`, computed in f32.
    pub(crate) fn unary_to(&mut self, mode: PointwiseMode, x: Tensor, y: Tensor) -> Result<Tensor> {
        let operands =
            [(attribute::OPERATION_POINTWISE_XDESC, x), (attribute::OPERATION_POINTWISE_YDESC, y)];
        self.pointwise(mode, DataType::Float, None, &operands)?;
        Ok(y)
    }

    pub(crate) fn unary(&mut self, mode: PointwiseMode, x: Tensor) -> Result<Tensor> {
        let y = self.inside_like(DataType::Float, x)?;
        self.unary_to(mode, x, y)
    }

    pub(crate) fn binary_to(
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

    /// Adds `mode(x, b)`, computed in f32.
    pub(crate) fn binary(&mut self, mode: PointwiseMode, x: Tensor, b: Tensor) -> Result<Tensor> {
        let y = self.inside_like(DataType::Float, x)?;
        self.binary_to(mode, DataType::Float, [x, b, y])
    }

    /// Adds `mode(x, b)` with truth values as result.
    pub(crate) fn compare(&mut self, mode: PointwiseMode, x: Tensor, b: Tensor) -> Result<Tensor> {
        let y = self.inside_like(DataType::Boolean, x)?;
        self.binary_to(mode, DataType::Boolean, [x, b, y])
    }

    /// Adds the index of each element of `like` along `axis`.
    pub(crate) fn index(&mut self, like: Tensor, axis: i64, math: DataType) -> Result<Tensor> {
        let y = self.inside_like(DataType::Int32, like)?;
        let operands = [
            (attribute::OPERATION_POINTWISE_XDESC, like),
            (attribute::OPERATION_POINTWISE_YDESC, y),
        ];
        self.pointwise(PointwiseMode::GenIndex, math, Some(axis), &operands)?;
        Ok(y)
    }

    /// Adds a selection: `x` where `mask` holds, else minus infinity.
    pub(crate) fn keep_where(&mut self, mask: Tensor, x: Tensor) -> Result<Tensor> {
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

    /// Adds `c = a · b`; `lengths` are the true sizes along two of the three directions.
    pub(crate) fn matmul(
        &mut self,
        [a, b, c]: [Tensor; 3],
        lengths: [(i32, Tensor); 2],
    ) -> Result<Tensor> {
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

    /// Adds a reduction of `x` along the dimensions in which `y` has one element or fewer heads.
    pub(crate) fn reduce(
        &mut self,
        operator: ReductionOperator,
        x: Tensor,
        y: Tensor,
    ) -> Result<Tensor> {
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

    /// Adds a view of the elements of `x` as `y`.
    pub(crate) fn reshape(&mut self, x: Tensor, y: Tensor) -> Result<Tensor> {
        let operands =
            [(attribute::OPERATION_RESHAPE_XDESC, x), (attribute::OPERATION_RESHAPE_YDESC, y)];
        let operation = self.operation(Kind::OperationReshape, &operands)?;
        self.push(operation, None).context("describing a view")?;
        Ok(y)
    }

    /// Adds a view of the key with its last two dimensions in their usual order.
    pub(crate) fn plain_key(&mut self, key: Tensor, offsets: Tensor) -> Result<Tensor> {
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
