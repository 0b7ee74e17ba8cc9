//! This file holds an opened GPU with everything that a computation on it needs.
//!
//! Contract: one thread at a time owns a [`Gpu`] with its stream, its arena and its tools. Events
//! order its work with that of other streams (copies, communication). Two values on one device
//! share nothing. The arena is taken when the GPU is opened and never grows.

use super::device::Device;
use super::gemm::Gemm;
use super::half::HalfFormat;
use super::host::Transfer;
use super::kernels::Kernels;
use super::memory::Arena;
use super::sizes::RESERVE;
use super::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

/// An arena that takes all free memory leaves 1/32 of it, at most [`RESERVE`] bytes, to libraries.
const RESERVED_PART: usize = 32;

/// An opened GPU and what computes on it.
#[derive(Debug)]
pub struct Gpu {
    pub device: Arc<Device>,
    /// All work of this GPU is queued here, except where a caller brings a stream of its own.
    pub stream: Stream,
    pub arena: Arena,
    pub tools: Tools,
}

/// Kernels, products and copies. They are apart from the arena, so that a phase can borrow the
/// arena while these are in use.
#[derive(Debug)]
pub struct Tools {
    pub kernels: Kernels,
    /// The products of matrices run through cuBLASLt.
    pub gemm: Gemm,
    pub transfer: Transfer,
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Work that is still queued uses the buffers that are freed next.
        let _ = self.stream.synchronize();
    }
}

impl Gpu {
    /// Opens GPU `ordinal` to compute in `half_format`, and takes `memory_bytes` of its memory.
    /// Without a number it takes all free memory except a reserve for libraries.
    pub fn open(
        ordinal: usize,
        half_format: HalfFormat,
        memory_bytes: Option<usize>,
    ) -> Result<Self> {
        let device = Device::open(ordinal, half_format)?;
        let stream = Stream::new(&device)?;
        let kernels = Kernels::load(&device)?;
        let transfer = Transfer::new(&device)?;
        let bytes = match memory_bytes {
            Some(bytes) => bytes,
            None => {
                let free = device.free_bytes()?;
                free - (free / RESERVED_PART).min(RESERVE)
            }
        };
        let mut arena = Arena::new(&device, bytes)?;
        let gemm = Gemm::new(&mut arena)?;
        Ok(Self { device, stream, arena, tools: Tools { kernels, gemm, transfer } })
    }
}
