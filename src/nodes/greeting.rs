//! This file defines what nodes send when they meet: a [`Hello`] on every connection to node 0, and
//! node 0's [`Reply`] to a node's first connection.
//!
//! Contract: both begin with [`MAGIC`]; a connection that sends anything else is no node. Numbers
//! have 32 bits, little-endian.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;

/// Every message begins with the name of the program and the version of the format.
const MAGIC: [u8; 8] = *b"codeseq4";

/// A text of node 0 has at most this many bytes.
const LONGEST_TEXT: usize = 1 << 16;

/// The first message on a connection to node 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hello {
    /// The sender is this node.
    pub(crate) node: usize,
    /// The sender expects so many nodes.
    pub(crate) nodes: usize,
    /// The sender has so many ranks.
    pub(crate) ranks: usize,
    /// Connection 0 is the node's own; connection `i` belongs to its rank `i - 1`.
    pub(crate) connection: usize,
}

/// Node 0's answer to a node.
#[derive(Debug)]
pub(crate) enum Reply {
    /// All nodes have met; the bytes are node 0's message.
    Met(Vec<u8>),
    /// The nodes will not meet, for this reason.
    Ended(String),
}

impl Hello {
    /// On this connection a node that has failed tells node 0 why, by a [`Reply::Ended`].
    pub(crate) const FAILURE: usize = u32::MAX as usize;

    const LEN: usize = MAGIC.len() + 4 * 4;

    pub(crate) fn write(self, mut stream: &TcpStream) -> Result<()> {
        stream.write_all(&with_numbers([self.node, self.nodes, self.ranks, self.connection]))
    }

    /// Reads the message from a stream that does not block. Returns `None` while it has not
    /// arrived, and fails if the sender is no node.
    pub(crate) fn take(mut stream: &TcpStream) -> Result<Option<Self>> {
        let mut bytes = [0; Self::LEN];
        let arrived = match stream.peek(&mut bytes) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            arrived => arrived?,
        };
        let begun = arrived.min(MAGIC.len());
        if arrived == 0 || bytes[..begun] != MAGIC[..begun] {
            return Err(ErrorKind::InvalidData.into());
        }
        if arrived < Self::LEN {
            return Ok(None);
        }
        stream.read_exact(&mut bytes)?;
        let (numbers, _) = bytes[MAGIC.len()..].as_chunks();
        let number = |i: usize| u32::from_le_bytes(numbers[i]) as usize;
        Ok(Some(Self {
            node: number(0),
            nodes: number(1),
            ranks: number(2),
            connection: number(3),
        }))
    }
}

impl Reply {
    pub(crate) fn write(&self, mut stream: &TcpStream) -> Result<()> {
        let (is_met, text) = match self {
            Self::Met(message) => (1, message.as_slice()),
            Self::Ended(why) => (0, why.as_bytes()),
        };
        stream.write_all(&[&with_numbers([is_met, text.len()]), text].concat())
    }

    /// Waits for the reply, up to the stream's timeout.
    pub(crate) fn read(mut stream: &TcpStream) -> Result<Self> {
        let mut magic = [0; MAGIC.len()];
        stream.read_exact(&mut magic)?;
        let mut numbers = [[0; 4]; 2];
        stream.read_exact(numbers.as_flattened_mut())?;
        let [is_met, len] = numbers.map(|number| u32::from_le_bytes(number) as usize);
        if magic != MAGIC || len > LONGEST_TEXT {
            return Err(Error::new(ErrorKind::InvalidData, "not a node of this program"));
        }
        let mut text = vec![0; len];
        stream.read_exact(&mut text)?;
        Ok(match is_met {
            0 => Self::Ended(String::from_utf8_lossy(&text).into_owned()),
            _ => Self::Met(text),
        })
    }
}

fn with_numbers<const N: usize>(numbers: [usize; N]) -> Vec<u8> {
    let numbers = numbers.map(|number| (number as u32).to_le_bytes());
    [&MAGIC, numbers.as_flattened()].concat()
}
