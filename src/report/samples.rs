//! The best or worst responses of a reinforcement run, as text.

use crate::base::error::usage;
use crate::data::jsonl;
use crate::rewards::Reward;
use crate::run::samples::Sample;
use crate::run::steps_with_samples;
use crate::sandbox::VerdictKind;
use anyhow::Result;
use std::path::Path;

/// Which end of the list of responses, ordered by reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum End {
    /// Highest rewards first
    Best,
    /// Lowest rewards first
    Worst,
}

/// A response with its reward.
struct Ranked {
    step: u64,
    sample: Sample,
    reward: Reward,
}

/// Returns the `count` best or worst responses of the run in `dir` as text. Of equal ones it takes the
/// latest. Responses on which the judge failed are in neither list.
pub fn text(dir: &Path, end: End, count: usize) -> Result<String> {
    let mut chosen: Vec<Ranked> = Vec::new();
    for (step, file) in steps_with_samples(dir)?.into_iter().rev() {
        let samples: Vec<Sample> = jsonl::read(&file)?;
        chosen.extend(
            samples
                .into_iter()
                .filter_map(|sample| Some(Ranked { step, reward: sample.reward.clone()?, sample })),
        );
        // The sort is stable: among equal rewards the latest response, which came first, stays first.
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
            _ if self.sample.format_error.is_some() => "wrong format".to_owned(),
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

/// Writes a reward, those of its parts that are not 0, and the numbers from which they were computed.
fn worth(Reward { total, parts, facts }: &Reward) -> String {
    let parts = parts.iter().filter(|(_, part)| **part != 0.0);
    let parts: Vec<String> = parts.map(|(name, part)| format!("{name} {part:.4}")).collect();
    let facts: Vec<String> = facts.iter().map(|(name, fact)| format!("{name} {fact}")).collect();
    let after = |mark: &str, numbers: Vec<String>| match numbers.is_empty() {
        true => String::new(),
        false => format!("{mark}{}", numbers.join(", ")),
    };
    format!("reward {total:.4}{}{}", after(": ", parts), after("; ", facts))
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
        let reward = Reward::default().part("solvability_term", 1.25).part("case_term", 0.05);
        let reward = reward.part("format_term", 0.0).fact("num_cases", 2.0);
        let text = "reward 1.3000: case_term 0.0500, solvability_term 1.2500; num_cases 2";
        assert_eq!(worth(&reward), text);
        assert_eq!(worth(&Reward::default()), "reward 0.0000");
    }
}
