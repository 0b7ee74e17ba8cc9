//! Streams, the events that order and time them, and graphs of recorded work.
//!
//! Contract: a stream runs its work in order and shares nothing with other streams but what an event
//! orders. Streams never wait for the default stream.

use super::device::Device;
use super::memory::{DeviceSlice, DeviceSliceMut};
use anyhow::{Context, Result};
use bytemuck::Pod;
use cudarc::driver::result::{self, event, graph, stream};
use cudarc::driver::sys::{self, CUevent_flags, CUevent_wait_flags};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A queue of work for a device.
#[derive(Debug)]
pub struct Stream {
    raw: sys::CUstream,
    device: Arc<Device>,
    is_profiled: AtomicBool,
    profile: Mutex<Vec<Span>>,
}

/// An operation between two events.
#[derive(Debug)]
struct Span {
    name: &'static str,
    ends: [Event; 2],
}

/// What an operation took in a profile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OperationTime {
    /// The kernel's name, or what the library was asked for.
    pub name: &'static str,
    /// How often it ran.
    pub calls: usize,
    /// All its runs together.
    pub milliseconds: f32,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Stream {}

impl Stream {
    /// An empty queue.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind()?;
        let raw = stream::create(stream::StreamKind::NonBlocking).context("creating a stream")?;
        let (is_profiled, profile) = (AtomicBool::new(false), Mutex::default());
        Ok(Self { raw, device: device.clone(), is_profiled, profile })
    }

    /// Whose queue it is.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits until all its work is done. Errors of kernels show here.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { stream::synchronize(self.raw) }
            .context("a GPU kernel failed (compute-sanitizer finds which)")
    }

    /// Lets what is queued after this wait for `event`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.device.bind()?;
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live as long as their borrows, which is all the driver asks.
        unsafe { stream::wait_event(self.raw, event.raw, flags) }.context("waiting for an event")
    }

    /// Copies within the device.
    ///
    /// # Panics
    /// When the lengths differ.
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

    /// Sets every byte.
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

    /// Runs `queue`, waits for what it puts in this stream, and says what each operation took there, in
    /// the order of first runs. Operations are a little slower while they are watched, and what the
    /// device waits for is nobody's time.
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

    /// Queues an operation, which a profile calls `name`.
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

    /// Records the work that `queue` puts in this stream, without running it.
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

/// A point in a stream that others can wait for.
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
    /// An event that orders streams.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        Self::create(device, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// An event that also knows when it happened.
    pub fn timed(device: &Arc<Device>) -> Result<Self> {
        Self::create(device, CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn create(device: &Arc<Device>, flags: CUevent_flags) -> Result<Self> {
        device.bind()?;
        let raw = event::create(flags).context("creating an event")?;
        Ok(Self { raw, device: device.clone() })
    }

    /// Moves it to the end of what is queued in `stream` now.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both live as long as their borrows, which is all the driver asks.
        unsafe { event::record(self.raw, stream.raw) }.context("recording an event")
    }

    /// Waits until the device has reached it.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the event lives as long as `self`.
        unsafe { event::synchronize(self.raw) }.context("waiting for the GPU")
    }

    /// Milliseconds from `earlier`; both were made by [`Event::timed`] and have happened.
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

/// Recorded work that is launched as one. The memory it was recorded with has to stay.
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
    /// The memory that was used while recording is still what it was.
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
