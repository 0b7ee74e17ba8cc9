//! Line charts as SVG.

use super::axis::{Axis, Format};
use super::curve::{is_noisy, range, smoothed};
use super::html::escape;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// The number of points from which on a curve has no dots; if it is noisy, it is drawn faintly under its average.
const MANY: usize = 40;

/// One line of a chart.
pub(crate) struct Series<'a> {
    /// The text that appears when the pointer rests on the line.
    pub(crate) name: &'a str,
    /// The index of its colour in the style sheet.
    pub(crate) colour: usize,
    /// The points (x, y), finite.
    pub(crate) points: Vec<(f64, f64)>,
}

/// The division of the x axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Horizontal {
    /// Steps.
    Linear,
    /// Powers of two, from 1.
    PowersOfTwo,
}

/// Draws one or more series over a common x axis.
pub(crate) fn chart(
    label: &str,
    x_label: &str,
    horizontal: Horizontal,
    format: Format,
    series: &[Series<'_>],
) -> String {
    let points = || series.iter().flat_map(|s| s.points.iter());
    let (x_low, x_high) = range(points().map(|p| p.0));
    let (y_low, y_high) = range(points().map(|p| p.1));
    let x_axis = match horizontal {
        Horizontal::Linear => Axis::within(x_low, x_high, 6),
        Horizontal::PowersOfTwo => Axis::powers_of_two(x_high),
    };
    let y_axis = Axis::around(y_low, y_high, 5, format);
    let x_at = |x: f64| {
        let x = if horizontal == Horizontal::PowersOfTwo { x.max(1.0).log2() } else { x };
        LEFT + x_axis.at(x) * (WIDTH - LEFT - RIGHT)
    };
    let y_at = |y: f64| HEIGHT - BOTTOM - y_axis.at(y) * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(label)
    );
    for (tick, text) in &y_axis.ticks {
        let y = y_at(*tick);
        svg.push_str(&format!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{text}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0
        ));
    }
    for (tick, text) in &x_axis.ticks {
        let x = LEFT + x_axis.at(*tick) * (WIDTH - LEFT - RIGHT);
        svg.push_str(&format!(
            "<text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{text}</text>",
            HEIGHT - BOTTOM + 17.0
        ));
    }
    svg.push_str(&format!(
        "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{}\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 5.0,
        escape(x_label)
    ));
    for one in series {
        let place = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().map(|&(x, y)| (x_at(x), y_at(y))).collect()
        };
        let has_many = one.points.len() >= MANY;
        svg.push_str(&format!("<g class=\"c{}\"><title>{}</title>", one.colour, escape(one.name)));
        if has_many && is_noisy(&one.points) {
            svg.push_str(&path("line raw", &place(&one.points)));
            let window = one.points.len() as f64 / 12.0;
            svg.push_str(&path("line", &place(&smoothed(&one.points, window))));
        } else {
            svg.push_str(&path("line", &place(&one.points)));
        }
        if !has_many {
            for (&(x, y), value) in place(&one.points).iter().zip(&one.points) {
                svg.push_str(&format!(
                    "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\">\
                     <title>{} {}: {}</title></circle>",
                    escape(one.name),
                    super::axis::number(value.0),
                    format.text(value.1)
                ));
            }
        }
        svg.push_str("</g>");
    }
    svg.push_str("</svg>");
    svg
}

fn path(class: &str, points: &[(f64, f64)]) -> String {
    let steps: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!("<polyline class=\"{class}\" points=\"{}\"/>", steps.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(points: Vec<(f64, f64)>) -> String {
        let series = Series { name: "a < b", colour: 1, points };
        chart("loss & more", "step", Horizontal::Linear, Format::Number, &[series])
    }

    #[test]
    fn texts_are_escaped_and_coordinates_finite() {
        for points in [vec![], vec![(1.0, 2.0)], (0..100).map(|i| (i as f64, 1.0)).collect()] {
            let svg = svg(points);
            assert!(svg.contains("a &lt; b") && svg.contains("loss &amp; more"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn a_rising_line_rises() {
        let svg = svg(vec![(0.0, 0.0), (10.0, 10.0)]);
        assert!(svg.contains("points=\"52.0,210.0 466.0,12.0\""), "{svg}");
    }
}
