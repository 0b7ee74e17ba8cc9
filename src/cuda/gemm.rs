//! The products of a linear layer through cuBLASLt, in bf16 with f32 accumulation.
//!
//! All matrices are row-major, as everywhere in this crate:
//!
//! | use | product | operands |
//! |---|---|---|
//! | [`forward`](Gemm::forward) | `y = x · Wᵀ` | `x [rows, inputs]`, `W [outputs, inputs]`, `y [rows, outputs]` |
//! | [`input_gradient`](Gemm::input_gradient) | `dx = dy · W` | as above |
//! | [`weight_gradient`](Gemm::weight_gradient) | `dW = dyᵀ · x` | as above |
//!
//! Contract: an algorithm is chosen once per shape, by cuBLASLt's own ranking and never by timing, so
//! that equal runs use equal algorithms; those that split the sum over depth are excluded. A sum
//! then has one order, which depends on the shape but not on the other rows of a call. Whether equal
//! rows also agree between calls of different `rows` is for a GPU to show. A [`Gemm`] owns its
//! workspace, so it belongs to one stream at a time. Addresses are multiples of 16 bytes, so `inputs`
//! and `outputs` are multiples of 8. Left out: gradients of a bias, which are sums of columns.
//! Not yet run on a GPU.

use super::library::{Absent, Library};
use super::memory::{Arena, DeviceBuffer, DeviceSlice, DeviceSliceMut};
use super::stream::Stream;
use anyhow::{Context, Result, anyhow};
use bytemuck::Pod;
use cudarc::cublaslt::{result, sys};
use half::bf16;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::OnceLock;
use sys::cublasLtMatmulAlgoConfigAttributes_t as AlgoAttribute;
use sys::cublasLtMatmulDescAttributes_t as DescAttribute;
use sys::cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute;

/// Bytes of workspace: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Addresses are multiples of this many bytes.
const ALIGNMENT: u32 = 16;

/// How many algorithms are looked at for one that does not split its sums.
const CANDIDATES: usize = 32;

/// The sizes of a linear layer and of what it is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Linear {
    /// Rows of `x` and `y`: tokens.
    pub rows: usize,
    /// Columns of `x` and of `W`.
    pub inputs: usize,
    /// Columns of `y`, rows of `W`.
    pub outputs: usize,
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a, T> {
    /// Nothing: the result is overwritten.
    Zero,
    /// What the result already holds.
    Accumulate,
    /// One value per column.
    Bias(DeviceSlice<'a, T>),
}

/// A number format of results.
pub trait Output: Pod {
    /// What cuBLASLt calls it.
    const TYPE: sys::cudaDataType;
}

impl Output for bf16 {
    const TYPE: sys::cudaDataType = sys::cudaDataType::CUDA_R_16BF;
}

impl Output for f32 {
    const TYPE: sys::cudaDataType = sys::cudaDataType::CUDA_R_32F;
}

/// Products on one stream at a time.
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Product, Plan>,
    workspace: DeviceBuffer<'static, u8>,
}

// SAFETY: the library's handles may be used from any thread, one at a time.
unsafe impl Send for Gemm {}

/// A product as cuBLASLt sees it: column-major, `D [m, n] = op(A) · op(B)` over `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    output: sys::cudaDataType,
    has_bias: bool,
}

/// Everything about a product but its operands.
struct Plan {
    operation: Descriptor<sys::cublasLtMatmulDesc_t>,
    a: Descriptor<sys::cublasLtMatrixLayout_t>,
    b: Descriptor<sys::cublasLtMatrixLayout_t>,
    d: Descriptor<sys::cublasLtMatrixLayout_t>,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The operands of a product, as addresses.
struct Operands {
    a: u64,
    b: u64,
    d: u64,
    bias: u64,
    accumulate: bool,
}

impl Linear {
    // A row-major matrix is its transpose in column-major order, so the operands swap sides:
    // yᵀ = W · xᵀ, dxᵀ = Wᵀ · dyᵀ, dWᵀ = xᵀ · dy, where each right-hand side is written with what
    // lies in memory read by columns: W as [inputs, outputs], x as [inputs, rows] and so on.

    fn forward(self, output: sys::cudaDataType) -> Product {
        let Self { rows, inputs, outputs } = self;
        let (m, n, k) = (outputs, rows, inputs);
        Product { m, n, k, transpose_a: true, transpose_b: false, output, has_bias: false }
    }

    fn input_gradient(self, output: sys::cudaDataType) -> Product {
        let Self { rows, inputs, outputs } = self;
        let (m, n, k) = (inputs, rows, outputs);
        Product { m, n, k, transpose_a: false, transpose_b: false, output, has_bias: false }
    }

