//! This file manages device memory: one arena per GPU, buffers in it, and typed slices of buffers.
//!
//! Contract: an arena takes its memory once and never grows. Buffers that last (parameters,
//! moments) are taken first. The rest belongs to one [`Phase`] after another: to gradients and
//! activations while training, to the key-value cache during rollouts. A buffer borrows its phase,
//! so the compiler rejects one that outlives it. A new phase does not wait for the device: streams
//! must be ordered as for any reuse of memory. Contents are undefined until they are written.
//! Slices behave as host slices do, except that they hold addresses and no data; a range beyond a
//! slice panics.

use super::device::Device;
use super::sizes::ALIGNMENT;
use crate::base::human;
use anyhow::{Context, Result, bail};
use bytemuck::Pod;
use cudarc::driver::result;
use cudarc::driver::sys::CUdeviceptr;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Elements of device memory that may be read.
#[derive(Debug)]
pub struct DeviceSlice<'a, T> {
    address: CUdeviceptr,
    len: usize,
    memory: PhantomData<&'a T>,
}

/// Elements of device memory that may be written.
#[derive(Debug)]
pub struct DeviceSliceMut<'a, T> {
    address: CUdeviceptr,
    len: usize,
    memory: PhantomData<&'a mut T>,
}

impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceSlice<'_, T> {}

impl<'a, T> DeviceSlice<'a, T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn range(self, range: Range<usize>) -> DeviceSlice<'a, T> {
        let (address, len) = part::<T>(self.address, self.len, range);
        Self { address, len, memory: PhantomData }
    }

    pub(crate) fn address(&self) -> CUdeviceptr {
        self.address
    }

    pub(crate) fn address_ref(&self) -> &CUdeviceptr {
        &self.address
    }
}

impl<'a, T> DeviceSliceMut<'a, T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the same elements for reading.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { address: self.address, len: self.len, memory: PhantomData }
    }

    /// Borrows the same elements for a shorter time.
    pub fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.address, len: self.len, memory: PhantomData }
    }

    pub fn range(&mut self, range: Range<usize>) -> DeviceSliceMut<'_, T> {
        self.reborrow().into_range(range)
    }

    /// Returns the elements of `range` for the lifetime of the whole slice.
    pub fn into_range(self, range: Range<usize>) -> DeviceSliceMut<'a, T> {
        let (address, len) = part::<T>(self.address, self.len, range);
        Self { address, len, memory: PhantomData }
    }

    /// Splits the slice into the elements before `middle` and the rest.
    pub fn split_at(self, middle: usize) -> (Self, Self) {
        let (address, len) = part::<T>(self.address, self.len, middle..self.len);
        let rest = Self { address, len, memory: PhantomData };
        (self.into_range(0..middle), rest)
    }

    pub(crate) fn address(&mut self) -> CUdeviceptr {
        self.address
    }

    pub(crate) fn address_ref(&self) -> &CUdeviceptr {
        &self.address
    }
}

fn part<T>(address: CUdeviceptr, len: usize, range: Range<usize>) -> (CUdeviceptr, usize) {
    assert!(
        range.start <= range.end && range.end <= len,
        "range {range:?} of {len} elements of device memory"
    );
    (address + (range.start * size_of::<T>()) as CUdeviceptr, range.len())
}

/// A buffer of an arena that lives for `'a`.
#[derive(Debug)]
pub struct DeviceBuffer<'a, T> {
    address: CUdeviceptr,
    len: usize,
    /// The buffer shares ownership of the arena's memory.
    _block: Arc<Block>,
    phase: PhantomData<(&'a mut (), T)>,
}

impl<T: Pod> DeviceBuffer<'_, T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns all elements for reading.
    pub fn slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { address: self.address, len: self.len, memory: PhantomData }
    }

    /// Returns all elements for writing.
    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.address, len: self.len, memory: PhantomData }
    }
}

/// An allocation of the driver, which is freed when its last owner is dropped.
#[derive(Debug)]
struct Block {
    address: CUdeviceptr,
    device: Arc<Device>,
}

impl Drop for Block {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: allocated in `Arena::new`; the last owner is gone.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// All device memory that one user of a GPU takes.
#[derive(Debug)]
pub struct Arena {
    block: Arc<Block>,
    space: Space,
}

/// The memory of an arena that no lasting buffer has, for one purpose at a time.
#[derive(Debug)]
pub struct Phase<'a> {
    arena: &'a mut Arena,
}

