//! The report of `train demo`: what was learnt, on one page.
//!
//! Takes plain results and renders them; measures nothing. All scores are fractions from 0 to 1.

use super::axis::Format;
use super::bars::{Bar, bars, dots, shares};
use super::curve::Curve;
use super::html::{self, Page, escape, figures, folded, legend, verbatim};
use super::line::{Horizontal, Series, chart};
use crate::base::human;
use serde_json::{Value, json};

/// Everything the page shows.
#[derive(Debug, Clone)]
pub struct DemoReport {
    /// What the data is, as names and texts.
    pub data: Vec<(String, String)>,
    /// The untrained model.
    pub base: Score,
    /// After supervised fine-tuning.
    pub sft: Score,
    /// After reinforcement.
    pub grpo: Score,
    /// pass@1 after reinforcement less pass@1 before, paired by problem.
    pub gain: Estimate,
    /// Cases and solutions after supervised fine-tuning.
    pub sft_cases: Cases,
    /// Cases and solutions after reinforcement.
    pub grpo_cases: Cases,
    /// Curves of supervised fine-tuning.
    pub sft_curves: Vec<Curve>,
    /// Curves of reinforcement.
    pub grpo_curves: Vec<Curve>,
    /// One test problem and what each model said.
    pub example: Example,
    /// Seconds by stage.
    pub seconds: Vec<(String, f64)>,
    /// Resolved configurations by name, as TOML.
    pub configs: Vec<(String, String)>,
    /// The machine and the program, as names and texts.
    pub environment: Vec<(String, String)>,
}

/// A number with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// The ends of the interval.
    pub ci95: (f64, f64),
}

/// How a model does on the held-out problems.
#[derive(Debug, Clone)]
pub struct Score {
    /// Number of problems.
    pub problems: usize,
    /// Responses sampled for each.
    pub rollouts: usize,
    /// Mean over problems of the share of right responses.
    pub pass_at_1: Estimate,
    /// (k, share of problems with a right one among k responses).
    pub pass_at_k: Vec<(usize, f64)>,
    /// pass@1 by problem family.
    pub families: Vec<(String, f64)>,
    /// pass@1 on problems of families that no training problem has.
    pub unseen_families: Option<Estimate>,
}

/// Responses by whether all self-made cases are right and whether the solution is (figure 5).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cases {
    /// Right cases, right solution (C-C).
    pub c_c: f64,
    /// Right cases, wrong solution (C-F).
    pub c_f: f64,
    /// Some wrong case, right solution (No-C).
    pub no_c: f64,
    /// Some wrong case, wrong solution (No-F).
    pub no_f: f64,
}

/// A problem and the responses to it.
#[derive(Debug, Clone)]
pub struct Example {
    /// The whole prompt.
    pub prompt: String,
    /// One response per model.
    pub responses: Vec<Response>,
}

/// What a model said, and whether it was right.
#[derive(Debug, Clone)]
pub struct Response {
    /// Which model.
    pub model: String,
    /// The text.
    pub text: String,
    /// The judge's verdict.
    pub is_right: bool,
}

/// Names of the three models, in order; their colours are 0, 1, 2.
pub(super) const MODELS: [&str; 3] = ["base", "SFT", "SFT + RL"];
pub(super) const CASES: [(&str, &str); 4] = [
    ("C-C: cases right, solution right", "q0"),
    ("C-F: cases right, solution wrong", "q1"),
    ("No-C: a case wrong, solution right", "q2"),
    ("No-F: a case wrong, solution wrong", "q3"),
];

impl Cases {
    pub(super) fn shares(&self) -> Vec<f64> {
        vec![self.c_c, self.c_f, self.no_c, self.no_f]
    }
}

impl DemoReport {
    pub(super) fn scores(&self) -> [&Score; 3] {
        [&self.base, &self.sft, &self.grpo]
    }

    pub(super) fn total_seconds(&self) -> f64 {
        self.seconds.iter().map(|(_, seconds)| seconds).sum()
    }

