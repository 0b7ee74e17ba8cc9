//! Reads the one kind of pickle that LiveCodeBench's files hold, a string, without executing anything.
//!
//! A pickle is a program for a small machine, and a hostile one runs what it likes where Python loads it. Here the
//! instructions that push one string and those without an effect are all there are; any other is refused.

use anyhow::{Result, bail, ensure};

const PROTO: u8 = 0x80;
const FRAME: u8 = 0x95;
const MEMOIZE: u8 = 0x94;
const BINPUT: u8 = b'q';
const LONG_BINPUT: u8 = b'r';
const SHORT_BINUNICODE: u8 = 0x8c;
const BINUNICODE: u8 = b'X';
const BINUNICODE8: u8 = 0x8d;
const STOP: u8 = b'.';

/// The string that a pickle holds.
pub(crate) fn string(pickle: &[u8]) -> Result<String> {
    let mut rest = pickle;
    let mut found = None;
    loop {
        match take(&mut rest, 1)?[0] {
            PROTO | BINPUT => {
                take(&mut rest, 1)?;
            }
            FRAME => {
                take(&mut rest, 8)?;
            }
            LONG_BINPUT => {
                take(&mut rest, 4)?;
            }
            MEMOIZE => {}
            kind @ (SHORT_BINUNICODE | BINUNICODE | BINUNICODE8) => {
                ensure!(found.is_none(), "the pickle holds more than one string");
                let width = match kind {
                    SHORT_BINUNICODE => 1,
                    BINUNICODE => 4,
                    _ => 8,
                };
                let length = take(&mut rest, width)?;
                let length = length.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
                let text = take(&mut rest, usize::try_from(length)?)?;
                found = Some(std::str::from_utf8(text)?.to_owned());
            }
            STOP => break,
            other => bail!("the pickle holds instruction {other:#04x}, not only a string"),
        }
    }
    match found {
        Some(text) => Ok(text),
        None => bail!("the pickle holds no string"),
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    ensure!(count <= rest.len(), "the pickle ends too early");
    let (taken, left) = rest.split_at(count);
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_string_is_read_in_every_protocol() {
        // Python's pickle.dumps("[1]", protocol) for protocols 2 to 5.
        for pickle in [
            &b"\x80\x02X\x03\0\0\0[1]q\0."[..],
            b"\x80\x03X\x03\0\0\0[1]q\0.",
            b"\x80\x04\x95\x07\0\0\0\0\0\0\0\x8c\x03[1]\x94.",
            b"\x80\x05\x95\x07\0\0\0\0\0\0\0\x8c\x03[1]\x94.",
        ] {
            assert_eq!(string(pickle).unwrap(), "[1]");
        }
        let mut long = b"\x80\x04X\x70\x11\x01\0".to_vec();
        long.extend([b'a'; 70_000]);
        long.extend(b"\x94.");
        assert_eq!(string(&long).unwrap().len(), 70_000);
    }

    #[test]
    fn a_pickle_that_would_run_something_is_refused() {
        // os.system("id"), as pickle.dumps of an object with __reduce__ writes it.
        let hostile = b"\x80\x03cposix\nsystem\nq\0X\x02\0\0\0idq\x01\x85q\x02Rq\x03.";
        let error = string(hostile).unwrap_err().to_string();
        assert_eq!(error, "the pickle holds instruction 0x63, not only a string");
        let frameless = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.";
        assert!(string(frameless).unwrap_err().to_string().contains("more than one string"));
        for broken in
            [&b""[..], b".", b"X\xff\xff\xff\xff", b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff."]
        {
            assert!(string(broken).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = string(&bytes);
        }
    }
}
