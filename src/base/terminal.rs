//! The terminal, if there is one: whether it moves its cursor and has colours, and lines for people on stderr.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// Writes a line for people to stderr. Nobody has to listen: a closed stderr is no error.
pub fn line(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Returns whether the stream is a terminal that can move its cursor.
pub fn is_terminal(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns whether the stream is a terminal that has colours, and `NO_COLOR` is not set.
pub fn is_coloured(stream: &impl IsTerminal) -> bool {
    is_terminal(stream) && std::env::var_os("NO_COLOR").is_none()
}
