//! A server is a launcher and, behind it, the prepared Python that forks children; in one-shot mode, the
//! Pythons that the launcher starts one by one.
//!
//! Both speak the same protocol over a message socket: a descriptor asks for a child, and a [`Reply`] says
//! what happened to it. Only the launcher and the server have that socket, never a child. An error from
//! here is the judge's own failure, never a program's, and the server is then discarded.

use super::cgroup::MemoryGroup;
use super::launcher::{self, Order};
use super::layers::{Layers, seccomp_available};
use super::options::{Limits, Options, Profile};
use super::python::{HIDDEN_MODULES, MODULES, PythonInfo};
use super::reply::{Exit, Reply};
use super::{policy, sys};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child as Process, Command, Stdio};
use std::time::Duration;

/// Everything that is needed to start a server, computed once.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) options: Options,
    pub(crate) python: PythonInfo,
    pub(crate) one_shot: bool,
    launcher: PathBuf,
}

/// A running child, which is sealed or about to be.
pub(crate) struct Child {
    pub(crate) pidfd: OwnedFd,
    pub(crate) pid: libc::pid_t,
    pub(crate) channel: UnixStream,
}

pub(crate) struct Server {
    launcher: Process,
    pub(crate) control: OwnedFd,
    pub(crate) input: File,
    pub(crate) output: File,
    group: Option<MemoryGroup>,
    /// What a one-shot runner reads first.
    settings: Option<Vec<u8>>,
    /// The address space of a child before its first case, which is the same for all.
    fresh_space: Option<u64>,
    pub(crate) limits: Limits,
}

/// It is far more than any healthy step takes, even on an overloaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The server itself may need this much memory beside its child.
const SERVER_BYTES: u64 = 64 << 20;
const NOBODY: u32 = 65_534;
const FAREWELL_MS: u32 = 100;
const UNEXPECTED: &str = "the server did not answer as it should";

impl Plan {
    pub(crate) fn new(options: &Options, python: PythonInfo, one_shot: bool) -> Result<Self> {
        let launcher = match &options.launcher {
            Some(path) => path.clone(),
            None => launcher::find()?,
        };
        Ok(Self { options: options.clone(), python, one_shot, launcher })
    }

    pub(crate) fn limits(&self) -> (&Limits, Profile) {
        (&self.options.limits, self.options.profile)
    }

    fn settings(&self, namespaces: &[String], landlock_abi: u32) -> Result<Vec<u8>> {
        let limits = &self.options.limits;
        let filters = policy::filters()?;
        let server_filters: Vec<String> = filters.server.iter().map(policy::to_hex).collect();
        let in_user_namespace = namespaces.iter().any(|name| name == "user");
        Ok(serde_json::to_vec(&json!({
            "modules": MODULES.iter().chain(HIDDEN_MODULES).collect::<Vec<_>>(),
            "python_path": self.python.library,
            "seals_itself": self.python.has_ctypes || !self.one_shot,
            "profile": self.options.profile,
            "drop_user": (!in_user_namespace).then_some(NOBODY),
            "landlock_abi": landlock_abi,
            "seccomp": seccomp_available(),
            "server_filters": server_filters,
            "child_filter": policy::to_hex(&filters.child),
            "file_bytes": limits.output_bytes + 1,
            "memory_bytes": limits.memory_mb << 20,
            "cpu_secs": limits.cpu_secs(),
            "recursion": limits.recursion,
        }))?)
    }
}