    /// The results as `summary.json` holds them.
    pub fn summary(&self) -> Value {
        let score = |score: &Score| {
            let estimate = |e: &Estimate| json!({"pass_at_1": e.value, "ci95": e.ci95});
            let mut value = estimate(&score.pass_at_1);
            value["problems"] = json!(score.problems);
            value["rollouts"] = json!(score.rollouts);
            value["pass_at_k"] = score.pass_at_k.iter().map(|(k, v)| (k.to_string(), *v)).collect();
            if let Some(unseen) = &score.unseen_families {
                value["unseen_families"] = estimate(unseen);
            }
            value
        };
        let cases = |c: &Cases| json!({"c_c": c.c_c, "c_f": c.c_f, "no_c": c.no_c, "no_f": c.no_f});
        json!({
            "gtg": {
                "base": score(&self.base),
                "sft": score(&self.sft),
                "grpo": score(&self.grpo),
                "gain": {"grpo_minus_sft": self.gain.value, "ci95": self.gain.ci95},
            },
            "cases": {"sft": cases(&self.sft_cases), "grpo": cases(&self.grpo_cases)},
            "seconds": self.total_seconds(),
            "seconds_by_stage": self.seconds.iter().cloned().collect::<Value>(),
        })
    }

    /// The page.
    pub fn html(&self) -> String {
        let subtitle = format!(
            "A small language model learns to write programs for number sequences: supervised \
             fine-tuning on reflections, then reinforcement judged by running code. {} in all.",
            human::duration(self.total_seconds())
        );
        let mut page = Page::new("CodeSeq, the whole loop", &subtitle);
        page.push(&self.tiles());
        page.section("General-term generation", &self.score_note(), &self.scores_html());
        page.section(
            "Learning curves",
            "Faint: each step. Bold: an average over a twentieth of the steps.",
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
                let value = Format::Percent.text(estimate.value);
                tile(
                    &format!("c{i}"),
                    name,
                    &value,
                    &format!("pass@1, 95 %: {}", interval(estimate)),
                )
            })
            .collect();
        let gain = format!("95 %: {} points, paired", points_interval(self.gain));
        tiles.push_str(&tile("c3", "Gain of RL over SFT", &points(self.gain.value), &gain));
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
        let bar = |(i, score): (usize, &&Score)| Bar {
            name: MODELS[i],
            colour: i,
            value: score.pass_at_1.value,
            interval: Some(score.pass_at_1.ci95),
        };
        let pass_at_1: Vec<Bar<'_>> = scores.iter().enumerate().map(bar).collect();
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
        let k_chart =
            chart("pass@k", "k responses", Horizontal::PowersOfTwo, Format::Percent, &pass_at_k);
        figures(&[
            ("pass@1".to_owned(), bars("pass@1 by model", Format::Percent, &pass_at_1)),
            (format!("pass@k {models}"), k_chart),
            (
                "Self-made cases and solutions".to_owned(),
                shares("case analysis", &CASES.map(|(_, class)| class), &cases) + &case_legend,
            ),
            ("Results".to_owned(), self.score_table()),
        ])
    }

    fn score_table(&self) -> String {
        let rows: Vec<Vec<String>> = MODELS
            .iter()
            .zip(self.scores())
            .map(|(name, score)| {
                let best = score.pass_at_k.last();
                vec![
                    (*name).to_owned(),
                    Format::Percent.text(score.pass_at_1.value),
                    interval(score.pass_at_1),
                    best.map_or(String::new(), |(k, v)| {
                        format!("{} @{k}", Format::Percent.text(*v))
                    }),
                    score.unseen_families.map_or(String::new(), |e| Format::Percent.text(e.value)),
                ]
            })
            .collect();
        html::table(&["", "pass@1", "95 %", "pass@k", "unseen families"], &rows)
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
        figures(&prompt) + &figures(&responses)
    }

    fn time_html(&self) -> String {
        let bar = |(name, seconds): &'_ (String, f64)| (name.clone(), *seconds);
        let named: Vec<(String, f64)> = self.seconds.iter().map(bar).collect();
        let rows: Vec<Bar<'_>> = named
            .iter()
            .map(|(name, value)| Bar { name, colour: 6, value: *value, interval: None })
            .collect();
        figures(&[(
            "Where the time went".to_owned(),
            bars("time by stage", Format::Seconds, &rows),
        )])
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

/// `20.1 to 24.9 %`.
pub(super) fn interval(estimate: Estimate) -> String {
    format!("{:.1} to {:.1} %", estimate.ci95.0 * 100.0, estimate.ci95.1 * 100.0)
}

/// A difference of fractions in percentage points, signed.
pub(super) fn points(difference: f64) -> String {
    format!("{:+.1}", difference * 100.0)
}

/// The interval of a difference, in percentage points.
pub(super) fn points_interval(estimate: Estimate) -> String {
    format!("{} to {}", points(estimate.ci95.0), points(estimate.ci95.1))
}
