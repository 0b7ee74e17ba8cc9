//! Sums that an objective collects while several ranks learn from it at the same time.

use std::sync::{Mutex, PoisonError};

/// One sum for each micro-batch of a step.
///
/// One rank computes a micro-batch, chunk after chunk, and the sums are returned in the order of the
/// micro-batches. So a total over them has the same bits on any number of ranks.
#[derive(Debug)]
pub struct BatchSums<S>(Vec<Mutex<S>>);

impl<S: Default> BatchSums<S> {
    pub fn new(num_batches: usize) -> Self {
        Self((0..num_batches).map(|_| Mutex::default()).collect())
    }

    /// Changes the sum of a micro-batch with `add`.
    pub fn update(&self, batch: usize, add: impl FnOnce(&mut S)) {
        add(&mut self.0[batch].lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl<S> IntoIterator for BatchSums<S> {
    type Item = S;
    type IntoIter = std::iter::Map<std::vec::IntoIter<Mutex<S>>, fn(Mutex<S>) -> S>;

    fn into_iter(self) -> Self::IntoIter {
        let into_sum = |sum: Mutex<S>| sum.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.0.into_iter().map(into_sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_come_in_the_order_of_the_micro_batches_whoever_comes_first() {
        let sums = BatchSums::<Vec<u32>>::new(3);
        std::thread::scope(|scope| {
            for batch in [2, 0, 1] {
                let sums = &sums;
                scope.spawn(move || {
                    for chunk in 0..4 {
                        sums.update(batch, |sum| sum.push(10 * batch as u32 + chunk));
                    }
                });
            }
        });
        let gathered: Vec<Vec<u32>> = sums.into_iter().collect();
        assert_eq!(gathered, [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]);
    }
}
