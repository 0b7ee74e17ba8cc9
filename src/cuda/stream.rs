//! This file wraps streams, the events that order and time them, and graphs of recorded work.
//!
//! Contract: a stream runs its work in order. Nothing else orders two streams but an event; in
//! particular they do not wait for the default stream.

use super::device::Device;
use super::memory::{DeviceSlice, DeviceSliceMut};
use anyhow::{Context, Result};
use bytemuck::Pod;
use cudarc::driver::result::{self, event, graph, stream};
use cudarc::driver::sys::{self, CUevent_flags, CUevent_wait_flags};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A queue of work for one device.
#[derive(Debug)]
pub struct Stream {
    raw: sys::CUstream,
    device: Arc<Device>,
    is_profiled: AtomicBool,
    profile: Mutex<Vec<Span>>,
}

/// An operation, and the events before and after it.
#[derive(Debug)]
struct Span {
    name: &'static str,
    ends: [Event; 2],
}

/// The time that an operation took in a profile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OperationTime {
    /// The name is a kernel's, or says what a library was asked for.
    pub name: &'static str,
    pub calls: usize,
    /// The time is the sum over all calls.
    pub milliseconds: f32,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind()?;
        let raw = stream::create(stream::StreamKind::NonBlocking).context("creating a stream")?;
        let (is_profiled, profile) = (AtomicBool::new(false), Mutex::default());
        Ok(Self { raw, device: device.clone(), is_profiled, profile })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits until all queued work is done. A kernel that failed makes this call fail.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { stream::synchronize(self.raw) }
            .context("a GPU kernel failed (compute-sanitizer finds which)")
    }

    /// Makes work that is queued from now on wait for `event`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.device.bind()?;
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live as long as their borrows, which is all the driver asks.
        unsafe { stream::wait_event(self.raw, event.raw, flags) }.context("waiting for an event")
    }

    /// Copies within the device.
    ///
    /// # Panics
    /// Panics when the lengths differ.
    pub fn copy<T: Pod>(
        &self,
        mut to: DeviceSliceMut<'_, T>,
        from: DeviceSlice<'_, T>,
    ) -> Result<()> {
        assert_eq!(to.len(), from.len(), "lengths of a copy");
        let bytes = size_of::<T>() * from.len();
        if bytes == 0 {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: both slices are `bytes` long and in this device's memory.
        self.operation("copy", || unsafe {
            result::memcpy_dtod_async(to.address(), from.address(), bytes, self.raw)
                .context("copying in GPU memory")
        })
    }

    /// Sets every byte of `to` to `byte`.
    pub fn fill<T: Pod>(&self, mut to: DeviceSliceMut<'_, T>, byte: u8) -> Result<()> {
        let bytes = size_of::<T>() * to.len();
        if bytes == 0 {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: the slice is `bytes` long and any bytes make a `T`.
        self.operation("fill", || unsafe {
            result::memset_d8_async(to.address(), byte, bytes, self.raw)
                .context("filling GPU memory")
        })
    }

    /// Runs `queue`, waits for the work that it puts into this stream, and returns the time of each
    /// operation, in the order in which operations first ran. Watched operations are a little
    /// slower. Gaps between operations are not counted.
    pub fn profile(&self, queue: impl FnOnce() -> Result<()>) -> Result<Vec<OperationTime>> {
        self.is_profiled.store(true, Ordering::Relaxed);
        let queued = queue();
        self.is_profiled.store(false, Ordering::Relaxed);
        let spans =
            std::mem::take(&mut *self.profile.lock().unwrap_or_else(PoisonError::into_inner));
        queued?;
        self.synchronize()?;
        let mut times: Vec<OperationTime> = Vec::new();
        for Span { name, ends: [start, end] } in &spans {
            let milliseconds = end.milliseconds_since(start)?;
            match times.iter_mut().find(|time| time.name == *name) {
                Some(time) => {
                    time.calls += 1;
                    time.milliseconds += milliseconds;
                }
                None => times.push(OperationTime { name, calls: 1, milliseconds }),
            }
        }
        Ok(times)
    }

    /// Queues an operation that a profile calls `name`.
    pub(crate) fn operation(
        &self,
        name: &'static str,
        queue: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if !self.is_profiled.load(Ordering::Relaxed) {
            return queue();
        }
        let ends = [Event::timed(&self.device)?, Event::timed(&self.device)?];
        ends[0].record(self)?;
        queue()?;
        ends[1].record(self)?;
        self.profile.lock().unwrap_or_else(PoisonError::into_inner).push(Span { name, ends });
        Ok(())
    }

    /// Records the work that `queue` puts into this stream, without running it.
    pub fn capture(&self, queue: impl FnOnce(&Self) -> Result<()>) -> Result<Graph> {
        self.device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        unsafe { stream::begin_capture(self.raw, mode) }.context("recording a graph")?;
        let queued = queue(self);
        // SAFETY: recording has begun above, and has to end also when `queue` failed.
        let recorded = unsafe { stream::end_capture(self.raw) }.context("recording a graph");
        queued?;
        let recorded = recorded?;
        // SAFETY: `recorded` is a graph, and no longer needed once instantiated.
        let raw = unsafe { graph::instantiate(recorded, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: as above.
        unsafe { graph::destroy(recorded) }.context("recording a graph")?;
        Ok(Graph { raw: raw.context("instantiating a graph")?, device: self.device.clone() })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: created in `new`; queued work still runs to its end.
        let _ = unsafe { stream::destroy(self.raw) };
    }
}

/// A point in a stream, for which the host and other streams can wait.
#[derive(Debug)]
pub struct Event {
    raw: sys::CUevent,
    device: Arc<Device>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Creates an event that orders streams and cannot be timed.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        Self::create(device, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// Creates an event that also records its time.
    pub fn timed(device: &Arc<Device>) -> Result<Self> {
        Self::create(device, CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn create(device: &Arc<Device>, flags: CUevent_flags) -> Result<Self> {
        device.bind()?;
        let raw = event::create(flags).context("creating an event")?;
        Ok(Self { raw, device: device.clone() })
    }

    /// Moves the event to the end of the work that is queued in `stream` now.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both live as long as their borrows, which is all the driver asks.
        unsafe { event::record(self.raw, stream.raw) }.context("recording an event")
    }

    /// Waits until the device has reached the event.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the event lives as long as `self`.
        unsafe { event::synchronize(self.raw) }.context("waiting for the GPU")
    }

    /// Returns the milliseconds since `earlier`. Both events must come from [`Event::timed`] and
    /// must have been reached.
    pub fn milliseconds_since(&self, earlier: &Self) -> Result<f32> {
        self.device.bind()?;
        // SAFETY: both events live as long as their borrows.
        unsafe { event::elapsed(earlier.raw, self.raw) }.context("reading the time of events")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: created in `create`.
        let _ = unsafe { event::destroy(self.raw) };
    }
}

/// Recorded work that is launched as one.
#[derive(Debug)]
pub struct Graph {
    raw: sys::CUgraphExec,
    device: Arc<Device>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Queues the recorded work.
    ///
    /// # Safety
    /// The memory that was used while recording must still exist and belong to the same buffers.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the graph lives as long as `self`; its memory is the caller's promise.
        unsafe { graph::launch(self.raw, stream.raw) }.context("launching a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: instantiated in `Stream::capture`.
        let _ = unsafe { graph::exec_destroy(self.raw) };
    }
}
