//! What a launcher or a server tells the judge over their message socket, which no child has.
//!
//! A message is a letter and its content. `L` is the launcher's report and `R` the server's, both in JSON.
//! `P` comes with the handle of a new child. `X` is followed by three zeros and by how the child ended, in
//! the machine's byte order. `E` has a text and says that something failed. `runner.py` writes those of the
//! server.

use super::sys;
use anyhow::Result;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The status, as `wait` returns it.
    pub(crate) status: i32,
    pub(crate) cpu: Duration,
    pub(crate) peak_kb: u64,
}

#[derive(Debug)]
pub(crate) enum Reply {
    /// The launcher has entered its namespaces.
    Launched(Vec<u8>),
    /// The server can fork.
    Ready(Vec<u8>),
    /// A child has started.
    Child(OwnedFd),
    /// The child has ended.
    Ended(Exit),
    /// The request could not be fulfilled.
    Failed(String),
}

impl Reply {
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Launched(report) => sys::send(socket, &[b"L", &report[..]].concat(), &[]),
            Self::Ready(report) => sys::send(socket, &[b"R", &report[..]].concat(), &[]),
            Self::Child(handle) => sys::send(socket, b"P", &[handle.as_raw_fd()]),
            Self::Ended(Exit { status, cpu, peak_kb }) => {
                let mut message = vec![b'X', 0, 0, 0];
                message.extend(status.to_ne_bytes());
                message.extend((cpu.as_micros() as u64).to_ne_bytes());
                message.extend(peak_kb.to_ne_bytes());
                sys::send(socket, &message, &[])
            }
            Self::Failed(text) => sys::send(socket, format!("E{text}").as_bytes(), &[]),
        }
    }

    /// Waits for a message; `None` if the other side is gone or does not speak this protocol.
    pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Self>> {
        let (mut bytes, handles) = sys::receive(socket, 1 << 16)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let body = bytes.split_off(1);
        Ok(match bytes[0] {
            b'L' => Some(Self::Launched(body)),
            b'R' => Some(Self::Ready(body)),
            b'P' => handles.into_iter().next().map(Self::Child),
            b'X' => Exit::parse(&body).map(Self::Ended),
            b'E' => Some(Self::Failed(String::from_utf8_lossy(&body).into_owned())),
            _ => None,
        })
    }
}

impl Exit {
    fn parse(body: &[u8]) -> Option<Self> {
        let body: &[u8; 23] = body.try_into().ok()?;
        let long = |at: usize| {
            u64::from_ne_bytes(body[at..at + 8].try_into().expect("invariant: eight bytes"))
        };
        let status = body[3..7].try_into().expect("invariant: four bytes");
        Some(Self {
            status: i32::from_ne_bytes(status),
            cpu: Duration::from_micros(long(7)),
            peak_kb: long(15),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::AsFd;

    #[test]
    fn messages_arrive_as_they_were_sent_and_others_are_none() {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let exit = Exit { status: 9, cpu: Duration::from_micros(1_234_567), peak_kb: 80_188 };
        let null = std::fs::File::open("/dev/null").unwrap();
        for reply in [
            Reply::Launched(b"{}".to_vec()),
            Reply::Ready(Vec::new()),
            Reply::Child(null.into()),
            Reply::Ended(exit),
            Reply::Failed("no".to_owned()),
        ] {
            reply.send(theirs.as_fd()).unwrap();
            let arrived = Reply::receive(ours.as_fd()).unwrap().unwrap();
            match (&arrived, &reply) {
                (Reply::Child(_), Reply::Child(_)) => {}
                _ => assert_eq!(format!("{arrived:?}"), format!("{reply:?}")),
            }
        }
        for bytes in [&b"Q"[..], b"P", b"X", b"X1234"] {
            sys::send(theirs.as_fd(), bytes, &[]).unwrap();
            assert!(Reply::receive(ours.as_fd()).unwrap().is_none(), "{bytes:?}");
        }
        drop(theirs);
        assert!(Reply::receive(ours.as_fd()).unwrap().is_none());
    }
}
