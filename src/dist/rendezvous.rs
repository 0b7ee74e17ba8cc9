//! How the nodes of a run find each other.
//!
//! Contract: one process per node. Node 0 listens, the others connect to it, once for [`Meeting::watch`]
//! and once for each of their ranks, and all learn every node's number of ranks and a message of node 0
//! (the identifier of a communicator). A run on one node opens no connection. Left out: protection from
//! processes that mean harm: the network of the nodes is trusted.

use super::Lane;
use crate::base::error::{Interrupted, usage};
use crate::base::interrupt;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// First bytes of a connection: what it is for, and the version of what follows.
const GREETING: [u8; 8] = *b"codeseq2";

/// The longest message of node 0.
const LONGEST_MESSAGE: usize = 1 << 16;

/// Where this process stands among the nodes of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// This node, from 0.
    pub rank: usize,
    /// How many nodes there are.
    pub count: usize,
    /// Host name or address of node 0.
    pub master: String,
    /// The port that node 0 listens on.
    pub port: u16,
}

/// How often nodes show that they live, and how long one may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two signs of life.
    pub beat: Duration,
    /// Without a sign of life until a node counts as dead; also for a newcomer to say who it is.
    pub patience: Duration,
}

impl Pace {
    /// A dead node ends the run within half a minute.
    pub const DEFAULT: Self =
        Self { beat: Duration::from_secs(5), patience: Duration::from_secs(30) };
}

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
    pub(super) links: Vec<Link>,
    pub(super) pace: Pace,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: String,
    pub(super) stream: TcpStream,
}

impl Nodes {
    /// From the variables `NNODES`, `NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT`, or what torchrun
    /// (`GROUP_WORLD_SIZE`, `GROUP_RANK`) and Slurm (`SLURM_NNODES`, `SLURM_NODEID`,
    /// `SLURM_JOB_NODELIST`) call them. Without any of them, a run on this node alone. Under torchrun node 0
    /// listens on the port after `MASTER_PORT`.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |names: &[&str], default: usize| -> Result<usize> {
            let Some((name, value)) = names.iter().find_map(|n| Some((n, variable(n)?))) else {
                return Ok(default);
            };
            let parsed = value.trim().parse();
            parsed.map_err(|_| usage(format!("{name} is {value:?}, not a whole number")))
        };
        let count = number(&["NNODES", "GROUP_WORLD_SIZE", "SLURM_NNODES"], 1)?;
        let rank = number(&["NODE_RANK", "GROUP_RANK", "SLURM_NODEID"], 0)?;
        if rank >= count {
            return Err(usage(format!("node rank {rank} of {count} nodes: ranks begin at 0")));
        }
        if number(&["LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"], 1)? > 1 {
            let what = "start one process per node: it drives all GPUs of the node (torchrun \
                        --nproc-per-node 1, srun --ntasks-per-node 1)";
            return Err(usage(what));
        }
        let first_of_slurm = || variable("SLURM_JOB_NODELIST").map(|list| first_host(&list));
        let master = variable("MASTER_ADDR").or_else(first_of_slurm);
        let master = match master {
            Some(master) => master,
            None if count == 1 => "localhost".to_owned(),
            None => return Err(usage("MASTER_ADDR is not set: the address of node 0")),
        };
        // Where torchrun keeps a store of its own it listens there itself.
        let is_taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|used| used == "True");
        let port = number(&["MASTER_PORT"], 29_500)? + usize::from(is_taken);
        let port = u16::try_from(port).map_err(|_| usage(format!("MASTER_PORT is {port}")))?;
        Ok(Self { rank, count, master, port })
    }

    /// How many of `ranks` ranks are on this node.
    pub fn share(&self, ranks: usize) -> Result<usize> {
        match ranks.is_multiple_of(self.count) {
            true => Ok(ranks / self.count),
            false => Err(usage(format!(
                "train.ranks is {ranks}, for all nodes together: it must be a multiple of the {} nodes \
                 (NNODES)",
                self.count
            ))),
        }
    }

    /// Meets the other nodes. `ranks` is how many this node brings, `message` what it tells the
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
                let listener = TcpListener::bind(("0.0.0.0", self.port))
                    .with_context(|| format!("listening on port {} for the nodes", self.port))?;
                self.host(&listener, ranks, message, pace, deadline)
            }
            _ => self.join(ranks, pace, deadline),
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
        listener.set_nonblocking(true).context("listening for the nodes")?;
        let mut ranks_by_node = vec![0; self.count];
        ranks_by_node[0] = ranks;
        // By node and connection: those of ranks are numbered from 1.
        let mut arrived = BTreeMap::new();
        let is_there = |node: usize, arrived: &BTreeMap<(usize, usize), _>, brought: usize| {
            brought > 0 && arrived.range((node, 0)..=(node, brought)).count() == brought + 1
        };
        loop {
            let is_missing = |&node: &usize| !is_there(node, &arrived, ranks_by_node[node]);
            let missing: Vec<usize> = (1..self.count).filter(is_missing).collect();
            if missing.is_empty() {
                break;
            }
            let (stream, address) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    wait(Duration::from_millis(20))?;
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    bail!("nodes {missing:?} of {} have not come", self.count);
                }
                Err(e) => return Err(e).context("accepting a node"),
            };
            // Whoever does not speak as a node is no node: port scanners come by.
            let Ok([node, brought, connection]) = read_hello(&stream, pace) else { continue };
            let is_known = (1..self.count).contains(&node)
                && (ranks_by_node[node] == 0 || ranks_by_node[node] == brought)
                && connection <= brought
                && !arrived.contains_key(&(node, connection));
            if !is_known || brought == 0 {
                bail!("a process at {address} says that it is node {node} of {}", self.count);
            }
            ranks_by_node[node] = brought;
            arrived.insert((node, connection), (format!("node {node} ({})", address.ip()), stream));
        }
        let (mut links, mut lanes) = (Vec::new(), Vec::new());
        for ((_, connection), (peer, stream)) in arrived {
            match connection {
                0 => links.push(Link { peer, stream }),
                _ => lanes.push(Lane::new(peer, stream)?),
            }
        }
        for link in &mut links {
            let telling = || format!("telling {} about the others", link.peer);
            write_roster(&link.stream, &ranks_by_node, &message).with_context(telling)?;
        }
        let world = ranks_by_node.iter().sum();
        Ok(Meeting { first_rank: 0, world, message, lanes, links, pace })
    }

    /// The other nodes' part of [`Nodes::meet`].
    fn join(&self, ranks: usize, pace: Pace, deadline: Instant) -> Result<Meeting> {
        let peer = format!("node 0 ({}:{})", self.master, self.port);
        let stream = self.connect([ranks, 0], deadline)?;
        let lanes = (1..=ranks).map(|connection| {
            Lane::new(peer.clone(), self.connect([ranks, connection], deadline)?)
        });
        let lanes = lanes.collect::<Result<_>>()?;
        let patience = deadline.saturating_duration_since(Instant::now()) + pace.patience;
        let roster = || {
            stream.set_read_timeout(Some(patience))?;
            read_roster(&stream, self.count)
        };
        let (ranks_by_node, message) = roster().with_context(|| format!("meeting {peer}"))?;
        Ok(Meeting {
            first_rank: ranks_by_node[..self.rank].iter().sum(),
            world: ranks_by_node.iter().sum(),
            message,
            lanes,
            links: vec![Link { peer, stream }],
            pace,
        })
    }

    /// A connection to node 0, which learns how many ranks this node brings and which connection it is.
    fn connect(&self, ranks_and_connection: [usize; 2], deadline: Instant) -> Result<TcpStream> {
        let mut hello = GREETING.to_vec();
        for number in [self.rank].iter().chain(&ranks_and_connection) {
            hello.extend((*number as u32).to_le_bytes());
        }
        loop {
            match TcpStream::connect((self.master.as_str(), self.port)) {
                Ok(mut stream) => {
                    stream.write_all(&hello).context("greeting node 0")?;
                    return Ok(stream);
                }
                Err(e) if Instant::now() > deadline => {
                    let place = format!("{}:{}", self.master, self.port);
                    return Err(e).with_context(|| format!("connecting to node 0 at {place}"));
                }
                Err(_) => wait(Duration::from_millis(100))?,
            }
        }
    }
}

