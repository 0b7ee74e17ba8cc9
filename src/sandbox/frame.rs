//! Reads the messages of a child. The child may be hostile, so any bytes are possible. None costs more than
//! a bounded buffer, and none does more than misreport the child's own case.

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The child is sealed and waits for the program; a single runner adds its report.
    Hello(Vec<u8>),
    /// The case ended by itself.
    Done,
    /// The program raised an exception that it did not catch.
    Error(Report),
    /// The program does not compile.
    Syntax(Report),
    Memory(Report),
}

/// A child's description of an exception.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) line: Option<u32>,
    pub(crate) kind: String,
    pub(crate) message: String,
}

/// The bytes are no frame. Only a program that writes to its channel causes that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

const HEADER_BYTES: usize = 5;
const MAX_PAYLOAD_BYTES: usize = 1 << 16;

/// Collects bytes and returns frames.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete frame, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Malformed> {
        if self.buffer.len() < HEADER_BYTES {
            return Ok(None);
        }
        let length =
            self.buffer[1..HEADER_BYTES].iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b));
        let known = matches!(self.buffer[0], b'H' | b'D' | b'E' | b'S' | b'M');
        if !known || length > MAX_PAYLOAD_BYTES {
            return Err(Malformed);
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        let bytes: Vec<u8> = self.buffer.drain(..HEADER_BYTES + length).collect();
        let payload = &bytes[HEADER_BYTES..];
        Ok(Some(match bytes[0] {
            b'H' => Frame::Hello(payload.to_vec()),
            b'D' => Frame::Done,
            b'E' => Frame::Error(Report::parse(payload)),
            b'S' => Frame::Syntax(Report::parse(payload)),
            _ => Frame::Memory(Report::parse(payload)),
        }))
    }
}

impl Report {
    fn parse(payload: &[u8]) -> Self {
        let text = String::from_utf8_lossy(payload);
        let mut parts = text.splitn(3, '\0');
        let line = parts.next().and_then(|l| l.parse().ok()).filter(|&l| l > 0);
        let kind = parts.next().unwrap_or("Exception").to_owned();
        Self { line, kind, message: parts.next().unwrap_or_default().to_owned() }
    }

    /// Returns the last line of a traceback.
    pub(crate) fn text(&self) -> String {
        match self.message.as_str() {
            "" => self.kind.clone(),
            message => format!("{}: {message}", self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn an_error_carries_line_type_and_message() {
        let mut reader = FrameReader::default();
        reader.push(&encode(b'E', b"12\0ZeroDivisionError\0division by zero"));
        let Some(Frame::Error(report)) = reader.next().unwrap() else { panic!("no frame") };
        assert_eq!(report.line, Some(12));
        assert_eq!(report.text(), "ZeroDivisionError: division by zero");
        assert_eq!(reader.next(), Ok(None));
    }

    #[test]
    fn an_unknown_kind_or_a_huge_length_is_malformed() {
        for bytes in [encode(b'Q', b""), vec![b'E', 255, 255, 255, 255]] {
            let mut reader = FrameReader::default();
            reader.push(&bytes);
            assert_eq!(reader.next(), Err(Malformed));
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_splitting(
            frames in prop::collection::vec((prop::sample::select(b"HDESM".to_vec()), prop::collection::vec(any::<u8>(), 0..40)), 1..8),
            cuts in prop::collection::vec(1usize..9, 1..200),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| encode(*kind, payload)).collect();
            let mut whole = FrameReader::default();
            whole.push(&bytes);
            let mut pieces = FrameReader::default();
            let mut found = Vec::new();
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let n = (*cuts.next().unwrap()).min(rest.len());
                pieces.push(&rest[..n]);
                rest = &rest[n..];
                while let Some(frame) = pieces.next().unwrap() {
                    found.push(frame);
                }
            }
            prop_assert_eq!(found.len(), frames.len());
            for frame in found {
                prop_assert_eq!(whole.next().unwrap(), Some(frame));
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic_and_with_a_bounded_buffer(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..64)
        ) {
            let mut reader = FrameReader::default();
            'stream: for chunk in chunks {
                reader.push(&chunk);
                loop {
                    match reader.next() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(Malformed) => break 'stream,
                    }
                }
                prop_assert!(reader.buffer.len() <= HEADER_BYTES + MAX_PAYLOAD_BYTES + 64);
            }
        }
    }
}
