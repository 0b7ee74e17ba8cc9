//! A GPU and everything that a computation on it needs.
//!
//! Contract: one stream, one arena, one set of tools, owned by one thread at a time; work for other
//! streams (copies, communication) is ordered with this one by events. Two values on one device share
//! nothing. The arena is taken when a GPU is opened and never grows.

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

/// Of a device's free memory a part in this many is no arena's, at most [`RESERVE`].
const RESERVED_PART: usize = 32;

/// One GPU at work.
#[derive(Debug)]
pub struct Gpu {
    /// The device.
    pub device: Arc<Device>,
    /// Where its work is queued.
    pub stream: Stream,
    /// Its memory.
    pub arena: Arena,
    /// What works on it.
    pub tools: Tools,
}

/// What works on a GPU: apart from the arena, so that a phase may borrow one beside the other.
#[derive(Debug)]
pub struct Tools {
    /// Our kernels.
    pub kernels: Kernels,
    /// Products of matrices.
    pub gemm: Gemm,
    /// Copies from and to the host.
    pub transfer: Transfer,
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // What is still queued uses what goes now.
        let _ = self.stream.synchronize();
    }
}

impl Gpu {
    /// Opens device `ordinal`, to compute with numbers of 16 bits in `half_format`, and takes
    /// `memory_bytes` of its memory; without a number, all that is free but a reserve for libraries.
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
