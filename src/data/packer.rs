//! The order of samples divided into rows, by their lengths alone.
//!
//! Contract: a row holds whole samples, at most `seq_len` tokens. Samples are taken in the mixture's order;
//! where the next one does not fit, up to `ahead` others are looked through for some that do, and those
//! passed over come first in the next row. With `ahead` 0 rows are cut where the order overflows them. A
//! row of a source that is alone also closes where a pass over it ends.

use super::mixture::{Draw, Mixture, SourceCursor};

/// An endless order that is taken row by row.
#[derive(Clone)]
pub(crate) struct Packer {
    mixture: Mixture,
    /// Samples passed over, oldest first.
    in_hand: Vec<Draw>,
    /// Most samples in hand.
    ahead: usize,
    seq_len: usize,
}

impl Packer {
    /// Rows of at most `seq_len` tokens, the first of which begins with `in_hand`.
    pub(crate) fn new(mixture: Mixture, in_hand: Vec<Draw>, ahead: usize, seq_len: usize) -> Self {
        Self { mixture, in_hand, ahead, seq_len }
    }

    /// How far each source has been read.
    pub(crate) fn progress(&self) -> Vec<SourceCursor> {
        self.mixture.progress()
    }

    /// Samples taken from the order that no row held yet.
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
