//! This file accepts connections of the other nodes at node 0.
//!
//! Contract: a connection that does not identify itself as a node in time is closed, so strangers
//! block nobody.

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
    /// These connections have not identified themselves yet; the time is that of their arrival.
    strangers: Vec<(TcpStream, IpAddr, Instant)>,
    pace: Pace,
}

impl<'d> Door<'d> {
    pub(crate) fn new(listener: &'d TcpListener, pace: Pace) -> Self {
        Self { listener, strangers: Vec::new(), pace }
    }

    /// Returns the connections that have identified themselves by now; waits a moment if there is
    /// no new one. A connection that sends anything else is closed, because port scanners connect
    /// too.
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

/// Tells whether the other end of a stream that does not block is closed.
pub(crate) fn has_ended(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(arrived) => arrived == 0,
        Err(e) => e.kind() != ErrorKind::WouldBlock,
    }
}

/// Sleeps, or fails if the user has asked to stop.
pub(crate) fn wait(duration: Duration) -> Result<()> {
    if interrupt::requested() {
        return Err(Interrupted.into());
    }
    std::thread::sleep(duration);
    Ok(())
}
