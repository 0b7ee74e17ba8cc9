//! This file describes a product to cuBLASLt and chooses an algorithm for it.

use super::Linear;
use crate::cuda::half::HalfFormat;
use crate::cuda::kernels::Float;
use crate::cuda::sizes::PRODUCTS;
use anyhow::{Result, anyhow};
use cudarc::cublaslt::{result, sys};
use sys::cublasLtMatmulAlgoConfigAttributes_t as AlgoAttribute;
use sys::cublasLtMatmulDescAttributes_t as DescAttribute;
use sys::cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute;

/// The algorithm may assume that addresses are multiples of this many bytes.
const ALIGNMENT: u32 = 16;

const WIDE: sys::cudaDataType = sys::cudaDataType::CUDA_R_32F;

/// So many of the ranked algorithms are looked at for one that does not split its sums.
const CANDIDATES: usize = 32;

/// A product in cuBLASLt's column-major terms: `D [m, n] = op(A) · op(B)`, summed over `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) transpose_a: bool,
    pub(crate) transpose_b: bool,
    /// D is f32 if true, else 16 bits as A and B are.
    pub(crate) is_wide: bool,
    pub(crate) has_bias: bool,
}

/// Everything about a product except its operands.
pub(crate) struct Plan {
    pub(crate) operation: Descriptor<sys::cublasLtMatmulDesc_t>,
    pub(crate) a: Descriptor<sys::cublasLtMatrixLayout_t>,
    pub(crate) b: Descriptor<sys::cublasLtMatrixLayout_t>,
    pub(crate) d: Descriptor<sys::cublasLtMatrixLayout_t>,
    pub(crate) algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Linear {
    // A row-major matrix is its transpose in column-major order, so the operands change sides: yᵀ =
    // W · xᵀ, dxᵀ = Wᵀ · dyᵀ, dWᵀ = xᵀ · dy. The right-hand sides are written with what memory
    // holds when it is read by columns: W as [inputs, outputs], x as [inputs, rows] and so on.

    pub(crate) fn forward<Y: Float>(self) -> Product {
        let Self { rows, inputs, outputs } = self;
        let (m, n, k) = (outputs, rows, inputs);
        Product {
            m,
            n,
            k,
            transpose_a: true,
            transpose_b: false,
            is_wide: Y::IS_WIDE,
            has_bias: false,
        }
    }

    pub(crate) fn input_gradient<X: Float>(self) -> Product {
        let Self { rows, inputs, outputs } = self;
        let (m, n, k) = (inputs, rows, outputs);
        Product {
            m,
            n,
            k,
            transpose_a: false,
            transpose_b: false,
            is_wide: X::IS_WIDE,
            has_bias: false,
        }
    }

    pub(crate) fn weight_gradient<W: Float>(self) -> Product {
        let Self { rows, inputs, outputs } = self;
        let (m, n, k) = (inputs, outputs, rows);
        Product {
            m,
            n,
            k,
            transpose_a: false,
            transpose_b: true,
            is_wide: W::IS_WIDE,
            has_bias: false,
        }
    }
}

impl Product {
    /// Returns the rows and columns of A as it lies in memory, column-major.
    fn a(self) -> (usize, usize) {
        if self.transpose_a { (self.k, self.m) } else { (self.m, self.k) }
    }

    /// Returns the rows and columns of B as it lies in memory, column-major.
    fn b(self) -> (usize, usize) {
        if self.transpose_b { (self.n, self.k) } else { (self.k, self.n) }
    }
}

fn half_type(format: HalfFormat) -> sys::cudaDataType {
    match format {
        HalfFormat::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        HalfFormat::Fp16 => sys::cudaDataType::CUDA_R_16F,
    }
}

impl Plan {
    pub(crate) fn new(
        handle: sys::cublasLtHandle_t,
        format: HalfFormat,
        product: Product,
    ) -> Result<Self> {
        let half = half_type(format);
        let output = if product.is_wide { WIDE } else { half };
        let operation = Descriptor::operation(product, output)?;
        let a = Descriptor::layout(half, product.a())?;
        let b = Descriptor::layout(half, product.b())?;
        let d = Descriptor::layout(output, (product.m, product.n))?;
        let algorithm = choose(handle, &operation, [a.raw, b.raw, d.raw])?;
        Ok(Self { operation, a, b, d, algorithm })
    }

