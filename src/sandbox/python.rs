//! Finds the Python interpreter that runs programs.
//!
//! `python3` on the path may be a version manager's shim or a virtual environment. So it is asked once for
//! the real interpreter and library, and for the files that it maps: only these may be read inside the
//! sandbox.

use crate::base::error::usage;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) const LOWEST_VERSION: (u32, u32) = (3, 9);

/// An interpreter may take this long to describe itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// The modules that programs may import; each brings the modules that it imports itself.
pub(crate) const MODULES: &[&str] = &[
    "math",
    "cmath",
    "itertools",
    "functools",
    "collections",
    "collections.abc",
    "heapq",
    "bisect",
    "fractions",
    "decimal",
    "numbers",
    "re",
    "random",
    "string",
    "operator",
    "statistics",
    "sys",
    "io",
    "json",
    "typing",
    "dataclasses",
    "enum",
    "datetime",
    "time",
    "calendar",
    "threading",
    "queue",
    "copy",
    "array",
    "abc",
    "contextlib",
    "textwrap",
    "types",
    "struct",
    "pprint",
    "ast",
    "os",
    "signal",
    "traceback",
    "warnings",
    "weakref",
    "gc",
    "hashlib",
    "timeit",
    "unicodedata",
    "graphlib",
    "secrets",
    "locale",
    "zlib",
    "binascii",
    "base64",
    "errno",
    "keyword",
    "atexit",
    "__future__",
    "inspect",
    "logging",
    "pickle",
    "fileinput",
    "contextvars",
    "codecs",
    "resource",
    "concurrent.futures",
    "concurrent.futures.thread",
];

/// These are imported too, because the modules above, or Python itself, load them later.
pub(crate) const HIDDEN_MODULES: &[&str] = &[
    "_strptime",
    "_pylong",
    "_pydecimal",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8_sig",
    "encodings.utf_16",
    "encodings.utf_16_le",
    "encodings.utf_16_be",
    "encodings.utf_32",
    "encodings.utf_32_le",
    "encodings.utf_32_be",
    "encodings.cp1252",
    "encodings.hex_codec",
    "encodings.base64_codec",
    "encodings.rot_13",
    "encodings.unicode_escape",
    "encodings.raw_unicode_escape",
    "importlib.util",
    "_threading_local",
    "linecache",
];

/// An interpreter that the judge can use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PythonInfo {
    pub executable: PathBuf,
    /// Its version, such as "3.11.2".
    pub version: String,
    /// Whether the fork server can run in it.
    pub has_ctypes: bool,
    /// Its library, as entries of `sys.path`.
    pub(crate) library: Vec<PathBuf>,
    /// The directories and files that it must be able to read.
    pub(crate) readable: Vec<PathBuf>,
}

const PROBE: &str = r#"
import sys, os, json
try:
    import ctypes
    has_ctypes = hasattr(ctypes, "CDLL")
except ImportError:
    has_ctypes = False
import math, random, hashlib, decimal, datetime, array, zlib, unicodedata
real = os.path.realpath
# Without PATH the interpreter does not know where it lies.
executable = sys.executable or os.readlink("/proc/self/exe")
base = getattr(sys, "_base_executable", None) or executable
if sys.prefix != sys.base_prefix and real(base) == real(executable):
    name = "python%d.%d" % sys.version_info[:2]
    base = os.path.join(sys.base_exec_prefix, "bin", name)
library = [p for p in sys.path if p and os.path.exists(p)]
mapped = set()
for line in open("/proc/self/maps"):
    parts = line.split(None, 5)
    if len(parts) == 6 and parts[5].startswith("/") and ".so" in parts[5]:
        mapped.add(os.path.dirname(real(parts[5].strip())))
readable = mapped | {real(p) for p in library} | {real(base), "/etc/ld.so.cache"}
print(json.dumps({
    "executable": real(base), "version": "%d.%d.%d" % sys.version_info[:3],
    "has_ctypes": has_ctypes, "library": library, "readable": sorted(readable)}))
"#;

/// Returns the given interpreter, or the first suitable one on the path and in the usual places.
pub(crate) fn find(given: Option<&Path>) -> Result<PythonInfo> {
    if let Some(path) = given {
        return probe(path)
            .map_err(|e| usage(format!("cannot judge with {}: {e:#}", path.display())));
    }
    let mut refused = Vec::new();
    for candidate in ["python3", "/usr/bin/python3", "/usr/local/bin/python3"] {
        match probe(Path::new(candidate)) {
            Ok(info) => return Ok(info),
            Err(e) => refused.push(format!("{candidate}: {e:#}")),
        }
    }
    Err(usage(format!(
        "the judge needs Python {}.{} or newer to run programs; install one or name it with --python ({})",
        LOWEST_VERSION.0,
        LOWEST_VERSION.1,
        refused.join("; ")
    )))
}

fn probe(path: &Path) -> Result<PythonInfo> {
    let child = Command::new(path)
        .args(["-E", "-s", "-S", "-B", "-c", PROBE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot be started")?;
    let output = output_within(child, PATIENCE)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Ok(info) = serde_json::from_str::<PythonInfo>(text.trim()) else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = complaint.lines().last().unwrap_or("it said nothing").to_owned();
        bail!("does not work ({last})");
    };
    let mut numbers = info.version.split('.').map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    anyhow::ensure!(
        version >= LOWEST_VERSION,
        "is Python {}, the lowest supported version is {}.{}",
        info.version,
        LOWEST_VERSION.0,
        LOWEST_VERSION.1
    );
    Ok(info)
}

/// Returns what a child, which leads a process group, prints until it ends. The group is killed if that
/// takes too long, or if it prints more than a pipe holds.
fn output_within(mut child: Child, patience: Duration) -> Result<Output> {
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() >= patience {
            killpg(Pid::from_raw(child.id().try_into()?), Signal::SIGKILL)?;
            child.wait()?;
            bail!("gave no answer within {} s", patience.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(child.wait_with_output()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_that_hangs_is_given_up() {
        let child = Command::new("sh").args(["-c", "sleep 1000; true"]).process_group(0).spawn();
        let error = output_within(child.unwrap(), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("no answer within 0.05 s"), "{error}");
    }

    #[test]
    fn what_a_child_says_in_time_is_its_output() {
        let child =
            Command::new("echo").arg("3").process_group(0).stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(output_within(child, PATIENCE).unwrap().stdout, b"3\n");
    }
}
