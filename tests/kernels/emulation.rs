//! This file builds `tests/emulated_gpu` into a library, loads it, and gives it memory that it can
//! watch.

use crate::cuda::device::Device;
use crate::cuda::half::HalfFormat;
use crate::cuda::kernels::Kernels;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::Argument;
use crate::cuda::stream::Stream;
use anyhow::{Result, bail};
use bytemuck::Pod;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

/// Threads and blocks run forwards, backwards, and shuffled.
pub(crate) const ORDERS: [u32; 3] = [0, 1, 20_617];

/// So many bytes before and after a buffer may be touched by no kernel; `runtime.cpp` has the same
/// number.
const GUARD: usize = 256;
/// A buffer starts with this byte: NaNs in every format.
const POISON: u8 = 0xff;

type Emulate = unsafe extern "C" fn(
    *const c_char,
    bool,
    *const [u32; 2],
    u32,
    *mut *mut c_void,
    *const [usize; 2],
    usize,
    u32,
) -> *const c_char;

/// The loaded library, which runs one launch at a time.
#[derive(Debug)]
pub(crate) struct Library {
    emulate: Mutex<Emulate>,
}

thread_local! {
    /// The addresses and sizes in bytes of this test's buffers.
    static BUFFERS: RefCell<Vec<[usize; 2]>> = const { RefCell::new(Vec::new()) };
}

impl Library {
    /// Returns the library, which is built if its sources changed. Returns `None` without a C++
    /// compiler and says so once.
    pub(crate) fn get() -> Option<&'static Self> {
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        LIBRARY.get_or_init(|| build().map(|path| load(&path))).as_ref()
    }

    /// Runs a kernel over the buffers of this thread.
    pub(crate) fn launch(
        &self,
        (name, format): (&str, HalfFormat),
        grid: [u32; 2],
        block: u32,
        mut arguments: Vec<*mut c_void>,
        order: u32,
    ) -> Result<()> {
        let emulate = self.emulate.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let kernel = CString::new(name)?;
        let buffers = BUFFERS.with_borrow(Clone::clone);
        // SAFETY: the arguments are those of the kernel, which the emulation watches; the text that
        // it returns lives until the next call.
        let error = unsafe {
            let (count, buffers) = (buffers.len(), buffers.as_ptr());
            let error = emulate(
                kernel.as_ptr(),
                format == HalfFormat::Fp16,
                &grid,
                block,
                arguments.as_mut_ptr(),
                buffers,
                count,
                order,
            );
            (!error.is_null()).then(|| CStr::from_ptr(error).to_string_lossy().into_owned())
        };
        match error {
            Some(error) => bail!("{name}: {error}"),
            None => Ok(()),
        }
    }
}

/// Returns the name of a C++ compiler that runs.
fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let names = named.into_iter().chain(["c++", "g++", "clang++"].map(str::to_owned));
    names.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok())
}

/// Returns the library, rebuilt if it is older than its sources.
fn build() -> Option<PathBuf> {
    let Some(compiler) = compiler() else {
        // Output of `eprintln!` is not shown for tests that pass.
        let skipped =
            b"SKIPPED: no kernel was tested, as there is no C++ compiler (c++, g++, clang++)\n";
        std::io::stderr().write_all(skipped).unwrap();
        return None;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let emulation = root.join("tests/emulated_gpu");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join("libkernels.so");
    let changed = |file: &Path| file.metadata().and_then(|m| m.modified()).ok();
    let files =
        |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let sources = files(root.join("kernels")).chain(files(emulation.clone()));
    let newest: Option<SystemTime> = sources.map(|file| changed(&file)).max().flatten();
    if changed(&library) > newest {
        return Some(library);
    }
    let run = |arguments: &[&str], source: &str, out: &Path| {
        let mut command = Command::new(&compiler);
        let source = emulation.join(source);
        command.args(["-std=c++20", "-O2", "-fPIC", "-Wall", "-U_FORTIFY_SOURCE"]).args(arguments);
        let output = command.arg(source).arg("-o").arg(out).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    // Unfinished files have names of this process alone.
    let own = |name: &str| folder.join(format!("{name}.{}", std::process::id()));
    let sources = ["library.cpp", "library_fp16.cpp"];
    let (objects, unfinished) =
        (sources.map(|source| own(&format!("{source}.o"))), own("libkernels.so"));
    // Instrumented accesses call runtime.cpp, not a sanitizer's library.
    let instrumented = [
        "-c",
        "-fsanitize=thread,alignment",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-fno-threadsafe-statics",
        "-Wno-unknown-pragmas",
    ];
    std::thread::scope(|scope| {
        for (source, object) in sources.iter().zip(&objects) {
            scope.spawn(move || run(&instrumented, source, object));
        }
    });
    let linked = objects.each_ref().map(|object| object.to_str().unwrap());
    run(&["-shared", linked[0], linked[1]], "runtime.cpp", &unfinished);
    objects.iter().for_each(|object| std::fs::remove_file(object).unwrap());
    std::fs::rename(unfinished, &library).unwrap();
    Some(library)
}

fn load(path: &Path) -> Library {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: our own library, whose only constructor fills a few tables.
    let emulate = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!library.is_null(), "{path:?} does not load");
        let symbol = libc::dlsym(library, c"emulate".as_ptr());
        assert!(!symbol.is_null(), "{path:?} has no emulate");
        std::mem::transmute::<*mut c_void, Emulate>(symbol)
    };
    Library { emulate: Mutex::new(emulate) }
}

