//! This file lets nodes meet on this machine, for tests.

use super::{Meeting, Nodes, Pace};
use anyhow::Result;
use std::net::TcpListener;
use std::time::{Duration, Instant};

pub(crate) const PACE: Pace =
    Pace { beat: Duration::from_millis(50), patience: Duration::from_secs(3) };
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Listens on a free port of this machine.
pub(crate) fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

pub(crate) fn node(rank: usize, count: usize, port: u16) -> Nodes {
    Nodes { rank, count, master: "127.0.0.1".to_owned(), port }
}

pub(crate) fn host(
    listener: &TcpListener,
    count: usize,
    ranks: usize,
    pace: Pace,
) -> Result<Meeting> {
    let deadline = Instant::now() + TIMEOUT;
    node(0, count, 0).host_at(listener, ranks, b"identifier".to_vec(), pace, deadline)
}

pub(crate) fn join(nodes: &Nodes, ranks: usize) -> Result<Meeting> {
    nodes.join(ranks, PACE, Instant::now() + TIMEOUT)
}

/// Meets as each of `count` nodes, on a free port of this machine.
pub(crate) fn meet_all(count: usize, ranks: usize) -> Vec<Meeting> {
    let (listener, port) = listener();
    std::thread::scope(|scope| {
        let join = |rank| scope.spawn(move || join(&node(rank, count, port), ranks));
        let others: Vec<_> = (1..count).map(join).collect();
        let first = host(&listener, count, ranks, PACE);
        std::iter::once(first.unwrap())
            .chain(others.into_iter().map(|t| t.join().unwrap().unwrap()))
            .collect()
    })
}
