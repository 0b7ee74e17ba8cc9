//! Packs sequences of different lengths into one batch.
//!
//! No sequence is cut, none sees another, and positions count from the start of each. Packing only decides
//! what is computed together. It changes no loss, since losses are divided by global counts.

use crate::base::error::usage;
use crate::tokenizer::Tokenized;
use anyhow::Result;

/// Sequences packed one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    pub tokens: Vec<u32>,
    /// The first row of each sequence, and the end of the last.
    pub cu_seqlens: Vec<u32>,
    /// What is learnt: the row that predicts, and the token that it should predict.
    pub targets: Vec<(u32, u32)>,
    /// The number of targets of each sequence, in order.
    pub targets_per_sequence: Vec<u32>,
    /// The indices of the samples in the sequences.
    pub samples: Vec<usize>,
}

impl Batch {
    /// Packs `samples[i]` for each index, in that order.
    pub fn new(samples: &[Tokenized], indices: &[usize]) -> Self {
        let mut batch = Self::empty();
        for &index in indices {
            batch.push(&samples[index], index);
        }
        batch
    }

    pub fn empty() -> Self {
        Self { cu_seqlens: vec![0], ..Self::default() }
    }

    /// Appends a sequence; `index` is its sample's.
    pub fn push(&mut self, sample: &Tokenized, index: usize) {
        let start = self.tokens.len();
        self.tokens.extend(&sample.input_ids);
        self.cu_seqlens.push(self.tokens.len() as u32);
        let before = self.targets.len();
        // The first token has no row before it that could predict it.
        let learnt = (1..sample.input_ids.len()).filter(|&i| sample.loss_mask[i]);
        self.targets.extend(learnt.map(|i| ((start + i - 1) as u32, sample.input_ids[i])));
        self.targets_per_sequence.push((self.targets.len() - before) as u32);
        self.samples.push(index);
    }
}

/// Divides sequences of the given lengths into batches by first fit.
///
/// Each sequence goes, in order, into the first batch with room. The result lists the indices of each
/// batch. Refuses a sequence that is longer than `max_tokens`.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
