//! Tokenised samples in one block of bytes. A block is written once as a stream, then read by index, from
//! memory or from a memory-mapped file, so that a million samples need no memory of their own.
//!
//! ```text
//! ids     u32 for each token of each sample
//! runs    u32 lengths of stretches of the loss mask, in turn without and with loss
//! index   for each sample u64 end in ids and u64 end in runs
//! counts  JSON of `Counts`
//! footer  u64 sizes (ids, runs, samples, counts), key, SHA-256 of all before it, magic
//! ```
//!
//! All integers are little-endian. The key says from what the tokens were made. [`TokenFile::open`] accepts
//! only a block whose footer, sizes, key and checksum are right. Anything else is [`Stale`], never an error
//! or a panic, and is made again.

use super::rules::Counts;
use crate::tokenizer::Tokenized;
use anyhow::{Context, Result};
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::ops::{Deref, Range};
use std::path::Path;

/// Identifies what a block was made from, or its contents.
pub type Hash = [u8; 32];

const MAGIC: &[u8; 8] = b"codeseq1";
const FOOTER: usize = 4 * 8 + 32 + 32 + 8;
/// An entry of the index has this many bytes.
const ENTRY: usize = 16;

/// Writes samples one after the other.
pub struct TokenWriter<W> {
    out: W,
    hash: Sha256,
    num_ids: u64,
    runs: Vec<u32>,
    index: Vec<u8>,
}

impl<W: Write> TokenWriter<W> {
    /// Starts a block in `out`.
    pub fn new(out: W) -> Self {
        Self { out, hash: Sha256::new(), num_ids: 0, runs: Vec::new(), index: Vec::new() }
    }

    pub fn push(&mut self, sample: &Tokenized) -> Result<()> {
        let ids: Vec<u8> = sample.input_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.write(&ids)?;
        self.num_ids += sample.input_ids.len() as u64;
        let mut is_learnt = false;
        let mut run = 0;
        for &learn in &sample.loss_mask {
            if learn != is_learnt {
                self.runs.push(run);
                (is_learnt, run) = (learn, 0);
            }
            run += 1;
        }
        self.runs.push(run);
        self.index.extend(self.num_ids.to_le_bytes());
        self.index.extend((self.runs.len() as u64).to_le_bytes());
        Ok(())
    }

    /// Ends the block and returns what it was written to.
    pub fn finish(mut self, counts: &Counts, key: &Hash) -> Result<W> {
        let runs: Vec<u8> = self.runs.iter().flat_map(|run| run.to_le_bytes()).collect();
        let index = std::mem::take(&mut self.index);
        let counts = serde_json::to_vec(counts).context("encoding counts")?;
        let samples = index.len() / ENTRY;
        let sizes = [self.num_ids, self.runs.len() as u64, samples as u64, counts.len() as u64];
        for part in [&runs, &index, &counts, &sizes.map(u64::to_le_bytes).concat(), &key.to_vec()] {
            self.write(part)?;
        }
        let checksum = self.hash.finalize();
        self.out.write_all(&checksum).and_then(|()| self.out.write_all(MAGIC)).context(WRITING)?;
        Ok(self.out)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes).context(WRITING)
    }
}

const WRITING: &str = "writing tokens";

/// Why a block cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// The file does not exist.
    Absent,
    /// The block was made from something else.
    OtherKey,
    /// The block is cut, changed, or of another version.
    Damaged,
}

enum Bytes {
    Owned(Vec<u8>),
    Mapped(Mmap),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// Samples that can be read in any order.
pub struct TokenFile {
    bytes: Bytes,
    num_samples: usize,
    runs_at: usize,
    index_at: usize,
    counts: Counts,
    content: Hash,
}

impl TokenFile {
    /// Maps the block in a file.
    pub fn open(path: &Path, key: &Hash) -> Result<Self, Stale> {
        let file = File::open(path).map_err(|_| Stale::Absent)?;
        // SAFETY: these files only ever appear by rename and are never changed afterwards.
        let map = unsafe { Mmap::map(&file) }.map_err(|_| Stale::Damaged)?;
        Self::parse(Bytes::Mapped(map), key)
    }

