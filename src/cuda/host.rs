//! This file copies between host and device through pinned memory.
//!
//! Contract: two pinned chunks take turns, so that the copy to or from pageable memory overlaps
//! with the transfer. An upload returns as soon as the caller may change its data; a download
//! returns when the data has arrived. Small uploads share a chunk, so that none waits for the one
//! before. An upload to another stream than the last one's first waits for the last one.

use super::device::Device;
use super::memory::{DeviceSlice, DeviceSliceMut};
use super::stream::{Event, Stream};
use anyhow::{Context, Result};
use bytemuck::Pod;
use cudarc::driver::result;
use cudarc::driver::sys::CUstream;
use std::sync::Arc;

/// A chunk is large enough to reach the full speed of the bus.
const CHUNK: usize = 16 << 20;

/// Each upload begins in its chunk at a multiple of this many bytes.
const ALIGNMENT: usize = 256;

/// The copies between the host and one device.
#[derive(Debug)]
pub struct Transfer {
    chunks: [Chunk; 2],
    /// Uploads fill this chunk, and have filled so many bytes of it.
    filling: usize,
    filled: usize,
    /// The last upload went to this stream.
    stream: CUstream,
}

// SAFETY: the stream is only compared.
unsafe impl Send for Transfer {}

/// Pinned memory, with the event after which it may be overwritten.
#[derive(Debug)]
struct Chunk {
    memory: *mut u8,
    done: Event,
    device: Arc<Device>,
}

// SAFETY: the memory belongs to the chunk alone.
unsafe impl Send for Chunk {}

impl Transfer {
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let chunks = [Chunk::new(device)?, Chunk::new(device)?];
        Ok(Self { chunks, filling: 0, filled: 0, stream: std::ptr::null_mut() })
    }

    /// Copies `from` to device memory, in the order of `stream`.
    ///
    /// # Panics
    /// Panics when the lengths differ.
    pub fn upload<T: Pod>(
        &mut self,
        stream: &Stream,
        from: &[T],
        mut to: DeviceSliceMut<'_, T>,
    ) -> Result<()> {
        assert_eq!(from.len(), to.len(), "lengths of an upload");
        stream.device().bind()?;
        if stream.raw() != self.stream {
            self.wait()?;
            self.stream = stream.raw();
        }
        let mut address = to.address();
        let mut bytes = bytemuck::cast_slice::<T, u8>(from);
        while !bytes.is_empty() {
            if self.filled == CHUNK {
                self.filling = 1 - self.filling;
                self.chunks[self.filling].done.synchronize()?;
                self.filled = 0;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(CHUNK - self.filled));
            let chunk = &mut self.chunks[self.filling];
            let pinned = &mut chunk.bytes()[self.filled..][..part.len()];
            pinned.copy_from_slice(part);
            // SAFETY: `address` has at least `part.len()` bytes left; this part of the chunk is not
            // touched before `done`.
            unsafe { result::memcpy_htod_async(address, pinned, stream.raw()) }
                .context("copying to the GPU")?;
            chunk.done.record(stream)?;
            self.filled = CHUNK.min((self.filled + part.len()).next_multiple_of(ALIGNMENT));
            address += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Waits until both chunks may be overwritten.
    fn wait(&mut self) -> Result<()> {
        self.filled = 0;
        self.chunks.iter().try_for_each(|chunk| chunk.done.synchronize())
    }

    /// Copies from device memory what it holds when `stream` has done the work that is queued now,
    /// and waits for the copy.
    ///
    /// # Panics
    /// Panics when the lengths differ.
    pub fn download<T: Pod>(
        &mut self,
        stream: &Stream,
        from: DeviceSlice<'_, T>,
        to: &mut [T],
    ) -> Result<()> {
        assert_eq!(from.len(), to.len(), "lengths of a download");
        stream.device().bind()?;
        self.wait()?;
        let mut address = from.address();
        let mut under_way: Option<(usize, &mut [u8])> = None;
        for (i, part) in bytemuck::cast_slice_mut::<T, u8>(to).chunks_mut(CHUNK).enumerate() {
            let chunk = &mut self.chunks[i % 2];
            chunk.done.synchronize()?;
            let pinned = &mut chunk.bytes()[..part.len()];
            // SAFETY: `address` has at least `part.len()` bytes left; the chunk is not read before
            // `done`.
            unsafe { result::memcpy_dtoh_async(pinned, address, stream.raw()) }
                .context("copying from the GPU")?;
            chunk.done.record(stream)?;
            address += part.len() as u64;
            if let Some((before, part)) = under_way.replace((i % 2, part)) {
                self.chunks[before].read(part)?;
            }
        }
        under_way.map_or(Ok(()), |(last, part)| self.chunks[last].read(part))
    }
}

impl Chunk {
    fn new(device: &Arc<Device>) -> Result<Self> {
        let done = Event::new(device)?;
        // SAFETY: the memory is set below before anything reads it.
        let memory = unsafe { result::malloc_host(CHUNK, 0) }.context("pinning host memory")?;
        let memory = memory.cast::<u8>();
        // SAFETY: `memory` is `CHUNK` bytes long.
        unsafe { memory.write_bytes(0, CHUNK) };
        Ok(Self { memory, done, device: device.clone() })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `CHUNK` initialised bytes that this chunk alone owns.
        unsafe { std::slice::from_raw_parts_mut(self.memory, CHUNK) }
    }

    /// Waits for the transfer into this chunk and copies its bytes to `to`.
    fn read(&mut self, to: &mut [u8]) -> Result<()> {
        self.done.synchronize()?;
        to.copy_from_slice(&self.bytes()[..to.len()]);
        Ok(())
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let _ = self.done.synchronize();
        let _ = self.device.bind();
        // SAFETY: pinned in `new`, and no transfer uses it any more.
        let _ = unsafe { result::free_host(self.memory.cast()) };
    }
}
