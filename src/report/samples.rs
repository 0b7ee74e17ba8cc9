//! The best or worst responses of a reinforcement run, as text.

use crate::base::error::usage;
use crate::data::jsonl;
use crate::rewards::Breakdown;
use crate::run::samples::Sample;
use crate::run::steps_with_samples;
use crate::sandbox::VerdictKind;
use anyhow::Result;
use std::path::Path;

/// Which end of the list by reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum End {
    /// Highest rewards first
    Best,
    /// Lowest rewards first
    Worst,
}

/// A response that was worth something, however little.
struct Ranked {
    step: u64,
    sample: Sample,
    reward: Breakdown,
}

/// The `count` best or worst responses of the run in `dir`, of equal ones the latest. Responses on
/// which the judge failed are in neither list.
pub fn text(dir: &Path, end: End, count: usize) -> Result<String> {
    let mut chosen: Vec<Ranked> = Vec::new();
    for (step, file) in steps_with_samples(dir)?.into_iter().rev() {
        let samples: Vec<Sample> = jsonl::read(&file)?;
        chosen.extend(
            samples
                .into_iter()
                .filter_map(|sample| Some(Ranked { step, reward: sample.reward?, sample })),
        );
        // Stable: what came first, the latest, stays first among equals.
        chosen.sort_by(|a, b| match end {
            End::Best => b.reward.total.total_cmp(&a.reward.total),
            End::Worst => a.reward.total.total_cmp(&b.reward.total),
        });
        chosen.truncate(count);
    }
    if chosen.is_empty() {
        return Err(usage(format!("{} holds no samples with rewards", dir.display())));
    }
    Ok(chosen.iter().map(Ranked::text).collect())
}

impl Ranked {
    fn text(&self) -> String {
        let Sample { problem_id, sample, response, num_tokens, verdict, .. } = &self.sample;
        let verdict = match verdict.kind {
            _ if !self.reward.format => "wrong format".to_owned(),
            VerdictKind::Pass => "pass".to_owned(),
            VerdictKind::Fail(reason) => format!("fail, {reason:?}"),
            VerdictKind::Infra => "no verdict".to_owned(),
        };
        format!(
            "step {}, problem {problem_id}, sample {sample}: {verdict}\n\
             {}; {num_tokens} tokens\n\n{}\n\n",
            self.step,
            worth(&self.reward),
            response.trim_end()
        )
    }
}

/// A reward and the parts that it has.
fn worth(reward: &Breakdown) -> String {
    let Breakdown { total, solvability_term, case_term, external, overlong, .. } = *reward;
    let Breakdown { num_cases, num_true_cases, .. } = *reward;
    let of_rule = |term: f64| Some(term).filter(|&term| term != 0.0);
    let parts = [
        ("solvability", of_rule(solvability_term)),
        ("cases", of_rule(case_term)),
        ("external", external),
        ("overlong", overlong),
    ];
    let shown = |(name, part): (&str, Option<f64>)| Some(format!("{name} {:.4}", part?));
    let parts: Vec<String> = parts.into_iter().filter_map(shown).collect();
    let mut text = format!("reward {total:.4}");
    if !parts.is_empty() {
        text += &format!(": {}", parts.join(", "));
    }
    if num_cases > 0 {
        text += &format!("; {num_true_cases} of {num_cases} own cases right");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs::write_atomic;
    use serde_json::json;

    fn line(problem: &str, reward: Option<f64>) -> String {
        let reward = reward.map(|total| {
            json!({"total": total, "format": true, "passed": total > 0.5, "solvability_term": total,
                "case_term": 0.0, "num_cases": 2, "num_true_cases": 1})
        });
        let verdict = json!({"verdict": "pass", "cases": [], "cpu_ms": 1.0});
        let sample = json!({"problem_id": problem, "sample": 0, "response": format!("of {problem}\n"),
            "num_tokens": 3, "verdict": verdict, "reward": reward});
        format!("{sample}\n")
    }

    fn order(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("of ")).collect()
    }

    #[test]
    fn the_best_and_the_worst_are_found_over_all_steps() {
        let dir = tempfile::tempdir().unwrap();
        let write = |step: u64, lines: String| {
            let file = dir.path().join(format!("samples/step-{step:06}.jsonl"));
            write_atomic(&file, lines.as_bytes()).unwrap();
        };
        write(0, line("a", Some(1.0)) + &line("b", Some(-1.0)) + &line("c", None));
        write(12, line("d", Some(0.5)) + &line("e", Some(1.0)));
        let best = text(dir.path(), End::Best, 3).unwrap();
        assert_eq!(order(&best), ["e", "a", "d"], "the latest of equals first");
        assert!(best.starts_with("step 12, problem e, sample 0: pass\nreward 1.0000"), "{best}");
        assert_eq!(order(&text(dir.path(), End::Worst, 2).unwrap()), ["b", "d"]);
        let nowhere = tempfile::tempdir().unwrap();
        let error = text(nowhere.path(), End::Best, 3).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
    }

    #[test]
    fn a_reward_is_shown_with_the_parts_that_it_has() {
        let reward = Breakdown {
            total: 1.3,
            format: true,
            passed: true,
            solvability_term: 1.25,
            case_term: 0.05,
            external: None,
            overlong: None,
            num_cases: 2,
            num_true_cases: 1,
        };
        let parts = "reward 1.3000: solvability 1.2500, cases 0.0500; 1 of 2 own cases right";
        assert_eq!(worth(&reward), parts);
        let external = Breakdown { num_cases: 0, ..reward }.with_external(0.5).with_overlong(-0.25);
        assert_eq!(worth(&external), "reward 0.2500: external 0.5000, overlong -0.2500");
        let binary = Breakdown { total: 1.0, solvability_term: 0.0, case_term: 0.0, ..reward };
        assert_eq!(worth(&Breakdown { num_cases: 0, ..binary }), "reward 1.0000");
    }
}
