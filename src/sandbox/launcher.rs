//! The launcher is a small single-threaded process between the judge and Python, which gives up rights.
//!
//! It is started as `train __judge-init` with a message socket as standard input, so that neither the
//! threads nor the memory of the caller are ever forked. It enters namespaces, then starts Python behind
//! Landlock and no_new_privs: once, as the fork server, or once for each request. In the latter (one-shot)
//! mode it answers requests itself, in the protocol of the fork server. It dies with its parent, and what
//! it started dies with it. It reports which protections are in force, and never panics on a kernel that
//! refuses something.

use super::reply::{Exit, Reply};
use super::{layers, policy, sys};
use anyhow::{Context, Result, bail};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The hidden first argument that makes the binary a launcher.
pub(crate) const ARGUMENT: &str = "__judge-init";

/// Whether [`run_if_asked`] can make this program a launcher.
static IS_HERE: AtomicBool = AtomicBool::new(false);

const RUNNER: &str = include_str!("runner.py");
/// Reads the runner from its descriptor, so that lists of processes stay readable.
const START_RUNNER: &str =
    "import os; exec(compile(os.pread(6, 1 << 20, 0), 'judge-runner', 'exec'))";
/// The hard limit on the stack of a program's main thread.
const STACK_BYTES: u64 = 64 << 20;
/// The stack of a program's other threads.
const THREAD_STACK_BYTES: u64 = 8 << 20;

/// What the judge tells its launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) python: PathBuf,
    pub(crate) readable: Vec<PathBuf>,
    pub(crate) one_shot: bool,
    pub(crate) namespaces: bool,
    /// Whether Python cannot confine itself, so that everything must be done before it starts.
    pub(crate) confine_before_start: bool,
}

/// Which protections the launcher has put in force.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) namespaces: Vec<String>,
    pub(crate) landlock_abi: u32,
    pub(crate) no_new_privs: bool,
}

/// Is called at the start of `main`. If the first argument asks for a launcher, it runs as one and returns
/// true.
pub fn run_if_asked() -> bool {
    let is_asked = std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT);
    if is_asked {
        run();
    }
    IS_HERE.store(true, Ordering::Relaxed);
    is_asked
}

/// Finds a launcher: this program, or the `train` beside it (as in a test's build directory).
pub(crate) fn find() -> Result<PathBuf> {
    if IS_HERE.load(Ordering::Relaxed) {
        // This works even if the file was renamed or removed.
        return Ok("/proc/self/exe".into());
    }
    let own = std::env::current_exe().context("finding the own executable")?;
    own.ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join("train"))
        .find(|path| path.is_file())
        .context("the judge's launcher, the binary `train`, is not beside this program; build it or set Options::launcher")
}

/// Runs a launcher to its end. Its exit code means nothing; errors are sent over the socket.
fn run() {
    let control = std::io::stdin();
    let control = control.as_fd();
    if let Err(e) = serve(control) {
        // If the judge is gone, there is nobody to tell.
        let _ = Reply::Failed(format!("{e:#}")).send(control);
    }
}

fn serve(stdin: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: both calls take numbers only. Nothing in this process owns a descriptor from 3 up.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
    }
    let (bytes, streams) = sys::receive(stdin, 1 << 16)?;
    if bytes.is_empty() {
        return Ok(());
    }
    let order: Order = serde_json::from_slice(&bytes).context("reading the order")?;
    let [input, output] = &streams[..] else { bail!("the order came without its two files") };
    let empty_dir = removed_directory();
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;

    let runner = sys::memory_file("codeseq-judge-runner")?;
    runner.write_all_at(RUNNER.as_bytes(), 0)?;

    let mut report = Report { landlock_abi: layers::landlock_abi(), ..Report::default() };
    if order.namespaces {
        // Python may keep capabilities only where it can drop them later.
        report.namespaces = enter_namespaces(!order.confine_before_start);
    }
    let own_pids = order.namespaces && has_pid_namespaces();
    if own_pids {
        report.namespaces.push("pid".into());
    }
    nix::sys::prctl::set_no_new_privs().context("setting no_new_privs")?;
    report.no_new_privs = true;
    Reply::Launched(serde_json::to_vec(&report)?).send(stdin)?;

    let start = |channel: BorrowedFd<'_>| -> Result<libc::pid_t> {
        let dir = empty_dir.as_ref().map_or(null.as_fd(), AsFd::as_fd);
        let stderr = std::io::stderr();
        let files = [
            input.as_fd(),
            output.as_fd(),
            stderr.as_fd(),
            channel,
            dir,
            null.as_fd(),
            runner.as_fd(),
        ];
        // SAFETY: this process has a single thread, so the child may go on as if it were alone.
        match unsafe { fork(own_pids) }? {
            0 => {
                if let Err(e) = become_python(&order, report.landlock_abi, files) {
                    let _ = Reply::Failed(format!("{e:#}")).send(stdin);
                }
                std::process::exit(98)
            }
            pid => Ok(pid),
        }
    };
    if order.one_shot {
        return answer_requests(stdin, start);
    }
    let server = start(stdin)?;
    wait(server)?;
    Ok(())
}

