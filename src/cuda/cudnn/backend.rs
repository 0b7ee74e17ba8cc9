//! This file binds cuDNN's backend API, which it opens at run time: descriptors, their attributes,
//! and the library's handle.
//!
//! Contract: a descriptor is destroyed when dropped, and an error repeats the library's own
//! message. All numbers are those of `cudnn_graph.h`, whose names the constants keep.

use crate::cuda::library::{Absent, Library, file_of};
use crate::cuda::stream::Stream;
use anyhow::{Context, Result, bail};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Returns the library's version (10000 major + 100 minor + patch) and the file that it was loaded
/// from.
pub fn version() -> Result<(usize, Option<PathBuf>)> {
    let backend = Backend::get()?;
    Ok((backend.version(), backend.file()))
}

/// Kinds of descriptors (`cudnnBackendDescriptorType_t`).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum Kind {
    Pointwise = 0,
    Engine = 2,
    EngineConfig = 3,
    EngineHeuristics = 4,
    ExecutionPlan = 5,
    KnobChoice = 7,
    OperationPointwise = 13,
    OperationGraph = 15,
    VariantPack = 16,
    Tensor = 17,
    Matmul = 18,
    OperationMatmul = 19,
    Reduction = 21,
    OperationReduction = 22,
    OperationReshape = 31,
    DeviceProperties = 38,
}

/// Names of attributes (`cudnnBackendAttributeName_t`).
pub(crate) mod attribute {
    pub(crate) const POINTWISE_MODE: i32 = 0;
    pub(crate) const POINTWISE_MATH_PREC: i32 = 1;
    pub(crate) const POINTWISE_AXIS: i32 = 9;
    pub(crate) const ENGINEHEUR_MODE: i32 = 200;
    pub(crate) const ENGINEHEUR_OPERATION_GRAPH: i32 = 201;
    pub(crate) const ENGINEHEUR_RESULTS: i32 = 202;
    pub(crate) const ENGINEHEUR_DEVICEPROP: i32 = 204;
    pub(crate) const ENGINECFG_ENGINE: i32 = 300;
    pub(crate) const ENGINECFG_KNOB_CHOICES: i32 = 302;
    pub(crate) const EXECUTION_PLAN_HANDLE: i32 = 400;
    pub(crate) const EXECUTION_PLAN_ENGINE_CONFIG: i32 = 401;
    pub(crate) const EXECUTION_PLAN_WORKSPACE_SIZE: i32 = 402;
    pub(crate) const KNOB_CHOICE_KNOB_TYPE: i32 = 600;
    pub(crate) const KNOB_CHOICE_KNOB_VALUE: i32 = 601;
    pub(crate) const OPERATION_POINTWISE_PW_DESCRIPTOR: i32 = 750;
    pub(crate) const OPERATION_POINTWISE_XDESC: i32 = 751;
    pub(crate) const OPERATION_POINTWISE_BDESC: i32 = 752;
    pub(crate) const OPERATION_POINTWISE_YDESC: i32 = 753;
    pub(crate) const OPERATION_POINTWISE_TDESC: i32 = 758;
    pub(crate) const OPERATIONGRAPH_HANDLE: i32 = 800;
    pub(crate) const OPERATIONGRAPH_OPS: i32 = 801;
    pub(crate) const TENSOR_BYTE_ALIGNMENT: i32 = 900;
    pub(crate) const TENSOR_DATA_TYPE: i32 = 901;
    pub(crate) const TENSOR_DIMENSIONS: i32 = 902;
    pub(crate) const TENSOR_STRIDES: i32 = 903;
    pub(crate) const TENSOR_UNIQUE_ID: i32 = 906;
    pub(crate) const TENSOR_IS_VIRTUAL: i32 = 907;
    pub(crate) const TENSOR_IS_BY_VALUE: i32 = 908;
    pub(crate) const TENSOR_RAGGED_OFFSET_DESC: i32 = 913;
    pub(crate) const VARIANT_PACK_UNIQUE_IDS: i32 = 1000;
    pub(crate) const VARIANT_PACK_DATA_POINTERS: i32 = 1001;
    pub(crate) const VARIANT_PACK_WORKSPACE: i32 = 1003;
    pub(crate) const ENGINE_OPERATION_GRAPH: i32 = 1300;
    pub(crate) const ENGINE_GLOBAL_INDEX: i32 = 1301;
    pub(crate) const ENGINE_DEVICEPROP: i32 = 1307;
    pub(crate) const MATMUL_COMP_TYPE: i32 = 1500;
    pub(crate) const OPERATION_MATMUL_ADESC: i32 = 1520;
    pub(crate) const OPERATION_MATMUL_BDESC: i32 = 1521;
    pub(crate) const OPERATION_MATMUL_CDESC: i32 = 1522;
    pub(crate) const OPERATION_MATMUL_DESC: i32 = 1523;
    pub(crate) const OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC: i32 = 1525;
    pub(crate) const OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC: i32 = 1526;
    pub(crate) const OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC: i32 = 1527;
    pub(crate) const REDUCTION_OPERATOR: i32 = 1600;
    pub(crate) const REDUCTION_COMP_TYPE: i32 = 1601;
    pub(crate) const OPERATION_REDUCTION_XDESC: i32 = 1610;
    pub(crate) const OPERATION_REDUCTION_YDESC: i32 = 1611;
    pub(crate) const OPERATION_REDUCTION_DESC: i32 = 1612;
    pub(crate) const OPERATION_RESHAPE_XDESC: i32 = 2200;
    pub(crate) const OPERATION_RESHAPE_YDESC: i32 = 2201;
    pub(crate) const DEVICEPROP_JSON_REPRESENTATION: i32 = 2702;
}

