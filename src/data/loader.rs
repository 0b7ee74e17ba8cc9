//! An endless sequence of packed rows over a data set.
//!
//! Rows are those of [`Packer`], filled with tokens. The sequence continues exactly from a [`Cursor`].

use super::mixture::{Draw, MixBy, Mixture, Part, SourceCursor};
use super::pack::Batch;
use super::packer::Packer;
use super::source::Source;
use crate::base::error::usage;
use crate::base::human;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fmt;

/// After this many rows, the share that is filled hardly changes any more.
pub(crate) const TELLING_ROWS: usize = 10_000;

/// A place in the endless sequence of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// How far each source has been read; empty before the first row.
    pub sources: Vec<SourceCursor>,
    /// Samples that were taken from the order and are in no row yet.
    pub ahead: Vec<Draw>,
}

/// Endless packed batches over a data set.
pub struct Loader {
    sources: Vec<Source>,
    /// For each source, the number of samples of all sources before it.
    starts: Vec<usize>,
    packer: Packer,
}

/// What some rows hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    pub rows: usize,
    pub samples: usize,
    pub tokens: usize,
    pub capacity: usize,
}

impl Packing {
    /// Returns the share of the rows that is filled, from 0 to 1.
    pub fn efficiency(&self) -> f64 {
        self.tokens as f64 / self.capacity as f64
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows of {} tokens are {:.1} % full, {:.1} samples each",
            human::count(self.rows as u64),
            human::count((self.capacity / self.rows.max(1)) as u64),
            100.0 * self.efficiency(),
            self.samples as f64 / self.rows as f64
        )
    }
}

impl Loader {
    /// Creates rows of at most `seq_len` tokens over `sources`, from `cursor` on.
    pub fn of_sources(
        sources: Vec<Source>,
        mix_by: MixBy,
        ahead: usize,
        seq_len: usize,
        seed: u64,
        cursor: Cursor,
    ) -> Result<Self> {
        let mut starts = Vec::new();
        let mut parts = Vec::new();
        let mut start = 0;
        for source in &sources {
            let part = source.part();
            let longest = source.samples.longest();
            if longest > seq_len {
                return Err(usage(format!(
                    "{}: a sample has {longest} tokens, but a row holds train.seq_len = {seq_len}: \
                     lower data.max_length or raise train.seq_len",
                    part.title()
                )));
            }
            starts.push(start);
            start += part.len;
            parts.push(part);
        }
        let is_known =
            |draw: &Draw| parts.get(draw.source).is_some_and(|part: &Part| draw.index < part.len);
        if !cursor.ahead.iter().all(is_known) {
            return Err(usage("the checkpoint has samples in hand that the data do not have"));
        }
        let mixture = Mixture::new(parts, mix_by, seed, &cursor.sources)?;
        let packer = Packer::new(mixture, cursor.ahead, ahead, seq_len);
        Ok(Self { sources, starts, packer })
    }

    /// Returns where the next batch starts; save it to resume.
    pub fn cursor(&self) -> Cursor {
        Cursor { sources: self.packer.progress(), ahead: self.packer.in_hand().to_vec() }
    }

    pub fn next_batch(&mut self) -> Batch {
        let sources = &self.sources;
        let draws = self.packer.next_row(|draw| sources[draw.source].samples.length(draw.index));
        let mut batch = Batch::empty();
        for draw in draws {
            let sample = sources[draw.source].samples.sample(draw.index);
            batch.push(&sample, self.starts[draw.source] + draw.index);
        }
        batch
    }

    /// Returns what the next `num_rows` rows will hold, or as many of them as are enough to tell.
    pub fn packing(&self, num_rows: usize) -> Packing {
        let num_rows = num_rows.min(TELLING_ROWS);
        let length = |draw: &Draw| self.sources[draw.source].samples.length(draw.index);
        let mut packer = self.packer.clone();
        let (mut samples, mut tokens) = (0, 0);
        for _ in 0..num_rows {
            let row = packer.next_row(|draw| length(&draw));
            samples += row.len();
            tokens += row.iter().map(length).sum::<usize>();
        }
        Packing { rows: num_rows, samples, tokens, capacity: num_rows * self.seq_len() }
    }

    pub fn seq_len(&self) -> usize {
        self.packer.seq_len()
    }

    /// Returns the tokens of a batch by the names of their sources, if sources have names.
    pub fn tokens_by_source(&self, batch: &Batch) -> Vec<(&str, usize)> {
        let mut tokens: Vec<(&str, usize)> =
            self.sources.iter().map(|source| (source.name.as_str(), 0)).collect();
        for (&sample, ends) in batch.samples.iter().zip(batch.cu_seqlens.windows(2)) {
            let source = self.starts.partition_point(|&start| start <= sample) - 1;
            tokens[source].1 += (ends[1] - ends[0]) as usize;
        }
        tokens.retain(|(name, _)| !name.is_empty());
        tokens
    }

