//! This file loads the compiled kernels of a source file as a module, finds its functions and
//! launches them.
//!
//! `build.rs` compiles `kernels/NAME.cu` to a fatbin, which `fatbin!("NAME")` embeds. It holds code
//! for several compute capabilities, and the driver takes what fits its GPU. A source that computes
//! with 16-bit numbers is compiled once for each format, and `fatbin!("NAME", format)` is one of the
//! two. Kernels are declared `extern "C" __global__`, so that their names are those of
//! the source:
//!
//! ```ignore
//! // __global__ void widen(float* x, float factor, int len)
//! let widen = Module::load(device, fatbin!("cast"))?.function("widen")?;
//! let len = i32::try_from(x.len())?;
//! // SAFETY: the arguments are those of the kernel, and `x` has `len` elements.
//! unsafe { widen.launch(x.len().div_ceil(256) as u32, 256, 0, stream, &[&x, &2.0f32, &len]) }?;
//! ```

use super::device::Device;
use super::memory::{DeviceSlice, DeviceSliceMut};
use super::stream::Stream;
use anyhow::{Context, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUfunction_attribute};
use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Embeds the compiled `kernels/NAME.cu` for [`Module::load`]. With a
/// [`HalfFormat`](super::HalfFormat) it takes the one that was compiled for this format.
macro_rules! fatbin {
    ($name:literal) => {
        $crate::cuda::module::fatbin!($name of ".fatbin")
    };
    ($name:literal, $format:expr) => {
        match $format {
            $crate::cuda::half::HalfFormat::Bf16 => $crate::cuda::module::fatbin!($name of ".fatbin"),
            $crate::cuda::half::HalfFormat::Fp16 => {
                $crate::cuda::module::fatbin!($name of ".fp16.fatbin")
            }
        }
    };
    ($name:literal of $extension:literal) => {
        $crate::cuda::module::Fatbin {
            name: $name,
            image: {
                const FILE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/", $name, $extension));
                static IMAGE: $crate::cuda::module::Aligned<[u8; FILE.len()]> =
                    $crate::cuda::module::Aligned(*include_bytes!(concat!(
                        env!("OUT_DIR"),
                        "/",
                        $name,
                        $extension
                    )));
                &IMAGE.0
            },
        }
    };
}
pub(crate) use fatbin;

/// Bytes at a multiple of eight, because the driver reads an image's headers as 64-bit integers.
#[repr(C, align(8))]
pub struct Aligned<B>(pub B);

#[derive(Clone, Copy, Debug)]
pub struct Fatbin {
    /// The name is that of the source without `.cu`.
    pub name: &'static str,
    pub image: &'static [u8],
}

/// A block gets this much shared memory without asking for more.
const SHARED_BYTES: u32 = 48 << 10;

#[derive(Debug)]
pub struct Module {
    loaded: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    name: &'static str,
    raw: sys::CUmodule,
    device: Arc<Device>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing here changes after loading.
unsafe impl Sync for Loaded {}

impl Module {
    pub fn load(device: &Arc<Device>, fatbin: Fatbin) -> Result<Self> {
        device.bind()?;
        // SAFETY: the image is what the compiler wrote, and a driver that loads kernels lazily may
        // read it again, because it is never freed.
        let raw = unsafe { result::module::load_data(fatbin.image.as_ptr().cast()) }
            .with_context(|| format!("loading the kernels of {}.cu", fatbin.name))?;
        let device = device.clone();
        Ok(Self { loaded: Arc::new(Loaded { name: fatbin.name, raw, device }) })
    }

