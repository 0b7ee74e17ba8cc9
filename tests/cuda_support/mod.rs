//! Libraries that tests put into their process before anyone asks for them.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::path::Path;
use std::process::Command;

/// Opens a library for all that comes after.
pub(crate) fn preload(path: &Path) -> bool {
    // SAFETY: the driver, its stand-ins and cuDNN may be loaded at any time.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    library.map(std::mem::forget).is_ok()
}

/// The driver of this machine, or what `source` makes in its place. `None` without a C compiler.
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

/// What answers as the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// NVIDIA's.
    Real,
    /// What a test made.
    StandIn,
}