/// The kernels on the emulation, in one order of threads.
pub(crate) struct Gpu {
    pub(crate) kernels: Kernels,
    pub(crate) stream: Stream,
    library: &'static Library,
}

impl Gpu {
    pub(crate) fn new(library: &'static Library, format: HalfFormat, order: u32) -> Self {
        let kernels = Kernels::load(&Arc::new(Device(format))).unwrap();
        Self { kernels, stream: Stream { order }, library }
    }

    /// Launches a kernel that has no launcher.
    pub(crate) fn launch(
        &self,
        name: &'static str,
        grid: u32,
        block: u32,
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        let pointers = arguments.iter().map(|argument| argument.pointer().cast_mut()).collect();
        self.library.launch((name, HalfFormat::Bf16), [grid, 1], block, pointers, self.stream.order)
    }

    /// Makes a buffer of these elements.
    pub(crate) fn put<T: Pod>(&self, elements: &[T]) -> Buffer<T> {
        let mut buffer = self.poisoned(elements.len());
        buffer.bytes_mut().copy_from_slice(bytemuck::cast_slice(elements));
        buffer
    }

    /// Makes a buffer of NaNs.
    pub(crate) fn poisoned<T: Pod>(&self, len: usize) -> Buffer<T> {
        let words = (len * size_of::<T>()).div_ceil(GUARD) + 2;
        let memory = vec![Aligned([POISON; GUARD]); words].into_boxed_slice();
        let buffer = Buffer { memory, len, element: PhantomData };
        BUFFERS.with_borrow_mut(|all| all.push([buffer.address(), buffer.len_bytes()]));
        buffer
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Aligned([u8; GUARD]);

/// Watched memory between two guards.
pub(crate) struct Buffer<T> {
    memory: Box<[Aligned]>,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Buffer<T> {
    fn address(&self) -> usize {
        self.memory.as_ptr() as usize + GUARD
    }

    fn len_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let (address, len) = (self.address() as *mut u8, self.len_bytes());
        // SAFETY: behind the first guard of memory that `self` owns.
        unsafe { std::slice::from_raw_parts_mut(address, len) }
    }
}

impl<T: Pod> Buffer<T> {
    pub(crate) fn slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice::new(self.address() as u64, self.len)
    }

    pub(crate) fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut::new(self.address() as u64, self.len)
    }

    /// Returns the elements that the buffer has now.
    pub(crate) fn get(&self) -> Vec<T> {
        // SAFETY: as `bytes_mut`; aligned, and any bytes are a `T`.
        unsafe { std::slice::from_raw_parts(self.address() as *const T, self.len) }.to_vec()
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let address = self.address();
        BUFFERS.with_borrow_mut(|all| all.retain(|buffer| buffer[0] != address));
        let end = self.address() + self.len_bytes();
        // SAFETY: the guards are within memory that `self` owns.
        let guards = unsafe {
            let first = std::slice::from_raw_parts((address - GUARD) as *const u8, GUARD);
            [first, std::slice::from_raw_parts(end as *const u8, GUARD)]
        };
        let is_whole = guards.iter().all(|guard| guard.iter().all(|&byte| byte == POISON));
        assert!(is_whole || std::thread::panicking(), "something wrote beside a buffer");
    }
}
