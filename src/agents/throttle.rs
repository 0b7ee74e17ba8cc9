//! How many calls go on at the same time, and when nobody may call.
//!
//! Contract: the number grows with every answer until the endpoint says for the first time that it has too many;
//! then it falls by a quarter, at most once in a while, and grows by one for many answers. Left out: what a
//! call waits that failed for another reason.

use std::time::{Duration, Instant};

const FIRST_LIMIT: usize = 16;
/// Answers for which a limit that once was too high grows by one.
const ANSWERS_TO_GROW: usize = 25;
/// Calls that were on their way together are refused together: that is one reason to make fewer.
const CUT_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Throttle {
    most: usize,
    limit: usize,
    /// When the endpoint last had too many calls.
    cut_at: Option<Instant>,
    num_answers: usize,
    paused_until: Option<Instant>,
}

impl Throttle {
    /// At most so many calls at the same time, at least one.
    pub(crate) fn new(most: usize) -> Self {
        let limit = most.min(FIRST_LIMIT);
        Self { most, limit, cut_at: None, num_answers: 0, paused_until: None }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes note of an answer.
    pub(crate) fn answered(&mut self) {
        self.num_answers += 1;
        if self.cut_at.is_none() || self.num_answers >= ANSWERS_TO_GROW {
            self.num_answers = 0;
            self.limit = (self.limit + 1).min(self.most);
        }
    }

    /// Takes note that the endpoint has too many calls, and wants none for `pause`, where it says so.
    pub(crate) fn had_too_many(&mut self, now: Instant, pause: Option<Duration>) {
        if self.cut_at.is_none_or(|cut| now.duration_since(cut) >= CUT_INTERVAL) {
            self.limit = (self.limit * 3 / 4).max(1);
            self.cut_at = Some(now);
            self.num_answers = 0;
        }
        self.paused_until = self.paused_until.max(pause.map(|pause| now + pause));
    }

    /// When calls may be made again, if not now.
    pub(crate) fn pause(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_grow_with_answers_up_to_the_most() {
        let mut throttle = Throttle::new(20);
        let limits: Vec<usize> = (0..6)
            .map(|_| {
                throttle.answered();
                throttle.limit()
            })
            .collect();
        assert_eq!(limits, [17, 18, 19, 20, 20, 20]);
        assert_eq!(Throttle::new(3).limit(), 3);
    }

    #[test]
    fn too_many_calls_cost_a_quarter_once_and_come_back_slowly() {
        let (mut throttle, start) = (Throttle::new(16), Instant::now());
        for late in [0, 1, 1] {
            throttle.had_too_many(start + Duration::from_secs(late), None);
        }
        assert_eq!(throttle.limit(), 12);
        (0..ANSWERS_TO_GROW).for_each(|_| throttle.answered());
        assert_eq!(throttle.limit(), 13);
        for late in 1..40 {
            throttle.had_too_many(start + late * CUT_INTERVAL, None);
        }
        assert_eq!(throttle.limit(), 1, "it never stops");
    }

    #[test]
    fn a_pause_is_the_longest_that_was_asked_for() {
        let (mut throttle, now) = (Throttle::new(4), Instant::now());
        assert_eq!(throttle.pause(now), None);
        let long = Duration::from_secs(9);
        throttle.had_too_many(now, Some(long));
        throttle.had_too_many(now, Some(Duration::from_secs(1)));
        throttle.had_too_many(now, None);
        assert_eq!(throttle.pause(now), Some(now + long));
        assert_eq!(throttle.pause(now + long), None);
    }
}
