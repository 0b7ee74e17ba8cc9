//! Ctrl-C and SIGTERM: the first asks the running loop to stop after its step, another one a second or more
//! later ends the process at once. What comes sooner is the same request: `timeout` and job schedulers signal
//! a process and then its group.
//!
//! Loops poll [`requested`], write a checkpoint, and return [`super::error::Interrupted`].

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicI64, Ordering};

const NOTICE: &[u8] = b"\nstopping in an orderly way; once more to stop at once\n";
const EXIT_CODE: libc::c_int = 130;

const SAME_REQUEST_MILLIS: i64 = 1000;

/// When the user asked to stop, on the monotonic clock; 0 where nobody did.
static REQUESTED_AT_MILLIS: AtomicI64 = AtomicI64::new(0);

/// Returns whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED_AT_MILLIS.load(Ordering::Relaxed) != 0
}

/// Takes over SIGINT and SIGTERM for the rest of the process.
pub fn install() -> Result<()> {
    let handler = SigHandler::Handler(on_signal);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: `on_signal` only touches an atomic and calls async-signal-safe functions.
        unsafe { sigaction(signal, &action) }.context("installing the signal handler")?;
    }
    Ok(())
}

/// Ignores both signals for the rest of the process: another process asks this one to stop.
pub fn leave_to_another() -> Result<()> {
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: nothing runs on the signal.
        unsafe { sigaction(signal, &action) }.context("ignoring signals")?;
    }
    Ok(())
}

extern "C" fn on_signal(_: libc::c_int) {
    let now = monotonic_millis();
    let order = Ordering::Relaxed;
    match REQUESTED_AT_MILLIS.compare_exchange(0, now, order, order) {
        // SAFETY: `write` is async-signal-safe and the buffer is static.
        Ok(_) => unsafe {
            libc::write(libc::STDERR_FILENO, NOTICE.as_ptr().cast(), NOTICE.len());
        },
        Err(first) if now - first < SAME_REQUEST_MILLIS => {}
        // SAFETY: `_exit` is async-signal-safe and does not return.
        Err(_) => unsafe { libc::_exit(EXIT_CODE) },
    }
}

/// Milliseconds since some moment in the past, at least 1.
fn monotonic_millis() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `clock_gettime` is async-signal-safe and `now` is valid.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    (now.tv_sec * 1000 + now.tv_nsec / 1_000_000).max(1)
}
