//! This file measures the time of work on a stream.

use crate::cuda::{Device, Event, Stream};
use anyhow::Result;
use std::sync::Arc;
use std::time::Instant;

/// The numbers of runs of one measurement.
#[derive(Clone, Copy, Debug)]
pub struct Repeats {
    /// So many runs come before any time is taken.
    pub warm_up: usize,
    /// So many runs are timed; their median counts.
    pub timed: usize,
}

impl Repeats {
    /// Chooses a quarter as many runs for warming up as are timed, at least two.
    pub fn new(timed: usize) -> Self {
        Self { warm_up: timed.div_ceil(4).max(2), timed: timed.max(1) }
    }
}

/// A clock that reads times from events of a stream.
#[derive(Debug)]
pub struct Clock {
    start: Event,
    end: Event,
    repeats: Repeats,
}

impl Clock {
    pub fn new(device: &Arc<Device>, repeats: Repeats) -> Result<Self> {
        Ok(Self { start: Event::timed(device)?, end: Event::timed(device)?, repeats })
    }

    /// Returns the median milliseconds that the device spends on the work that `queue` puts into
    /// `stream`.
    pub fn time(&self, stream: &Stream, mut queue: impl FnMut() -> Result<()>) -> Result<f64> {
        for _ in 0..self.repeats.warm_up {
            queue()?;
        }
        let mut times = Vec::with_capacity(self.repeats.timed);
        for _ in 0..self.repeats.timed {
            self.start.record(stream)?;
            queue()?;
            self.end.record(stream)?;
            self.end.synchronize()?;
            times.push(f64::from(self.end.milliseconds_since(&self.start)?));
        }
        Ok(median(times))
    }
}

/// Returns the median milliseconds of `work`, which must return only when the device is done.
pub fn wall(repeats: Repeats, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..repeats.warm_up {
        work()?;
    }
    let mut times = Vec::with_capacity(repeats.timed);
    for _ in 0..repeats.timed {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(times))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_time_or_the_mean_of_two() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}
