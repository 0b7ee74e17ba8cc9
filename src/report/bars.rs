//! Bar charts as SVG: bars with error bars, bars stacked to a whole, and paired dots.

use super::axis::{Axis, Format};
use super::html::escape;

const WIDTH: f64 = 480.0;
const LABEL: f64 = 96.0;
const VALUE: f64 = 66.0;

/// A horizontal bar with its interval.
pub(crate) struct Bar<'a> {
    /// The text to its left.
    pub(crate) name: &'a str,
    /// The index of its colour in the style sheet.
    pub(crate) colour: usize,
    /// The length of the bar.
    pub(crate) value: f64,
    /// The ends of the error bar.
    pub(crate) interval: Option<[f64; 2]>,
}

/// Draws horizontal bars from zero, each with its value to the right.
pub(crate) fn bars(label: &str, format: Format, bars: &[Bar<'_>]) -> String {
    const ROW: f64 = 44.0;
    let longest = bars.iter().map(|b| b.interval.map_or(b.value, |i| i[1])).fold(0.0, f64::max);
    let axis = Axis::around(0.0, longest.max(1e-9), 5, format);
    let x_at = |value: f64| LABEL + axis.at(value) * (WIDTH - LABEL - VALUE);
    let mut svg = open(label, ROW * bars.len() as f64);
    for (i, bar) in bars.iter().enumerate() {
        let middle = ROW * (i as f64 + 0.5);
        let (x, top, height) = (x_at(bar.value), middle - 12.0, 24.0);
        svg.push_str(&format!(
            "<g class=\"c{}\"><title>{name}: {value}</title>\
             <text class=\"name\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{name}</text>\
             <rect class=\"bar\" x=\"{LABEL}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height}\" rx=\"3\"/>",
            bar.colour,
            LABEL - 10.0,
            middle + 4.5,
            (x - LABEL).max(1.0),
            name = escape(bar.name),
            value = format.text(bar.value),
        ));
        let mut text_at = x;
        if let Some([low, high]) = bar.interval {
            let (low, high) = (x_at(low), x_at(high));
            text_at = high;
            svg.push_str(&format!(
                "<path class=\"whisker\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {a:.1}V{b:.1}\
                 M{high:.1} {a:.1}V{b:.1}\"/>",
                a = middle - 5.0,
                b = middle + 5.0
            ));
        }
        svg.push_str(&format!(
            "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            text_at + 8.0,
            middle + 4.5,
            format.text(bar.value)
        ));
    }
    svg + "</svg>"
}

/// Draws rows of shares of a whole; `colours[i]` is the style of every row's i-th share.
pub(crate) fn shares(label: &str, colours: &[&str], rows: &[(&str, Vec<f64>)]) -> String {
    const ROW: f64 = 48.0;
    let mut svg = open(label, ROW * rows.len() as f64);
    for (i, (name, values)) in rows.iter().enumerate() {
        let top = ROW * i as f64 + 8.0;
        svg.push_str(&format!(
            "<text class=\"name\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            LABEL - 10.0,
            top + 21.0,
            escape(name)
        ));
        let whole = values.iter().sum::<f64>().max(1e-12);
        let mut x = LABEL;
        for (value, colour) in values.iter().zip(colours) {
            let width = value / whole * (WIDTH - LABEL - 4.0);
            let text = Format::Percent.text(value / whole);
            svg.push_str(&format!(
                "<g class=\"{colour}\"><title>{text}</title><rect class=\"share\" x=\"{x:.1}\" \
                 y=\"{top:.1}\" width=\"{width:.1}\" height=\"32\"/>"
            ));
            if width > 46.0 {
                svg.push_str(&format!(
                    "<text class=\"inside\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
                    x + width / 2.0,
                    top + 20.5
                ));
            }
            svg.push_str("</g>");
            x += width;
        }
    }
    svg + "</svg>"
}

/// Draws a row of dots, one for each fraction in the given colours, joined by a line: it shows what changed, and where.
pub(crate) fn dots(label: &str, colours: &[usize], rows: &[(String, Vec<f64>)]) -> String {
    const ROW: f64 = 19.0;
    const NAMES: f64 = 190.0;
    let bottom = ROW * rows.len() as f64 + 6.0;
    let x_at = |value: f64| NAMES + value * (WIDTH - NAMES - 24.0);
    let mut svg = open(label, bottom + 18.0);
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let x = x_at(tick);
        svg.push_str(&format!(
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"2\" y2=\"{bottom:.1}\"/>\
             <text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{:.0} %</text>",
            bottom + 13.0,
            tick * 100.0
        ));
    }
    for (i, (name, values)) in rows.iter().enumerate() {
        let y = ROW * (i as f64 + 0.5) + 2.0;
        let (low, high) = super::curve::range(values.iter().copied());
        svg.push_str(&format!(
            "<text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>\
             <line class=\"join\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            NAMES - 12.0,
            y + 4.0,
            escape(name),
            x_at(low.min(high)),
            x_at(high.max(low)),
        ));
        for (value, colour) in values.iter().zip(colours) {
            svg.push_str(&format!(
                "<circle class=\"dot c{colour}\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4.5\"><title>{}: {}</title>\
                 </circle>",
                x_at(*value),
                escape(name),
                Format::Percent.text(*value)
            ));
        }
    }
    svg + "</svg>"
}

fn open(label: &str, height: f64) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">", escape(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fill_the_row() {
        let svg = shares("cases", &["q0", "q1"], &[("SFT", vec![1.0, 3.0])]);
        assert!(svg.contains("width=\"95.0\"") && svg.contains("width=\"285.0\""), "{svg}");
        assert!(svg.contains("75.0 %"));
    }

    #[test]
    fn empty_and_zero_charts_have_finite_coordinates() {
        let zero = Bar { name: "base", colour: 0, value: 0.0, interval: Some([0.0, 0.0]) };
        let all = [
            bars("a", Format::Percent, &[zero]),
            bars("b", Format::Seconds, &[]),
            shares("c", &["q0"], &[("x", vec![0.0])]),
            dots("d", &[1], &[("x".into(), vec![])]),
        ];
        assert!(all.iter().all(|svg| !svg.contains("NaN")), "{all:?}");
    }
}
