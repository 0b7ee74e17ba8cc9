//! This file holds the connections of nodes that have met.

use super::{Lane, Pace};
use std::net::TcpStream;

/// The connected nodes of a run.
#[derive(Debug)]
pub struct Meeting {
    /// This node's first rank has this number.
    pub first_rank: usize,
    /// All nodes together have so many ranks.
    pub world: usize,
    /// Node 0 gave this message to all nodes.
    pub message: Vec<u8>,
    /// Node 0 has one lane to every rank of the other nodes; another node has one lane to node 0
    /// for each of its ranks. They are in rank order.
    pub lanes: Vec<Lane>,
    pub(crate) links: Vec<Link>,
    pub(crate) pace: Pace,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: String,
    pub(crate) stream: TcpStream,
}