    /// Creates rows over a list of samples.
    #[cfg(test)]
    pub(crate) fn new(
        samples: Vec<crate::tokenizer::Tokenized>,
        seq_len: usize,
        seed: u64,
        cursor: Cursor,
    ) -> Result<Self> {
        let source = Source::in_memory("", 1.0, &samples);
        Self::of_sources(vec![source], MixBy::Samples, 0, seq_len, seed, cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shuffle::{Place, Shuffled};
    use crate::tokenizer::Tokenized;
    use proptest::prelude::*;

    fn sample(length: usize) -> Tokenized {
        Tokenized {
            input_ids: (0..length as u32).map(|i| 10 * length as u32 + i).collect(),
            loss_mask: (0..length).map(|i| i >= 1).collect(),
        }
    }

    fn loader(lengths: [&[usize]; 2], ahead: usize, seed: u64, cursor: Cursor) -> Loader {
        let source = |name, weight, lengths: &[usize]| {
            let samples: Vec<_> = lengths.iter().map(|&n| sample(n)).collect();
            Source::in_memory(name, weight, &samples)
        };
        let sources = vec![source("a", 1.0, lengths[0]), source("b", 3.0, lengths[1])];
        Loader::of_sources(sources, MixBy::Samples, ahead, 12, seed, cursor).unwrap()
    }

    #[test]
    fn a_sample_longer_than_a_row_is_refused() {
        let error = Loader::new(vec![sample(3), sample(9)], 8, 1, Cursor::default()).err().unwrap();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(error.to_string().contains("9 tokens"), "{error}");
    }

    #[test]
    fn one_list_of_samples_is_its_shuffled_order_cut_where_rows_overflow() {
        let samples: Vec<Tokenized> = (0..30).map(|i| sample(2 + (5 * i) % 9)).collect();
        let mut loader = Loader::new(samples.clone(), 12, 4, Cursor::default()).unwrap();
        let mut order = Shuffled::new(samples.len(), 4, Place::default()).unwrap();
        for _ in 0..40 {
            let (epoch, mut row, mut used) = (order.place().epoch, Vec::new(), 0);
            while order.place().epoch == epoch && used + samples[order.peek()].input_ids.len() <= 12
            {
                used += samples[order.peek()].input_ids.len();
                row.push(order.take());
            }
            assert_eq!(loader.next_batch(), Batch::new(&samples, &row));
        }
    }

    #[test]
    fn looking_ahead_fills_rows_and_loses_nobody() {
        let lengths: Vec<usize> = (0..60).map(|i| 2 + (7 * i) % 11).collect();
        let packing = |ahead| {
            let loader = loader([&lengths, &lengths], ahead, 5, Cursor::default());
            loader.packing(40).efficiency()
        };
        assert!(packing(0) < 0.85 && packing(16) > 0.95, "{} {}", packing(0), packing(16));
    }

    #[test]
    fn a_tiny_source_does_not_cut_the_rows_of_a_mixture_short() {
        let lengths: Vec<usize> = (0..60).map(|i| 1 + i % 3).collect();
        let loader = loader([&[2], &lengths], 0, 5, Cursor::default());
        assert!(loader.packing(200).efficiency() > 0.85, "{}", loader.packing(200));
    }

    #[test]
    fn tokens_are_counted_by_source() {
        let mut loader = loader([&[2, 2], &[3, 3, 3]], 0, 5, Cursor::default());
        let batch = loader.next_batch();
        assert_eq!(loader.tokens_by_source(&batch), [("a", 2), ("b", 9)]);
    }

    proptest! {
        #[test]
        fn an_epoch_has_every_sample_once_and_resumes_anywhere(
            lengths in proptest::collection::vec(2usize..9, 1..40),
            seed: u64,
            stop in 0usize..30,
        ) {
            let samples: Vec<Tokenized> = lengths.iter().map(|&n| sample(n)).collect();
            let open = |cursor| Loader::new(samples.clone(), 12, seed, cursor).unwrap();
            let mut loader = open(Cursor::default());
            let mut seen = Vec::new();
            while loader.cursor().sources[0].place.epoch == 0 {
                let batch = loader.next_batch();
                prop_assert!(!batch.samples.is_empty() && batch.tokens.len() <= 12);
                seen.extend(batch.samples);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());

            let mut loader = open(Cursor::default());
            for _ in 0..stop {
                loader.next_batch();
            }
            let mut resumed = open(loader.cursor());
            for _ in 0..5 {
                prop_assert_eq!(loader.next_batch(), resumed.next_batch());
            }
        }

        #[test]
        fn a_mixture_gives_every_drawn_sample_once_and_resumes_anywhere(
            a in proptest::collection::vec(2usize..=12, 1..20),
            b in proptest::collection::vec(2usize..=12, 1..20),
            ahead in 0usize..6,
            seed: u64,
            stop in 0usize..20,
        ) {
            let mut loader = loader([&a, &b], ahead, seed, Cursor::default());
            let mut given = 0;
            for _ in 0..stop {
                let batch = loader.next_batch();
                prop_assert!(!batch.samples.is_empty() && batch.tokens.len() <= 12);
                given += batch.samples.len();
            }
            let cursor = loader.cursor();
            prop_assert!(cursor.ahead.len() <= ahead);
            let taken: u64 = cursor.sources.iter().map(|source| source.taken).sum();
            prop_assert_eq!(taken as usize, given + cursor.ahead.len());
            let text = serde_json::to_string(&cursor).unwrap();
            let mut resumed =
                super::tests::loader([&a, &b], ahead, seed, serde_json::from_str(&text).unwrap());
            for _ in 0..5 {
                prop_assert_eq!(loader.next_batch(), resumed.next_batch());
            }
        }
    }
}