/// The first host of a Slurm list such as `gpu[003-010,015],login1`.
fn first_host(list: &str) -> String {
    let Some((prefix, rest)) = list.split_once('[') else {
        return list.split(',').next().unwrap_or_default().to_owned();
    };
    if let Some((first, _)) = prefix.split_once(',') {
        return first.to_owned();
    }
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    format!("{prefix}{digits}")
}

/// Sleeps, unless the user asks to stop.
fn wait(duration: Duration) -> Result<()> {
    if interrupt::requested() {
        return Err(Interrupted.into());
    }
    std::thread::sleep(duration);
    Ok(())
}

fn read_number(mut stream: &TcpStream) -> std::io::Result<usize> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes) as usize)
}

/// A node's rank, how many ranks it brings, and which of its connections this is.
fn read_hello(mut stream: &TcpStream, pace: Pace) -> Result<[usize; 3]> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(pace.patience))?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    if greeting != GREETING {
        bail!("not a node of this program");
    }
    Ok([read_number(stream)?, read_number(stream)?, read_number(stream)?])
}

fn write_roster(mut stream: &TcpStream, ranks_by_node: &[usize], message: &[u8]) -> Result<()> {
    let mut bytes = Vec::new();
    for &number in ranks_by_node.iter().chain([&message.len()]) {
        bytes.extend((number as u32).to_le_bytes());
    }
    bytes.extend(message);
    Ok(stream.write_all(&bytes)?)
}

