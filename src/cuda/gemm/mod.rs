//! This module computes the products of a linear layer through cuBLASLt, on 16-bit numbers with f32
//! accumulation.
//!
//! All matrices are row-major, as everywhere in this crate:
//!
//! | use | product | operands |
//! |---|---|---|
//! | [`forward`](Gemm::forward) | `y = x · Wᵀ` | `x [rows, inputs]`, `W [outputs, inputs]`, `y
//! [rows, outputs]` |
//! | [`input_gradient`](Gemm::input_gradient) | `dx = dy · W` | as above |
//! | [`weight_gradient`](Gemm::weight_gradient) | `dW = dyᵀ · x` | as above |
//!
//! Contract: an algorithm is chosen once per shape, by cuBLASLt's own ranking and never by timing,
//! so that equal runs use equal algorithms. Algorithms that split a sum over its depth are
//! excluded. A sum then has one order, which depends on the shape but not on the other rows of a
//! call. It is not known whether equal rows agree between calls with different `rows`; only a GPU
//! can show that. A [`Gemm`] owns its workspace, so it belongs to one stream at a time. Addresses
//! must be multiples of 16 bytes, so `inputs` and `outputs` must be multiples of 8. Left out:
//! gradients of a bias, which are sums over rows. None of this has run on a GPU yet.

mod plan;

use super::half::Half;
use super::kernels::Float;
use super::library::{Absent, Library, dotted, file_of};
use super::memory::{Arena, DeviceBuffer, DeviceSlice, DeviceSliceMut};
use super::sizes::PRODUCTS;
use super::stream::Stream;
use anyhow::{Context, Result, ensure};
use cudarc::cublaslt::{result, sys};
use plan::{Plan, Product};
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The sizes of a linear layer and of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Linear {
    /// `x` and `y` have one row for each token.
    pub rows: usize,
    /// `x` and `W` have this many columns.
    pub inputs: usize,
    /// `y` has this many columns, and `W` this many rows.
    pub outputs: usize,
}

/// The values to which a product is added.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a, T> {
    /// The result is overwritten.
    Zero,
    /// The product is added to what the result already holds.
    Accumulate,
    /// The product is added to one value per column.
    Bias(DeviceSlice<'a, T>),
}

/// The products of one stream at a time.
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Product, Plan>,
    workspace: DeviceBuffer<'static, u8>,
}

// SAFETY: the library's handles may be used from any thread, one at a time.
unsafe impl Send for Gemm {}

impl fmt::Debug for Gemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gemm").field("plans", &self.plans.len()).finish_non_exhaustive()
    }
}

/// The addresses of a product's operands.
struct Operands {
    a: u64,
    b: u64,
    d: u64,
    bias: u64,
    accumulate: bool,
}

/// The oldest version of the library that these products were written for: 13.0.
const OLDEST: usize = 130_000;

/// Opens cuBLASLt on the first call. Returns the version (10000 major + 100 minor + patch) and the file
/// of the library that products use.
///
/// cudarc, which calls the library, takes a `libcublasLt.so` of any version before the one that is
/// opened here by its full name. So this asks for what cudarc has, and refuses an older one.
pub fn version() -> Result<(usize, Option<PathBuf>)> {
    static LIBRARY: OnceLock<Result<Library, Absent>> = OnceLock::new();
    let open = || Library::open("cuBLASLt", "libcublasLt.so.13");
    LIBRARY.get_or_init(open).as_ref().map_err(Absent::clone)?;
    // SAFETY: cudarc loads the library by one of several names, of which one is open.
    let found = unsafe { sys::culib() };
    // SAFETY: the function takes nothing and gives a number; cudarc never closes the library.
    let version = *unsafe { found.get::<unsafe extern "C" fn() -> usize>(b"cublasLtGetVersion") }?;
    // SAFETY: as above.
    let (number, file) = (unsafe { version() }, file_of(version as *const c_void));
    ensure!(
        number >= OLDEST,
        "cuBLASLt {} is too old, and hides libcublasLt.so.13: take the folder of {} off LD_LIBRARY_PATH",
        dotted(number),
        file.map_or_else(|| "libcublasLt.so".to_owned(), |file| file.display().to_string())
    );
    Ok((number, file))
}

impl Gemm {
    /// Opens the library and takes a workspace from the arena.
    pub fn new(arena: &mut Arena) -> Result<Self> {
        version()?;
        let workspace = arena.lasting("workspace of products", PRODUCTS)?;
        let handle = result::create_handle().context("starting cuBLASLt")?;
        Ok(Self { handle, plans: HashMap::new(), workspace })
    }

    /// Computes `y = x · Wᵀ`, added to `start`.
    ///
    /// # Panics
    /// This and the functions below panic when a length does not follow from `sizes`.
    pub fn forward<Y: Float>(
        &mut self,
        stream: &Stream,
        sizes: Linear,
        x: DeviceSlice<'_, Half>,
        weight: DeviceSlice<'_, Half>,
        start: Start<'_, Y>,
        y: DeviceSliceMut<'_, Y>,
    ) -> Result<()> {
        check(sizes, x.len(), weight.len(), y.len());
        let product = sizes.forward::<Y>();
        self.multiply(stream, product, (weight, x), start, y)
    }

    /// Computes `dx = dy · W`, added to `start`.
    pub fn input_gradient<X: Float>(
        &mut self,
        stream: &Stream,
        sizes: Linear,
        dy: DeviceSlice<'_, Half>,
        weight: DeviceSlice<'_, Half>,
        start: Start<'_, X>,
        dx: DeviceSliceMut<'_, X>,
    ) -> Result<()> {
        check(sizes, dx.len(), weight.len(), dy.len());
        let product = sizes.input_gradient::<X>();
        self.multiply(stream, product, (weight, dy), start, dx)
    }

    /// Computes `dW = dyᵀ · x`, added to `start`.
    pub fn weight_gradient<W: Float>(
        &mut self,
        stream: &Stream,
        sizes: Linear,
        dy: DeviceSlice<'_, Half>,
        x: DeviceSlice<'_, Half>,
        start: Start<'_, W>,
        d_weight: DeviceSliceMut<'_, W>,
    ) -> Result<()> {
        check(sizes, x.len(), d_weight.len(), dy.len());
        let product = sizes.weight_gradient::<W>();
        self.multiply(stream, product, (x, dy), start, d_weight)
    }

    fn multiply<T: Float>(
        &mut self,
        stream: &Stream,
        product: Product,
        (a, b): (DeviceSlice<'_, Half>, DeviceSlice<'_, Half>),
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
            let plan = Plan::new(self.handle, stream.device().half_format(), product)?;
            self.plans.insert(product, plan);
        }
        let plan = &self.plans[&product];
        if product.has_bias {
            plan.set_bias(operands.bias)?;
        }
        let (one, beta) = (1.0f32, if operands.accumulate { 1.0f32 } else { 0.0 });
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: the operands have the sizes of the plan (asserted by the callers), the workspace
        // the size given to the heuristic, and both scalars are read before the call returns.
        stream.operation("product", || unsafe {
            Ok(result::matmul(
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
                PRODUCTS,
                stream.raw().cast(),
            )?)
        })
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
