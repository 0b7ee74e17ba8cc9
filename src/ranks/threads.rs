//! This file exchanges numbers between ranks of one process through memory.
//!
//! Contract: it is the one of [`Comm`]. Each rank copies its values to a buffer of its own, and
//! reads the others' buffers between two barriers, so a call costs one copy of the bucket.

use super::{Aborted, Comm, Member, piece};
use anyhow::Result;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

/// One rank's membership in a group of threads.
pub(crate) struct Threads {
    rank: usize,
    group: Arc<Group>,
}

struct Group {
    /// Each rank's values of the current exchange.
    brought: Vec<RwLock<Brought>>,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Default)]
struct Brought {
    bucket: Vec<f32>,
    scalars: Vec<f64>,
}

/// A barrier that can be aborted.
#[derive(Default)]
struct Meeting {
    arrived: usize,
    /// The barrier has been passed so often.
    held: u64,
    is_aborted: bool,
}

impl Threads {
    /// Returns the members of a group of `size` ranks, in rank order.
    pub(crate) fn group(size: usize) -> Vec<Self> {
        let group = Arc::new(Group {
            brought: (0..size).map(|_| RwLock::default()).collect(),
            meeting: Mutex::default(),
            changed: Condvar::new(),
        });
        (0..size).map(|rank| Self { rank, group: group.clone() }).collect()
    }

    /// Waits until all ranks have arrived.
    fn meet(&self) -> Result<()> {
        let mut meeting = self.lock();
        meeting.arrived += 1;
        if meeting.arrived == self.size() {
            meeting.arrived = 0;
            meeting.held += 1;
            self.group.changed.notify_all();
        } else {
            let held = meeting.held;
            while meeting.held == held && !meeting.is_aborted {
                let waited = self.group.changed.wait(meeting);
                meeting = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
        if meeting.is_aborted { Err(Aborted.into()) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.group.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `bring` fill this rank's buffer, then lets `take` read every rank's buffer in rank
    /// order.
    fn exchange(
        &self,
        bring: impl FnOnce(&mut Brought),
        mut take: impl FnMut(usize, &Brought),
    ) -> Result<()> {
        let own = &self.group.brought[self.rank];
        bring(&mut own.write().unwrap_or_else(PoisonError::into_inner));
        self.meet()?;
        for (rank, brought) in self.group.brought.iter().enumerate() {
            take(rank, &brought.read().unwrap_or_else(PoisonError::into_inner));
        }
        self.meet()
    }
}

impl Member for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.brought.len()
    }

    fn abort(&self) {
        self.lock().is_aborted = true;
        self.group.changed.notify_all();
    }
}

impl Comm for Threads {
    fn reduce_scatter(&self, bucket: &mut [f32]) -> Result<()> {
        let own = piece(bucket.len(), self.size(), self.rank);
        let (start, mut sum) = (own.start, vec![0.0; own.len()]);
        let bring = |brought: &mut Brought| {
            brought.bucket.clear();
            brought.bucket.extend_from_slice(bucket);
        };
        self.exchange(bring, |rank, brought| {
            let part = &brought.bucket[start..start + sum.len()];
            match rank {
                0 => sum.copy_from_slice(part),
                _ => sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x),
            }
        })?;
        bucket[own].copy_from_slice(&sum);
        Ok(())
    }

    fn all_gather(&self, bucket: &mut [f32]) -> Result<()> {
        let (len, size) = (bucket.len(), self.size());
        let own = bucket[piece(len, size, self.rank)].to_vec();
        self.exchange(
            |brought| {
                brought.bucket.clear();
                brought.bucket.extend_from_slice(&own);
            },
            |rank, brought| bucket[piece(len, size, rank)].copy_from_slice(&brought.bucket),
        )
    }

    fn all_reduce(&self, scalars: &mut [f64]) -> Result<()> {
        let brought_scalars = scalars.to_vec();
        scalars.fill(0.0);
        self.exchange(
            |brought| brought.scalars = brought_scalars,
            |_, brought| scalars.iter_mut().zip(&brought.scalars).for_each(|(sum, x)| *sum += x),
        )
    }

    fn barrier(&self) -> Result<()> {
        self.meet()
    }
}
