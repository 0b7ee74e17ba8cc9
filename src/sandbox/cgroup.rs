//! Limits the memory of a server and its child by a control group, where one is writable.
//!
//! It is the second line behind the limit on the address space. No verdict depends on it, so every failure
//! here means "not available".

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A control group of this program; it is removed on drop, when its processes are gone.
#[derive(Debug)]
pub(crate) struct MemoryGroup {
    path: PathBuf,
    version: &'static str,
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

impl MemoryGroup {
    pub(crate) fn create(bytes: u64) -> Option<Self> {
        let (parent, version) = own_group()?;
        sweep(&parent);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("codeseq-judge-{}-{number}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Self { path, version };
        let limit = if version == "v1" { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(group.path.join(limit), bytes.to_string()).ok()?;
        // There is no swap to escape to. Kernels without swap accounting have no such file.
        let _ = match version {
            "v1" => fs::write(group.path.join("memory.memsw.limit_in_bytes"), bytes.to_string()),
            _ => fs::write(group.path.join("memory.swap.max"), "0"),
        };
        Some(group)
    }

    /// Moves a process, and what it starts later, into the group. Returns whether it could.
    pub(crate) fn add(&self, pid: u32) -> bool {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).is_ok()
    }

    /// Returns `v1` or `v2`.
    pub(crate) fn version(&self) -> &'static str {
        self.version
    }

    /// Counts the processes that the kernel killed in this group for lack of memory.
    pub(crate) fn kills(&self) -> u64 {
        let file = if self.version == "v1" { "memory.oom_control" } else { "memory.events" };
        fs::read_to_string(self.path.join(file))
            .ok()
            .and_then(|text| text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.parse().ok()))
            .unwrap_or(0)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The kernel releases a group a moment after its last process ends.
        for _ in 0..100 {
            match fs::remove_dir(&self.path) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => return,
            }
        }
    }
}

/// Returns the group in which this process's memory is counted.
fn own_group() -> Option<(PathBuf, &'static str)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        if controllers.split(',').any(|c| c == "memory") {
            return Some((Path::new("/sys/fs/cgroup/memory").join(path), "v1"));
        }
        let unified = Path::new("/sys/fs/cgroup").join(path);
        if controllers.is_empty() && unified.join("cgroup.controllers").exists() {
            return Some((unified, "v2"));
        }
    }
    None
}

/// Removes groups of judges that were killed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|n| n.strip_prefix("codeseq-judge-")?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
