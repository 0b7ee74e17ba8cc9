//! This file stands in for `codeseq::cuda`: device, memory, modules and streams on the emulation,
//! and the launchers themselves, compiled from their own files.
#![allow(dead_code, unreachable_pub, reason = "the launchers are written for the library")]

#[path = "../../src/cuda/half.rs"]
pub mod half;
#[path = "../../src/cuda/kernels/mod.rs"]
pub mod kernels;
#[path = "../../src/cuda/sizes.rs"]
pub mod sizes;

pub mod device {
    //! This module has a device that is none.

    use super::half::HalfFormat;

    /// The emulation in place of a device.
    #[derive(Debug)]
    pub struct Device(pub HalfFormat);

    impl Device {
        pub fn half_format(&self) -> HalfFormat {
            self.0
        }
    }
}

pub mod stream {
    //! A stream is only an order of threads here.

    /// The order in which threads run; see `emulation::ORDERS`.
    #[derive(Debug)]
    pub struct Stream {
        pub order: u32,
    }
}

pub mod memory {
    //! Slices are those of the host's memory, with the interface of `codeseq::cuda::memory`.

    use std::marker::PhantomData;
    use std::ops::Range;

    #[derive(Debug)]
    pub struct DeviceSlice<'a, T> {
        pub(super) address: u64,
        len: usize,
        memory: PhantomData<&'a T>,
    }

    #[derive(Debug)]
    pub struct DeviceSliceMut<'a, T> {
        pub(super) address: u64,
        len: usize,
        memory: PhantomData<&'a mut T>,
    }

    impl<T> Clone for DeviceSlice<'_, T> {
        fn clone(&self) -> Self {
            *self
        }
    }

    impl<T> Copy for DeviceSlice<'_, T> {}

    impl<T> DeviceSlice<'_, T> {
        pub fn new(address: u64, len: usize) -> Self {
            Self { address, len, memory: PhantomData }
        }
        pub fn len(&self) -> usize {
            self.len
        }
        pub fn range(self, range: Range<usize>) -> Self {
            assert!(range.end <= self.len);
            Self::new(self.address + (range.start * size_of::<T>()) as u64, range.len())
        }
    }

    impl<T> DeviceSliceMut<'_, T> {
        pub fn new(address: u64, len: usize) -> Self {
            Self { address, len, memory: PhantomData }
        }
        pub fn len(&self) -> usize {
            self.len
        }
        pub fn as_slice(&self) -> DeviceSlice<'_, T> {
            DeviceSlice::new(self.address, self.len)
        }
        pub fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
            DeviceSliceMut::new(self.address, self.len)
        }
        pub fn range(&mut self, range: Range<usize>) -> DeviceSliceMut<'_, T> {
            assert!(range.end <= self.len);
            let address = self.address + (range.start * size_of::<T>()) as u64;
            DeviceSliceMut::new(address, range.len())
        }
    }
}

pub mod module {
    //! Kernels are found by name.

    use super::device::Device;
    use super::half::HalfFormat;
    use super::memory::{DeviceSlice, DeviceSliceMut};
    use super::stream::Stream;
    use crate::emulation::Library;
    use anyhow::Result;
    use std::ffi::c_void;
    use std::sync::Arc;

    macro_rules! fatbin {
        ($name:literal) => {
            $crate::cuda::module::Fatbin($crate::cuda::half::HalfFormat::Bf16)
        };
        ($name:literal, $format:expr) => {
            $crate::cuda::module::Fatbin($format)
        };
    }
    pub(crate) use fatbin;

    #[derive(Clone, Copy, Debug)]
    pub struct Fatbin(pub HalfFormat);

    #[derive(Debug)]
    pub struct Module(HalfFormat);

    impl Module {
        pub fn load(_: &Arc<Device>, fatbin: Fatbin) -> Result<Self> {
            Ok(Self(fatbin.0))
        }
        pub fn function(&self, name: &'static str) -> Result<Function> {
            Ok(Function { name, format: self.0 })
        }
    }

    #[derive(Debug)]
    pub struct Function {
        pub name: &'static str,
        format: HalfFormat,
    }

    impl Function {
        pub unsafe fn launch(
            &self,
            grid: impl Into<Size>,
            block: impl Into<Size>,
            shared_bytes: u32,
            stream: &Stream,
            arguments: &[&dyn Argument],
        ) -> Result<()> {
            let (Size(columns, rows), Size(threads, _)) = (grid.into(), block.into());
            assert_eq!(shared_bytes, 0, "kernels state their shared memory");
            if columns == 0 || rows == 0 {
                return Ok(());
            }
            let pointers = arguments.iter().map(|argument| argument.pointer().cast_mut()).collect();
            let library = Library::get().expect("loaded before");
            let kernel = (self.name, self.format);
            library.launch(kernel, [columns, rows], threads, pointers, stream.order)
        }
    }

    pub struct Size(u32, u32);

    impl From<u32> for Size {
        fn from(x: u32) -> Self {
            Self(x, 1)
        }
    }

    impl From<(u32, u32)> for Size {
        fn from((x, y): (u32, u32)) -> Self {
            Self(x, y)
        }
    }

    /// A value that can be passed to a kernel.
    ///
    /// # Safety
    /// `pointer` must point to a value of the C type that stands for `Self`.
    pub unsafe trait Argument {
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
    number_arguments!(i32, i64, u64, f32);

    // SAFETY: an address is a pointer to `T`.
    unsafe impl<T> Argument for DeviceSlice<'_, T> {
        fn pointer(&self) -> *const c_void {
            self.address.pointer()
        }
    }

    // SAFETY: an address is a pointer to `T`.
    unsafe impl<T> Argument for DeviceSliceMut<'_, T> {
        fn pointer(&self) -> *const c_void {
            self.address.pointer()
        }
    }

    // SAFETY: an address, or zero, which is the null pointer.
    unsafe impl<T: Argument> Argument for Option<T> {
        fn pointer(&self) -> *const c_void {
            static NULL: u64 = 0;
            self.as_ref().map_or_else(|| NULL.pointer(), Argument::pointer)
        }
    }
}
