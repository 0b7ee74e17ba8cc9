//! This file says how often nodes send a sign of life, and how long they wait for one.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A node sends a sign of life at this interval.
    pub beat: Duration,
    /// A node counts as dead after so long without a sign of life; a new connection must identify
    /// itself within this time.
    pub patience: Duration,
}

impl Pace {
    /// With these numbers a silent node ends the run within a minute, including the time that a
    /// process which hangs then gets to end by itself.
    pub const DEFAULT: Self =
        Self { beat: Duration::from_secs(5), patience: Duration::from_secs(30) };
}
