//! This module sums and gathers between GPUs through NCCL, which it opens at run time.
//!
//! Contract: it is the one of [`ranks::Comm`](crate::ranks::Comm), on device memory and in the
//! order of a stream. All ranks make the same calls in the same order with buffers of the same
//! length, and a bucket is divided into the same [`piece`]s. A call returns when its work is
//! queued. [`Communicator::abort`] ends the calls and the queued work of this rank, so that a
//! stream that waits for a dead peer returns. A group of one rank needs no library. Left out: a
//! fixed order of sums. The order is NCCL's, and is the same for equal runs on equal topologies.
//! None of this has run on a GPU yet.

mod api;

use super::device::Device;
use super::half::{Half, HalfFormat};
use super::memory::DeviceSliceMut;
use super::stream::Stream;
use crate::ranks::Aborted;
use crate::ranks::piece;
use anyhow::{Context, Result, anyhow};
use api::{Api, Config, RawCommunicator, SUCCESS, SUM};
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const ID_BYTES: usize = 128;

/// A call that is still under way is looked at again after this time.
const POLL: Duration = Duration::from_micros(50);

/// The name of a group of ranks. One rank makes it and gives it to all others.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UniqueId([u8; ID_BYTES]);

/// Returns the library's version (10000 major + 100 minor + patch) and the file that it was loaded
/// from.
pub fn version() -> Result<(i32, Option<std::path::PathBuf>)> {
    let api = Api::get()?;
    let mut version = 0;
    // SAFETY: writes one integer.
    api.check(unsafe { (api.get_version)(&raw mut version) })?;
    Ok((version, super::library::file_of(api.get_version as *const c_void)))
}

impl UniqueId {
    /// Makes a name that no other group has.
    pub fn new() -> Result<Self> {
        let api = Api::get()?;
        let mut id = Self([0; ID_BYTES]);
        // SAFETY: writes `ID_BYTES` bytes.
        api.check(unsafe { (api.get_unique_id)(&raw mut id) })?;
        Ok(id)
    }

    /// Returns the bytes in which the name is sent to other nodes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads a name that another node sent.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bytes =
            bytes.try_into().map_err(|_| anyhow!("{} bytes are no NCCL id", bytes.len()))?;
        Ok(Self(bytes))
    }
}

/// A number format that NCCL can sum.
pub trait Number: bytemuck::Pod {
    /// Returns the format's number in `ncclDataType_t`; 16-bit numbers have that of `half_format`.
    fn data_type(half_format: HalfFormat) -> c_int;
}

impl Number for f32 {
    fn data_type(_: HalfFormat) -> c_int {
        7
    }
}

impl Number for f64 {
    fn data_type(_: HalfFormat) -> c_int {
        8
    }
}

impl Number for Half {
    fn data_type(half_format: HalfFormat) -> c_int {
        match half_format {
            HalfFormat::Fp16 => 6,
            HalfFormat::Bf16 => 9,
        }
    }
}

/// One rank's membership in a group of GPUs.
pub struct Communicator {
    rank: usize,
    size: usize,
    device: Arc<Device>,
    /// The library's handle is absent in a group of one and after [`Communicator::abort`].
    raw: Mutex<Option<Handle>>,
}

struct Handle(RawCommunicator);

// SAFETY: the library's handles may be used from any thread, one at a time, which the lock ensures.
unsafe impl Send for Handle {}

impl Communicator {
    /// Makes a group of one rank, which needs no library.
    pub fn single(device: &Arc<Device>) -> Self {
        Self { rank: 0, size: 1, device: device.clone(), raw: Mutex::new(None) }
    }