/// Number formats (`cudnnDataType_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum DataType {
    Float = 0,
    Half = 2,
    Int32 = 4,
    BFloat16 = 9,
    Boolean = 11,
}

/// Operations on single elements (`cudnnPointwiseMode_t`).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum PointwiseMode {
    Add = 0,
    Mul = 1,
    Div = 6,
    Sub = 9,
    Exp = 13,
    Log = 15,
    Identity = 21,
    CompareGreaterEqual = 303,
    CompareLess = 304,
    LogicalAnd = 400,
    GenIndex = 501,
    BinarySelect = 601,
}

/// Operations on rows (`cudnnReduceTensorOp_t`).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum ReductionOperator {
    Add = 0,
    Max = 3,
}

/// How engines are ranked (`cudnnBackendHeurMode_t`).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum HeuristicMode {
    A = 3,
}

/// A tunable of an engine (`cudnnBackendKnobType_t`).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum Knob {
    Stages = 14,
    KernelConfig = 24,
    TileCgaM = 27,
    StreamK = 38,
    TileM = 40,
    TileN = 41,
}

/// The library passes a descriptor as this pointer.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct RawDescriptor(*mut c_void);

/// An attribute that is an address.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Pointer(pub(crate) *mut c_void);

/// An attribute that is the library's handle.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct RawHandle(*mut c_void);

/// A type that attributes can have; `TYPE` is its number in `cudnnBackendAttributeType_t`.
pub(crate) trait Value: Copy {
    const TYPE: c_int;
}

macro_rules! values {
    ($($value:ty = $number:literal),* $(,)?) => {$(
        impl Value for $value {
            const TYPE: c_int = $number;
        }
    )*};
}

values! {
    RawHandle = 0, DataType = 1, bool = 2, i64 = 3, Pointer = 6, HeuristicMode = 8, Knob = 9,
    PointwiseMode = 14, RawDescriptor = 15, ReductionOperator = 18, u8 = 24,
}

#[derive(Debug)]
pub(crate) struct Backend {
    create_handle: unsafe extern "C" fn(*mut *mut c_void) -> c_int,
    destroy_handle: unsafe extern "C" fn(*mut c_void) -> c_int,
    set_stream: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
    get_version: unsafe extern "C" fn() -> usize,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    get_last_error: unsafe extern "C" fn(*mut c_char, usize),
    create: unsafe extern "C" fn(c_int, *mut RawDescriptor) -> c_int,
    destroy: unsafe extern "C" fn(RawDescriptor) -> c_int,
    finalize: unsafe extern "C" fn(RawDescriptor) -> c_int,
    set: unsafe extern "C" fn(RawDescriptor, c_int, c_int, i64, *const c_void) -> c_int,
    get: unsafe extern "C" fn(RawDescriptor, c_int, c_int, i64, *mut i64, *mut c_void) -> c_int,
    execute: unsafe extern "C" fn(*mut c_void, RawDescriptor, RawDescriptor) -> c_int,
    _library: Library,
}

