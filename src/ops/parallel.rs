//! Loops over independent work items on the rayon pool, with one scratch buffer for each thread.
//!
//! An item writes only its own part of the output, and reads nothing that another item of the loop writes.
//! So the result does not depend on the threads. Nothing is allocated.

use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `body(item, scratch)` once for each of `items`, on at most `scratch.len()` threads.
pub fn for_each<S: Send>(items: usize, scratch: &mut [S], body: impl Fn(usize, &mut S) + Sync) {
    let next = AtomicUsize::new(0);
    let drain = |scratch: &mut S| {
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= items {
                break;
            }
            body(item, scratch);
        }
    };
    let threads = scratch.len().min(items);
    if threads <= 1 {
        scratch.iter_mut().take(1).for_each(drain);
    } else {
        scratch[..threads].par_iter_mut().with_max_len(1).for_each(drain);
    }
}

/// A slice whose disjoint parts are written by several items of one loop.
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it only gives out parts that its users promise to be disjoint, as `split_at_mut` would.
unsafe impl<T: Send + Sync> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Borrows the slice for as long as parts of it are used.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// Returns the address of element `index`, for parts that are not contiguous.
    pub fn pointer(&self, index: usize) -> *mut T {
        assert!(index <= self.len, "address within the slice");
        self.start.wrapping_add(index)
    }

    /// Returns the slice from element `start` on.
    pub fn offset(&self, start: usize) -> SharedMut<'_, T> {
        assert!(start <= self.len, "offset within the slice");
        let first = self.start.wrapping_add(start);
        SharedMut { start: first, len: self.len - start, borrow: PhantomData }
    }

    /// Returns the part at `range`, which others may read at the same time.
    ///
    /// # Safety
    /// Nobody has or gets it from [`Self::part`] while the result is in use.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "part within the slice");
        // SAFETY: in bounds by the assertion, not written by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// Returns the part at `range`, writable.
    ///
    /// # Safety
    /// No two parts that are in use at the same time overlap.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part within the slice");
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once() {
        for threads in [1, 2, 5] {
            let mut scratch = vec![0usize; threads];
            let mut hits = vec![0u8; 1000];
            let shared = SharedMut::new(&mut hits);
            for_each(1000, &mut scratch, |item, count| {
                *count += 1;
                // SAFETY: every item has its own element.
                unsafe { shared.part(item..item + 1)[0] += 1 };
            });
            assert!(hits.iter().all(|&h| h == 1));
            assert_eq!(scratch.iter().sum::<usize>(), 1000);
        }
    }
}
