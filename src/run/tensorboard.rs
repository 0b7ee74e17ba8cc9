//! Writes TensorBoard event files, with scalars only.
//!
//! A file is a list of TFRecords (length, its checksum, payload, its checksum; checksums are masked
//! CRC-32C) whose payloads are protobuf `Event` messages. Both formats are simple enough to write without a
//! library. Images and histograms are not written, and files are not read.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Creates an event file at `path` and replaces what was there.
    pub fn create(path: &Path, unix_secs: f64) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let mut events = Self { file, path: path.to_owned() };
        let mut event = Message::default();
        event.double(1, unix_secs);
        event.bytes(3, b"brain.Event:2");
        events.append(&event.0)?;
        Ok(events)
    }

    /// Appends the scalars of one step.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        unix_secs: f64,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        self.append(&scalars_event(step, unix_secs, scalars))
    }

    fn append(&mut self, payload: &[u8]) -> Result<()> {
        self.file
            .write_all(&record(payload))
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

fn scalars_event<'a>(
    step: u64,
    unix_secs: f64,
    scalars: impl IntoIterator<Item = (&'a str, f64)>,
) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in scalars {
        let mut scalar = Message::default();
        scalar.bytes(1, tag.as_bytes());
        scalar.float(2, value as f32);
        summary.bytes(1, &scalar.0);
    }
    let mut event = Message::default();
    event.double(1, unix_secs);
    event.integer(2, step);
    event.bytes(5, &summary.0);
    event.0
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.tag(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.tag(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.tag(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.tag(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend(length);
    record.extend(masked_crc32c(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_crc32c(payload).to_le_bytes());
    record
}

fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, &byte: &u8| crc >> 8 ^ CRC32C_TABLE[usize::from(crc as u8 ^ byte)];
    !bytes.iter().fold(u32::MAX, step)
}

const CRC32C_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_its_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// The expected bytes are those of `tensorboard.compat.proto` and
    /// `tensorboard.summary.writer.record_writer`.
    #[test]
    fn a_step_is_framed_as_tensorboard_does() {
        let payload = scalars_event(300, 1.5, [("loss", 0.25), ("reward/mean", -1.0)]);
        let hex: String = record(&payload).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../../tests/golden/tensorboard_record.hex").trim());
    }
}
