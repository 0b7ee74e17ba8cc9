//! The port where the other nodes come in at node 0.
//!
//! Contract: no stranger blocks it: a connection that does not say in time that it is a node is closed.

use super::Pace;
use super::greeting::Hello;

use crate::base::error::Interrupted;
use crate::base::interrupt;
use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

pub(crate) struct Door<'d> {
    listener: &'d TcpListener,
    /// Connections that have not said yet whose they are, and since when.
    strangers: Vec<(TcpStream, IpAddr, Instant)>,
    pace: Pace,
}

impl<'d> Door<'d> {
    pub(crate) fn new(listener: &'d TcpListener, pace: Pace) -> Self {
        Self { listener, strangers: Vec::new(), pace }
    }

    /// Those who have said by now who they are, after a moment if nobody knocks. Whoever does not speak as a
    /// node is no node: port scanners come by.
    pub(crate) fn open(&mut self) -> Result<Vec<(Hello, TcpStream, IpAddr)>> {
        self.listener.set_nonblocking(true).context("listening for the nodes")?;
        match self.listener.accept() {
            Ok((stream, address)) => {
                stream.set_nonblocking(true).context("accepting a node")?;
                self.strangers.push((stream, address.ip(), Instant::now()));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(Duration::from_millis(20))?,
            Err(e) => return Err(e).context("accepting a node"),
        }
        let mut known = Vec::new();
        for (stream, address, since) in std::mem::take(&mut self.strangers) {
            match Hello::take(&stream) {
                Ok(Some(hello)) => known.push((hello, stream, address)),
                Ok(None) if since.elapsed() < self.pace.patience => {
                    self.strangers.push((stream, address, since));
                }
                _ => {}
            }
        }
        Ok(known)
    }
}

/// Whether the other end of a stream that does not block is gone.
pub(crate) fn has_ended(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(arrived) => arrived == 0,
        Err(e) => e.kind() != ErrorKind::WouldBlock,
    }
}

/// Sleeps, unless the user asks to stop.
pub(crate) fn wait(duration: Duration) -> Result<()> {
    if interrupt::requested() {
        return Err(Interrupted.into());
    }
    std::thread::sleep(duration);
    Ok(())
}
