//! This module connects the nodes of a run: one process on each of several machines.
//!
//! Contract: [`Nodes`] says which node this process is. [`Nodes::meet`] connects all of them or
//! fails on all of them. A [`Watch`] notices within a minute that a node is lost. [`Lane`]s carry
//! messages between node 0 and the ranks of the others. Left out: the content of messages, and the
//! traffic of numbers between GPUs (NCCL).

mod door;
mod greeting;
mod guest;
mod host;
mod lane;
mod meeting;
mod pace;
mod place;
mod rendezvous;
#[cfg(test)]
mod test_support;
mod watch;

pub use lane::Lane;
pub use meeting::Meeting;
pub use pace::Pace;
pub use place::{Nodes, expect_one};
pub use watch::Watch;
