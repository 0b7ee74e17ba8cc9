//! Times of work on a stream.

use crate::cuda::{Device, Event, Stream};
use anyhow::Result;
use std::sync::Arc;
use std::time::Instant;

/// How often work runs.
#[derive(Clone, Copy, Debug)]
pub struct Repeats {
    /// Before any time is taken.
    pub warm_up: usize,
    /// With a time each, of which the median counts.
    pub timed: usize,
}

impl Repeats {
    /// The usual share of runs that only warm up.
    pub fn new(timed: usize) -> Self {
        Self { warm_up: timed.div_ceil(4).max(2), timed: timed.max(1) }
    }
}

/// Takes times from events of a stream.
#[derive(Debug)]
pub struct Clock {
    start: Event,
    end: Event,
    repeats: Repeats,
}

impl Clock {
    /// For streams of `device`.
    pub fn new(device: &Arc<Device>, repeats: Repeats) -> Result<Self> {
        Ok(Self { start: Event::timed(device)?, end: Event::timed(device)?, repeats })
    }

    /// Median milliseconds that the device spends on what `queue` puts in `stream`.
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

/// Median milliseconds of `work`, which returns when the device is done.
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