    /// Sets the address of the bias for the next product.
    pub(crate) fn set_bias(&self, address: u64) -> Result<()> {
        self.operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, address)
    }
}

/// Returns the best-ranked algorithm that does not split its sums over `k`.
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

/// A descriptor of the library, which is destroyed when dropped.
pub(crate) struct Descriptor<D: Copy> {
    pub(crate) raw: D,
    destroy: unsafe fn(D) -> Result<(), result::CublasError>,
}

impl<D: Copy> Drop for Descriptor<D> {
    fn drop(&mut self) {
        // SAFETY: `raw` was created together with the function that destroys it.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

impl Descriptor<sys::cublasLtMatmulDesc_t> {
    /// Describes `product` with sums in f32.
    fn operation(product: Product, output: sys::cudaDataType) -> Result<Self> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let raw = result::create_matmul_desc(compute, WIDE)?;
        let operation = Self { raw, destroy: result::destroy_matmul_desc };
        // cublasOperation_t: CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        let (a, b) = (i32::from(product.transpose_a), i32::from(product.transpose_b));
        operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, a)?;
        operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, b)?;
        if product.has_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            let kind = DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE;
            operation.set(kind, output)?;
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
    /// Describes a dense column-major matrix.
    fn layout(kind: sys::cudaDataType, (rows, columns): (usize, usize)) -> Result<Self> {
        let raw = result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)?;
        Ok(Self { raw, destroy: result::destroy_matrix_layout })
    }
}

impl Descriptor<sys::cublasLtMatmulPreference_t> {
    /// Asks for algorithms that do not split their sums and that fit the workspace.
    fn preference() -> Result<Self> {
        let raw = result::create_matmul_pref()?;
        let preference = Self { raw, destroy: result::destroy_matmul_pref };
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, PRODUCTS)?;
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
    use super::super::version;
    use super::*;
    use crate::cuda::half::Half;

    /// Computes `D = op(A) · op(B)` on column-major operands, as cuBLASLt is asked to.
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
        let y = multiply(SIZES.forward::<f32>(), &weight, &x);
        for (row, column) in (0..3).flat_map(|row| (0..5).map(move |column| (row, column))) {
            let expected: f64 =
                (0..4).map(|i| element(&x, 4, row, i) * element(&weight, 4, column, i)).sum();
            assert_eq!(element(&y, 5, row, column), expected);
        }
    }

    #[test]
    fn the_input_gradient_is_dy_times_the_weight() {
        let (dy, weight) = (numbers(15, 3), numbers(20, 4));
        let dx = multiply(SIZES.input_gradient::<f32>(), &weight, &dy);
        for (row, column) in (0..3).flat_map(|row| (0..4).map(move |column| (row, column))) {
            let expected: f64 =
                (0..5).map(|i| element(&dy, 5, row, i) * element(&weight, 4, i, column)).sum();
            assert_eq!(element(&dx, 4, row, column), expected);
        }
    }

    #[test]
    fn the_weight_gradient_is_transposed_dy_times_x() {
        let (dy, x) = (numbers(15, 5), numbers(12, 6));
        let d_weight = multiply(SIZES.weight_gradient::<f32>(), &x, &dy);
        for (row, column) in (0..5).flat_map(|row| (0..4).map(move |column| (row, column))) {
            let expected: f64 =
                (0..3).map(|i| element(&dy, 5, i, row) * element(&x, 4, i, column)).sum();
            assert_eq!(element(&d_weight, 4, row, column), expected);
        }
    }

    #[test]
    fn the_library_takes_every_description() {
        if let Err(absent) = version() {
            println!("SKIPPED: {absent:#}");
            return;
        }
        let uses = [
            SIZES.forward::<Half>(),
            SIZES.input_gradient::<Half>(),
            SIZES.weight_gradient::<f32>(),
            Product { has_bias: true, ..SIZES.forward::<Half>() },
        ];
        for (product, format) in uses.into_iter().flat_map(|product| {
            [HalfFormat::Bf16, HalfFormat::Fp16].map(|format| (product, format))
        }) {
            let output = if product.is_wide { WIDE } else { half_type(format) };
            Descriptor::operation(product, output).unwrap();
            for (rows, columns) in [product.a(), product.b(), (product.m, product.n)] {
                Descriptor::layout(output, (rows, columns)).unwrap();
            }
        }
        Descriptor::preference().unwrap();
    }
}
