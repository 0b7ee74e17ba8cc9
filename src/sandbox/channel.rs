//! The supervisor's end of a child's channel. It never waits: the child may be hostile, and may neither
//! read what it is sent nor send what it should.

use super::frame::{Frame, FrameReader, Malformed};
use nix::poll::{PollFd, PollFlags};
use std::io::{ErrorKind, Read, Result, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// A channel, with what could not be sent yet and what has arrived.
pub(crate) struct Channel {
    stream: UnixStream,
    unsent: Vec<u8>,
    reader: FrameReader,
    is_open: bool,
}

impl Channel {
    /// Takes over the stream to a child that has sent its greeting.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, unsent: Vec::new(), reader: FrameReader::default(), is_open: true })
    }

    /// Sends as much as fits, and keeps the rest for [`Channel::advance`].
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        self.write();
    }

    /// Returns whether the child has not yet taken everything that it was sent.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Returns the next frame that has arrived completely.
    pub(crate) fn next(&mut self) -> std::result::Result<Option<Frame>, Malformed> {
        self.reader.next()
    }

    /// Sends and receives what is possible now. Returns false if that was nothing.
    pub(crate) fn advance(&mut self) -> bool {
        let before = self.unsent.len();
        self.write();
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(n) if n > 0 => {
                self.reader.push(&bytes[..n]);
                return true;
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The end of the child will be reported soon, unless it goes on without its channel.
            Ok(_) | Err(_) => self.is_open = false,
        }
        self.unsent.len() < before
    }

    /// Returns what to poll, as long as the child can be heard.
    pub(crate) fn poll_fd(&self) -> Option<PollFd<'_>> {
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, self.has_unsent());
        self.is_open.then(|| PollFd::new(self.stream.as_fd(), events))
    }

    fn write(&mut self) {
        // An error means that the child closed its side. Reading shows that too, after its last bytes.
        if let Ok(sent) = self.stream.write(&self.unsent) {
            self.unsent.drain(..sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_never_reads_blocks_nobody_and_is_still_heard() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(ours).unwrap();
        channel.send(&vec![b'R'; 1 << 24]);
        assert!(channel.has_unsent());
        theirs.write_all(b"D\0\0\0\0").unwrap();
        assert!(channel.advance());
        assert_eq!(channel.next(), Ok(Some(Frame::Done)));
    }

    #[test]
    fn a_closed_channel_gives_its_last_words_and_is_no_longer_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(ours).unwrap();
        theirs.write_all(b"D\0\0\0\0").unwrap();
        drop(theirs);
        channel.send(b"R");
        assert!(channel.advance());
        assert_eq!(channel.next(), Ok(Some(Frame::Done)));
        assert!(!channel.advance());
        assert!(channel.poll_fd().is_none());
    }
}