/// Is the one-shot mode: starts a Python for each descriptor that arrives, sends its handle, and then how
/// it ended.
fn answer_requests(
    control: BorrowedFd<'_>,
    start: impl Fn(BorrowedFd<'_>) -> Result<libc::pid_t>,
) -> Result<()> {
    loop {
        let (bytes, fds) = sys::receive(control, 16)?;
        let Some(channel) = fds.first().filter(|_| !bytes.is_empty()) else { return Ok(()) };
        let pid = match start(channel.as_fd()) {
            Ok(pid) => pid,
            Err(e) => {
                Reply::Failed(format!("{e:#}")).send(control)?;
                continue;
            }
        };
        drop(fds);
        // SAFETY: the call takes numbers and returns a descriptor that nothing else owns.
        let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if handle < 0 {
            bail!("no handle for a process: {}", std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and valid.
        let handle = unsafe { OwnedFd::from_raw_fd(handle as RawFd) };
        Reply::Child(handle).send(control)?;
        let (status, usage) = wait(pid)?;
        let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1_000);
        let cpu = time(usage.ru_utime) + time(usage.ru_stime);
        Reply::Ended(Exit { status, cpu, peak_kb: usage.ru_maxrss as u64 }).send(control)?;
    }
}

fn wait(pid: libc::pid_t) -> Result<(libc::c_int, libc::rusage)> {
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage, and the call writes to the two local variables only.
    let (found, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(pid, &mut status, 0, &mut usage), usage)
    };
    anyhow::ensure!(found == pid, "waiting for a process: {}", std::io::Error::last_os_error());
    Ok((status, usage))
}

/// Forks, if asked into a process id namespace of its own.
///
/// # Safety
/// The process must have one thread only.
unsafe fn fork(own_pids: bool) -> Result<libc::pid_t> {
    let flags = if own_pids { libc::CLONE_NEWPID } else { 0 } | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is fork(2); the caller has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    anyhow::ensure!(pid >= 0, "starting a process: {}", std::io::Error::last_os_error());
    Ok(pid as libc::pid_t)
}

fn has_pid_namespaces() -> bool {
    // SAFETY: this process has a single thread; the child leaves at once.
    match unsafe { fork(true) } {
        // SAFETY: ends the child without running anything of the parent's.
        Ok(0) => unsafe { libc::_exit(0) },
        Ok(pid) => wait(pid).is_ok(),
        Err(_) => false,
    }
}

/// Enters the namespaces that the kernel grants; a user namespace only if the others need it. In it, this
/// process is root or nobody.
fn enter_namespaces(as_root: bool) -> Vec<String> {
    const KINDS: [(&str, CloneFlags); 4] = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let mut entered = Vec::new();
    let all = KINDS.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag);
    if unshare(all).is_ok() {
        entered.extend(KINDS.iter().map(|(name, _)| (*name).to_owned()));
    } else {
        if unshare(CloneFlags::CLONE_NEWUSER).is_ok() {
            entered.push("user".to_owned());
            let inside = if as_root { 0 } else { 65_534 };
            // A failure leaves an unmapped user, who has even fewer rights.
            let _ = std::fs::write("/proc/self/setgroups", "deny");
            let _ = std::fs::write("/proc/self/uid_map", format!("{inside} {uid} 1"));
            let _ = std::fs::write("/proc/self/gid_map", format!("{inside} {gid} 1"));
        }
        for (name, flag) in KINDS {
            if unshare(flag).is_ok() {
                entered.push(name.to_owned());
            }
        }
    }
    if entered.iter().any(|name| name == "mnt") {
        let flags = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        let _ = nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>);
    }
    entered
}

