//! This file is the part of the other nodes in meeting: they connect to node 0.
//!
//! Contract: a node waits until node 0 is started, and then until all nodes have come. It fails
//! with the reason as soon as it is known that they will not meet.

use super::door::wait;
use super::greeting::{Hello, Reply};
use super::host::LAST_WORDS;
use super::meeting::{Link, Meeting};
use super::{Lane, Nodes, Pace};
use crate::base::error::usage;
use anyhow::{Context, Result, anyhow, bail};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// One attempt to connect may take so long.
const TRY: Duration = Duration::from_secs(5);

/// A reminder that node 0 does not answer is logged at this interval.
const REMINDER: Duration = Duration::from_secs(30);

impl Nodes {
    /// Meets the others as a node that is not node 0; see [`Nodes::meet`].
    pub(crate) fn join(&self, ranks: usize, pace: Pace, deadline: Instant) -> Result<Meeting> {
        let peer = format!("node 0 ({}:{})", self.master, self.port);
        let hello = |connection| Hello { node: self.rank, nodes: self.count, ranks, connection };
        let stream = self.connect(&peer, deadline)?;
        let wait = deadline.saturating_duration_since(Instant::now()) + pace.patience;
        let reply = || {
            hello(0).write(&stream)?;
            stream.set_read_timeout(Some(wait))?;
            Reply::read(&stream)
        };
        let message = match reply() {
            Ok(Reply::Met(message)) => message,
            Ok(Reply::Ended(why)) => bail!("{peer} ended the meeting: {why}"),
            Err(e) => return Err(unmet(&peer, &e)),
        };
        let lane = |connection| {
            let stream = stream.peer_addr().and_then(TcpStream::connect)?;
            hello(connection).write(&stream)?;
            Ok(stream)
        };
        let lanes = (1..=ranks).map(|connection| {
            let stream = lane(connection).map_err(|e| unmet(&peer, &e))?;
            Lane::new(peer.clone(), stream)
        });
        Ok(Meeting {
            first_rank: self.rank * ranks,
            world: self.count * ranks,
            message,
            lanes: lanes.collect::<Result<_>>()?,
            links: vec![Link { peer, stream }],
            pace,
        })
    }

    /// Tells node 0 why this node will not come. Waits a little until node 0 listens.
    pub(crate) fn report(&self, why: &str) {
        let Ok(addresses) = (self.master.as_str(), self.port).to_socket_addrs() else { return };
        let addresses: Vec<SocketAddr> = addresses.collect();
        let deadline = Instant::now() + LAST_WORDS;
        while Instant::now() < deadline {
            if let Ok(stream) = connect_to_any(&addresses) {
                let (node, nodes) = (self.rank, self.count);
                let hello = Hello { node, nodes, ranks: 0, connection: Hello::FAILURE };
                // Node 0 may be gone, or may not wait for this node any more.
                let _ =
                    hello.write(&stream).and_then(|()| Reply::Ended(why.to_owned()).write(&stream));
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Makes the first connection to node 0, which may be started later.
    fn connect(&self, peer: &str, deadline: Instant) -> Result<TcpStream> {
        let addresses = (self.master.as_str(), self.port).to_socket_addrs().map_err(|e| {
            usage(format!(
                "MASTER_ADDR is {:?}, which is no host that this machine knows: {e}",
                self.master
            ))
        })?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        let Self { rank, count, .. } = self;
        let minutes = deadline.saturating_duration_since(Instant::now()).as_secs().div_ceil(60);
        tracing::info!("node {rank} of {count}: connecting to {peer}, for up to {minutes} minutes");
        let mut reminded = Instant::now();
        loop {
            match connect_to_any(&addresses) {
                Ok(stream) => {
                    tracing::info!("{peer} answered; waiting for all nodes");
                    return Ok(stream);
                }
                Err(e) if Instant::now() > deadline => {
                    return Err(e).with_context(|| format!("connecting to {peer}"));
                }
                Err(e) if reminded.elapsed() > REMINDER => {
                    tracing::warn!("{peer} does not answer yet: {e}");
                    reminded = Instant::now();
                }
                Err(_) => wait(Duration::from_millis(100))?,
            }
        }
    }
}

fn connect_to_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut result = Err(ErrorKind::NotFound.into());
    for address in addresses {
        result = TcpStream::connect_timeout(address, TRY);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Returns why node 0, after it had answered, has not met with this node.
fn unmet(peer: &str, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            anyhow!("{peer} answered, but the nodes have not met in time")
        }
        ErrorKind::InvalidData => {
            usage(format!("{peer} is {error}: check MASTER_ADDR and MASTER_PORT"))
        }
        _ => anyhow!("{peer} ended before the nodes had met: its own output says why"),
    }
}
