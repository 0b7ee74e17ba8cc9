//! How often nodes give a sign of life, and how long they wait for one.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two signs of life.
    pub beat: Duration,
    /// Without a sign of life until a node counts as dead; also for a newcomer to say who it is.
    pub patience: Duration,
}

impl Pace {
    /// A node that falls silent ends the run within a minute, with the time that a process which hangs
    /// then gets to end by itself.
    pub const DEFAULT: Self =
        Self { beat: Duration::from_secs(5), patience: Duration::from_secs(30) };
}
