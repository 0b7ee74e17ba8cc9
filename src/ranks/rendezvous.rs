//! How the nodes of a run find each other.
//!
//! Contract: one process per node, each with equally many ranks. Node 0 listens, from [`Nodes::listen`] on, so
//! that its end ends whoever waits for it. The others connect to it, once for [`Meeting::watch`], and when
//! all have come and learnt its message (the identifier of a communicator), once for each of their ranks.
//! Where they cannot meet, node 0 tells all why. A run on one node opens no connection. Left out: protection
//! from processes that mean harm: the network of the nodes is trusted.

use super::Lane;
use super::door::{Door, has_ended};
use super::greeting::{Hello, Reply};
use super::nodes::Nodes;
use super::pace::Pace;
use crate::base::error::usage;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long node 0 stays to say that it will not meet the others.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Where this process listens as node 0, until the nodes meet.
static LISTENER: Mutex<Option<TcpListener>> = Mutex::new(None);

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

/// The connections of the other nodes, by node and connection: those of ranks are numbered from 1.
type Arrivals = BTreeMap<(usize, usize), Link>;

fn lock_listener() -> MutexGuard<'static, Option<TcpListener>> {
    LISTENER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    /// Begins to listen, on node 0 of several: before anything that may fail or take long, as the others wait
    /// for it.
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

    /// Meets the other nodes. `ranks` is how many each node brings, `message` what this one tells the
    /// others, which counts only on node 0. Waits for all nodes up to `timeout`, or an interrupt.
    pub fn meet(
        &self,
        ranks: usize,
        message: Vec<u8>,
        pace: Pace,
        timeout: Duration,
    ) -> Result<Meeting> {
        if self.count == 1 {
            let (lanes, links) = (Vec::new(), Vec::new());
            return Ok(Meeting { first_rank: 0, world: ranks, message, lanes, links, pace });
        }
        let deadline = Instant::now() + timeout;
        match self.rank {
            0 => {
                let listening = lock_listener().take();
                let listener = listening.map_or_else(|| self.bind(), Ok)?;
                let met = self.host(&listener, ranks, message, pace, deadline);
                // Those who have not come by then are for `call_off` to tell.
                met.inspect_err(|_| *lock_listener() = Some(listener))
            }
            _ => self.join(ranks, pace, deadline),
        }
    }

    /// Tells the other nodes why node 0 will not meet them, where it has listened and not met them. Waits
    /// a little for those that have not come.
    pub fn call_off(&self, error: &anyhow::Error) {
        let listening = lock_listener().take();
        if let Some(listener) = listening {
            tracing::info!("telling the other nodes that this one has failed");
            self.tell_failure(&listener, &format!("{error:#}"), Instant::now() + LAST_WORDS);
        }
    }

    fn tell_failure(&self, listener: &TcpListener, why: &str, deadline: Instant) {
        let mut door = Door::new(listener, Pace::DEFAULT);
        let mut told = BTreeSet::new();
        while told.len() < self.count - 1 && Instant::now() < deadline {
            // What failed already is what the user has to know.
            let Ok(known) = door.open() else { return };
            for (hello, stream, _) in known {
                let _ = Reply::Ended(why.to_owned()).write(&stream);
                told.insert(hello.node);
            }
        }
    }

    /// Node 0's part of [`Nodes::meet`].
    fn host(
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
            // Whoever is gone by now will be missed.
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

    /// Waits until the other nodes have so many `connections` each.
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

    /// Lets a connection of a node in, or tells it why not.
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
        // It may be gone.
        let _ = Reply::Ended(why.clone()).write(&stream);
        Err(usage(why))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const PACE: Pace =
        Pace { beat: Duration::from_millis(50), patience: Duration::from_secs(3) };
    pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

    /// A free port of this machine.
    fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn node(rank: usize, count: usize, port: u16) -> Nodes {
        Nodes { rank, count, master: "127.0.0.1".to_owned(), port }
    }

    fn host(listener: &TcpListener, count: usize, ranks: usize, pace: Pace) -> Result<Meeting> {
        let deadline = Instant::now() + TIMEOUT;
        node(0, count, 0).host(listener, ranks, b"identifier".to_vec(), pace, deadline)
    }

    fn join(nodes: &Nodes, ranks: usize) -> Result<Meeting> {
        nodes.join(ranks, PACE, Instant::now() + TIMEOUT)
    }

    fn why(result: Result<Meeting>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    /// Meets as every node of `count`, on a free port of this machine.
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

    #[test]
    fn every_node_learns_its_ranks_and_the_message() {
        let meetings = meet_all(3, 8);
        let places: Vec<_> = meetings.iter().map(|m| (m.first_rank, m.world)).collect();
        assert_eq!(places, [(0, 24), (8, 24), (16, 24)]);
        assert!(meetings.iter().all(|m| m.message == b"identifier"));
    }

    #[test]
    fn a_run_on_one_node_meets_itself() {
        let meeting = node(0, 1, 1).meet(8, vec![1, 2], PACE, TIMEOUT).unwrap();
        assert_eq!((meeting.first_rank, meeting.world, &*meeting.message), (0, 8, &[1, 2][..]));
        drop(meeting.watch(|_| panic!("nobody to lose")).unwrap());
    }

    #[test]
    fn a_missing_node_is_named() {
        let (listener, _) = listener();
        let result = node(0, 2, 0).host(&listener, 1, Vec::new(), PACE, Instant::now());
        assert_eq!(why(result), "nodes [1] of 2 have not come");
    }

    #[test]
    fn silent_strangers_keep_nobody_waiting() {
        let (listener, port) = listener();
        let stranger = || TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _strangers = [stranger(), stranger()];
        let patient = Pace { patience: 100 * TIMEOUT, ..PACE };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| join(&node(1, 2, port), 1));
            assert_eq!(host(&listener, 2, 1, patient).unwrap().lanes.len(), 1);
            other.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_node_0_that_ends_before_the_meeting_ends_who_waits_for_it() {
        let (listener, port) = listener();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| join(&node(1, 2, port), 1));
            drop(listener.accept().unwrap());
            let why = why(other.join().unwrap());
            let expected = format!("node 0 (127.0.0.1:{port}) ended before the nodes had met");
            assert!(why.starts_with(&expected), "{why}");
        });
    }

    #[test]
    fn a_node_0_that_fails_before_the_meeting_tells_who_waits_for_it() {
        let (listener, port) = listener();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| join(&node(1, 2, port), 1));
            node(0, 2, port).tell_failure(&listener, "no such model", Instant::now() + TIMEOUT);
            let expected = format!("node 0 (127.0.0.1:{port}) ended the meeting: no such model");
            assert_eq!(why(other.join().unwrap()), expected);
        });
    }

    #[test]
    fn a_node_that_ends_before_the_meeting_is_named() {
        let (listener, port) = listener();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        Hello { node: 1, nodes: 3, ranks: 1, connection: 0 }.write(&stream).unwrap();
        drop(stream);
        let why = why(host(&listener, 3, 1, PACE));
        assert_eq!(why, "node 1 (127.0.0.1) ended before the nodes had met");
    }

    #[test]
    fn nodes_that_do_not_fit_are_refused_by_name_on_both_sides() {
        for (nodes, ranks, words) in
            [(3, 2, "is one of 3 nodes, node 0 one of 2"), (2, 4, "brings 4 ranks, node 0 2")]
        {
            let (listener, port) = listener();
            std::thread::scope(|scope| {
                let other = scope.spawn(move || join(&node(1, nodes, port), ranks));
                let error = host(&listener, 2, 2, PACE).unwrap_err();
                assert_eq!(crate::base::error::exit_code(&error), 2);
                let here = format!("{error:#}");
                assert!(here.contains(words) && here.starts_with("node 1 (127.0.0.1)"), "{here}");
                let there = format!("node 0 (127.0.0.1:{port}) ended the meeting: {here}");
                assert_eq!(why(other.join().unwrap()), there);
            });
        }
    }

    #[test]
    fn a_node_that_comes_twice_is_refused_by_name_on_all_sides() {
        let (listener, port) = listener();
        std::thread::scope(|scope| {
            let join = || scope.spawn(|| join(&node(1, 3, port), 1));
            let both = [join(), join()];
            let here = why(host(&listener, 3, 1, PACE));
            assert!(here.starts_with("node 1 (127.0.0.1) is there already"), "{here}");
            for other in both {
                let there = why(other.join().unwrap());
                assert!(there.ends_with(&here), "{there}");
            }
        });
    }

    #[test]
    fn a_host_that_is_not_known_is_a_mistake_of_the_user() {
        let nodes = Nodes { master: "no such host".to_owned(), ..node(1, 2, 1) };
        let error = join(&nodes, 1).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(error.to_string().contains("MASTER_ADDR is \"no such host\""), "{error}");
    }

    #[test]
    fn a_port_in_use_is_a_mistake_of_the_user() {
        let (_listener, port) = listener();
        let error = node(0, 2, port).listen().unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(error.to_string().contains("set MASTER_PORT to another port"), "{error}");
    }
}
