//! NVIDIA GPUs: devices, memory, streams, kernels, and the libraries that are opened at run time.
//!
//! Contract: compiled only with the feature `cuda` (but for `sizes`), and nothing here needs a CUDA library to link or
//! to start: the driver, cuBLASLt, cuDNN and NCCL are opened on first use, and what is absent is an
//! error that says which file was looked for. Work is asynchronous: a call that takes a [`Stream`]
//! returns before the device has done it, in the order of that stream; events order streams by hand.
//! Device memory comes from one [`Arena`] per device. Left out: kernels for cards other than compute
//! capability 9.0, and unified memory.

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
