//! Logs: `tracing` events to stderr, and to the run's log file once it has one.
//!
//! `RUST_LOG` overrides the level. Nobody has to listen to stderr: a closed one is no error.

use crate::base::progress;
use crate::base::terminal::is_coloured;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

static LOG_FILE: Mutex<Option<File>> = Mutex::new(None);

/// How much is said on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings and errors, no progress.
    Quiet,
    /// What a user wants to know.
    Normal,
    /// What a developer wants to know.
    Verbose,
}

/// Starts logging; call once, from `main`.
pub fn init(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Quiet => "warn",
        Verbosity::Normal => "warn,codeseq=info",
        Verbosity::Verbose => "info,codeseq=debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let to_stderr = fmt::layer()
        .with_writer(|| Stderr)
        .with_ansi(is_coloured(&io::stderr()))
        .with_target(false)
        .without_time()
        .compact();
    let to_file = fmt::layer().with_writer(|| LogFile).with_ansi(false).with_target(false);
    tracing_subscriber::registry().with(filter).with(to_stderr).with(to_file).init();
    if verbosity != Verbosity::Quiet {
        progress::show();
    }
}

/// Copies every event from now on to `path`, in place of an earlier file.
pub fn also_to(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    *LOG_FILE.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    Ok(())
}

struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = progress::suspend(|| io::stderr().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

struct LogFile;

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut *LOG_FILE.lock().unwrap_or_else(PoisonError::into_inner) {
            file.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
