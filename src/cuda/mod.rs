//! This module drives NVIDIA GPUs: devices, memory, streams, kernels, and libraries that are opened
//! at run time.
//!
//! Contract: all of it but `sizes` is compiled only with the feature `cuda`, and needs no CUDA
//! library to link or to start. The driver, cuBLASLt, cuDNN and NCCL are opened on first use; an
//! error says which file was looked for and is missing. Work is asynchronous: a call that takes a
//! [`Stream`] returns before the device has done the work. A stream keeps its order, and events
//! order streams among each other. Device memory comes from one [`Arena`] per device. Left out:
//! GPUs of a compute capability below 8.0, and unified memory.

pub mod cudnn;
pub mod device;
pub mod gemm;
pub mod gpu;
pub mod half;
pub mod host;
pub mod inventory;
pub mod kernels;
pub mod library;
pub mod memory;
pub mod module;
pub mod nccl;
pub mod sizes;
pub mod stream;

pub use self::half::{Half, HalfFormat};
pub use device::Device;
pub use gemm::Gemm;
pub use gpu::{Gpu, Tools};
pub use host::Transfer;
pub use inventory::inventory;
pub use memory::{Arena, DeviceBuffer, DeviceSlice, DeviceSliceMut, Phase};
pub use module::{Function, Module};
pub use stream::{Event, Graph, OperationTime, Stream};
