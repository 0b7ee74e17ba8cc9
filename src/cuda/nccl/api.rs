//! This file binds the functions of NCCL that are used, and opens the library at run time.

use super::UniqueId;
use crate::cuda::library::Library;
use anyhow::{Result, anyhow, bail};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// `ncclConfig_t` as of version 2.14. The library sets fields of later versions to their defaults.
#[repr(C)]
pub(crate) struct Config {
    pub(crate) size: usize,
    pub(crate) magic: u32,
    pub(crate) version: u32,
    pub(crate) blocking: c_int,
}

pub(crate) type RawCommunicator = *mut c_void;
type RawStream = *mut c_void;

/// These are `ncclSuccess` and `ncclInProgress`.
pub(crate) const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// This is `ncclSum`.
pub(crate) const SUM: c_int = 0;

pub(crate) struct Api {
    /// The library must stay open as long as its functions are called.
    _library: Library,
    pub(crate) get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    pub(crate) get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    pub(crate) init:
        unsafe extern "C" fn(*mut RawCommunicator, c_int, UniqueId, c_int, *mut Config) -> c_int,
    pub(crate) async_error: unsafe extern "C" fn(RawCommunicator, *mut c_int) -> c_int,
    pub(crate) abort: unsafe extern "C" fn(RawCommunicator) -> c_int,
    pub(crate) destroy: unsafe extern "C" fn(RawCommunicator) -> c_int,
    pub(crate) group_start: unsafe extern "C" fn() -> c_int,
    pub(crate) group_end: unsafe extern "C" fn() -> c_int,
    pub(crate) all_reduce: Collective,
    pub(crate) reduce_scatter: Collective,
    pub(crate) all_gather: Gather,
    pub(crate) reduce: Rooted,
    pub(crate) broadcast: Broadcast,
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
    /// Opens the library on the first call.
    pub(crate) fn get() -> Result<&'static Self> {
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

    /// Fails unless `status` is success or says that work is under way.
    pub(crate) fn check(&self, status: c_int) -> Result<()> {
        if status == SUCCESS || status == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: takes any number and gives a static string.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(status)) };
        bail!("NCCL: {} (NCCL_DEBUG=WARN says more)", text.to_string_lossy());
    }
}
