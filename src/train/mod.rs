//! Training: the loops, and the run directory they write into.

pub mod environment;
pub mod metrics;
pub mod run;
pub mod tensorboard;
