//! This file lets the nodes of a run find each other.
//!
//! Contract: there is one process per node, and all have equally many ranks. Node 0 listens, and
//! each other node connects to it once for [`Meeting::watch`]. When all have come, they get node
//! 0's message (the identifier of a communicator) and connect once more for each of their ranks.
//! Where they cannot meet, node 0 tells all of them why. A run on one node opens no connection.
//! Left out: protection from hostile processes; the network of the nodes is trusted.

use super::{Meeting, Nodes, Pace};
use anyhow::Result;
use std::time::{Duration, Instant};

impl Nodes {
    /// Meets the other nodes. Each node has `ranks` ranks; `message` is what node 0 tells the
    /// others, and is ignored on other nodes. Waits for all nodes up to `timeout`, or until an
    /// interrupt.
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
            0 => self.host(ranks, message, pace, deadline),
            _ => self.join(ranks, pace, deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::greeting::Hello;
    use super::super::test_support::{PACE, TIMEOUT, host, join, listener, meet_all, node};
    use super::*;
    use std::net::TcpStream;

    fn why(result: Result<Meeting>) -> String {
        format!("{:#}", result.unwrap_err())
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
        let result = node(0, 2, 0).host_at(&listener, 1, Vec::new(), PACE, Instant::now());
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
    fn a_node_that_fails_before_the_meeting_tells_node_0() {
        let (listener, port) = listener();
        std::thread::scope(|scope| {
            scope.spawn(|| node(1, 3, port).call_off(&anyhow::anyhow!("no such model")));
            let here = why(host(&listener, 3, 1, PACE));
            assert_eq!(here, "node 1 (127.0.0.1) failed: no such model");
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
