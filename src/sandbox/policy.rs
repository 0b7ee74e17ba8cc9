//! Which system calls a program may make.
//!
//! There are three stacked filters. The server itself has the first two, its children have all three:
//! 1. A call that no honest program makes kills the process at once.
//! 2. `clone3` does not exist, so that the C library starts threads by `clone`, whose flags a filter can
//!    read.
//! 3. Of the rest, only the listed calls work, and all others fail with EPERM. Memory is never executable,
//!    processes are never forked, and file descriptors can be used but not opened.
//!
//! Without ctypes a child cannot install the third filter itself. Then the launcher installs a wider one
//! before it starts Python, which must be able to read its modules.

use crate::base::hex::hex;
use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
/// The number of an argument, its length, the comparison, and the value to compare with.
type Condition = (u8, Len, Op, u64);

/// A thread's stack takes at least this many bytes, so that the limit on memory limits threads too.
const LEAST_THREAD_STACK: u64 = 1 << 20;

/// The filters in the kernel's format.
pub(crate) struct Filters {
    /// The filters of the server and everything it starts.
    pub(crate) server: Vec<BpfProgram>,
    /// The additional filter of a child.
    pub(crate) child: BpfProgram,
}

/// Returns the filters for a Python with ctypes.
pub(crate) fn filters() -> Result<Filters> {
    let mut kill = any(&kill_list());
    kill.append(&mut any(&[libc::SYS_execve]));
    Ok(Filters { server: vec![deny(kill)?, no_clone3()?], child: allow(allowed()?)? })
}

/// Returns the filters that the launcher installs before it starts a Python without ctypes. `path` is the
/// address of the interpreter's path: only that one `execve` works.
pub(crate) fn filters_before_exec(path: u64) -> Result<Vec<BpfProgram>> {
    let mut rules = allowed()?;
    rules.append(&mut any(&start_up_list()));
    rules.insert(libc::SYS_execve, vec![rule(&[(0, Len::Qword, Op::Eq, path)])?]);
    let read_only = u64::from((libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u32);
    rules.insert(libc::SYS_openat, vec![rule(&[(2, Len::Dword, Op::MaskedEq(read_only), 0)])?]);
    rules.insert(libc::SYS_mmap, no_small_stack(&[])?);
    rules.insert(libc::SYS_mprotect, vec![]);
    rules.insert(libc::SYS_fcntl, vec![]);
    Ok(vec![deny(any(&kill_list()))?, no_clone3()?, allow(rules)?])
}

/// Returns a filter as hexadecimal text, in which form it is passed to Python.
pub(crate) fn to_hex(program: &BpfProgram) -> String {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for step in program {
        bytes.extend_from_slice(&step.code.to_ne_bytes());
        bytes.extend_from_slice(&[step.jt, step.jf]);
        bytes.extend_from_slice(&step.k.to_ne_bytes());
    }
    hex(bytes)
}

fn any(calls: &[i64]) -> Rules {
    calls.iter().map(|&call| (call, vec![])).collect()
}

fn rule(conditions: &[Condition]) -> Result<SeccompRule> {
    let conditions = conditions
        .iter()
        .map(|(index, length, op, value)| {
            SeccompCondition::new(*index, length.clone(), op.clone(), *value)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .context("the judge's system call filter knows x86_64, aarch64 and riscv64")?;
    Ok(SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()?)
}

fn deny(rules: Rules) -> Result<BpfProgram> {
    compile(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn no_clone3() -> Result<BpfProgram> {
    let rules = any(&[libc::SYS_clone3]);
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn allow(rules: Rules) -> Result<BpfProgram> {
    compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

fn kill_list() -> Vec<i64> {
    vec![
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_kcmp,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pidfd_getfd,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_adjtimex,
        libc::SYS_clock_adjtime,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_fanotify_init,
        libc::SYS_syslog,
        libc::SYS_vhangup,
        libc::SYS_personality,
    ]
}

fn allowed() -> Result<Rules> {
    let mut rules = any(&allow_list());
    let not_executable = [(2, Len::Dword, Op::MaskedEq(libc::PROT_EXEC as u64), 0)];
    rules.insert(libc::SYS_mmap, no_small_stack(&not_executable)?);
    rules.insert(libc::SYS_mprotect, vec![rule(&not_executable)?]);
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![rule(&[(0, Len::Qword, Op::MaskedEq(thread), thread)])?]);
    let commands = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC];
    rules.insert(libc::SYS_fcntl, one_of(1, &commands.map(|c| c as u64))?);
    let terminal_query = u64::from(libc::TCGETS as u32);
    let on_exec = [u64::from(libc::FIOCLEX as u32), u64::from(libc::FIONCLEX as u32)];
    rules.insert(libc::SYS_ioctl, one_of(1, &[terminal_query, on_exec[0], on_exec[1]])?);
    // The C library implements `fstat` this way. The path beside the descriptor is then empty, or its
    // writer forged it in machine code; a forged path tells what a file is only where there is no chroot.
    let by_descriptor = [
        (0, Len::Dword, Op::Le, i32::MAX as u64),
        (3, Len::Dword, Op::Eq, libc::AT_EMPTY_PATH as u64),
    ];
    rules.insert(libc::SYS_newfstatat, vec![rule(&by_descriptor)?]);
    // Reading limits is allowed, setting them is not: the third argument must be null.
    rules.insert(libc::SYS_prlimit64, vec![rule(&[(2, Len::Qword, Op::Eq, 0)])?]);
    Ok(rules)
}

/// Allows memory under the `conditions`, unless it is a thread's stack below the least.
fn no_small_stack(conditions: &[Condition]) -> Result<Vec<SeccompRule>> {
    let no_stack = (3, Len::Dword, Op::MaskedEq(libc::MAP_STACK as u64), 0);
    let large = (1, Len::Qword, Op::Ge, LEAST_THREAD_STACK);
    [no_stack, large].map(|either| rule(&[conditions, &[either]].concat())).into_iter().collect()
}

fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>> {
    values.iter().map(|&v| rule(&[(argument, Len::Dword, Op::Eq, v)])).collect()
}

fn allow_list() -> Vec<i64> {
    let mut calls = vec![
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_lseek,
        libc::SYS_close,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_fstat,
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_restart_syscall,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        // `time.sleep` uses this call before Python 3.11.
        libc::SYS_pselect6,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
        libc::SYS_getrusage,
        libc::SYS_times,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_exit,
        libc::SYS_exit_group,
        // The call has a rule of its own above; filter 2 says that it does not exist.
        libc::SYS_clone3,
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([libc::SYS_dup2, libc::SYS_time, libc::SYS_select]);
    calls
}

fn start_up_list() -> Vec<i64> {
    let mut calls = vec![
        libc::SYS_newfstatat,
        libc::SYS_getdents64,
        libc::SYS_readlinkat,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_getcwd,
        libc::SYS_prlimit64,
        libc::SYS_set_tid_address,
        libc::SYS_fchdir,
        libc::SYS_chroot,
        libc::SYS_setgroups,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_sysinfo,
        libc::SYS_uname,
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        libc::SYS_arch_prctl,
        libc::SYS_access,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_readlink,
        libc::SYS_setrlimit,
        libc::SYS_getrlimit,
    ]);
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_travel_as_whole_instructions() {
        let filters = filters().unwrap();
        assert_eq!(filters.server.len(), 2);
        assert_eq!(to_hex(&filters.child).len(), filters.child.len() * 16);
        assert_eq!(filters_before_exec(0x1000).unwrap().len(), 3);
    }
}
