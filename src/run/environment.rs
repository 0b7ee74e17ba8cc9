//! The machine that a run used. It is recorded with every result, so that numbers can be compared.
//!
//! It names no user, no host and no network address.

use crate::base::memory;
use serde::Serialize;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The machine that a run used, and the program.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// The version of this program.
    pub version: &'static str,
    /// The commit of the source tree that it was built from, if that is still there; it ends with `-dirty`
    /// if the tree was changed.
    pub commit: Option<String>,
    /// The processor's model.
    pub cpu: String,
    /// The logical processors that this process may use.
    pub cores: usize,
    /// The threads of the compute pool.
    pub threads: usize,
    /// The memory of the machine.
    pub memory_bytes: u64,
    /// The kernel and the architecture.
    pub os: String,
    /// The time of this record, in seconds since 1970.
    pub unix_secs: u64,
}

impl Environment {
    /// Describes this machine.
    pub fn current() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            cpu: cpu(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            memory_bytes: memory::total().unwrap_or(0),
            os: os(),
            unix_secs: unix_secs() as u64,
        }
    }
}

/// Returns the time in seconds since 1970.
pub fn unix_secs() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Returns the processor's model.
pub fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or("unknown").to_owned()
}

/// Returns the kernel, its release and the architecture.
pub fn os() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| std::env::consts::OS.to_owned(),
        |name| {
            let part = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
            format!("{} {} {}", part(name.sysname()), part(name.release()), part(name.machine()))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_processor_and_memory() {
        let environment = Environment::current();
        assert!(environment.cores > 0 && environment.threads > 0);
        assert!(environment.memory_bytes > 1 << 20);
        assert!(!environment.cpu.is_empty() && !environment.os.is_empty());
    }
}
