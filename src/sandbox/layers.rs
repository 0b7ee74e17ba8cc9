//! Which protections are in force, and which ones this kernel offers.

use serde::Serialize;
use std::fmt;

/// The protections of a running [`super::Judge`], as its servers reported them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Layers {
    /// `fork_server` or `one_shot`.
    pub mode: String,
    pub python: String,
    /// The interpreter's real executable.
    pub python_path: String,
    /// The namespaces of their own that programs have: of user, net, pid, ipc, mnt, uts.
    pub namespaces: Vec<String>,
    /// Whether the root is an empty directory that no longer exists.
    pub chroot: bool,
    /// Whether programs do not run as root; they may run as the caller, who was not root.
    pub user_dropped: bool,
    pub capabilities_dropped: bool,
    /// Whether a program cannot gain rights by starting another.
    pub no_new_privs: bool,
    /// Landlock's version; 0 if the kernel has none.
    pub landlock_abi: u32,
    pub seccomp: bool,
    /// Whether resource limits apply; they always do.
    pub rlimits: bool,
    /// The version of the control group that limits memory, `v1` or `v2`.
    pub memory_cgroup: Option<String>,
    /// The modules that programs may import and that this Python has.
    pub modules: Vec<String>,
}

impl Layers {
    /// Returns whether one of the two layers that deny files and processes is in force.
    pub fn confines(&self) -> bool {
        self.seccomp || self.landlock_abi > 0
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut on = Vec::new();
        let mut off = Vec::new();
        let mut say =
            |name: String, present: bool| if present { &mut on } else { &mut off }.push(name);
        let namespaces = match self.namespaces.len() {
            0 => "namespaces".to_owned(),
            _ => format!("namespaces ({})", self.namespaces.join(" ")),
        };
        say(namespaces, !self.namespaces.is_empty());
        say("chroot".into(), self.chroot);
        say("dropped user".into(), self.user_dropped);
        say("dropped capabilities".into(), self.capabilities_dropped);
        say("no_new_privs".into(), self.no_new_privs);
        say(format!("Landlock v{}", self.landlock_abi), self.landlock_abi > 0);
        say("seccomp".into(), self.seccomp);
        say("rlimits".into(), self.rlimits);
        let cgroup = self.memory_cgroup.as_deref().unwrap_or_default();
        say(format!("memory cgroup {cgroup}").trim_end().to_owned(), self.memory_cgroup.is_some());
        write!(
            f,
            "judge: Python {} ({}), {}; in force: {}",
            self.python,
            self.python_path,
            self.mode,
            on.join(", ")
        )?;
        if !off.is_empty() {
            write!(f, "; not available: {}", off.join(", "))?;
        }
        Ok(())
    }
}

/// Returns Landlock's version in this kernel; 0 if there is none.
pub(crate) fn landlock_abi() -> u32 {
    const VERSION_QUERY: u32 = 1;
    // SAFETY: with this flag the call reads no memory and only returns a number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            VERSION_QUERY,
        )
    };
    u32::try_from(abi).unwrap_or(0)
}

/// Returns whether this kernel can kill a process for a system call.
pub(crate) fn seccomp_available() -> bool {
    const GET_ACTION_AVAIL: libc::c_uint = 2;
    let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the call reads the one number it is given the address of.
    unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &action) == 0 }
}
