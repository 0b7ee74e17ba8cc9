//! Sequences of different lengths side by side in one batch, in a shuffled order that resumes.
//!
//! Contract: no sequence is cut; a batch holds at most `max_tokens` tokens; the order depends only
//! on (seed, epoch) and continues from a [`Cursor`]; a batch never spans two epochs. Packing only
//! decides what is computed together: losses are divided by global counts, so it changes none.

use crate::base::error::usage;
use crate::base::rng::Stream;
use crate::tokenizer::Tokenized;
use anyhow::Result;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// Sequences packed one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// All tokens, sequence after sequence.
    pub tokens: Vec<u32>,
    /// Where each sequence starts, and the end of the last.
    pub cu_seqlens: Vec<u32>,
    /// What is learnt: the row whose prediction counts, and the token it should predict.
    pub targets: Vec<(u32, u32)>,
    /// How many targets each sequence has, in order.
    pub targets_per_sequence: Vec<u32>,
    /// Which samples the sequences are.
    pub samples: Vec<usize>,
}

impl Batch {
    /// Packs `samples[i]` for each index, in that order.
    pub fn new(samples: &[Tokenized], indices: &[usize]) -> Self {
        let mut batch = Self { cu_seqlens: vec![0], ..Self::default() };
        for &index in indices {
            let sample = &samples[index];
            let start = batch.tokens.len();
            batch.tokens.extend(&sample.input_ids);
            batch.cu_seqlens.push(batch.tokens.len() as u32);
            let before = batch.targets.len();
            // The first token has no row before it that could predict it.
            let learnt = (1..sample.input_ids.len()).filter(|&i| sample.loss_mask[i]);
            batch.targets.extend(learnt.map(|i| ((start + i - 1) as u32, sample.input_ids[i])));
            batch.targets_per_sequence.push((batch.targets.len() - before) as u32);
            batch.samples.push(index);
        }
        batch
    }
}

/// Divides sequences of the given lengths among as few batches as first fit finds.
///
/// Each goes, in order, into the first batch with room; the result lists indices per batch.
pub fn first_fit(lengths: &[usize], max_tokens: usize) -> Result<Vec<Vec<usize>>> {
    let mut batches: Vec<(usize, Vec<usize>)> = Vec::new();
    for (index, &length) in lengths.iter().enumerate() {
        check_length(index, length, max_tokens)?;
        match batches.iter_mut().find(|(used, _)| used + length <= max_tokens) {
            Some((used, indices)) => {
                *used += length;
                indices.push(index);
            }
            None => batches.push((length, vec![index])),
        }
    }
    Ok(batches.into_iter().map(|(_, indices)| indices).collect())
}

fn check_length(index: usize, length: usize, max_tokens: usize) -> Result<()> {
    if length > max_tokens {
        return Err(usage(format!(
            "sample {} has {length} tokens, more than a batch may hold ({max_tokens}): raise the \
             limit or drop the sample",
            index + 1
        )));
    }
    Ok(())
}

/// A place in the endless shuffled order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes completed.
    pub epoch: u64,
    /// Samples taken in this pass.
    pub index: usize,
}

/// An endless order over `len` items: every item once an epoch, each epoch shuffled anew.
#[derive(Debug, Clone)]
pub struct Shuffled {
    seed: u64,
    cursor: Cursor,
    order: Vec<usize>,
}

/// Keeps this shuffle apart from other uses of the same seed.
const SHUFFLE: u64 = 0x73_6875_6666_6c65;

impl Shuffled {
    /// Starts or continues at `cursor`; refuses an empty set and a cursor beyond its end.
    pub fn new(len: usize, seed: u64, cursor: Cursor) -> Result<Self> {
        if len == 0 {
            return Err(usage("no samples to draw from"));
        }
        if cursor.index >= len {
            return Err(usage(format!(
                "the saved position is sample {} of {len}: the data has changed since",
                cursor.index
            )));
        }
        let mut shuffled = Self { seed, cursor, order: vec![0; len] };
        shuffled.shuffle();
        Ok(shuffled)
    }

    /// Where the next item will come from; save this to resume.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next item, without taking it.
    pub fn peek(&self) -> usize {
        self.order[self.cursor.index]
    }

