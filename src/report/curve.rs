//! A number over the steps of a run.

use crate::run::metrics::{Row, step_of};

/// A named curve; points are (step, value), finite and in order of steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    pub name: String,
    /// Whether the values are shares, to be shown in per cent.
    pub is_fraction: bool,
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// Takes the values under `key` from the metrics of a run.
    pub fn from_rows(name: &str, rows: &[Row], key: &str) -> Self {
        let point = |row: &Row| Some((step_of(row)? as f64, row.get(key)?.as_f64()?));
        let points = rows.iter().filter_map(point).collect();
        Self { name: name.to_owned(), is_fraction: false, points }
    }

    /// Marks the values as shares.
    pub fn fraction(mut self) -> Self {
        self.is_fraction = true;
        self
    }

    pub(crate) fn last(&self) -> Option<f64> {
        self.points.last().map(|&(_, value)| value)
    }

    pub(crate) fn format(&self) -> super::axis::Format {
        if self.is_fraction { super::axis::Format::Percent } else { super::axis::Format::Number }
    }
}

/// Averages about `window` points around each point, down to a third of them at the ends.
pub(crate) fn smoothed(points: &[(f64, f64)], window: f64) -> Vec<(f64, f64)> {
    let reach = (window / 2.0).round() as usize;
    let average = |i: usize| {
        let reach = reach.min(i).min(points.len() - 1 - i).max(reach / 3);
        let near = &points[i.saturating_sub(reach)..=(i + reach).min(points.len() - 1)];
        near.iter().map(|p| p.1).sum::<f64>() / near.len() as f64
    };
    (0..points.len()).map(|i| (points[i].0, average(i))).collect()
}

/// Returns whether a curve varies so much that only its average can be read.
pub(crate) fn is_noisy(points: &[(f64, f64)]) -> bool {
    let (low, high) = range(points.iter().map(|p| p.1));
    let travelled: f64 = points.windows(2).map(|pair| (pair[1].1 - pair[0].1).abs()).sum();
    travelled > 4.0 * (high - low)
}

/// Returns the least and greatest of `values`. Without values they are infinite, and the least is the
/// greater.
pub(crate) fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::metrics::row;

    #[test]
    fn rows_without_the_number_are_skipped() {
        let mut rows = vec![row([("loss", 2.0)]), row([("loss", f64::NAN)]), row([("lr", 1.0)])];
        for (i, row) in rows.iter_mut().enumerate() {
            row.insert("step".into(), i.into());
        }
        assert_eq!(Curve::from_rows("loss", &rows, "loss").points, [(0.0, 2.0)]);
    }

    #[test]
    fn a_schedule_is_not_noise() {
        let warmup_and_decay: Vec<_> =
            (0..100).map(|i| (f64::from(i), f64::from(i.min(20)) / f64::from(i.max(20)))).collect();
        assert!(!is_noisy(&warmup_and_decay));
        let jitter: Vec<_> = (0..100).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!(is_noisy(&jitter));
    }

    #[test]
    fn smoothing_keeps_a_straight_line_where_it_is() {
        let points: Vec<_> = (0..50).map(|i| (f64::from(i), 3.0 * f64::from(i))).collect();
        let smooth = smoothed(&points, 8.0);
        assert!(smooth.iter().zip(&points).skip(2).take(46).all(|(a, b)| (a.1 - b.1).abs() < 1e-9));
        assert!(smoothed(&[], 10.0).is_empty());
    }
}
