//! This file is node 0's part in meeting the others: it listens.
//!
//! Contract: node 0 listens from [`Nodes::listen`] on, so that nodes that wait for it learn of its
//! end. It accepts every connection that fits, tells all nodes when they have met, and tells all
//! the reason when they cannot meet.

use super::door::{Door, has_ended};
use super::greeting::{Hello, Reply};
use super::meeting::{Link, Meeting};
use super::{Lane, Nodes, Pace};
use crate::base::error::usage;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A node that has failed tries so long to tell the others.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(10);

/// This process listens here as node 0, until the nodes have met.
static LISTENER: Mutex<Option<TcpListener>> = Mutex::new(None);

/// The connections of the other nodes by node and connection; those of ranks are numbered from 1.
type Arrivals = BTreeMap<(usize, usize), Link>;

fn lock_listener() -> MutexGuard<'static, Option<TcpListener>> {
    LISTENER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    /// Begins to listen, if this is node 0 of several. It must be called before anything that may
    /// fail or take long, because the others wait for it.
    pub fn listen(&self) -> Result<()> {
        if self.rank == 0 && self.count > 1 {
            *lock_listener() = Some(self.bind()?);
        }
        Ok(())
    }

    fn bind(&self) -> Result<TcpListener> {
        TcpListener::bind(("0.0.0.0", self.port)).map_err(|e| {
            usage(format!(
                "cannot listen on port {} for the other nodes: {e}; set MASTER_PORT to another port, the \
                 same on all nodes",
                self.port
            ))
        })
    }

    /// Tells the other nodes why this one will not meet them, if it has not met them: node 0 waits a little
    /// for those that have not come, another node tries a little to reach node 0.
    pub fn call_off(&self, error: &anyhow::Error) {
        if self.rank > 0 {
            return self.report(&format!("{error:#}"));
        }
        let listening = lock_listener().take();
        if let Some(listener) = listening {
            tracing::info!("telling the other nodes that this one has failed");
            self.tell_failure(&listener, &format!("{error:#}"), Instant::now() + LAST_WORDS);
        }
    }

    /// Fails before anything that other nodes wait for. It lets node 0 listen first.
    pub fn call_off_early(&self, error: &anyhow::Error) {
        if self.count > 1 && self.listen().is_ok() {
            self.call_off(error);
        }
    }

    pub(crate) fn tell_failure(&self, listener: &TcpListener, why: &str, deadline: Instant) {
        let mut door = Door::new(listener, Pace::DEFAULT);
        let mut told = BTreeSet::new();
        while told.len() < self.count - 1 && Instant::now() < deadline {
            // The user must learn of the first failure, not of this one.
            let Ok(known) = door.open() else { return };
            for (hello, stream, _) in known {
                let _ = Reply::Ended(why.to_owned()).write(&stream);
                told.insert(hello.node);
            }
        }
    }

    /// Meets the others as node 0; see [`Nodes::meet`].
    pub(crate) fn host(
        &self,
        ranks: usize,
        message: Vec<u8>,
        pace: Pace,
        deadline: Instant,
    ) -> Result<Meeting> {
        let listening = lock_listener().take();
        let listener = listening.map_or_else(|| self.bind(), Ok)?;
        let met = self.host_at(&listener, ranks, message, pace, deadline);
        // `call_off` tells nodes that have not come by then.
        met.inspect_err(|_| *lock_listener() = Some(listener))
    }

    pub(crate) fn host_at(
        &self,
        listener: &TcpListener,
        ranks: usize,
        message: Vec<u8>,
        pace: Pace,
        deadline: Instant,
    ) -> Result<Meeting> {
        tracing::info!("node 0 of {}: waiting for the others", self.count);
        let mut arrived = Arrivals::new();
        let mut door = Door::new(listener, pace);
        let came = self.gather(&mut door, ranks, 1, deadline, &mut arrived);
        let reply = match &came {
            Ok(()) => Reply::Met(message.clone()),
            Err(error) => Reply::Ended(format!("{error:#}")),
        };
        for link in arrived.values() {
            // A node that is gone by now will be noticed as missing.
            let _ = reply.write(&link.stream);
        }
        came?;
        self.gather(&mut door, ranks, 1 + ranks, deadline, &mut arrived)?;
        let (mut links, mut lanes) = (Vec::new(), Vec::new());
        for ((_, connection), link) in arrived {
            link.stream.set_nonblocking(false).context("setting up a connection")?;
            match connection {
                0 => links.push(link),
                _ => lanes.push(Lane::new(link.peer, link.stream)?),
            }
        }
        Ok(Meeting { first_rank: 0, world: self.count * ranks, message, lanes, links, pace })
    }

    /// Waits until each of the other nodes has `connections` connections.
    fn gather(
        &self,
        door: &mut Door<'_>,
        ranks: usize,
        connections: usize,
        deadline: Instant,
        arrived: &mut Arrivals,
    ) -> Result<()> {
        while arrived.len() < (self.count - 1) * connections {
            let has_all =
                |node| arrived.range((node, 0)..(node, connections)).count() == connections;
            if Instant::now() >= deadline {
                let missing: Vec<usize> = (1..self.count).filter(|&node| !has_all(node)).collect();
                bail!("nodes {missing:?} of {} have not come", self.count);
            }
            if let Some(gone) = arrived.values().find(|link| has_ended(&link.stream)) {
                bail!("{} ended before the nodes had met", gone.peer);
            }
            for (hello, stream, address) in door.open()? {
                self.welcome(hello, ranks, stream, address, arrived)?;
            }
        }
        Ok(())
    }

    /// Accepts the connection of a node, or refuses it and tells it the reason.
    fn welcome(
        &self,
        hello: Hello,
        ranks: usize,
        stream: TcpStream,
        address: IpAddr,
        arrived: &mut Arrivals,
    ) -> Result<()> {
        let Hello { node, nodes, ranks: brought, connection } = hello;
        let peer = format!("node {node} ({address})");
        if connection == Hello::FAILURE {
            bail!("{peer} failed: {}", reason(&stream));
        }
        let why = if nodes != self.count {
            format!(
                "{peer} is one of {nodes} nodes, node 0 one of {}: set the same NNODES on all",
                self.count
            )
        } else if brought != ranks {
            format!(
                "{peer} brings {brought} ranks, node 0 {ranks}: set the same train.ranks on all"
            )
        } else if let Some(there) = arrived.get(&(node, connection)) {
            let there = &there.peer;
            format!(
                "{there} is there already, and one more comes from {address}: start each node once, with a \
                 NODE_RANK of its own"
            )
        } else {
            arrived.insert((node, connection), Link { peer, stream });
            return Ok(());
        };
        // The node may be gone.
        let _ = Reply::Ended(why.clone()).write(&stream);
        Err(usage(why))
    }
}

/// Reads why a node has failed.
fn reason(stream: &TcpStream) -> String {
    let reply = || {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LAST_WORDS))?;
        Reply::read(stream)
    };
    match reply() {
        Ok(Reply::Ended(why)) => why,
        _ => "it did not say why".to_owned(),
    }
}
