//! This file watches the other nodes of a run.
//!
//! Contract: both ends of a [`Meeting`]'s connections send signs of life. When a node dies or falls
//! silent, the handler of every other node is called within [`Pace::patience`]. Node 0's handler
//! gets the name of that node. The other handlers get node 0's name, because node 0 then closes its
//! connections. A node that is done says goodbye and is not missed. Left out: going on with fewer
//! nodes.
//!
//! [`Pace::patience`]: super::Pace::patience

use super::meeting::{Link, Meeting};
use anyhow::{Context, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;

/// This byte is a sign of life.
const ALIVE: u8 = 1;
/// This byte is a node's last one when its work is done.
const GOODBYE: u8 = 2;

/// A watch over the other nodes. Dropping it tells them that this node is done.
#[derive(Debug)]
pub struct Watch {
    is_over: Arc<AtomicBool>,
    links: Vec<Arc<Link>>,
    /// Dropping the sender ends the signs of life.
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Meeting {
    /// Sends signs of life to the others, and calls `on_loss` once, on a thread of its own, with
    /// the name of the first node that is lost.
    pub fn watch(self, on_loss: impl FnOnce(&str) + Send + 'static) -> Result<Watch> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (lost, losses) = channel::<String>();
        let (stop, stopped) = channel::<()>();
        let links: Vec<_> = self.links.into_iter().map(Arc::new).collect();
        let mut threads = Vec::new();
        for link in links.clone() {
            link.stream.set_read_timeout(Some(self.pace.patience)).context("watching a node")?;
            link.stream.set_write_timeout(Some(self.pace.patience)).context("watching a node")?;
            let (lost, is_over) = (lost.clone(), is_over.clone());
            threads.push(std::thread::spawn(move || {
                if !says_goodbye(&link.stream) && !is_over.load(Ordering::SeqCst) {
                    // Nobody receives any more once a first loss has been sent.
                    let _ = lost.send(link.peer.clone());
                }
            }));
        }
        let (beat, alive) = (self.pace.beat, links.clone());
        threads.push(std::thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(beat) {
                for link in &alive {
                    // A failure to write shows on the reading side, as silence or as an end.
                    let _ = (&link.stream).write_all(&[ALIVE]);
                }
            }
        }));
        drop(lost);
        let (over, all) = (is_over.clone(), links.clone());
        // Nobody waits for this thread, because the handler may end the process.
        std::thread::spawn(move || {
            if let Ok(peer) = losses.recv() {
                // The others learn of it because their connection to this node ends.
                over.store(true, Ordering::SeqCst);
                all.iter().for_each(|link| drop(link.stream.shutdown(Shutdown::Both)));
                on_loss(&peer);
            }
        });
        Ok(Watch { is_over, links, stop: Some(stop), threads })
    }
}

/// Reads signs of life to the end of the connection, and tells whether it ended with a goodbye.
fn says_goodbye(mut stream: &TcpStream) -> bool {
    let mut byte = [0];
    loop {
        match stream.read_exact(&mut byte) {
            Ok(()) if byte[0] == GOODBYE => return true,
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

impl Watch {
    /// Ends the run on all other nodes, because this node cannot go on.
    pub fn abandon(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.links.iter().for_each(|link| drop(link.stream.shutdown(Shutdown::Both)));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let was_over = self.is_over.swap(true, Ordering::SeqCst);
        self.stop = None;
        for link in &self.links {
            if !was_over && !std::thread::panicking() {
                let _ = (&link.stream).write_all(&[GOODBYE]);
            }
            let _ = link.stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing more to tell.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pace;
    use super::super::test_support::{PACE, TIMEOUT, meet_all};
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_node_that_dies_is_noticed_by_all_others() {
        let (tell, told) = channel();
        let mut watches: Vec<_> = meet_all(3, 1)
            .into_iter()
            .enumerate()
            .map(|(node, meeting)| {
                let tell = tell.clone();
                meeting.watch(move |lost| tell.send((node, lost.to_owned())).unwrap()).unwrap()
            })
            .collect();
        // Its connection ends without a goodbye.
        watches[2].abandon();
        let mut losses = [told.recv_timeout(TIMEOUT).unwrap(), told.recv_timeout(TIMEOUT).unwrap()];
        losses.sort();
        assert!(losses[0].0 == 0 && losses[0].1.starts_with("node 2"), "{losses:?}");
        assert!(losses[1].0 == 1 && losses[1].1.starts_with("node 0"), "{losses:?}");
        watches.clear();
    }

    #[test]
    fn a_node_that_falls_silent_is_noticed() {
        let mut meetings = meet_all(2, 1);
        // Node 1 never begins to watch, so it never shows that it lives.
        let _silent = meetings.pop().unwrap();
        let (tell, told) = channel();
        let hasty = Pace { patience: Duration::from_millis(300), ..PACE };
        let meeting = Meeting { pace: hasty, ..meetings.pop().unwrap() };
        let watch = meeting.watch(move |lost| tell.send(lost.to_owned()).unwrap()).unwrap();
        assert!(told.recv_timeout(TIMEOUT).unwrap().starts_with("node 1"));
        drop(watch);
    }

    #[test]
    fn a_node_that_is_done_is_not_missed() {
        let (tell, told) = channel();
        let watches: Vec<_> = meet_all(3, 1)
            .into_iter()
            .map(|meeting| {
                let tell = tell.clone();
                meeting.watch(move |lost| tell.send(lost.to_owned()).unwrap()).unwrap()
            })
            .collect();
        drop((watches, tell));
        assert!(told.recv().is_err());
    }
}
