//! NCCL's functions, opened at run time.

use super::UniqueId;
use crate::cuda::library::Library;
use anyhow::{Result, anyhow, bail};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// `ncclConfig_t` of version 2.14, whose later fields the library sets to their defaults.
#[repr(C)]
pub(super) struct Config {
    pub(super) size: usize,
    pub(super) magic: u32,
    pub(super) version: u32,
    pub(super) blocking: c_int,
}

pub(super) type RawCommunicator = *mut c_void;
type RawStream = *mut c_void;

/// `ncclSuccess` and `ncclInProgress`.
pub(super) const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclSum`.
pub(super) const SUM: c_int = 0;

/// The functions of the library that are used here.
pub(super) struct Api {
    /// Keeps the functions callable.
    _library: Library,
    pub(super) get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    pub(super) get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    pub(super) init:
        unsafe extern "C" fn(*mut RawCommunicator, c_int, UniqueId, c_int, *mut Config) -> c_int,
    pub(super) async_error: unsafe extern "C" fn(RawCommunicator, *mut c_int) -> c_int,
    pub(super) abort: unsafe extern "C" fn(RawCommunicator) -> c_int,
    pub(super) destroy: unsafe extern "C" fn(RawCommunicator) -> c_int,
    pub(super) group_start: unsafe extern "C" fn() -> c_int,
    pub(super) group_end: unsafe extern "C" fn() -> c_int,
    pub(super) all_reduce: Collective,
    pub(super) reduce_scatter: Collective,
    pub(super) all_gather: Gather,
    pub(super) reduce: Rooted,
    pub(super) broadcast: Broadcast,
}

type Collective = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    RawCommunicator,
    RawStream,
) -> c_int;
type Gather = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    RawCommunicator,
    RawStream,
) -> c_int;
type Rooted = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    c_int,
    RawCommunicator,
    RawStream,
) -> c_int;
type Broadcast = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    RawCommunicator,
    RawStream,
) -> c_int;

impl Api {
    /// Opens the library once.
    pub(super) fn get() -> Result<&'static Self> {
        static API: OnceLock<Result<Api, String>> = OnceLock::new();
        let api = API.get_or_init(|| Self::open().map_err(|e| format!("{e:#}")));
        api.as_ref().map_err(|e| anyhow!("{e}"))
    }

    fn open() -> Result<Self> {
        let library = Library::open("NCCL", "libnccl.so.2")?;
        // SAFETY: the types are those of nccl.h, and the library is kept beside its functions.
        unsafe {
            Ok(Self {
                get_version: library.function("ncclGetVersion")?,
                get_unique_id: library.function("ncclGetUniqueId")?,
                get_error_string: library.function("ncclGetErrorString")?,
                init: library.function("ncclCommInitRankConfig")?,
                async_error: library.function("ncclCommGetAsyncError")?,
                abort: library.function("ncclCommAbort")?,
                destroy: library.function("ncclCommDestroy")?,
                group_start: library.function("ncclGroupStart")?,
                group_end: library.function("ncclGroupEnd")?,
                all_reduce: library.function("ncclAllReduce")?,
                reduce_scatter: library.function("ncclReduceScatter")?,
                all_gather: library.function("ncclAllGather")?,
                reduce: library.function("ncclReduce")?,
                broadcast: library.function("ncclBroadcast")?,
                _library: library,
            })
        }
    }

    /// An error unless `status` is success or work under way.
    pub(super) fn check(&self, status: c_int) -> Result<()> {
        if status == SUCCESS || status == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: takes any number and gives a static string.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(status)) };
        bail!("NCCL: {} (NCCL_DEBUG=WARN says more)", text.to_string_lossy());
    }
}