    /// Takes a block in memory.
    pub fn from_bytes(bytes: Vec<u8>, key: &Hash) -> Result<Self, Stale> {
        Self::parse(Bytes::Owned(bytes), key)
    }

    /// Returns the counts and the lengths of the samples in a file's block. The samples are neither read
    /// nor checked.
    pub fn read_summary(path: &Path, key: &Hash) -> Result<(Counts, Vec<usize>), Stale> {
        let file = File::open(path).map_err(|_| Stale::Absent)?;
        // SAFETY: as in `open`.
        let map = unsafe { Mmap::map(&file) }.map_err(|_| Stale::Damaged)?;
        let parts = Parts::of(&map, key)?;
        let entries = map[parts.index_at..parts.counts_at].chunks_exact(ENTRY);
        let mut before = 0;
        let lengths = entries.map(|entry| {
            let end = u64_at(entry, 0);
            end.saturating_sub(std::mem::replace(&mut before, end)) as usize
        });
        Ok((parts.counts(&map)?, lengths.collect()))
    }

    fn parse(bytes: Bytes, key: &Hash) -> Result<Self, Stale> {
        let parts = Parts::of(&bytes, key)?;
        let (key_at, checked) = (parts.footer_at + 32, parts.footer_at + 64);
        let mut hash = Sha256::new_with_prefix(&bytes[..key_at]);
        let content: Hash = hash.clone().finalize().into();
        hash.update(&bytes[key_at..checked]);
        let checksum: Hash = hash.finalize().into();
        if bytes[checked..checked + 32] != checksum {
            return Err(Stale::Damaged);
        }
        let counts = parts.counts(&bytes)?;
        let Parts { runs_at, index_at, counts_at, .. } = parts;
        let num_samples = (counts_at - index_at) / ENTRY;
        Ok(Self { num_samples, runs_at, index_at, counts, content, bytes })
    }

    pub fn len(&self) -> usize {
        self.num_samples
    }

    pub fn is_empty(&self) -> bool {
        self.num_samples == 0
    }

    /// Returns what was read and dropped when the samples were tokenised.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns a hash of the samples alone. It tells them from all others, wherever their files lie and
    /// whenever they were written.
    pub fn content(&self) -> &Hash {
        &self.content
    }

    pub fn length(&self, index: usize) -> usize {
        self.range(index, 0).len()
    }

    pub fn sample(&self, index: usize) -> Tokenized {
        let input_ids = self.words(0, self.range(index, 0)).collect();
        let mut loss_mask = Vec::with_capacity(self.length(index));
        for (i, run) in self.words(self.runs_at, self.range(index, 1)).enumerate() {
            loss_mask.resize(loss_mask.len() + run as usize, i % 2 == 1);
        }
        Tokenized { input_ids, loss_mask }
    }

    pub fn longest(&self) -> usize {
        (0..self.len()).map(|index| self.length(index)).max().unwrap_or(0)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = Tokenized> + '_ {
        (0..self.len()).map(|index| self.sample(index))
    }

    /// Returns where the ids (`column` 0) or runs (1) of a sample are, in words.
    fn range(&self, index: usize, column: usize) -> Range<usize> {
        let end = |i: usize| u64_at(&self.bytes[self.index_at..], i * ENTRY + 8 * column) as usize;
        index.checked_sub(1).map_or(0, end)..end(index)
    }