fn read_roster(mut stream: &TcpStream, count: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let ranks = (0..count).map(|_| read_number(stream)).collect::<Result<_, _>>()?;
    let len = read_number(stream)?;
    if len > LONGEST_MESSAGE {
        bail!("node 0 announces a message of {len} bytes");
    }
    let mut message = vec![0; len];
    stream.read_exact(&mut message)?;
    Ok((ranks, message))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::dist) const PACE: Pace =
        Pace { beat: Duration::from_millis(50), patience: Duration::from_secs(3) };
    pub(in crate::dist) const TIMEOUT: Duration = Duration::from_secs(60);

    fn parse(variables: &[(&str, &str)]) -> Result<Nodes> {
        Nodes::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    /// Meets as every node of `ranks.len()` on a free port of this machine.
    pub(in crate::dist) fn meet_all(ranks: &[usize]) -> Vec<Meeting> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (count, deadline) = (ranks.len(), Instant::now() + TIMEOUT);
        let nodes = |rank| Nodes { rank, count, master: "127.0.0.1".to_owned(), port };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..count)
                .map(|rank| scope.spawn(move || nodes(rank).join(ranks[rank], PACE, deadline)))
                .collect();
            let first = nodes(0).host(&listener, ranks[0], b"identifier".to_vec(), PACE, deadline);
            std::iter::once(first.unwrap())
                .chain(others.into_iter().map(|t| t.join().unwrap().unwrap()))
                .collect()
        })
    }

    #[test]
    fn every_node_learns_its_ranks_and_the_message() {
        let meetings = meet_all(&[8, 4, 8]);
        let places: Vec<_> = meetings.iter().map(|m| (m.first_rank, m.world)).collect();
        assert_eq!(places, [(0, 20), (8, 20), (12, 20)]);
        assert!(meetings.iter().all(|m| m.message == b"identifier"));
    }

    #[test]
    fn a_run_on_one_node_meets_itself() {
        let nodes = parse(&[]).unwrap();
        let meeting = nodes.meet(8, vec![1, 2], PACE, TIMEOUT).unwrap();
        assert_eq!((meeting.first_rank, meeting.world, &*meeting.message), (0, 8, &[1, 2][..]));
        drop(meeting.watch(|_| panic!("nobody to lose")).unwrap());
    }

    #[test]
    fn ranks_are_divided_evenly_among_nodes() {
        let nodes = parse(&[("NNODES", "4"), ("MASTER_ADDR", "a")]).unwrap();
        assert_eq!(nodes.share(32).unwrap(), 8);
        let error = nodes.share(6).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(error.to_string().contains("train.ranks is 6"), "{error}");
    }

    #[test]
    fn a_missing_node_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nodes = Nodes { rank: 0, count: 2, master: "127.0.0.1".to_owned(), port: 0 };
        let result = nodes.host(&listener, 1, Vec::new(), PACE, Instant::now());
        assert_eq!(format!("{:#}", result.unwrap_err()), "nodes [1] of 2 have not come");
    }

    #[test]
    fn variables_of_torchrun_and_slurm_are_understood() {
        let plain =
            [("NNODES", "2"), ("NODE_RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "7")];
        let expected = Nodes { rank: 1, count: 2, master: "a".to_owned(), port: 7 };
        assert_eq!(parse(&plain).unwrap(), expected);
        let torchrun = [("GROUP_WORLD_SIZE", "2"), ("GROUP_RANK", "1"), ("LOCAL_WORLD_SIZE", "1")];
        let address = [("MASTER_ADDR", "a"), ("MASTER_PORT", "7")];
        assert_eq!(parse(&[&torchrun[..], &address].concat()).unwrap(), expected);
        let store = [("TORCHELASTIC_USE_AGENT_STORE", "True")];
        assert_eq!(parse(&[&torchrun[..], &address, &store].concat()).unwrap().port, 8);
        let slurm = [("SLURM_NNODES", "2"), ("SLURM_NODEID", "1"), ("MASTER_PORT", "7")];
        let list = [("SLURM_JOB_NODELIST", "a,b")];
        assert_eq!(parse(&[&slurm[..], &list].concat()).unwrap(), expected);
    }

    #[test]
    fn the_first_host_of_a_slurm_list_is_found() {
        for (list, first) in [
            ("gpu7", "gpu7"),
            ("gpu7,gpu9", "gpu7"),
            ("gpu[003-010,015]", "gpu003"),
            ("gpu[12,15],login", "gpu12"),
            ("login,gpu[1-2]", "login"),
        ] {
            assert_eq!(first_host(list), first);
        }
    }

    #[test]
    fn impossible_variables_are_mistakes_of_the_user() {
        for (variables, words) in [
            (&[("NNODES", "two")][..], "NNODES is \"two\""),
            (&[("NNODES", "2"), ("NODE_RANK", "2")], "node rank 2 of 2"),
            (&[("NNODES", "2"), ("NODE_RANK", "1")], "MASTER_ADDR is not set"),
            (&[("LOCAL_WORLD_SIZE", "8")], "one process per node"),
            (&[("MASTER_PORT", "70000")], "MASTER_PORT"),
        ] {
            let error = parse(variables).unwrap_err();
            assert_eq!(crate::base::error::exit_code(&error), 2);
            assert!(format!("{error:#}").contains(words), "{error:#}");
        }
    }
}
