//! What a run ran on: recorded with every result, so that numbers can be compared.
//!
//! Names no user, no host and no network address.

use serde::Serialize;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The machine and the program.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// Version of this program.
    pub version: &'static str,
    /// Commit of the source tree it was built from, where that is still there; `-dirty` if changed.
    pub commit: Option<String>,
    /// Processor model.
    pub cpu: String,
    /// Logical processors this process may use.
    pub cores: usize,
    /// Threads of the compute pool.
    pub threads: usize,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Kernel and architecture.
    pub os: String,
    /// When this was taken, in seconds since 1970.
    pub unix_secs: u64,
}

impl Environment {
    /// Looks at this machine.
    pub fn current() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            memory_bytes: memory_bytes().unwrap_or(0),
            os: os(),
            unix_secs: unix_secs() as u64,
        }
    }
}

/// Seconds since 1970.
pub fn unix_secs() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Memory that this process holds now.
pub fn resident_bytes() -> Option<u64> {
    kib("/proc/self/status", "VmRSS")
}

/// The most memory that this process has held.
pub fn peak_resident_bytes() -> Option<u64> {
    kib("/proc/self/status", "VmHWM")
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Memory of the machine.
pub fn memory_bytes() -> Option<u64> {
    kib("/proc/meminfo", "MemTotal")
}

/// A field in kibibytes, in bytes.
fn kib(file: &str, name: &str) -> Option<u64> {
    Some(field(file, name)?.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let (_, value) = text.lines().find(|line| line.starts_with(name))?.split_once(':')?;
    Some(value.trim().to_owned())
}

fn os() -> String {
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