impl Server {
    /// Starts a server, and reports the layers in force.
    pub(crate) fn start(plan: &Plan) -> Result<(Self, Layers)> {
        let (control, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("creating a socket pair")?;
        let diagnostics = sys::memory_file("codeseq-judge-errors")?;
        let input = sys::memory_file("codeseq-judge-input")?;
        let output = sys::memory_file("codeseq-judge-output")?;
        let readable_input = File::open(format!("/proc/self/fd/{}", input.as_raw_fd()))
            .context("opening the input for reading (is /proc mounted?)")?;
        let launcher = Command::new(&plan.launcher)
            .arg(launcher::ARGUMENT)
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(diagnostics.try_clone()?)
            // Ctrl-C is for this program, which ends the judge when its work is done.
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!("starting the judge's launcher {}", plan.launcher.display())
            })?;
        let limits = plan.options.limits.clone();
        let group = MemoryGroup::create((limits.memory_mb << 20) + SERVER_BYTES)
            .filter(|group| group.add(launcher.id()));
        let (settings, fresh_space) = (None, None);
        let mut server =
            Self { launcher, control, input, output, group, settings, fresh_space, limits };
        match server.handshake(plan, &readable_input) {
            Ok(layers) => Ok((server, layers)),
            Err(e) => Err(e.context(last_words(diagnostics))),
        }
    }

    fn handshake(&mut self, plan: &Plan, readable_input: &File) -> Result<Layers> {
        let order = Order {
            python: plan.python.executable.clone(),
            readable: plan.python.readable.clone(),
            one_shot: plan.one_shot,
            namespaces: plan.options.namespaces,
            confine_before_start: !plan.python.has_ctypes,
        };
        let files = [readable_input.as_raw_fd(), self.output.as_raw_fd()];
        sys::send(self.control.as_fd(), &serde_json::to_vec(&order)?, &files)?;
        let Reply::Launched(report) = self.next_reply()? else { bail!(UNEXPECTED) };
        let report: launcher::Report = serde_json::from_slice(&report)?;
        let settings = plan.settings(&report.namespaces, report.landlock_abi)?;
        let prepared: serde_json::Value = if plan.one_shot {
            self.settings = Some(settings);
            let (child, hello) = self.start_child()?;
            sys::kill(child.pidfd.as_fd());
            self.exit()?;
            serde_json::from_slice(&hello)?
        } else {
            sys::send(self.control.as_fd(), &settings, &[])?;
            let Reply::Ready(report) = self.next_reply()? else { bail!(UNEXPECTED) };
            serde_json::from_slice(&report)?
        };
        let done = |key: &str| prepared[key].as_bool().unwrap_or(false);
        Ok(Layers {
            mode: if plan.one_shot { "one_shot" } else { "fork_server" }.to_owned(),
            python: plan.python.version.clone(),
            python_path: plan.python.executable.display().to_string(),
            namespaces: report.namespaces,
            chroot: done("chroot"),
            user_dropped: done("user") || !nix::unistd::getuid().is_root(),
            capabilities_dropped: done("capabilities"),
            no_new_privs: report.no_new_privs,
            landlock_abi: report.landlock_abi,
            seccomp: done("seccomp") || (!plan.python.has_ctypes && seccomp_available()),
            rlimits: true,
            memory_cgroup: self.group.as_ref().map(|group| group.version().to_owned()),
            modules: serde_json::from_value(prepared["modules"].clone()).unwrap_or_default(),
        })
    }

    /// Starts a child that seals itself, and returns it with its greeting.
    pub(crate) fn start_child(&mut self) -> Result<(Child, Vec<u8>)> {
        let (ours, theirs) = UnixStream::pair().context("creating a socket pair")?;
        sys::send(self.control.as_fd(), b"F", &[theirs.as_raw_fd()])
            .context("asking for a child")?;
        drop(theirs);
        let Reply::Child(pidfd) = self.next_reply()? else { bail!(UNEXPECTED) };
        let pid = sys::pid_of(pidfd.as_fd()).context("a child ended before it began")?;
        let mut child = Child { pidfd, pid, channel: ours };
        let hello = self.greet(&mut child)?;
        Ok((child, hello))
    }

    fn greet(&mut self, child: &mut Child) -> Result<Vec<u8>> {
        use std::io::Write;
        child.channel.set_read_timeout(Some(PATIENCE))?;
        if let Some(settings) = &self.settings {
            child.channel.write_all(&(settings.len() as u32).to_le_bytes())?;
            child.channel.write_all(settings)?;
        }
        let mut header = [0; 5];
        child.channel.read_exact(&mut header).context("a child ended while it was prepared")?;
        anyhow::ensure!(header[0] == b'H', "a child did not greet");
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        let mut hello = vec![0; length as usize];
        child.channel.read_exact(&mut hello).context("a child ended while it was prepared")?;
        Ok(hello)
    }

    /// Returns the address space of children before their first case; `pid` is a child that still waits for
    /// it.
    pub(crate) fn fresh_space(&mut self, pid: libc::pid_t) -> u64 {
        *self.fresh_space.get_or_insert_with(|| sys::address_space(pid).unwrap_or(0))
    }

    /// Waits for the child's end.
    pub(crate) fn exit(&mut self) -> Result<Exit> {
        let Reply::Ended(exit) = self.next_reply()? else { bail!(UNEXPECTED) };
        Ok(exit)
    }

    /// Returns the next message of the launcher or the server. It fails if the message reports a failure.
    fn next_reply(&mut self) -> Result<Reply> {
        let timeout = PollTimeout::try_from(PATIENCE).context("a time-out out of range")?;
        let mut waiting = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        let ready = loop {
            match poll(&mut waiting, timeout) {
                Err(nix::errno::Errno::EINTR) => {}
                result => break result?,
            }
        };
        anyhow::ensure!(ready > 0, "the server does not answer");
        match Reply::receive(self.control.as_fd())? {
            Some(Reply::Failed(text)) => bail!("{text}"),
            Some(reply) => Ok(reply),
            None => bail!("the server ended"),
        }
    }

    /// Counts the children that the kernel killed in the control group for lack of memory.
    pub(crate) fn memory_kills(&self) -> u64 {
        self.group.as_ref().map_or(0, MemoryGroup::kills)
    }

    /// Returns the launcher's process id, for tests that end servers.
    pub(crate) fn launcher_pid(&self) -> u32 {
        self.launcher.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A healthy server ends by itself when the socket closes, and its CPU time is counted.
        let _ = shutdown(self.control.as_raw_fd(), Shutdown::Both);
        for _ in 0..FAREWELL_MS {
            if !matches!(self.launcher.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // What it started is tied to it and ends too.
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

fn last_words(mut diagnostics: File) -> String {
    let mut text = String::new();
    let _ = diagnostics.rewind().and_then(|()| diagnostics.read_to_string(&mut text));
    match text.trim().lines().last() {
        Some(line) => format!("the judge's server cannot start ({line})"),
        None => "the judge's server cannot start".to_owned(),
    }
}