    fn words(&self, at: usize, range: Range<usize>) -> impl Iterator<Item = u32> + '_ {
        let bytes = &self.bytes[at + 4 * range.start..at + 4 * range.end];
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
}

/// Where the parts of a block begin, as its footer says.
struct Parts {
    runs_at: usize,
    index_at: usize,
    counts_at: usize,
    footer_at: usize,
}

impl Parts {
    /// Returns the parts of a block that was made from what `key` identifies.
    fn of(bytes: &[u8], key: &Hash) -> Result<Self, Stale> {
        let footer_at = bytes.len().checked_sub(FOOTER).ok_or(Stale::Damaged)?;
        let footer = &bytes[footer_at..];
        if !footer.ends_with(MAGIC) {
            return Err(Stale::Damaged);
        }
        if &footer[32..64] != key {
            return Err(Stale::OtherKey);
        }
        let size = |i: usize| usize::try_from(u64_at(footer, 8 * i)).ok();
        let end = |start: usize, count: usize, width| count.checked_mul(width)?.checked_add(start);
        let parts = || {
            let runs_at = end(0, size(0)?, 4)?;
            let index_at = end(runs_at, size(1)?, 4)?;
            let counts_at = end(index_at, size(2)?, ENTRY)?;
            let is_whole = end(counts_at, size(3)?, 1)? == footer_at;
            is_whole.then_some(Self { runs_at, index_at, counts_at, footer_at })
        };
        parts().ok_or(Stale::Damaged)
    }

    fn counts(&self, bytes: &[u8]) -> Result<Counts, Stale> {
        let counts = &bytes[self.counts_at..self.footer_at];
        serde_json::from_slice(counts).map_err(|_| Stale::Damaged)
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("invariant: eight bytes"))
}

/// Returns samples in memory, for tests.
#[cfg(test)]
pub(crate) fn in_memory(samples: &[Tokenized]) -> TokenFile {
    let mut writer = TokenWriter::new(Vec::new());
    samples.iter().for_each(|sample| writer.push(sample).unwrap());
    let bytes = writer.finish(&Counts::default(), &[0; 32]).unwrap();
    TokenFile::from_bytes(bytes, &[0; 32]).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> impl Strategy<Value = Vec<Tokenized>> {
        let token = (any::<u32>(), any::<bool>());
        let sample = proptest::collection::vec(token, 0..12).prop_map(|tokens| {
            let (input_ids, loss_mask) = tokens.into_iter().unzip();
            Tokenized { input_ids, loss_mask }
        });
        proptest::collection::vec(sample, 0..8)
    }

    proptest! {
        #[test]
        fn samples_come_back_as_they_were(samples in samples()) {
            let file = in_memory(&samples);
            prop_assert_eq!(file.len(), samples.len());
            prop_assert_eq!(file.iter().collect::<Vec<_>>(), samples.clone());
            for (i, sample) in samples.iter().enumerate() {
                prop_assert_eq!(file.length(i), sample.input_ids.len());
            }
        }
    }

    #[test]
    fn equal_samples_are_told_as_equal_whatever_they_were_made_from() {
        let content = |ids: &[u32], key: u8| {
            let mut writer = TokenWriter::new(Vec::new());
            writer
                .push(&Tokenized { input_ids: ids.into(), loss_mask: vec![false, true] })
                .unwrap();
            let bytes = writer.finish(&Counts::default(), &[key; 32]).unwrap();
            *TokenFile::from_bytes(bytes, &[key; 32]).unwrap().content()
        };
        assert_eq!(content(&[1, 2], 7), content(&[1, 2], 8));
        assert_ne!(content(&[1, 2], 7), content(&[1, 3], 7));
    }

    #[test]
    fn a_block_that_is_cut_changed_or_made_from_something_else_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tokens");
        let open = |key: &Hash| TokenFile::open(&path, key).err();
        assert_eq!(open(&[7; 32]), Some(Stale::Absent));
        let mut writer = TokenWriter::new(Vec::new());
        writer.push(&Tokenized { input_ids: vec![1, 2], loss_mask: vec![false, true] }).unwrap();
        let bytes = writer.finish(&Counts::default(), &[7; 32]).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(open(&[7; 32]), None);
        assert_eq!(TokenFile::read_summary(&path, &[7; 32]).unwrap().1, [2]);
        assert_eq!(open(&[8; 32]), Some(Stale::OtherKey));
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(open(&[7; 32]).is_some(), "byte {place}");
            std::fs::write(&path, &bytes[..place]).unwrap();
            assert_eq!(open(&[7; 32]), Some(Stale::Damaged), "cut at {place}");
        }
    }
}
