//! Errors and the exit code each one means.
//!
//! Contract: a mistake of the user (arguments, config, malformed input) is a [`Usage`] error and
//! exits with 2; an interruption after a clean checkpoint is [`Interrupted`] and exits with 130;
//! anything else is work that failed and exits with 1. Context added on the way up keeps the kind.

use std::fmt;

/// A mistake in what the user gave. The text says what, where, and what to do.
#[derive(Debug)]
pub struct Usage(pub String);

/// The user stopped the run. Everything that a resumed run needs is on disk.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Usage {}
impl std::error::Error for Interrupted {}

/// Builds a [`Usage`] error, ready to return.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(message.into()))
}

/// Returns the exit code of the process that ends with `error`.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() {
        2
    } else if error.downcast_ref::<Interrupted>().is_some() {
        130
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn context_keeps_the_exit_code() {
        let error = Err::<(), _>(usage("bad key")).context("reading a.toml").unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert_eq!(exit_code(&anyhow::Error::new(Interrupted)), 130);
        assert_eq!(exit_code(&anyhow::anyhow!("disk full")), 1);
    }
}