    /// Takes the next item.
    pub fn take(&mut self) -> usize {
        let item = self.peek();
        self.cursor.index += 1;
        if self.cursor.index == self.order.len() {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, index: 0 };
            self.shuffle();
        }
        item
    }

    fn shuffle(&mut self) {
        self.order.iter_mut().enumerate().for_each(|(i, slot)| *slot = i);
        self.order.shuffle(&mut Stream::new(self.seed, &[SHUFFLE, self.cursor.epoch]));
    }
}

/// Endless packed batches over a set of samples.
pub struct Loader {
    samples: Vec<Tokenized>,
    max_tokens: usize,
    order: Shuffled,
}

impl Loader {
    /// Batches of at most `max_tokens` tokens, from `cursor` on; refuses longer samples.
    pub fn new(
        samples: Vec<Tokenized>,
        max_tokens: usize,
        seed: u64,
        cursor: Cursor,
    ) -> Result<Self> {
        for (index, sample) in samples.iter().enumerate() {
            check_length(index, sample.input_ids.len(), max_tokens)?;
        }
        let order = Shuffled::new(samples.len(), seed, cursor)?;
        Ok(Self { samples, max_tokens, order })
    }

    /// The samples.
    pub fn samples(&self) -> &[Tokenized] {
        &self.samples
    }

    /// Where the next batch starts; save this to resume.
    pub fn cursor(&self) -> Cursor {
        self.order.cursor()
    }

    /// Takes samples in order until the next one does not fit or the epoch ends.
    pub fn next_batch(&mut self) -> Batch {
        let epoch = self.order.cursor().epoch;
        let mut indices = Vec::new();
        let mut used = 0;
        while self.order.cursor().epoch == epoch {
            used += self.samples[self.order.peek()].input_ids.len();
            if used > self.max_tokens {
                break;
            }
            indices.push(self.order.take());
        }
        Batch::new(&self.samples, &indices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(length: usize, prompt: usize) -> Tokenized {
        Tokenized {
            input_ids: (0..length as u32).map(|i| 10 * length as u32 + i).collect(),
            loss_mask: (0..length).map(|i| i >= prompt).collect(),
        }
    }

    #[test]
    fn a_target_is_predicted_by_the_row_before_it_in_the_same_sequence() {
        let batch = Batch::new(&[sample(3, 1), sample(4, 2), sample(2, 0)], &[1, 0, 2]);
        assert_eq!(batch.tokens, [40, 41, 42, 43, 30, 31, 32, 20, 21]);
        assert_eq!(batch.cu_seqlens, [0, 4, 7, 9]);
        assert_eq!(batch.targets, [(1, 42), (2, 43), (4, 31), (5, 32), (7, 21)]);
        assert_eq!(batch.targets_per_sequence, [2, 2, 1]);
    }

    #[test]
    fn first_fit_fills_gaps_and_refuses_what_fits_nowhere() {
        assert_eq!(first_fit(&[6, 5, 4, 5], 10).unwrap(), [vec![0, 2], vec![1, 3]]);
        assert!(first_fit(&[3, 11], 10).unwrap_err().to_string().contains("sample 2"));
    }

    #[test]
    fn a_changed_or_empty_data_set_is_refused() {
        assert!(Shuffled::new(0, 1, Cursor::default()).is_err());
        assert!(Shuffled::new(3, 1, Cursor { epoch: 0, index: 3 }).is_err());
    }

    proptest! {
        #[test]
        fn an_epoch_has_every_sample_once_and_resumes_anywhere(
            lengths in proptest::collection::vec(2usize..9, 1..40),
            seed: u64,
            stop in 0usize..30,
        ) {
            let samples: Vec<Tokenized> = lengths.iter().map(|&n| sample(n, 1)).collect();
            let mut loader = Loader::new(samples.clone(), 12, seed, Cursor::default()).unwrap();
            let mut seen = Vec::new();
            while loader.cursor().epoch == 0 {
                let batch = loader.next_batch();
                prop_assert!(!batch.samples.is_empty() && batch.tokens.len() <= 12);
                seen.extend(batch.samples);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());

            let mut loader = Loader::new(samples.clone(), 12, seed, Cursor::default()).unwrap();
            for _ in 0..stop {
                loader.next_batch();
            }
            let mut resumed = Loader::new(samples, 12, seed, loader.cursor()).unwrap();
            for _ in 0..5 {
                prop_assert_eq!(loader.next_batch(), resumed.next_batch());
            }
        }
    }
}
