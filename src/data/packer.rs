//! Divides the order of samples into rows, by their lengths alone.
//!
//! A row holds whole samples, of at most `seq_len` tokens together. Samples are taken in the mixture's
//! order. If the next one does not fit, up to `ahead` others are searched for some that do, and those
//! passed over come first in the next row. With `ahead` 0 a row ends where the next sample does not fit. A
//! row of a source that is alone also ends where a pass over it ends.

use super::mixture::{Draw, Mixture, SourceCursor};

/// An endless order that is taken row by row.
#[derive(Clone)]
pub(crate) struct Packer {
    mixture: Mixture,
    /// Samples that were passed over, oldest first.
    in_hand: Vec<Draw>,
    /// At most this many samples are in hand.
    ahead: usize,
    seq_len: usize,
}

impl Packer {
    /// Creates rows of at most `seq_len` tokens; the first begins with `in_hand`.
    pub(crate) fn new(mixture: Mixture, in_hand: Vec<Draw>, ahead: usize, seq_len: usize) -> Self {
        Self { mixture, in_hand, ahead, seq_len }
    }

    /// Returns how far each source has been read.
    pub(crate) fn progress(&self) -> Vec<SourceCursor> {
        self.mixture.progress()
    }

    /// Returns the samples that were taken from the order and are in no row yet.
    pub(crate) fn in_hand(&self) -> &[Draw] {
        &self.in_hand
    }

    pub(crate) fn seq_len(&self) -> usize {
        self.seq_len
    }

    pub(crate) fn next_row(&mut self, length: impl Fn(Draw) -> usize) -> Vec<Draw> {
        let passes = self.mixture.passes_of_one();
        let (mut row, mut room) = (Vec::new(), self.seq_len);
        let mut place = |draw: Draw| {
            let fits = length(draw) <= room;
            if fits {
                room -= length(draw);
                row.push(draw);
            }
            fits
        };
        self.in_hand.retain(|&draw| !place(draw));
        while self.mixture.passes_of_one() == passes {
            let draw = self.mixture.peek();
            if !place(draw) {
                if self.in_hand.len() >= self.ahead {
                    break;
                }
                self.in_hand.push(draw);
            }
            self.mixture.take(length(draw));
        }
        row
    }
}
