//! The demo's report as one page.

use super::axis::Format;
use super::bars::{Bar, bars, dots, shares};
use super::curve::Curve;
use super::demo::{CASES, DemoReport, MODELS, Score, interval, points, points_interval};
use super::html::{self, Page, escape, figures, folded, legend, thirds, verbatim};
use super::line::{Horizontal, Series, chart};
use crate::base::human;
use crate::eval::stats::Estimate;

impl DemoReport {
    /// Writes the page.
    pub fn html(&self) -> String {
        let subtitle = format!(
            "A small language model learns to write programs for number sequences: supervised \
             fine-tuning on reflections, then reinforcement judged by running code. {} in all.",
            human::duration(self.total_seconds())
        );
        let mut page = Page::new("CodeSeq, the whole loop", &subtitle);
        page.push(&self.tiles());
        if let Some(caveat) = &self.caveat {
            page.push(&format!("<p class=\"note\">{}</p>", escape(caveat)));
        }
        page.section("General-term generation", &self.score_note(), &self.scores_html());
        page.section(
            "Learning curves",
            "Faint: each step. Bold: a running average.",
            &(curve_figures("SFT", 1, &self.sft_curves)
                + &curve_figures("SFT + RL", 2, &self.grpo_curves)),
        );
        page.section(
            "Where it learnt",
            "pass@1 on the held-out problems of each family; their parameters were never trained on.",
            &self.families_html(),
        );
        page.section("One problem, three answers", "", &self.example_html());
        page.section("Time", "", &self.time_html());
        page.section("Data and machine", "", &self.facts_html());
        page.finish()
    }

    fn tiles(&self) -> String {
        let tile = |class: &str, name: &str, value: &str, below: &str| {
            format!(
                "<div class=\"tile {class}\"><span class=\"name\">{}</span><b>{value}</b>\
                 <span>{below}</span></div>",
                escape(name)
            )
        };
        let mut tiles: String = MODELS
            .iter()
            .zip(self.scores())
            .enumerate()
            .map(|(i, (name, score))| {
                let estimate = score.pass_at_1;
                let value = Format::Percent.text(estimate.mean);
                tile(
                    &format!("c{i}"),
                    name,
                    &value,
                    &format!("pass@1, 95 %: {}", interval(estimate)),
                )
            })
            .collect();
        let gain = format!("95 %: {} points, paired", points_interval(self.gain));
        tiles.push_str(&tile("c3", "Gain of RL over SFT", &points(self.gain.mean), &gain));
        format!("<div class=\"tiles\">{tiles}</div>")
    }

    fn score_note(&self) -> String {
        format!(
            "{} held-out problems, {} responses each. A response is right when its program passes \
             every hidden test. Intervals: bootstrap over problems.",
            human::count(self.grpo.problems as u64),
            self.grpo.rollouts
        )
    }

    fn scores_html(&self) -> String {
        let scores = self.scores();
        let pass_at_k: Vec<Series<'_>> = scores
            .iter()
            .enumerate()
            .map(|(i, score)| Series {
                name: MODELS[i],
                colour: i,
                points: score.pass_at_k.iter().map(|&(k, v)| (k as f64, v)).collect(),
            })
            .collect();
        let models = legend(MODELS.iter().enumerate().map(|(i, &name)| (name, format!("c{i}"))));
        let cases = [(MODELS[1], self.sft_cases.shares()), (MODELS[2], self.grpo_cases.shares())];
        let case_legend = legend(CASES.map(|(name, class)| (name, class.to_owned())));
        let mut all = vec![
            ("pass@1".to_owned(), self.score_bars("pass@1", |score| Some(score.pass_at_1))),
            (
                format!("pass@k {models}"),
                chart(
                    "pass@k",
                    "k responses",
                    Horizontal::PowersOfTwo,
                    Format::Percent,
                    &pass_at_k,
                ),
            ),
            (
                "Self-made cases and solutions".to_owned(),
                shares("case analysis", &CASES.map(|(_, class)| class), &cases) + &case_legend,
            ),
        ];
        if scores.iter().any(|score| score.unseen_families.is_some()) {
            let title = "pass@1 on families that were never trained on";
            all.push((title.to_owned(), self.score_bars(title, |score| score.unseen_families)));
        }
        figures(&all)
    }

    fn score_bars(&self, label: &str, of: impl Fn(&Score) -> Option<Estimate>) -> String {
        let bar = |(i, score): (usize, &Score)| {
            let estimate = of(score)?;
            let (value, interval) = (estimate.mean, Some(estimate.ci95));
            Some(Bar { name: MODELS[i], colour: i, value, interval })
        };
        let all: Vec<Bar<'_>> = self.scores().into_iter().enumerate().filter_map(bar).collect();
        bars(label, Format::Percent, &all)
    }

    fn families_html(&self) -> String {
        let sft = |family: &str| {
            let found = self.sft.families.iter().find(|(name, _)| name == family);
            found.map_or(0.0, |(_, value)| *value)
        };
        let mut rows: Vec<(String, Vec<f64>)> = self
            .grpo
            .families
            .iter()
            .map(|(family, value)| (family.clone(), vec![sft(family), *value]))
            .collect();
        rows.sort_by(|a, b| b.1[1].total_cmp(&a.1[1]).then_with(|| a.0.cmp(&b.0)));
        let models = legend([(MODELS[1], "c1".to_owned()), (MODELS[2], "c2".to_owned())]);
        let halves: Vec<(String, String)> = rows
            .chunks(rows.len().div_ceil(2).max(1))
            .map(|half| (models.clone(), dots("pass@1 by family", &[1, 2], half)))
            .collect();
        figures(&halves)
    }

    fn example_html(&self) -> String {
        let responses: Vec<(String, String)> = self
            .example
            .responses
            .iter()
            .map(|response| {
                let verdict = if response.is_right {
                    "<span class=\"pass\">passes</span>"
                } else {
                    "<span class=\"fail\">fails</span>"
                };
                (format!("{} {verdict}", escape(&response.model)), verbatim(&response.text))
            })
            .collect();
        let prompt = [("Prompt".to_owned(), verbatim(&self.example.prompt))];
        figures(&prompt) + &thirds(&responses)
    }

    fn time_html(&self) -> String {
        let bar = |stage| {
            let (name, value): &(String, f64) = stage;
            Bar { name, colour: 6, value: *value, interval: None }
        };
        let rows: Vec<Bar<'_>> = self.seconds.iter().map(bar).collect();
        figures(&[(String::new(), bars("time by stage", Format::Seconds, &rows))])
    }

    fn facts_html(&self) -> String {
        let configs: String = self
            .configs
            .iter()
            .map(|(name, toml)| folded(&format!("Settings of {name}"), &verbatim(toml)))
            .collect();
        figures(&[
            ("Data".to_owned(), html::facts(&self.data)),
            ("Machine".to_owned(), html::facts(&self.environment)),
        ]) + &configs
    }
}

fn curve_figures(model: &str, colour: usize, curves: &[Curve]) -> String {
    let all: Vec<(String, String)> = curves
        .iter()
        .map(|curve| {
            let series = Series { name: &curve.name, colour, points: curve.points.clone() };
            let last = curve.last().map_or(String::new(), |value| curve.format().text(value));
            let caption = format!(
                "<span>{}: {}</span><small>last {last}</small>",
                escape(model),
                escape(&curve.name)
            );
            (caption, chart(&curve.name, "step", Horizontal::Linear, curve.format(), &[series]))
        })
        .collect();
    figures(&all)
}
