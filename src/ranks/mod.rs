//! This module runs ranks: threads that each train on their share of a batch, and that exchange
//! numbers.
//!
//! Contract: a rank is an operating-system thread with its own parameters, gradients and part of
//! the optimizer's state (ZeRO-1). All ranks make the same calls of [`Comm`] in the same order with
//! buffers of the same length. Sums run in rank order, so equal runs of equally many ranks give
//! equal bits. A rank that fails or panics makes the calls of all others fail, so that none waits
//! for ever. Ranks on GPUs are [`Member`]s too, but exchange through `cuda::nccl`, bucket by bucket
//! while the backward still fills other buckets. On a CPU that overlap would not pay.

mod shards;
mod threads;

use anyhow::{Result, anyhow};
pub use shards::{Portion, Shards, piece};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use threads::Threads;

/// One of several ranks that start and fail together.
pub trait Member: Send {
    /// Returns the number of this rank, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Makes the waiting and later calls of all ranks fail.
    fn abort(&self);
}

/// The exchange of one rank with the others.
pub trait Comm: Member {
    /// Sums `bucket` over the ranks. Afterwards this rank's [`piece`] of it holds the sum, and the
    /// rest holds what it held before.
    fn reduce_scatter(&self, bucket: &mut [f32]) -> Result<()>;

    /// Fills `bucket` with every rank's [`piece`] of it.
    fn all_gather(&self, bucket: &mut [f32]) -> Result<()>;

    /// Sums a few scalars over the ranks; every rank gets the sums.
    fn all_reduce(&self, scalars: &mut [f64]) -> Result<()>;

    /// Waits until all ranks have made this call.
    fn barrier(&self) -> Result<()>;
}

/// The error of a call that fails because another rank failed.
#[derive(Debug)]
pub struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another rank failed")
    }
}

impl std::error::Error for Aborted {}

/// The only rank of a run, which has nothing to exchange.
#[derive(Debug, Default)]
pub struct Single;

impl Member for Single {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn abort(&self) {}
}

impl Comm for Single {
    fn reduce_scatter(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn all_gather(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn all_reduce(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}

/// Returns the members of a group of `size` ranks in this process, in rank order.
pub fn group(size: usize) -> Vec<Box<dyn Comm>> {
    match size {
        1 => vec![Box::new(Single)],
        _ => Threads::group(size).into_iter().map(|end| Box::new(end) as Box<dyn Comm>).collect(),
    }
}

/// Runs `work` for every rank, each on a thread of its own; a single rank runs on the caller's
/// thread. Returns the results in rank order, or the error of the first rank that failed by itself.
pub fn on_every_rank<R: Send, T: Send, C>(
    ranks: Vec<R>,
    member: C,
    work: impl Fn(&mut R) -> Result<T> + Sync,
) -> Result<Vec<T>>
where
    C: Sync + Fn(&R) -> &dyn Member,
{
    if ranks.len() == 1 {
        return ranks.into_iter().map(|mut rank| work(&mut rank)).collect();
    }
    let guarded = |mut rank: R| {
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut rank)))
            .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", message_of(&*panic))));
        if result.is_err() {
            member(&rank).abort();
        }
        result.map_err(|e| e.context(format!("rank {}", member(&rank).rank())))
    };
    let guarded = &guarded;
    let results: Vec<Result<T>> = std::thread::scope(|scope| {
        let spawn = |rank: R| scope.spawn(move || guarded(rank));
        let threads: Vec<_> = ranks.into_iter().map(spawn).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Aborted.into()))).collect()
    });
    let is_cause = |result: &Result<T>| matches!(result, Err(e) if !e.is::<Aborted>());
    match results.iter().position(is_cause) {
        Some(cause) => results.into_iter().nth(cause).into_iter().collect(),
        None => results.into_iter().collect(),
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T: Send>(size: usize, work: impl Fn(&dyn Comm) -> Result<T> + Sync) -> Result<Vec<T>> {
        on_every_rank(group(size), |comm| &**comm, |comm| work(&**comm))
    }

    /// Returns the values that rank `rank` contributes.
    fn values(rank: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7 + rank * 13) as f32 * 0.37).sin() * 1e3).collect()
    }

    #[test]
    fn pieces_are_summed_in_rank_order_and_gathered() {
        for (size, len) in [(1, 40), (2, 1000), (3, 17), (5, 3), (8, 0)] {
            let results = run(size, |comm| {
                let mut bucket = values(comm.rank(), len);
                comm.reduce_scatter(&mut bucket)?;
                let own = piece(len, size, comm.rank());
                bucket.iter_mut().enumerate().for_each(|(i, x)| {
                    if !own.contains(&i) {
                        *x = f32::NAN;
                    }
                });
                comm.all_gather(&mut bucket)?;
                Ok(bucket)
            });
            let brought: Vec<_> = (0..size).map(|rank| values(rank, len)).collect();
            let sums: Vec<f32> = (0..len)
                .map(|i| brought.iter().skip(1).fold(brought[0][i], |s, b| s + b[i]))
                .collect();
            assert_eq!(results.unwrap(), vec![sums; size], "{size} ranks");
        }
    }

    #[test]
    fn scalars_are_summed_again_and_again() {
        let results = run(4, |comm| {
            let mut total = 0.0;
            for round in 0..50 {
                let mut scalars = [comm.rank() as f64, f64::from(round)];
                comm.all_reduce(&mut scalars)?;
                total += scalars[0] + scalars[1];
                comm.barrier()?;
            }
            Ok(total)
        });
        assert_eq!(results.unwrap(), [6.0 * 50.0 + 4.0 * 1225.0; 4]);
    }

    #[test]
    fn a_rank_that_fails_or_panics_stops_the_others_and_is_named() {
        for (failing, is_panic) in [(0, false), (2, true), (3, false)] {
            let error = run(4, |comm| -> Result<()> {
                if comm.rank() == failing {
                    assert!(!is_panic, "the sky falls");
                    anyhow::bail!("the sky falls");
                }
                comm.reduce_scatter(&mut [0.0; 100])?;
                comm.barrier()
            })
            .unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains(&format!("rank {failing}")), "{text}");
            assert!(text.contains("the sky falls"), "{text}");
        }
    }

    #[test]
    fn a_group_that_failed_stays_failed() {
        let mut ends = group(2);
        ends[0].abort();
        assert!(ends.pop().unwrap().barrier().unwrap_err().is::<Aborted>());
    }
}
