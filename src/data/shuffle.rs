//! An endless shuffled order over the samples of one source, which resumes anywhere.
//!
//! Every item comes once in each pass; the order depends only on the seed and the pass.

use crate::base::error::usage;
use crate::base::rng::Stream;
use anyhow::Result;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// A place in the endless shuffled order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The number of completed passes.
    pub epoch: u64,
    /// The number of samples taken in this pass.
    pub index: usize,
}

/// An endless order over `len` items: each pass is a new shuffle of all of them.
#[derive(Debug, Clone)]
pub struct Shuffled {
    seed: u64,
    place: Place,
    order: Vec<usize>,
}

/// Makes this shuffle differ from other uses of the same seed.
const SHUFFLE: u64 = 0x73_6875_6666_6c65;

impl Shuffled {
    /// Starts or continues at `place`. Refuses an empty set, and a place beyond its end.
    pub fn new(len: usize, seed: u64, place: Place) -> Result<Self> {
        if len == 0 {
            return Err(usage("no samples to draw from"));
        }
        if place.index >= len {
            return Err(usage(format!(
                "the saved position is sample {} of {len}: the data has changed since",
                place.index
            )));
        }
        let mut shuffled = Self { seed, place, order: vec![0; len] };
        shuffled.shuffle();
        Ok(shuffled)
    }

    /// Returns where the next item will come from; save it to resume.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Returns the next item without taking it.
    pub fn peek(&self) -> usize {
        self.order[self.place.index]
    }

    /// Takes the next item.
    pub fn take(&mut self) -> usize {
        let item = self.peek();
        self.place.index += 1;
        if self.place.index == self.order.len() {
            self.place = Place { epoch: self.place.epoch + 1, index: 0 };
            self.shuffle();
        }
        item
    }

    fn shuffle(&mut self) {
        self.order.iter_mut().enumerate().for_each(|(i, slot)| *slot = i);
        self.order.shuffle(&mut Stream::new(self.seed, &[SHUFFLE, self.place.epoch]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_or_empty_data_set_is_refused() {
        assert!(Shuffled::new(0, 1, Place::default()).is_err());
        assert!(Shuffled::new(3, 1, Place { epoch: 0, index: 3 }).is_err());
    }

    #[test]
    fn every_epoch_has_each_item_once_in_an_order_of_its_own() {
        let mut order = Shuffled::new(50, 7, Place::default()).unwrap();
        let [first, second] = [(); 2].map(|()| (0..50).map(|_| order.take()).collect::<Vec<_>>());
        assert_ne!(first, second);
        for mut epoch in [first, second] {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..50).collect::<Vec<_>>());
        }
        assert_eq!(order.place(), Place { epoch: 2, index: 0 });
    }
}