    fn weight_gradient(self, output: sys::cudaDataType) -> Product {
        let Self { rows, inputs, outputs } = self;
        let (m, n, k) = (inputs, outputs, rows);
        Product { m, n, k, transpose_a: false, transpose_b: true, output, has_bias: false }
    }
}

impl Product {
    /// Rows and columns of A as it lies in memory, column-major.
    fn a(self) -> (usize, usize) {
        if self.transpose_a { (self.k, self.m) } else { (self.m, self.k) }
    }

    /// Rows and columns of B as it lies in memory, column-major.
    fn b(self) -> (usize, usize) {
        if self.transpose_b { (self.n, self.k) } else { (self.k, self.n) }
    }
}

/// Opens cuBLASLt once.
pub fn library() -> Result<&'static Library, Absent> {
    // Opened here by its full name: cudarc, which asks for it by several, then finds it open.
    static LIBRARY: OnceLock<Result<Library, Absent>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| Library::open("cuBLASLt", "libcublasLt.so.13"))
        .as_ref()
        .map_err(Absent::clone)
}

impl Gemm {
    /// Opens the library and takes a workspace.
    pub fn new(arena: &mut Arena) -> Result<Self> {
        library()?;
        let workspace = arena.lasting("workspace of products", WORKSPACE)?;
        let handle = result::create_handle().context("starting cuBLASLt")?;
        Ok(Self { handle, plans: HashMap::new(), workspace })
    }

    /// `y = x · Wᵀ`, added to `start`.
    ///
    /// # Panics
    /// Here and below, when a length does not follow from `sizes`.
    pub fn forward<Y: Output>(
        &mut self,
        stream: &Stream,
        sizes: Linear,
        x: DeviceSlice<'_, bf16>,
        weight: DeviceSlice<'_, bf16>,
        start: Start<'_, Y>,
        y: DeviceSliceMut<'_, Y>,
    ) -> Result<()> {
        check(sizes, x.len(), weight.len(), y.len());
        let product = sizes.forward(Y::TYPE);
        self.multiply(stream, product, (weight, x), start, y)
    }

    /// `dx = dy · W`, added to `start`.
    pub fn input_gradient<X: Output>(
        &mut self,
        stream: &Stream,
        sizes: Linear,
        dy: DeviceSlice<'_, bf16>,
        weight: DeviceSlice<'_, bf16>,
        start: Start<'_, X>,
        dx: DeviceSliceMut<'_, X>,
    ) -> Result<()> {
        check(sizes, dx.len(), weight.len(), dy.len());
        let product = sizes.input_gradient(X::TYPE);
        self.multiply(stream, product, (weight, dy), start, dx)
    }

    /// `dW = dyᵀ · x`, added to `start`.
    pub fn weight_gradient<W: Output>(
        &mut self,
        stream: &Stream,
        sizes: Linear,
        dy: DeviceSlice<'_, bf16>,
        x: DeviceSlice<'_, bf16>,
        start: Start<'_, W>,
        d_weight: DeviceSliceMut<'_, W>,
    ) -> Result<()> {
        check(sizes, x.len(), d_weight.len(), dy.len());
        let product = sizes.weight_gradient(W::TYPE);
        self.multiply(stream, product, (x, dy), start, d_weight)
    }

    fn multiply<T: Output>(
        &mut self,
        stream: &Stream,
        product: Product,
        (a, b): (DeviceSlice<'_, bf16>, DeviceSlice<'_, bf16>),
        start: Start<'_, T>,
        mut d: DeviceSliceMut<'_, T>,
    ) -> Result<()> {
        let (bias, accumulate) = match start {
            Start::Zero => (None, false),
            Start::Accumulate => (None, true),
            Start::Bias(bias) => (Some(bias), false),
        };
        if product.k == 0 || d.is_empty() {
            assert!(bias.is_none(), "a bias without inputs");
            return if accumulate { Ok(()) } else { stream.fill(d, 0) };
        }
        assert!(bias.is_none_or(|bias| bias.len() == product.m), "length of the bias");
        let product = Product { has_bias: bias.is_some(), ..product };
        let bias = bias.map_or(0, |bias| bias.address());
        let operands =
            Operands { a: a.address(), b: b.address(), d: d.address(), bias, accumulate };
        self.run(stream, product, &operands).with_context(|| {
            let Product { m, n, k, .. } = product;
            format!("multiplying [{m}, {k}] by [{k}, {n}] on GPU")
        })
    }