impl Backend {
    /// Opens the library on the first call.
    pub(crate) fn get() -> Result<&'static Self> {
        static BACKEND: OnceLock<Result<Backend, Absent>> = OnceLock::new();
        let open = || {
            let library = Library::open("cuDNN", "libcudnn.so.9")?;
            Self::resolve(library).map_err(|e| Absent {
                name: "cuDNN",
                file: "libcudnn.so.9",
                reason: format!("{e:#}"),
            })
        };
        BACKEND.get_or_init(open).as_ref().map_err(|absent| absent.clone().into())
    }

    fn resolve(library: Library) -> Result<Self> {
        // SAFETY: the types are those of cudnn_graph.h, and the library is kept beside its functions.
        unsafe {
            Ok(Self {
                create_handle: library.function("cudnnCreate")?,
                destroy_handle: library.function("cudnnDestroy")?,
                set_stream: library.function("cudnnSetStream")?,
                get_version: library.function("cudnnGetVersion")?,
                get_error_string: library.function("cudnnGetErrorString")?,
                get_last_error: library.function("cudnnGetLastErrorString")?,
                create: library.function("cudnnBackendCreateDescriptor")?,
                destroy: library.function("cudnnBackendDestroyDescriptor")?,
                finalize: library.function("cudnnBackendFinalize")?,
                set: library.function("cudnnBackendSetAttribute")?,
                get: library.function("cudnnBackendGetAttribute")?,
                execute: library.function("cudnnBackendExecute")?,
                _library: library,
            })
        }
    }

    /// Returns the library's version: 10000 major + 100 minor + patch.
    pub(crate) fn version(&self) -> usize {
        // SAFETY: takes nothing.
        unsafe { (self.get_version)() }
    }

    /// Returns the file that the library was loaded from.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        file_of(self.get_version as *const c_void)
    }

    fn check(&self, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: takes any number and gives a static string.
        let kind = unsafe { CStr::from_ptr((self.get_error_string)(status)) };
        let mut buffer = vec![0u8; 4096];
        // SAFETY: writes at most the given length, with a final zero.
        unsafe { (self.get_last_error)(buffer.as_mut_ptr().cast(), buffer.len()) };
        let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default().to_string_lossy();
        let reason = text.trim().lines().map(str::trim).collect::<Vec<_>>().join("; ");
        bail!("cuDNN {}: {}: {reason}", self.version(), kind.to_string_lossy());
    }
}

/// An object of the library.
#[derive(Debug)]
pub(crate) struct Descriptor {
    raw: RawDescriptor,
    backend: &'static Backend,
}

// SAFETY: the library's descriptors may be used from any thread, one at a time.
unsafe impl Send for Descriptor {}

impl Descriptor {
    pub(crate) fn new(backend: &'static Backend, kind: Kind) -> Result<Self> {
        let mut raw = RawDescriptor(std::ptr::null_mut());
        // SAFETY: writes one pointer.
        let status = unsafe { (backend.create)(kind as c_int, &raw mut raw) };
        backend.check(status).with_context(|| format!("creating a descriptor: {kind:?}"))?;
        Ok(Self { raw, backend })
    }

    pub(crate) fn raw(&self) -> RawDescriptor {
        self.raw
    }

    pub(crate) fn set<V: Value>(&self, attribute: i32, values: &[V]) -> Result<()> {
        let (count, data) = (values.len() as i64, values.as_ptr().cast());
        // SAFETY: the library reads `count` values of the given type.
        let status = unsafe { (self.backend.set)(self.raw, attribute, V::TYPE, count, data) };
        self.backend.check(status).with_context(|| format!("setting attribute {attribute}"))
    }

    pub(crate) fn finalize(self) -> Result<Self> {
        // SAFETY: the descriptor is alive.
        self.backend.check(unsafe { (self.backend.finalize)(self.raw) })?;
        Ok(self)
    }

    /// Fills `values` with an attribute and returns how many values the library has.
    pub(crate) fn get<V: Value>(&self, attribute: i32, values: &mut [V]) -> Result<usize> {
        let (mut found, room) = (0, values.len() as i64);
        let data = match values.is_empty() {
            true => std::ptr::null_mut(),
            false => values.as_mut_ptr().cast(),
        };
        // SAFETY: the library writes at most `room` values of the given type.
        let status =
            unsafe { (self.backend.get)(self.raw, attribute, V::TYPE, room, &raw mut found, data) };
        self.backend.check(status).with_context(|| format!("reading attribute {attribute}"))?;
        Ok(found as usize)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the last use of the descriptor.
        let _ = unsafe { (self.backend.destroy)(self.raw) };
    }
}

/// The library's state on one device.
#[derive(Debug)]
pub(crate) struct Handle {
    raw: *mut c_void,
    backend: &'static Backend,
}

// SAFETY: the handle may be used from any thread, one at a time.
unsafe impl Send for Handle {}

impl Handle {
    /// Starts the library on the device of the calling thread's context.
    pub(crate) fn new(backend: &'static Backend) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        let status = unsafe { (backend.create_handle)(&raw mut raw) };
        backend.check(status).context("starting cuDNN")?;
        Ok(Self { raw, backend })
    }

    pub(crate) fn raw(&self) -> RawHandle {
        RawHandle(self.raw)
    }

    /// Queues `plan` on `stream` with the tensors of `pack`.
    ///
    /// # Safety
    /// The addresses in `pack` must be tensors as the plan describes them.
    pub(crate) unsafe fn execute(
        &self,
        stream: &Stream,
        plan: &Descriptor,
        pack: &Descriptor,
    ) -> Result<()> {
        let backend = self.backend;
        // SAFETY: handle and stream are alive and of one device.
        backend.check(unsafe { (backend.set_stream)(self.raw, stream.raw().cast()) })?;
        // SAFETY: the caller's promise.
        backend.check(unsafe { (backend.execute)(self.raw, plan.raw, pack.raw) })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the last use of the handle.
        let _ = unsafe { (self.backend.destroy_handle)(self.raw) };
    }
}