impl Arena {
    /// Allocates `bytes` of the device's memory.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let free = device.free_bytes()?;
        // SAFETY: nothing reads the memory before it is written.
        let address = unsafe { result::malloc_sync(bytes.max(ALIGNMENT)) }.with_context(|| {
            format!(
                "GPU {} has {} free of {}; {} were asked for",
                device.properties().ordinal,
                human::bytes(free as u64),
                human::bytes(device.properties().memory_bytes as u64),
                human::bytes(bytes as u64)
            )
        })?;
        let block = Arc::new(Block { address, device: device.clone() });
        Ok(Self { block, space: Space::new(bytes) })
    }

    /// Takes `len` elements that stay taken until the arena is dropped. Errors and reports call
    /// them `name`.
    pub fn lasting<T: Pod>(&mut self, name: &str, len: usize) -> Result<DeviceBuffer<'static, T>> {
        self.space.end_phase();
        let buffer = self.take(name, len)?;
        self.space.lasting = self.space.taken.len();
        Ok(buffer)
    }

    /// Begins a phase with the memory of the one before, whose buffers are gone.
    pub fn phase(&mut self) -> Phase<'_> {
        self.space.end_phase();
        Phase { arena: self }
    }

    /// Returns the names and bytes of the buffers that are taken now, in order.
    pub fn taken(&self) -> impl Iterator<Item = (&str, usize)> {
        self.space.taken.iter().map(|(name, bytes)| (name.as_str(), *bytes))
    }

    /// Returns the most bytes that were ever taken at once.
    pub fn peak_bytes(&self) -> usize {
        self.space.peak
    }

    fn take<T: Pod>(&mut self, name: &str, len: usize) -> Result<DeviceBuffer<'static, T>> {
        let ordinal = self.block.device.properties().ordinal;
        let offset = self.space.take(name, len.saturating_mul(size_of::<T>()));
        let offset = offset.with_context(|| format!("GPU {ordinal} has too little memory"))?;
        let address = self.block.address + offset as CUdeviceptr;
        Ok(DeviceBuffer { address, len, _block: self.block.clone(), phase: PhantomData })
    }
}

impl<'a> Phase<'a> {
    /// Takes `len` elements until the phase ends. Errors and reports call them `name`.
    pub fn take<T: Pod>(&mut self, name: &str, len: usize) -> Result<DeviceBuffer<'a, T>> {
        self.arena.take(name, len)
    }

    /// Returns how many bytes this phase can still take.
    pub fn free_bytes(&self) -> usize {
        self.arena.space.free()
    }
}

/// The arithmetic of an arena, which needs no device.
#[derive(Debug)]
struct Space {
    capacity: usize,
    taken: Vec<(String, usize)>,
    /// The first so many of `taken` outlast phases.
    lasting: usize,
    used: usize,
    peak: usize,
}

impl Space {
    fn new(capacity: usize) -> Self {
        Self { capacity, taken: Vec::new(), lasting: 0, used: 0, peak: 0 }
    }

    fn free(&self) -> usize {
        self.capacity - self.used
    }

    /// Takes `bytes` and returns their offset in the arena.
    fn take(&mut self, name: &str, bytes: usize) -> Result<usize> {
        let bytes = bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        if bytes > self.free() {
            bail!(
                "{name} needs {} of GPU memory; {} of {} are free beside {}",
                human::bytes(bytes as u64),
                human::bytes(self.free() as u64),
                human::bytes(self.capacity as u64),
                self.largest()
            );
        }
        let offset = self.used;
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        self.taken.push((name.to_owned(), bytes));
        Ok(offset)
    }

    /// Frees what the phase has taken.
    fn end_phase(&mut self) {
        self.taken.truncate(self.lasting);
        self.used = self.taken.iter().map(|(_, bytes)| bytes).sum();
    }

    /// Names the three largest buffers and the sum of the rest, for an error.
    fn largest(&self) -> String {
        let mut parts: Vec<(&str, usize)> =
            self.taken.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let rest: usize = parts.iter().skip(3).map(|(_, bytes)| bytes).sum();
        parts.truncate(3);
        parts.extend((rest > 0).then_some(("others", rest)));
        match parts.is_empty() {
            true => "nothing".to_owned(),
            false => {
                let text = |(name, bytes)| format!("{name} {}", human::bytes(bytes as u64));
                parts.into_iter().map(text).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_share_what_the_lasting_buffers_leave() {
        let mut space = Space::new(1024);
        assert_eq!(space.take("parameters", 300).unwrap(), 0);
        space.lasting = space.taken.len();
        assert_eq!(space.take("gradients", 256).unwrap(), 512);
        assert_eq!(space.take("activations", 1).unwrap(), 768);
        assert_eq!(space.free(), 0);
        space.end_phase();
        assert_eq!(space.free(), 512);
        assert_eq!(space.take("key-value cache", 512).unwrap(), 512);
        assert_eq!((space.free(), space.peak), (0, 1024));
    }

    #[test]
    fn a_buffer_too_large_is_refused_by_name_with_what_takes_the_room() {
        let mut space = Space::new(4096);
        space.take("parameters", 1024).unwrap();
        space.take("moments", 2048).unwrap();
        let text = format!("{:#}", space.take("activations", 1025).unwrap_err());
        assert_eq!(
            text,
            "activations needs 1.2 KiB of GPU memory; 1.0 KiB of 4.0 KiB are free beside moments \
             2.0 KiB, parameters 1.0 KiB"
        );
    }

    #[test]
    fn a_range_of_a_slice_moves_by_elements() {
        let slice = DeviceSlice::<f32> { address: 4096, len: 10, memory: PhantomData };
        let part = slice.range(2..6).range(1..3);
        assert_eq!((part.address(), part.len()), (4096 + 12, 2));
    }

    #[test]
    #[should_panic(expected = "range 2..11 of 10 elements")]
    fn a_range_beyond_a_slice_panics() {
        let slice = DeviceSlice::<f32> { address: 4096, len: 10, memory: PhantomData };
        let _ = slice.range(2..11);
    }
}
