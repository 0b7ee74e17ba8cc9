//! Axes with round ticks, and numbers as an axis writes them.

use crate::base::human;

/// The meaning of a number on an axis or beside a bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A plain number.
    Number,
    /// A share from 0 to 1, written in per cent.
    Percent,
    /// A time in seconds.
    Seconds,
}

impl Format {
    /// Writes the number to about three digits.
    pub(crate) fn text(self, value: f64) -> String {
        match self {
            Self::Percent => format!("{:.1} %", value * 100.0),
            Self::Seconds => human::duration(value),
            Self::Number => number(value),
        }
    }

    fn tick(self, value: f64, step: f64) -> String {
        match self {
            Self::Percent => format!("{:.*} %", decimals(step * 100.0), value * 100.0),
            Self::Seconds => human::duration(value),
            Self::Number if value == 0.0 && step >= 1.0 => "0".to_owned(),
            Self::Number if step >= 1_000.0 && step % 100.0 == 0.0 => {
                format!("{}k", short(value / 1_000.0))
            }
            Self::Number if step < 1e-4 => format!("{value:.0e}"),
            Self::Number => format!("{value:.*}", decimals(step)),
        }
    }
}

/// Writes a number to about three digits: `1,234`, `56.7`, `0.123`, `4.5e-5`.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        a if a >= 1e15 => format!("{value:.1e}"),
        a if a >= 1_000.0 => {
            let sign = if value < 0.0 { "-" } else { "" };
            format!("{sign}{}", human::count(a.round() as u64))
        }
        a if a >= 100.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        a if a >= 1.0 => format!("{value:.2}"),
        a if a >= 1e-3 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

fn short(value: f64) -> String {
    if value.fract().abs() < 1e-9 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn decimals(step: f64) -> usize {
    (0..6)
        .find(|&d| (step * 10f64.powi(d) - (step * 10f64.powi(d)).round()).abs() < 1e-6)
        .unwrap_or(6) as usize
}

/// The range of an axis and its ticks.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The position and text of each tick.
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Makes an axis whose ends are round numbers around `low..high`.
    pub(crate) fn around(low: f64, high: f64, max_ticks: usize, format: Format) -> Self {
        // Shares and counts are easiest to read against zero, unless they stay in a narrow band far from
        // it.
        let low = if low > 0.0 && low < 0.6 * high { 0.0 } else { low };
        let (low, high) = widened(low, high);
        let step = round_step((high - low) / max_ticks as f64);
        let first = (low / step + 1e-9).floor();
        let last = (high / step - 1e-9).ceil();
        let ticks = (0..=(last - first) as usize).map(|i| (first + i as f64) * step);
        Self {
            low: first * step,
            high: last * step,
            ticks: ticks.map(|tick| (tick, format.tick(tick, step))).collect(),
        }
    }

    /// Makes an axis that ends exactly at `low` and `high`, with round ticks between.
    pub(crate) fn within(low: f64, high: f64, max_ticks: usize) -> Self {
        let (low, high) = widened(low, high);
        let step = round_step((high - low) / max_ticks as f64).max(1.0);
        let first = (low / step).ceil();
        let count = ((high / step).floor() - first).max(0.0) as usize;
        let ticks = (0..=count).map(|i| (first + i as f64) * step);
        Self {
            low,
            high,
            ticks: ticks.map(|tick| (tick, Format::Number.tick(tick, step))).collect(),
        }
    }

    /// Makes an axis over powers of two, for numbers of samples; positions are exponents.
    pub(crate) fn powers_of_two(highest: f64) -> Self {
        let last = highest.max(2.0).log2().ceil() as usize;
        let ticks = (0..=last).map(|e| (e as f64, (1u64 << e).to_string())).collect();
        Self { low: 0.0, high: last as f64, ticks }
    }

    /// Returns where `value` lies, from 0 (low end) to 1.
    pub(crate) fn at(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

fn widened(low: f64, high: f64) -> (f64, f64) {
    let (low, high) = if low.is_finite() && high.is_finite() { (low, high) } else { (0.0, 1.0) };
    if high > low {
        (low, high)
    } else {
        (low - 0.5 * low.abs().max(1.0), low + 0.5 * low.abs().max(1.0))
    }
}

/// Returns the smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|f| f * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let axis = Axis::around(0.013, 0.431, 5, Format::Percent);
        assert_eq!(texts(&axis), ["0 %", "10 %", "20 %", "30 %", "40 %", "50 %"]);
        assert_eq!((axis.low, axis.high), (0.0, 0.5));
        assert_eq!(texts(&Axis::around(2.31, 2.42, 4, Format::Number))[0], "2.30");
        assert_eq!(texts(&Axis::around(0.0, 11_000.0, 4, Format::Number))[1], "5k");
        assert_eq!(
            texts(&Axis::around(-0.4, 1.2, 4, Format::Number)),
            ["-0.5", "0.0", "0.5", "1.0", "1.5"]
        );
        assert_eq!(texts(&Axis::within(1.0, 600.0, 6)), ["100", "200", "300", "400", "500", "600"]);
        assert_eq!(texts(&Axis::powers_of_two(32.0)), ["1", "2", "4", "8", "16", "32"]);
    }

    #[test]
    fn constant_and_missing_values_still_have_an_axis() {
        for (low, high) in [(3.0, 3.0), (0.0, 0.0), (f64::INFINITY, f64::NEG_INFINITY)] {
            let axis = Axis::around(low, high, 4, Format::Number);
            assert!(axis.high > axis.low && axis.ticks.len() >= 2, "{axis:?}");
        }
    }

    #[test]
    fn numbers_have_about_three_digits() {
        let written = [12_345.6, 123.4, 12.34, 1.234, 0.1234, 0.0, -0.5, 4.5e-5, 1e30].map(number);
        assert_eq!(
            written,
            ["12,346", "123", "12.3", "1.23", "0.123", "0", "-0.500", "4.5e-5", "1.0e30"]
        );
    }
}