    pub fn function(&self, name: &'static str) -> Result<Function> {
        self.loaded.device.bind()?;
        // SAFETY: the module lives as long as `self`.
        let raw = unsafe { result::module::get_function(self.loaded.raw, CString::new(name)?) }
            .with_context(|| format!("{}.cu has no kernel {name}", self.loaded.name))?;
        let shared_bytes = AtomicU32::new(SHARED_BYTES);
        Ok(Function { name, raw, shared_bytes, module: self.loaded.clone() })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: loaded in `Module::load`; no function of it is left.
        let _ = unsafe { result::module::unload(self.raw) };
    }
}

#[derive(Debug)]
pub struct Function {
    name: &'static str,
    raw: sys::CUfunction,
    /// A block may ask for so many bytes at present.
    shared_bytes: AtomicU32,
    module: Arc<Loaded>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Queues the kernel with `grid` blocks of `block` threads and `shared_bytes` of dynamic shared
    /// memory for each block. A grid without blocks queues nothing.
    ///
    /// # Safety
    /// `arguments` must be the kernel's parameters in order and type, and the kernel must stay
    /// within the slices that it is given.
    pub unsafe fn launch(
        &self,
        grid: impl Into<Size>,
        block: impl Into<Size>,
        shared_bytes: u32,
        stream: &Stream,
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        let (Size(grid), Size(block)) = (grid.into(), block.into());
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return Ok(());
        }
        self.module.device.bind()?;
        self.allow(shared_bytes)?;
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|argument| argument.pointer().cast_mut()).collect();
        // SAFETY: the driver copies the arguments before it returns; the rest is the caller's promise.
        stream.operation(self.name, || unsafe {
            result::launch_kernel(self.raw, grid, block, shared_bytes, stream.raw(), &mut pointers)
                .with_context(|| {
                    let name = self.name;
                    format!(
                        "launching {name}: grid {grid:?}, block {block:?}, {shared_bytes} bytes"
                    )
                })
        })
    }

    /// Allows a block to ask for `shared_bytes` of dynamic shared memory.
    fn allow(&self, shared_bytes: u32) -> Result<()> {
        if shared_bytes <= self.shared_bytes.load(Ordering::Relaxed) {
            return Ok(());
        }
        let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function lives as long as `self`.
        unsafe { result::function::set_function_attribute(self.raw, limit, shared_bytes as i32) }
            .with_context(|| format!("giving {} {shared_bytes} bytes of shared memory", self.name))?;
        self.shared_bytes.fetch_max(shared_bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// A number of blocks or threads in up to three dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size((u32, u32, u32));

impl From<u32> for Size {
    fn from(x: u32) -> Self {
        Self((x, 1, 1))
    }
}

impl From<(u32, u32)> for Size {
    fn from((x, y): (u32, u32)) -> Self {
        Self((x, y, 1))
    }
}

impl From<(u32, u32, u32)> for Size {
    fn from(size: (u32, u32, u32)) -> Self {
        Self(size)
    }
}

/// A value that can be passed to a kernel: a number as C has it, a slice as a pointer, an absent
/// slice as a null pointer.
///
/// # Safety
/// `pointer` must point to a value of the C type that stands for `Self`.
pub unsafe trait Argument {
    /// Returns the address of the value.
    fn pointer(&self) -> *const c_void;
}

macro_rules! number_arguments {
    ($($number:ty),*) => {$(
        // SAFETY: the number itself.
        unsafe impl Argument for $number {
            fn pointer(&self) -> *const c_void {
                std::ptr::from_ref(self).cast()
            }
        }
    )*};
}

number_arguments!(i32, u32, i64, u64, f32);

// SAFETY: an address is a pointer to `T`.
unsafe impl<T> Argument for DeviceSlice<'_, T> {
    fn pointer(&self) -> *const c_void {
        self.address_ref().pointer()
    }
}

// SAFETY: an address is a pointer to `T`.
unsafe impl<T> Argument for DeviceSliceMut<'_, T> {
    fn pointer(&self) -> *const c_void {
        self.address_ref().pointer()
    }
}

// SAFETY: an address, or zero, which is the null pointer.
unsafe impl<T: Argument> Argument for Option<T> {
    fn pointer(&self) -> *const c_void {
        static NULL: u64 = 0;
        self.as_ref().map_or_else(|| NULL.pointer(), Argument::pointer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_point_to_their_values() {
        let (count, factor) = (-3i32, 0.5f32);
        let arguments: [&dyn Argument; 3] = [&count, &factor, &None::<DeviceSlice<'_, f32>>];
        // SAFETY: each pointer points to a value of the type read.
        unsafe {
            assert_eq!(*arguments[0].pointer().cast::<i32>(), -3);
            assert_eq!(*arguments[1].pointer().cast::<f32>(), 0.5);
            assert_eq!(*arguments[2].pointer().cast::<u64>(), 0);
        }
    }

    #[test]
    fn sizes_fill_up_with_ones() {
        assert_eq!(Size::from(5), Size((5, 1, 1)));
        assert_eq!(Size::from((5, 6)), Size((5, 6, 1)));
    }
}
