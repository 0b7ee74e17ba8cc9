//! A memory limit for a server and its child by control group, where one is writable.
//!
//! The second line behind the address space limit. Nothing here is needed for a verdict, so every
//! failure means "not available".

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A control group of our own; removed on drop, once its processes are gone.
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
        // No swap to escape to; kernels without swap accounting have no such file.
        let _ = match version {
            "v1" => fs::write(group.path.join("memory.memsw.limit_in_bytes"), bytes.to_string()),
            _ => fs::write(group.path.join("memory.swap.max"), "0"),
        };
        Some(group)
    }

    /// Moves a process, and what it starts later, into the group.
    pub(crate) fn add(&self, pid: u32) -> bool {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).is_ok()
    }

    /// `v1` or `v2`.
    pub(crate) fn version(&self) -> &'static str {
        self.version
    }

    /// How many processes the kernel has ended here for want of memory.
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
        // The kernel lets go of a group a moment after its last process.
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

/// Where this process's memory is accounted.
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
