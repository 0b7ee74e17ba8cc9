//! This file puts libraries into a test's process before anybody asks for them.
#![allow(dead_code, reason = "no test needs all of it")]

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library that answers as the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// The driver is NVIDIA's.
    Real,
    /// A test built the driver.
    StandIn,
}

/// Opens a library for everything that comes later in this process.
pub(crate) fn preload(path: &Path) -> bool {
    // SAFETY: the driver, its stand-ins and cuDNN may be loaded at any time.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    library.map(std::mem::forget).is_ok()
}

/// Puts a driver into the process: that of this machine, or the emulated one with four devices, its
/// cuBLASLt and its NCCL. Returns `None` without a C++ compiler.
pub(crate) fn driver() -> Option<Driver> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    *DRIVER.get_or_init(|| {
        if preload(Path::new("libcuda.so.1")) {
            return Some(Driver::Real);
        }
        let folder = emulated_gpu()?;
        // SAFETY: only the stand-in reads it, which is loaded below.
        unsafe { std::env::set_var("EMULATED_GPUS", "4") };
        let libraries = ["libcuda.so.1", "libcublasLt.so.13", "libnccl.so.2"];
        assert!(libraries.iter().all(|library| preload(&folder.join(library))), "{folder:?}");
        Some(Driver::StandIn)
    })
}

/// Does the same with cuDNN, emulated if the driver is. It needs a process of its own, because
/// cuDNN computes training attention from then on. Returns `None` also where a GPU has no cuDNN.
pub(crate) fn driver_with_cudnn() -> Option<Driver> {
    let driver = driver()?;
    static HAS_CUDNN: OnceLock<bool> = OnceLock::new();
    let has_cudnn = HAS_CUDNN.get_or_init(|| match driver {
        Driver::Real => codeseq::cuda::cudnn::version().is_ok(),
        Driver::StandIn => {
            let folder = emulated_gpu().expect("a compiler made the driver");
            preload(&folder.join("cudnn/libcudnn.so.9"))
        }
    });
    has_cudnn.then_some(driver)
}

/// Builds the emulated driver if necessary, and returns its folder for the `LD_LIBRARY_PATH` of a
/// process. Returns `None` without a C++ compiler.
pub(crate) fn emulated_gpu() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/emulated-gpu.sh");
    let output = Command::new("bash").arg(script).output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
    let folder = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(folder.trim()))
}

/// Puts the driver of this machine into the process, or one that the C code `source` makes. Returns
/// `None` without a compiler.
pub(crate) fn driver_or(source: &str) -> Option<Driver> {
    if preload(Path::new("libcuda.so.1")) {
        return Some(Driver::Real);
    }
    let dir = tempfile::tempdir().ok()?;
    let (file, library) = (dir.path().join("driver.c"), dir.path().join("libcuda.so.1"));
    std::fs::write(&file, source).ok()?;
    let made = Command::new("cc")
        .args(["-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
        .args([&library, &file])
        .status();
    (made.is_ok_and(|status| status.success()) && preload(&library)).then_some(Driver::StandIn)
}

/// Tells whether GPUs can be emulated, and prints a message if not.
#[expect(clippy::print_stdout, reason = "says when tests are skipped")]
pub(crate) fn can_emulate() -> bool {
    let can = emulated_gpu().is_some();
    if !can {
        println!("SKIPPED: no C++ compiler");
    }
    can
}

/// Makes a program find emulated GPUs instead of real ones.
pub(crate) fn emulated(command: &mut Command, gpus: usize) -> &mut Command {
    let folder = emulated_gpu().expect("asked for only where GPUs can be emulated");
    command.env("LD_LIBRARY_PATH", folder).env("EMULATED_GPU_MEMORY", "4096");
    command.env("EMULATED_GPUS", gpus.to_string())
}

/// Returns the path on which a program finds the emulated driver of `folder`, and cuDNN with it.
pub(crate) fn with_cudnn(folder: &Path) -> std::ffi::OsString {
    std::env::join_paths([folder.to_owned(), folder.join("cudnn")])
        .expect("a folder without a colon")
}

/// Does the same as [`emulated`], with cuDNN.
pub(crate) fn emulated_with_cudnn(command: &mut Command, gpus: usize) -> &mut Command {
    let folder = emulated_gpu().expect("asked for only where GPUs can be emulated");
    emulated(command, gpus).env("LD_LIBRARY_PATH", with_cudnn(&folder))
}
