//! This file opens shared libraries at run time.
//!
//! Contract: a library is looked for where the system's loader looks (`LD_LIBRARY_PATH`, the
//! system's folders), then in `$CUDA_HOME/lib` and `$CUDA_HOME/lib64`. Opening one that is missing
//! gives the error [`Absent`], so that a caller can fall back.

use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_LAZY};
use std::ffi::{CStr, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

/// The error for a library that this machine does not have.
#[derive(Clone, Debug)]
pub struct Absent {
    pub name: &'static str,
    /// The loader looked for this file.
    pub file: &'static str,
    /// The loader gave this reason.
    pub reason: String,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, file, reason } = self;
        write!(f, "{name} is missing: put the folder of {file} on LD_LIBRARY_PATH ({reason})")
    }
}

impl std::error::Error for Absent {}

#[derive(Debug)]
pub struct Library {
    name: &'static str,
    handle: Handle,
}

impl Library {
    /// Opens the shared library `file`; errors call it `name`.
    pub fn open(name: &'static str, file: &'static str) -> Result<Self, Absent> {
        let home = std::env::var_os("CUDA_HOME").map(PathBuf::from).unwrap_or_default();
        let places = [PathBuf::new(), home.join("lib"), home.join("lib64")];
        let mut reason = String::new();
        for (i, place) in places.iter().map(|folder| folder.join(file)).enumerate() {
            if i > 0 && !place.exists() {
                continue;
            }
            // SAFETY: NVIDIA's libraries may be loaded at any time; their initialisers do not call us.
            match unsafe { Handle::open(Some(&place), RTLD_LAZY | RTLD_GLOBAL) } {
                Ok(handle) => return Ok(Self { name, handle }),
                Err(e) if reason.is_empty() => reason = format!("{:#}", anyhow::Error::from(e)),
                Err(_) => {}
            }
        }
        Err(Absent { name, file, reason })
    }

    /// Returns the function `symbol` as a pointer of type `F`.
    ///
    /// # Safety
    /// `F` must be the type of the function, and the pointer must not be called after `self` is
    /// dropped.
    pub unsafe fn function<F: Copy>(&self, symbol: &'static str) -> anyhow::Result<F> {
        // SAFETY: the caller's promise.
        let found = unsafe { self.handle.get::<F>(symbol) };
        Ok(*found.map_err(|_| anyhow::anyhow!("{} is too old: it has no {symbol}", self.name))?)
    }
}

/// Formats a version whose last two pairs of digits are minor and patch.
pub(crate) fn dotted(number: usize) -> String {
    format!("{}.{}.{}", number / 10_000, number % 10_000 / 100, number % 100)
}

/// Returns the file whose code lies at `address`.
pub(crate) fn file_of(address: *const c_void) -> Option<PathBuf> {
    // SAFETY: plain data that `dladdr` fills in.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: looks the address up, and reads nothing there.
    if unsafe { libc::dladdr(address, &raw mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: `dladdr` gave a C string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(Path::new(name.to_str().ok()?).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_says_which_file_to_bring() {
        let absent = Library::open("Nonsense", "libnonsense.so.7").unwrap_err();
        let text = absent.to_string();
        assert!(text.contains("Nonsense") && text.contains("libnonsense.so.7"), "{text}");
    }

    #[test]
    fn a_function_is_found_with_the_file_it_lies_in() {
        let library = Library::open("the C library", "libc.so.6").unwrap();
        // SAFETY: `abs` has this type.
        let abs: unsafe extern "C" fn(i32) -> i32 = unsafe { library.function("abs") }.unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { abs(-3) }, 3);
        let file = file_of(abs as *const c_void).unwrap();
        assert!(file.to_string_lossy().contains("libc"), "{file:?}");
    }
}
