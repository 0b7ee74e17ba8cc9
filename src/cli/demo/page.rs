//! Makes the report from the demo's results.

use super::{Examination, Scores};
use crate::data::problem::Problem;
use crate::data::sample::Sample;
use crate::data::{jsonl, problem};
use crate::eval::score::Evaluation;
use crate::eval::stats::{Estimate, paired_gain};
use crate::report::curve::Curve;
use crate::report::demo::{Cases, DemoReport, Example, Response, Score};
use crate::run::RunDir;
use crate::run::environment::Environment;
use crate::run::metrics::read_run;
use crate::tasks::Task;
use crate::train::rl;
use crate::train::sft;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Describes the data in names and texts.
pub(crate) fn describe_data(
    sft: &sft::Config,
    grpo: &rl::Config,
    examination: &Examination<'_>,
) -> Result<Vec<(String, String)>> {
    let samples: Vec<Sample> = read_all(&sft.data.files)?;
    let problems: Vec<Problem> = read_all(&grpo.data.files)?;
    let mut rounds: BTreeMap<u32, usize> = BTreeMap::new();
    for sample in &samples {
        *rounds.entry(sample.rounds.unwrap_or(0)).or_default() += 1;
    }
    let rounds: Vec<String> = rounds.iter().map(|(r, count)| format!("{r}: {count}")).collect();
    let line = |name: &str, text: String| (name.to_owned(), text);
    Ok(vec![
        line(
            "SFT samples",
            format!("{}, by reflection rounds {}", samples.len(), rounds.join(", ")),
        ),
        line("RL problems", count_families(&problems)),
        line(
            "test problems",
            format!("{}, unseen parameters", count_families(examination.test.problems())),
        ),
        line("and of unseen families", count_families(examination.unseen.problems())),
    ])
}

fn read_all<T: serde::de::DeserializeOwned>(files: &[PathBuf]) -> Result<Vec<T>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(jsonl::read::<T>(file)?);
    }
    Ok(all)
}

fn count_families(problems: &[Problem]) -> String {
    let families: BTreeSet<_> = problems.iter().filter_map(|p| p.family.as_deref()).collect();
    format!("{} of {} families", problems.len(), families.len())
}

/// Introduces the data and one problem in the terminal.
pub(crate) fn introduction(data: &[(String, String)], examination: &Examination<'_>) -> String {
    let mut text = String::new();
    for (name, value) in data {
        text.push_str(&format!("{name:<24}{value}\n"));
    }
    if let Some(problem) = examination.test.problems().first() {
        text.push_str(&format!("\nA test problem:\n  {}\n", problem.description));
        for problem::Example { input, output, explanation } in &problem.examples {
            text.push_str(&format!("  {input} -> {output}  {explanation}\n"));
        }
        text.push('\n');
    }
    text
}

/// The parts of the report.
pub(crate) struct Parts<'a> {
    pub(crate) caveat: Option<String>,
    pub(crate) data: Vec<(String, String)>,
    pub(crate) examination: &'a Examination<'a>,
    /// The scores of base, SFT and SFT + RL.
    pub(crate) scores: [&'a Scores; 3],
    /// The runs of SFT and GRPO.
    pub(crate) runs: [&'a RunDir; 2],
    pub(crate) configs: Vec<(String, String)>,
    pub(crate) seconds: Vec<(String, f64)>,
}

/// Puts the report together.
pub(crate) fn report(parts: Parts<'_>) -> Result<DemoReport> {
    let [base, sft, grpo] = parts.scores;
    let rates = |scores: &Scores| -> Vec<f64> {
        scores.test.score.problems.iter().map(|p| p.pass_rate()).collect()
    };
    let gain = paired_gain(&rates(sft), &rates(grpo), 0)
        .expect("invariant: both scores are over the same problems, at least one");
    let [sft_rows, grpo_rows] = parts.runs.map(|run| read_run(run.path()));
    let (sft_rows, grpo_rows) = (sft_rows?, grpo_rows?);
    let example = example(&parts)?;
    Ok(DemoReport {
        caveat: parts.caveat,
        data: parts.data,
        base: score(base),
        sft: score(sft),
        grpo: score(grpo),
        gain,
        sft_cases: cases(&sft.test),
        grpo_cases: cases(&grpo.test),
        sft_curves: vec![
            Curve::from_rows("loss", &sft_rows, "loss/nll"),
            Curve::from_rows("tokens/s", &sft_rows, "time/tokens_per_sec"),
        ],
        grpo_curves: vec![
            Curve::from_rows("pass rate", &grpo_rows, "reward/pass_rate").fraction(),
            Curve::from_rows("reward", &grpo_rows, "reward/mean"),
            Curve::from_rows("response tokens", &grpo_rows, "response/mean_tokens"),
            Curve::from_rows("entropy", &grpo_rows, "policy/entropy"),
        ],
        example,
        seconds: parts.seconds,
        configs: parts.configs,
        environment: environment()?,
    })
}

fn score(scores: &Scores) -> Score {
    let test = &scores.test.score;
    let estimate = |e: &Evaluation| Estimate { mean: e.score.pass_at_1, ci95: e.score.ci95 };
    Score {
        problems: test.num_problems,
        rollouts: test.num_rollouts,
        pass_at_1: estimate(&scores.test),
        pass_at_k: test.pass_at_k.iter().map(|(&k, share)| (k, share.mean)).collect(),
        families: test.families.iter().map(|(name, f)| (name.clone(), f.pass_at_1)).collect(),
        unseen_families: Some(estimate(&scores.unseen)),
    }
}

fn cases(evaluation: &Evaluation) -> Cases {
    let shares = evaluation.score.quadrants.and_then(|quadrants| quadrants.shares());
    let [c_c, c_f, no_c, no_f] = shares.unwrap_or_default();
    Cases { c_c, c_f, no_c, no_f }
}

/// Finds the problem on which reinforcement gained most, and the first response of each model to it.
fn example(parts: &Parts<'_>) -> Result<Example> {
    let [_, sft, grpo] = parts.scores;
    let gain = |i: usize| {
        let rate = |s: &Scores| s.test.score.problems[i].pass_rate();
        rate(grpo) - rate(sft)
    };
    let best = (0..parts.examination.test.num_problems())
        .max_by(|&a, &b| gain(a).total_cmp(&gain(b)))
        .expect("invariant: there is at least one test problem");
    let responses = ["base", "SFT", "SFT + RL"]
        .into_iter()
        .zip(parts.scores)
        .map(|(model, scores)| {
            let answer = &scores.test.answers[best][0];
            Response {
                model: model.to_owned(),
                text: answer.text.clone(),
                is_right: answer.grade.passed(),
            }
        })
        .collect();
    let prompt = parts.examination.test.prompt(best)?;
    Ok(Example { prompt, responses })
}

/// Describes the machine and the program in names and texts.
fn environment() -> Result<Vec<(String, String)>> {
    let serde_json::Value::Object(fields) = serde_json::to_value(Environment::current())? else {
        unreachable!("invariant: an environment is an object");
    };
    let text = |value: serde_json::Value| value.as_str().map_or(value.to_string(), str::to_owned);
    Ok(fields.into_iter().map(|(name, value)| (name, text(value))).collect())
}
