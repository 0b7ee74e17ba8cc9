//! The connections of nodes that have met.

use super::{Lane, Pace};
use std::net::TcpStream;

/// The nodes of a run, connected.
#[derive(Debug)]
pub struct Meeting {
    /// The first rank of this node.
    pub first_rank: usize,
    /// Ranks of all nodes.
    pub world: usize,
    /// What node 0 told all.
    pub message: Vec<u8>,
    /// On node 0 one to every rank of the other nodes, on those one to node 0 for every rank of theirs; by
    /// rank.
    pub lanes: Vec<Lane>,
    pub(crate) links: Vec<Link>,
    pub(crate) pace: Pace,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: String,
    pub(crate) stream: TcpStream,
}
