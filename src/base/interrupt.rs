//! Ctrl-C and SIGTERM: the first asks the running loop to stop after its step, the second ends the
//! process at once.
//!
//! Loops poll [`requested`], write a checkpoint, and return [`super::error::Interrupted`].

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicBool, Ordering};

const NOTICE: &[u8] = b"\nstopping in an orderly way; once more to stop at once\n";
const EXIT_CODE: libc::c_int = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
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
    if REQUESTED.swap(true, Ordering::Relaxed) {
        // SAFETY: `_exit` is async-signal-safe and does not return.
        unsafe { libc::_exit(EXIT_CODE) };
    }
    // SAFETY: `write` is async-signal-safe and the buffer is static.
    unsafe { libc::write(libc::STDERR_FILENO, NOTICE.as_ptr().cast(), NOTICE.len()) };
}
