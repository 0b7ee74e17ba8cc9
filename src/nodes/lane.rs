//! This file sends messages, a header and numbers, between two processes of a run.
//!
//! Contract: a message arrives whole or the call fails, and messages arrive in order. Headers are
//! JSON. Numbers are sent as bytes of this machine, so all nodes must have one byte order.
//! [`Lane::shut`] makes the waiting and later calls of both ends fail. Left out: noticing silence,
//! which [`super::watch`] does.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

/// A header has at most this many bytes, which is more than the micro-batches of a step take.
const LONGEST_HEADER: u64 = 1 << 32;

/// One end of a connection.
#[derive(Debug)]
pub struct Lane {
    peer: String,
    stream: TcpStream,
}

impl Lane {
    pub(crate) fn new(peer: String, stream: TcpStream) -> Result<Self> {
        // The other end waits for every message, so small messages are sent at once.
        stream.set_nodelay(true).context("setting up a connection")?;
        stream.set_read_timeout(None).context("setting up a connection")?;
        Ok(Self { peer, stream })
    }

    pub fn send(&self, header: &impl Serialize, numbers: &[f32]) -> Result<()> {
        let header = serde_json::to_vec(header).context("encoding a message")?;
        let mut start = (header.len() as u64).to_le_bytes().to_vec();
        start.extend((numbers.len() as u64).to_le_bytes());
        start.extend(header);
        let mut stream = &self.stream;
        let sent =
            stream.write_all(&start).and_then(|()| stream.write_all(bytemuck::cast_slice(numbers)));
        sent.with_context(|| self.broke())
    }

    pub fn receive<H: DeserializeOwned>(&self) -> Result<(H, Vec<f32>)> {
        self.read().with_context(|| self.broke())
    }

    fn broke(&self) -> String {
        let Self { peer, .. } = self;
        format!("the connection to {peer} broke (--resume continues from the last checkpoint)")
    }

    fn read<H: DeserializeOwned>(&self) -> Result<(H, Vec<f32>)> {
        let mut stream = &self.stream;
        let mut lens = [[0; 8]; 2];
        stream.read_exact(lens.as_flattened_mut())?;
        let [header, numbers] = lens.map(u64::from_le_bytes);
        ensure!(header <= LONGEST_HEADER, "the header of a message has {header} bytes");
        let (mut header, mut numbers) = (vec![0; header as usize], vec![0f32; numbers as usize]);
        stream.read_exact(&mut header)?;
        stream.read_exact(bytemuck::cast_slice_mut(&mut numbers))?;
        Ok((serde_json::from_slice(&header)?, numbers))
    }

    /// Makes the waiting and later calls of both ends fail.
    pub fn shut(&self) {
        // This call fails if the connection has ended.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::meet_all;

    #[test]
    fn messages_arrive_whole_and_in_order_until_one_end_shuts() {
        let mut meetings = meet_all(2, 2);
        let (there, here) = (meetings.pop().unwrap().lanes, meetings.pop().unwrap().lanes);
        assert_eq!((here.len(), there.len()), (2, 2));
        here[1].send(&"first", &[]).unwrap();
        here[1].send(&["second"], &[1.5, f32::INFINITY]).unwrap();
        assert_eq!(there[1].receive::<String>().unwrap(), ("first".to_owned(), Vec::new()));
        let (header, numbers) = there[1].receive::<Vec<String>>().unwrap();
        assert_eq!((header, numbers), (vec!["second".to_owned()], vec![1.5, f32::INFINITY]));
        there[1].shut();
        assert!(here[1].receive::<()>().is_err());
        there[0].send(&(), &[]).unwrap();
        here[0].receive::<()>().unwrap();
    }
}
