//! Charts for a terminal: curves in braille dots, bars in blocks.

use super::axis::{Axis, Format};
use super::curve::{Curve, range, smoothed};

const COLUMNS: usize = 60;
const ROWS: usize = 5;
const DOTS_ACROSS: usize = 2;
const DOTS_DOWN: usize = 4;
/// The bits of a braille character by dot column and row.
const BRAILLE: [[u32; DOTS_DOWN]; DOTS_ACROSS] =
    [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// Draws a smoothed curve, with its name and its unsmoothed first and last values; nothing if it has no points.
pub(crate) fn curve(curve: &Curve) -> String {
    let (Some(first), Some(last)) = (curve.points.first(), curve.points.last()) else {
        return String::new();
    };
    let format = curve.format();
    let points = smoothed(&curve.points, curve.points.len() as f64 / 40.0);
    let (low, high) = range(points.iter().map(|p| p.1));
    let axis = Axis::around(low, high, 6, format);
    let labels = [&axis.ticks[axis.ticks.len() - 1].1, &axis.ticks[0].1];
    let gutter = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(6);

    let ends = [first, last].map(|point| format.text(point.1));
    let mut text = format!("{}  {}\n", curve.name, ends.join(" → "));
    for (i, row) in canvas(&points, &axis).iter().enumerate() {
        let label = match i {
            0 => labels[0].as_str(),
            _ if i == ROWS - 1 => labels[1].as_str(),
            _ => "",
        };
        text.push_str(format!("{label:>gutter$} │{row}").trim_end());
        text.push('\n');
    }
    let last_step = format!("{}", last.0);
    let width = COLUMNS - 1;
    text.push_str(&format!("{:gutter$}  {:<5}{last_step:>w$}\n", "", first.0, w = width - 4));
    text
}

fn canvas(points: &[(f64, f64)], axis: &Axis) -> Vec<String> {
    let (across, down) = (COLUMNS * DOTS_ACROSS, ROWS * DOTS_DOWN);
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let mut cells = vec![[0u32; COLUMNS]; ROWS];
    let mut before: Option<(usize, usize)> = None;
    for &(x, y) in points {
        let along = (x - first) / (last - first).max(1e-12);
        let column = (along * (across - 1) as f64).round() as usize;
        let row = ((1.0 - axis.at(y)) * (down - 1) as f64).round().clamp(0.0, (down - 1) as f64);
        let here = (column, row as usize);
        for (column, row) in between(before.unwrap_or(here), here) {
            let bit = BRAILLE[column % DOTS_ACROSS][row % DOTS_DOWN];
            cells[row / DOTS_DOWN][column / DOTS_ACROSS] |= bit;
        }
        before = Some(here);
    }
    let cell = |bits: &u32| match bits {
        0 => ' ',
        bits => char::from_u32(0x2800 + bits).unwrap_or(' '),
    };
    cells.iter().map(|row| row.iter().map(cell).collect()).collect()
}

/// Draws a curve in one line of `columns` blocks, each the mean of its steps.
pub(crate) fn spark(points: &[(f64, f64)], columns: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let columns = columns.min(points.len());
    let mean = |column: usize| {
        let part = column * points.len() / columns..(column + 1) * points.len() / columns;
        let len = part.len() as f64;
        points[part].iter().map(|p| p.1).sum::<f64>() / len
    };
    let means: Vec<f64> = (0..columns).map(mean).collect();
    let (low, high) = range(means.iter().copied());
    let block = |mean: &f64| {
        let height = (mean - low) / (high - low).max(f64::MIN_POSITIVE);
        BLOCKS[((height * BLOCKS.len() as f64) as usize).min(BLOCKS.len() - 1)]
    };
    means.iter().map(block).collect()
}

/// Lists the dots of a straight line.
fn between(from: (usize, usize), to: (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    let steps = from.0.abs_diff(to.0).max(from.1.abs_diff(to.1)).max(1);
    (0..=steps).map(move |i| {
        let along = |a: usize, b: usize| {
            (a as f64 + (b as f64 - a as f64) * i as f64 / steps as f64).round() as usize
        };
        (along(from.0, to.0), along(from.1, to.1))
    })
}

/// Draws a bar for a share of `whole`; the interval is its lighter part.
pub(crate) fn bar(value: f64, interval: [f64; 2], whole: f64, width: usize) -> String {
    let cell = |fraction: f64| (fraction / whole.max(1e-12) * width as f64).round() as usize;
    let (low, middle, high) = (cell(interval[0]), cell(value), cell(interval[1]));
    let drawn = "█".repeat(low.min(middle))
        + &"▓".repeat(middle.saturating_sub(low))
        + &"░".repeat(high.saturating_sub(middle));
    format!("{drawn:<width$}")
}

/// Writes a share in per cent, as in tables.
pub(crate) fn percent(fraction: f64) -> String {
    Format::Percent.text(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_curve_starts_high_and_ends_low() {
        let points = (1..=60).map(|i| (f64::from(i), 60.0 - f64::from(i))).collect();
        let drawn = curve(&Curve { name: "loss".into(), is_fraction: false, points });
        let lines: Vec<&str> = drawn.lines().collect();
        assert_eq!(lines.len(), ROWS + 2);
        assert!(lines[1].trim_end().chars().count() < lines[ROWS].trim_end().chars().count());
        assert!(lines[ROWS + 1].trim_start().starts_with('1') && lines[ROWS + 1].ends_with("60"));
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{drawn}");
    }

    #[test]
    fn a_noisy_curve_is_smoothed_but_its_first_and_last_values_are_not() {
        let points = (0..400).map(|i| (f64::from(i), f64::from(5 + i % 2))).collect();
        let drawn = curve(&Curve { name: "loss".into(), is_fraction: false, points });
        assert!(drawn.starts_with("loss  5.00 → 6.00\n"), "{drawn}");
    }

    #[test]
    fn single_points_and_empty_curves_do_not_panic() {
        for points in [vec![], vec![(3.0, 0.0)]] {
            curve(&Curve { name: "x".into(), is_fraction: true, points });
        }
    }

    #[test]
    fn a_spark_rises_with_its_curve_in_as_many_blocks_as_there_is_room_for() {
        let points: Vec<_> = (0..80).map(|i| (f64::from(i), f64::from(i))).collect();
        assert_eq!(spark(&points, 8), "▁▂▃▄▅▆▇█");
        assert_eq!(spark(&points[..3], 8), "▁▅█");
        assert_eq!(spark(&[(1.0, 5.0); 4], 2), "▁▁");
        assert_eq!(spark(&[], 8), "");
    }

    #[test]
    fn a_bar_shows_its_interval() {
        assert_eq!(bar(0.5, [0.4, 0.7], 1.0, 10), "████▓░░   ");
        assert_eq!(bar(0.0, [0.0, 0.0], 0.0, 4), "    ");
    }
}