    /// Joins the group `id` of `size` ranks. Every rank calls it from a thread of its own, and all
    /// have joined when [`Communicator::wait`] returns.
    pub fn join(device: &Arc<Device>, id: UniqueId, rank: usize, size: usize) -> Result<Self> {
        if size == 1 {
            return Ok(Self::single(device));
        }
        let api = Api::get()?;
        device.bind()?;
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21_400,
            // Calls return at once and are polled, so that each of them can be aborted.
            blocking: 0,
        };
        let mut raw = std::ptr::null_mut();
        let (count, own) = (size as c_int, rank as c_int);
        // SAFETY: the library copies the configuration before it returns.
        let status = unsafe { (api.init)(&raw mut raw, count, id, own, &raw mut config) };
        api.check(status).with_context(|| format!("joining {size} GPUs as rank {rank}"))?;
        Ok(Self { rank, size, device: device.clone(), raw: Mutex::new(Some(Handle(raw))) })
    }

    /// Waits until the whole group has joined. Where one rank cannot join, the library lets the
    /// others wait for ever; they must be aborted.
    pub fn wait(&self) -> Result<()> {
        if self.size == 1 {
            return Ok(());
        }
        let Self { rank, size, .. } = self;
        self.settle(Api::get()?).with_context(|| format!("joining {size} GPUs as rank {rank}"))
    }

    /// Returns the number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Returns the number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Sums `bucket` over the ranks. Afterwards this rank's [`piece`] of it holds the sum, and the
    /// rest is undefined.
    pub fn reduce_scatter<T: Number>(
        &self,
        stream: &Stream,
        mut bucket: DeviceSliceMut<'_, T>,
    ) -> Result<()> {
        let (len, start) = (bucket.len(), bucket.address());
        let at = |rank| (start + offset::<T>(len, self.size, rank)) as *mut c_void;
        self.call(|api, raw| match self.equal_pieces(len) {
            // SAFETY: here and below, addresses and lengths are of `bucket`, which is in this
            // device's memory; the library reads and writes no more.
            Some(count) => api.check(unsafe {
                (api.reduce_scatter)(
                    start as *const c_void,
                    at(self.rank),
                    count,
                    self.data_type::<T>(),
                    SUM,
                    raw,
                    stream.raw().cast(),
                )
            }),
            None => self.grouped(api, |root| {
                let count = piece(len, self.size, root).len();
                let (to, root) = (at(root), root as c_int);
                // SAFETY: as above.
                unsafe {
                    (api.reduce)(
                        to,
                        to,
                        count,
                        self.data_type::<T>(),
                        SUM,
                        root,
                        raw,
                        stream.raw().cast(),
                    )
                }
            }),
        })
    }

    /// Fills `bucket` with every rank's [`piece`] of it.
    pub fn all_gather<T: Number>(
        &self,
        stream: &Stream,
        mut bucket: DeviceSliceMut<'_, T>,
    ) -> Result<()> {
        let (len, start) = (bucket.len(), bucket.address());
        let at = |rank| (start + offset::<T>(len, self.size, rank)) as *mut c_void;
        self.call(|api, raw| match self.equal_pieces(len) {
            // SAFETY: as in `reduce_scatter`.
            Some(count) => api.check(unsafe {
                (api.all_gather)(
                    at(self.rank),
                    start as *mut c_void,
                    count,
                    self.data_type::<T>(),
                    raw,
                    stream.raw().cast(),
                )
            }),
            None => self.grouped(api, |root| {
                let count = piece(len, self.size, root).len();
                let (to, root) = (at(root), root as c_int);
                // SAFETY: as above.
                unsafe {
                    (api.broadcast)(
                        to,
                        to,
                        count,
                        self.data_type::<T>(),
                        root,
                        raw,
                        stream.raw().cast(),
                    )
                }
            }),
        })
    }

    /// Sums `values` over the ranks; every rank gets the sums.
    pub fn all_reduce<T: Number>(
        &self,
        stream: &Stream,
        mut values: DeviceSliceMut<'_, T>,
    ) -> Result<()> {
        let (len, at) = (values.len(), values.address() as *mut c_void);
        self.call(|api, raw| {
            // SAFETY: as in `reduce_scatter`.
            api.check(unsafe {
                (api.all_reduce)(at, at, len, self.data_type::<T>(), SUM, raw, stream.raw().cast())
            })
        })
    }

    /// Ends what this rank has queued, and makes its later calls fail with [`Aborted`].
    pub fn abort(&self) {
        let handle = self.raw.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(Handle(raw)), Ok(api)) = (handle, Api::get()) {
            let _ = self.device.bind();
            // SAFETY: the handle is taken, so nobody uses it any more.
            let _ = unsafe { (api.abort)(raw) };
        }
    }

    fn data_type<T: Number>(&self) -> c_int {
        T::data_type(self.device.half_format())
    }

    /// Returns the length of every piece of `len` elements, if all have the same.
    fn equal_pieces(&self, len: usize) -> Option<usize> {
        let count = len / self.size;
        let is_equal = (0..self.size).all(|rank| piece(len, self.size, rank).len() == count);
        is_equal.then_some(count)
    }

    /// Queues `work` for the piece of every rank as one group of calls.
    fn grouped(&self, api: &Api, mut work: impl FnMut(usize) -> c_int) -> Result<()> {
        // SAFETY: start and end come in pairs.
        api.check(unsafe { (api.group_start)() })?;
        let queued = (0..self.size).try_for_each(|root| api.check(work(root)));
        // SAFETY: as above.
        api.check(unsafe { (api.group_end)() })?;
        queued
    }

    /// Makes a call of the library and waits until it has queued its work.
    fn call(&self, work: impl FnOnce(&Api, RawCommunicator) -> Result<()>) -> Result<()> {
        if self.size == 1 {
            return Ok(());
        }
        self.device.bind()?;
        let api = Api::get()?;
        let guard = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        work(api, guard.as_ref().ok_or(Aborted)?.0)?;
        drop(guard);
        self.settle(api)
    }

    /// Waits until no call is under way.
    fn settle(&self, api: &Api) -> Result<()> {
        loop {
            let mut state = SUCCESS;
            {
                let guard = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
                let Handle(raw) = guard.as_ref().ok_or(Aborted)?;
                // SAFETY: the handle is alive while it is locked; writes one integer.
                api.check(unsafe { (api.async_error)(*raw, &raw mut state) })?;
            }
            api.check(state)?;
            if state == SUCCESS {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let raw = self.raw.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(Handle(raw)), Ok(api)) = (raw, Api::get()) {
            let _ = self.device.bind();
            let mut state = SUCCESS;
            // SAFETY: here and below, nobody else has the handle; writes one integer.
            let status = unsafe { (api.async_error)(raw, &raw mut state) };
            // Destroying a communicator that has failed may wait for ever.
            let end = if (status, state) == (SUCCESS, SUCCESS) { api.destroy } else { api.abort };
            // SAFETY: the last use of the handle.
            let _ = unsafe { end(raw) };
        }
    }
}

/// Returns the bytes from the start of a bucket of `len` elements to the piece of `rank`.
fn offset<T>(len: usize, size: usize, rank: usize) -> u64 {
    (piece(len, size, rank).start * size_of::<T>()) as u64
}

/// All communicators of this process, which are aborted together.
#[derive(Clone, Default)]
pub struct Group(Arc<Mutex<Vec<Arc<Communicator>>>>);

impl Group {
    pub fn add(&self, communicator: Arc<Communicator>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(communicator);
    }

    pub fn abort(&self) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().for_each(|communicator| communicator.abort());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_travels_as_bytes() {
        let id = UniqueId(std::array::from_fn(|i| i as u8));
        assert_eq!(UniqueId::from_bytes(id.as_bytes()).unwrap().0, id.0);
        assert!(UniqueId::from_bytes(&[0; 127]).is_err());
    }

    #[test]
    fn a_machine_without_the_library_says_which_file_to_bring() {
        if let Err(e) = version() {
            let text = format!("{e:#}");
            assert!(text.contains("libnccl.so.2") && text.contains("LD_LIBRARY_PATH"), "{text}");
        }
    }
}