    fn run(&mut self, stream: &Stream, product: Product, operands: &Operands) -> Result<()> {
        stream.device().bind()?;
        if !self.plans.contains_key(&product) {
            let plan = Plan::new(self.handle, product)?;
            self.plans.insert(product, plan);
        }
        let plan = &self.plans[&product];
        if product.has_bias {
            plan.operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias)?;
        }
        let (one, beta) = (1.0f32, if operands.accumulate { 1.0f32 } else { 0.0 });
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: the operands have the sizes of the plan (asserted by the callers), the workspace
        // the size given to the heuristic, and both scalars are read before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation.raw,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                pointer(operands.a),
                plan.a.raw,
                pointer(operands.b),
                plan.b.raw,
                pointer(operands.d),
                plan.d.raw,
                pointer(operands.d),
                plan.d.raw,
                &raw const plan.algorithm,
                pointer(self.workspace.slice_mut().address()),
                WORKSPACE,
                stream.raw().cast(),
            )
        }?;
        Ok(())
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: created in `new`.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn check(sizes: Linear, x: usize, weight: usize, y: usize) {
    let Linear { rows, inputs, outputs } = sizes;
    assert_eq!(
        [x, weight, y],
        [rows * inputs, inputs * outputs, rows * outputs],
        "lengths of x, W and y for {sizes:?}"
    );
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, product: Product) -> Result<Self> {
        let operation = Descriptor::operation(product)?;
        let a = Descriptor::layout(bf16::TYPE, product.a())?;
        let b = Descriptor::layout(bf16::TYPE, product.b())?;
        let d = Descriptor::layout(product.output, (product.m, product.n))?;
        let algorithm = choose(handle, &operation, [a.raw, b.raw, d.raw])?;
        Ok(Self { operation, a, b, d, algorithm })
    }
}

/// The best-ranked algorithm that adds each sum up in one piece.
fn choose(
    handle: sys::cublasLtHandle_t,
    operation: &Descriptor<sys::cublasLtMatmulDesc_t>,
    [a, b, d]: [sys::cublasLtMatrixLayout_t; 3],
) -> Result<sys::cublasLtMatmulAlgo_t> {
    let preference = Descriptor::preference()?;
    // SAFETY: plain data that the library fills in.
    let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] =
        unsafe { std::mem::zeroed() };
    let mut count = 0;
    // SAFETY: all descriptors are alive; at most `CANDIDATES` results are written.
    unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            operation.raw,
            a,
            b,
            d,
            d,
            preference.raw,
            CANDIDATES as i32,
            found.as_mut_ptr(),
            &raw mut count,
        )
    }
    .result()?;
    let is_usable = |candidate: &&sys::cublasLtMatmulHeuristicResult_t| {
        candidate.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
            && setting(&candidate.algo, AlgoAttribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM)
                .is_some_and(|parts| parts <= 1)
            && setting(&candidate.algo, AlgoAttribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)
                == Some(0)
    };
    let best = found[..count as usize].iter().find(is_usable);
    best.map(|candidate| candidate.algo)
        .ok_or_else(|| anyhow!("none of cuBLASLt's {count} algorithms keeps its sums whole"))
}

fn setting(algorithm: &sys::cublasLtMatmulAlgo_t, attribute: AlgoAttribute) -> Option<u32> {
    let (mut value, mut written) = (0u32, 0);
    // SAFETY: both attributes that are asked for are 32 bits wide.
    let status = unsafe {
        sys::cublasLtMatmulAlgoConfigGetAttribute(
            algorithm,
            attribute,
            (&raw mut value).cast(),
            size_of::<u32>(),
            &raw mut written,
        )
    };
    status.result().is_ok().then_some(value)
}

/// A descriptor of the library, destroyed when dropped.
struct Descriptor<D: Copy> {
    raw: D,
    destroy: unsafe fn(D) -> Result<(), result::CublasError>,
}

impl<D: Copy> Drop for Descriptor<D> {
    fn drop(&mut self) {
        // SAFETY: `raw` was created together with the function that destroys it.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

impl Descriptor<sys::cublasLtMatmulDesc_t> {
    /// `product` with sums in f32.
    fn operation(product: Product) -> Result<Self> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let raw = result::create_matmul_desc(compute, f32::TYPE)?;
        let operation = Self { raw, destroy: result::destroy_matmul_desc };
        // cublasOperation_t: CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        let (a, b) = (i32::from(product.transpose_a), i32::from(product.transpose_b));
        operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, a)?;
        operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, b)?;
        if product.has_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            let kind = DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE;
            operation.set(kind, product.output)?;
        }
        Ok(operation)
    }

    fn set<V: Copy>(&self, attribute: DescAttribute, value: V) -> Result<()> {
        let pointer = (&raw const value).cast();
        // SAFETY: the value is read at once, and the library checks its size.
        Ok(unsafe {
            result::set_matmul_desc_attribute(self.raw, attribute, pointer, size_of::<V>())
        }?)
    }
}

