//! The demo's report for a terminal, 80 columns wide.

use super::demo::{CASES, DemoReport, MODELS, interval, points, points_interval};
use super::terminal::{bar, curve, percent};
use crate::base::human;
use crate::base::table::Table;

impl DemoReport {
    /// Writes the report as text.
    pub fn text(&self) -> String {
        let mut text = heading("General-term generation, held-out problems");
        text.push_str(&self.scores_text());
        if let Some(caveat) = &self.caveat {
            text.push_str(&format!("{caveat}\n"));
        }
        text.push_str(&heading("Self-made cases and solutions"));
        text.push_str(&self.cases_text());
        for (name, curves) in [("SFT", &self.sft_curves), ("SFT + RL", &self.grpo_curves)] {
            text.push_str(&heading(&format!("Learning curves of {name}")));
            text.push_str(&curves.iter().map(curve).collect::<Vec<_>>().join("\n"));
        }
        text.push_str(&heading("Time"));
        text.push_str(&self.time_text());
        text
    }

    fn scores_text(&self) -> String {
        let largest = self.scores().iter().map(|s| s.pass_at_1.ci95[1]).fold(0.0, f64::max);
        let mut table = Table::new(["model", "pass@1", "", "95 %", "unseen families"]).left(2);
        for (name, score) in MODELS.iter().zip(self.scores()) {
            let estimate = score.pass_at_1;
            table.row([
                (*name).to_owned(),
                percent(estimate.mean),
                bar(estimate.mean, estimate.ci95, largest, 26),
                interval(estimate),
                score.unseen_families.map_or(String::new(), |e| percent(e.mean)),
            ]);
        }
        format!(
            "{table}\ngain of RL over SFT: {} points (95 %: {}, paired by problem)\n",
            points(self.gain.mean),
            points_interval(self.gain)
        )
    }

    fn cases_text(&self) -> String {
        let mut table = Table::new(["", MODELS[1], MODELS[2]]);
        let (sft, grpo) = (self.sft_cases.shares(), self.grpo_cases.shares());
        for ((name, _), (before, after)) in CASES.iter().zip(sft.into_iter().zip(grpo)) {
            table.row([(*name).to_owned(), percent(before), percent(after)]);
        }
        table.to_string()
    }

    fn time_text(&self) -> String {
        let mut table = Table::new(["stage", "time"]);
        for (stage, seconds) in &self.seconds {
            table.row([stage.clone(), human::duration(*seconds)]);
        }
        table.row(["all".to_owned(), human::duration(self.total_seconds())]);
        table.to_string()
    }
}

fn heading(text: &str) -> String {
    format!("\n{text}\n\n")
}

#[cfg(test)]
mod tests {
    use crate::eval::stats::Estimate;
    use crate::report::curve::Curve;
    use crate::report::demo::*;

    /// A report with every part, made of invented numbers.
    fn example() -> DemoReport {
        let score = |value: f64, problems| Score {
            problems,
            rollouts: 32,
            pass_at_1: Estimate { mean: value, ci95: [value * 0.9, value * 1.1] },
            pass_at_k: [1, 2, 4, 8, 16, 32]
                .map(|k| (k, 1.0 - (1.0 - value).powf((k as f64).powf(0.6))))
                .to_vec(),
            families: (0..41)
                .map(|i| (format!("family_{i}"), (value * f64::from(i) / 20.0).min(1.0)))
                .collect(),
            unseen_families: Some(Estimate { mean: value / 3.0, ci95: [0.0, value] }),
        };
        let curve = |name: &str, from: f64, to: f64, steps: u32| Curve {
            name: name.into(),
            is_fraction: false,
            points: (1..=steps)
                .map(|i| {
                    let along = f64::from(i) / f64::from(steps);
                    let noise = (f64::from(i) * 12.9898).sin() * 0.04 * (from - to).abs();
                    (f64::from(i), to + (from - to) * (-4.0 * along).exp() + noise)
                })
                .collect(),
        };
        let response = |model: &str, text: &str, is_right| Response {
            model: model.into(),
            text: text.into(),
            is_right,
        };
        DemoReport {
            caveat: Some("12 & 3 steps are too few".into()),
            data: vec![
                ("SFT samples".into(), "1,800, 93 families, 0 to 5 rounds".into()),
                ("RL problems".into(), "240, solved 1 to 15 of 32 times".into()),
            ],
            base: score(0.004, 200),
            sft: score(0.312, 200),
            grpo: score(0.418, 200),
            gain: Estimate { mean: 0.106, ci95: [0.081, 0.131] },
            sft_cases: Cases { c_c: 0.24, c_f: 0.2, no_c: 0.07, no_f: 0.49 },
            grpo_cases: Cases { c_c: 0.36, c_f: 0.19, no_c: 0.06, no_f: 0.39 },
            sft_curves: vec![curve("loss", 2.4, 0.31, 600), curve("tokens/s", 0.0, 11_500.0, 600)],
            grpo_curves: vec![
                curve("reward", 0.05, 0.9, 60),
                curve("pass rate", 0.28, 0.55, 60).fraction(),
                curve("response tokens", 160.0, 118.0, 60),
                curve("entropy", 0.5, 0.21, 60),
            ],
            example: Example {
                prompt: "A gardener plants n rows ...\nInput: n <= 100\n".repeat(6),
                responses: vec![
                    response("base", "the the ) 4 4 <think> plant", false),
                    response(
                        "SFT",
                        "<think>\ncase: 3 -> 11\n</think>\n```python\nprint(4)\n```",
                        false,
                    ),
                    response(
                        "SFT + RL",
                        "<think>\ncase: 3 -> 11\n</think>\n```python\nn = int(input())\nprint(4 * n - 1)\n```",
                        true,
                    ),
                ],
            },
            seconds: [
                ("data", 3.2),
                ("score base", 41.0),
                ("SFT", 215.0),
                ("score SFT", 96.0),
                ("GRPO", 240.0),
                ("score RL", 92.0),
            ]
            .map(|(name, seconds)| (name.to_owned(), seconds))
            .to_vec(),
            configs: vec![("SFT".into(), "steps = 600\n[optim]\nlr = 0.003\n".into())],
            environment: vec![
                ("cpu".into(), "two cores".into()),
                ("version".into(), "0.1.0".into()),
            ],
        }
    }

    #[test]
    fn the_text_fits_a_terminal_and_names_every_score() {
        let text = example().text();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in [
            "31.2 %",
            "41.8 %",
            "+10.6 points",
            "+8.1 to +13.1",
            "12 & 3 steps",
            "C-C",
            "loss",
            "11 min 27 s",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }

    #[test]
    fn the_page_stands_alone_and_shows_every_part() {
        let html = example().html();
        for part in [
            "pass@1",
            "family_40",
            "&lt;think&gt;",
            "12 &amp; 3 steps",
            "Settings of SFT",
            "passes",
            "reward",
        ] {
            assert!(html.contains(part), "{part}");
        }
        for wrong in ["NaN", "http", "<script", "<think>"] {
            assert!(!html.contains(wrong), "{wrong}");
        }
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    }

    #[test]
    fn the_summary_has_the_promised_keys() {
        let summary = example().summary();
        assert_eq!(summary["gtg"]["sft"]["pass_at_1"], 0.312);
        assert_eq!(summary["gtg"]["gain"]["grpo_minus_sft"], 0.106);
        assert_eq!(summary["gtg"]["gain"]["ci95"][1], 0.131);
        assert_eq!(summary["gtg"]["grpo"]["ci95"].as_array().unwrap().len(), 2);
        assert!(summary["seconds"].as_f64().unwrap() > 600.0);
    }
}
