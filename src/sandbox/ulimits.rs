//! Checks the resource limits that this process was started with, if they keep the judge from working.
//!
//! A limit that is too low is reported in one line with its name, its value, what is needed and how to
//! raise it. The soft limit on descriptors is raised to what is needed, as far as the hard limit allows.
//! How many processes a user may still start is not known in advance: that limit is named by
//! [`or_process_limit`] when it is reached.

use super::options::Options;
use crate::base::error::usage;
use anyhow::{Error, Result};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// The descriptors of this process itself, those of models and data sets too.
const OWN_DESCRIPTORS: u64 = 64;
/// A server's socket and files, its child's handle and channel, and files in /proc that are read meanwhile.
const DESCRIPTORS_OF_A_WORKER: u64 = 12;
/// A launcher moves its files above 100 before it arranges them.
const DESCRIPTORS_OF_A_LAUNCHER: u64 = 128;
/// The C library's text for EAGAIN.
const NO_MORE_PROCESSES: &str = "Resource temporarily unavailable";

/// Refuses limits under which no program could run.
pub(crate) fn check(options: &Options) -> Result<()> {
    let limits = &options.limits;
    let workers = options.workers;
    let descriptors =
        (OWN_DESCRIPTORS + workers as u64 * DESCRIPTORS_OF_A_WORKER).max(DESCRIPTORS_OF_A_LAUNCHER);
    let memory_kb = limits.memory_mb << 10;
    let cpu_secs = limits.cpu_ms_per_program / 1000 + 2;
    require(
        Resource::RLIMIT_NOFILE,
        descriptors,
        &format!(
            "open files (ulimit -n) is {{}}, but {workers} workers need {descriptors}: raise it, or \
             lower --workers"
        ),
    )?;
    require(
        Resource::RLIMIT_AS,
        memory_kb << 10,
        &format!(
            "address space (ulimit -v) is {{}} bytes, but a program may use {memory_kb} kB: raise it, \
             or lower the judge's memory_mb"
        ),
    )?;
    require(
        Resource::RLIMIT_FSIZE,
        limits.output_bytes as u64 + 1,
        "file sizes (ulimit -f) is {} bytes, but a case's output may be longer: raise it, or lower \
         the judge's output_bytes",
    )?;
    require(
        Resource::RLIMIT_CPU,
        cpu_secs,
        &format!(
            "CPU time (ulimit -t) is {{}} s, but a program may use {cpu_secs} s: raise it, or lower \
             the judge's cpu_ms_per_program"
        ),
    )?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < descriptors {
        setrlimit(Resource::RLIMIT_NOFILE, descriptors, hard)?;
    }
    Ok(())
}

/// Refuses a hard limit below `needed`; `{}` in the message stands for its value.
fn require(resource: Resource, needed: u64, message: &str) -> Result<()> {
    let (_, hard) = getrlimit(resource)?;
    if hard == RLIM_INFINITY || hard >= needed {
        return Ok(());
    }
    Err(usage(format!("the limit on {}", message.replace("{}", &hard.to_string()))))
}

/// Returns the error, or what it means if no process could be started.
pub(crate) fn or_process_limit(error: Error) -> Error {
    if !format!("{error:#}").contains(NO_MORE_PROCESSES) {
        return error;
    }
    let limit = match getrlimit(Resource::RLIMIT_NPROC) {
        Ok((soft, _)) if soft != RLIM_INFINITY => format!("{soft} (ulimit -u)"),
        _ => "that of the control group (pids.max)".to_owned(),
    };
    usage(format!(
        "the judge cannot start its processes: this user's limit on them, {limit}, is reached; raise it, \
         or end other processes"
    ))
}