/// Returns a directory that is open and already removed: as a root it is empty, and stays so.
fn removed_directory() -> Option<OwnedFd> {
    let places = [std::env::temp_dir(), "/dev/shm".into(), "/run".into()];
    places.iter().find_map(|place| {
        let dir = tempfile::Builder::new().prefix("codeseq-judge-").tempdir_in(place).ok()?;
        let open = std::fs::File::open(dir.path()).ok()?;
        dir.close().ok()?;
        Some(open.into())
    })
}

/// Puts `files` at descriptors 0 and up, gives up rights and becomes Python. It returns only on failure.
fn become_python(order: &Order, landlock_abi: u32, files: [BorrowedFd<'_>; 7]) -> Result<()> {
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // The files are first moved far away, then into place, since a target may be the source of another.
    let parked = files
        .iter()
        .map(|fd| Ok(nix::fcntl::fcntl(*fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(100))?))
        .collect::<Result<Vec<RawFd>>>()?;
    // The C library takes the soft limit as the stack of its threads when it starts; the runner raises it
    // later.
    let limit = libc::rlimit { rlim_cur: THREAD_STACK_BYTES, rlim_max: STACK_BYTES };
    // SAFETY: reads the local variable only.
    unsafe { libc::setrlimit(libc::RLIMIT_STACK, &limit) };
    if landlock_abi > 0 {
        restrict_files(&order.readable)?;
    }
    let mode = if order.one_shot { "single" } else { "server" };
    let path = CString::new(order.python.as_os_str().as_bytes())?;
    let mut arguments = vec![path.clone()];
    for argument in ["-s", "-S", "-B", "-c", START_RUNNER, mode] {
        arguments.push(CString::new(argument)?);
    }
    // All threads use one heap: a heap of its own would reserve 64 MB of address space for each.
    let environment = ["PYTHONHASHSEED=0", "PYTHONUTF8=1", "LANG=C.UTF-8", "MALLOC_ARENA_MAX=1"]
        .map(|variable| CString::new(variable).expect("no zero bytes in a variable"));
    let filters = match order.confine_before_start && layers::seccomp_available() {
        true => policy::filters_before_exec(path.as_ptr() as u64)?,
        false => Vec::new(),
    };
    for (target, &fd) in parked.iter().enumerate() {
        // SAFETY: duplicates a valid descriptor onto numbers that only this process uses.
        let done = unsafe { libc::dup2(fd, target as RawFd) };
        anyhow::ensure!(done >= 0, "arranging files: {}", std::io::Error::last_os_error());
    }
    // SAFETY: the directory and the input are the only descriptors meant to pass; the rest closes.
    unsafe { libc::syscall(libc::SYS_close_range, files.len(), 99, 0) };
    for filter in &filters {
        install(filter)?;
    }
    // The first argument must be the address that the filter knows.
    let failure = nix::unistd::execve(path.as_c_str(), &arguments, &environment);
    bail!(
        "starting {}: {}",
        order.python.display(),
        failure.expect_err("execve returns on failure only")
    )
}

fn install(filter: &seccompiler::BpfProgram) -> Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).context("a filter is too long")?,
        filter: filter.as_ptr() as *mut libc::sock_filter,
    };
    // SAFETY: both filter types are the kernel's four fields in order, and live during the call.
    let done =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program, 0, 0) };
    anyhow::ensure!(done == 0, "installing a filter: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Restricts files with Landlock: Python and its library can be read and executed, and nothing else.
/// Connections and signals to other processes are refused.
fn restrict_files(readable: &[PathBuf]) -> Result<()> {
    let abi = ABI::V6;
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    for path in readable {
        let Ok(opened) = PathFd::new(path) else { continue };
        let rights = if Path::is_dir(path) { read } else { read & AccessFs::from_file(abi) };
        rules = rules.add_rule(PathBeneath::new(opened, rights))?;
    }
    rules.restrict_self()?;
    Ok(())
}