impl Descriptor<sys::cublasLtMatrixLayout_t> {
    /// A dense column-major matrix.
    fn layout(kind: sys::cudaDataType, (rows, columns): (usize, usize)) -> Result<Self> {
        let raw = result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)?;
        Ok(Self { raw, destroy: result::destroy_matrix_layout })
    }
}

impl Descriptor<sys::cublasLtMatmulPreference_t> {
    /// Algorithms that keep their sums whole, within the workspace.
    fn preference() -> Result<Self> {
        let raw = result::create_matmul_pref()?;
        let preference = Self { raw, destroy: result::destroy_matmul_pref };
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE)?;
        let whole_sums = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        let scheme = PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        preference.set(scheme, whole_sums)?;
        for operand in [
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(operand, ALIGNMENT)?;
        }
        Ok(preference)
    }

    fn set<V: Copy>(&self, attribute: PreferenceAttribute, value: V) -> Result<()> {
        let pointer = (&raw const value).cast();
        // SAFETY: the value is read at once, and the library checks its size.
        Ok(unsafe {
            result::set_matmul_pref_attribute(self.raw, attribute, pointer, size_of::<V>())
        }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `D = op(A) · op(B)` on column-major operands, as cuBLASLt is asked to.
    fn multiply(product: Product, a: &[f64], b: &[f64]) -> Vec<f64> {
        let ((a_rows, _), (b_rows, _)) = (product.a(), product.b());
        let at = |matrix: &[f64], rows: usize, transposed: bool, row: usize, column: usize| {
            let (row, column) = if transposed { (column, row) } else { (row, column) };
            matrix[column * rows + row]
        };
        let mut d = vec![0.0; product.m * product.n];
        for column in 0..product.n {
            for row in 0..product.m {
                d[column * product.m + row] = (0..product.k)
                    .map(|i| {
                        at(a, a_rows, product.transpose_a, row, i)
                            * at(b, b_rows, product.transpose_b, i, column)
                    })
                    .sum();
            }
        }
        d
    }

    /// Element of a row-major matrix.
    fn element(matrix: &[f64], columns: usize, row: usize, column: usize) -> f64 {
        matrix[row * columns + column]
    }

    fn numbers(len: usize, seed: usize) -> Vec<f64> {
        (0..len).map(|i| ((i * 7 + seed) % 11) as f64 - 5.0).collect()
    }

    const SIZES: Linear = Linear { rows: 3, inputs: 4, outputs: 5 };

    #[test]
    fn the_forward_product_is_x_times_the_transposed_weight() {
        let (x, weight) = (numbers(12, 1), numbers(20, 2));
        let y = multiply(SIZES.forward(f32::TYPE), &weight, &x);
        for (row, column) in (0..3).flat_map(|row| (0..5).map(move |column| (row, column))) {
            let expected: f64 =
                (0..4).map(|i| element(&x, 4, row, i) * element(&weight, 4, column, i)).sum();
            assert_eq!(element(&y, 5, row, column), expected);
        }
    }

    #[test]
    fn the_input_gradient_is_dy_times_the_weight() {
        let (dy, weight) = (numbers(15, 3), numbers(20, 4));
        let dx = multiply(SIZES.input_gradient(f32::TYPE), &weight, &dy);
        for (row, column) in (0..3).flat_map(|row| (0..4).map(move |column| (row, column))) {
            let expected: f64 =
                (0..5).map(|i| element(&dy, 5, row, i) * element(&weight, 4, i, column)).sum();
            assert_eq!(element(&dx, 4, row, column), expected);
        }
    }

    #[test]
    fn the_weight_gradient_is_transposed_dy_times_x() {
        let (dy, x) = (numbers(15, 5), numbers(12, 6));
        let d_weight = multiply(SIZES.weight_gradient(f32::TYPE), &x, &dy);
        for (row, column) in (0..5).flat_map(|row| (0..4).map(move |column| (row, column))) {
            let expected: f64 =
                (0..3).map(|i| element(&dy, 5, i, row) * element(&x, 4, i, column)).sum();
            assert_eq!(element(&d_weight, 4, row, column), expected);
        }
    }

    #[test]
    fn the_library_takes_every_description() {
        if let Err(absent) = library() {
            println!("SKIPPED: {absent}");
            return;
        }
        let uses = [
            SIZES.forward(bf16::TYPE),
            SIZES.input_gradient(bf16::TYPE),
            SIZES.weight_gradient(f32::TYPE),
            Product { has_bias: true, ..SIZES.forward(bf16::TYPE) },
        ];
        for product in uses {
            Descriptor::operation(product).unwrap();
            for (rows, columns) in [product.a(), product.b(), (product.m, product.n)] {
                Descriptor::layout(product.output, (rows, columns)).unwrap();
            }
        }
        Descriptor::preference().unwrap();
    }
}
