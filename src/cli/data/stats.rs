//! `train data stats`: counts samples, families, rounds and lengths of data files, or, with `--config`,
//! what a run would learn from (`stats_mixture`).

use super::stats_mixture;
use crate::base::error::usage;
use crate::cli::print;
use crate::data::input;
use crate::data::problem::Problem;
use crate::data::prompt::GtgPrompt;
use crate::data::rows;
use crate::data::sample::Sample;
use anyhow::Result;
use serde::de::{self, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Count the samples or problems here: a .jsonl, .json or .parquet file, a directory of them, or the
    /// name of a data set on the Hub
    #[arg(value_name = "PLACE", required_unless_present = "config")]
    places: Vec<String>,
    /// Show the sources of this configuration of `train sft`, what it leaves out and why, and how full rows
    /// are
    #[arg(long, value_name = "FILE", conflicts_with = "places")]
    config: Vec<PathBuf>,
    /// Override one value of the configuration
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// Use the tokenizer in this directory [default: that of the configured model]
    #[arg(long, value_name = "DIR", requires = "config")]
    tokenizer: Option<PathBuf>,
    /// Read the template of the prompt from this file, for the lengths of problems [default: the bundled
    /// one]
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    if !args.config.is_empty() {
        return stats_mixture::run(&args.config, &args.set, args.tokenizer.as_deref());
    }
    let prompt = GtgPrompt::open(args.prompt.as_deref())?;
    let mut text = String::new();
    for place in &args.places {
        for file in input::resolve(place)? {
            let stats = Stats::read(file.path(), &prompt)?;
            let _ = writeln!(text, "{}\n{}", file.path().display(), stats.text());
        }
    }
    print(text)
}

/// A row of a file.
enum Row {
    Sample(Sample),
    Problem(Box<Problem>),
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Kind {
            tests: Option<IgnoredAny>,
            test: Option<IgnoredAny>,
        }
        let row = Box::<RawValue>::deserialize(deserializer)?;
        let read = match serde_json::from_str(row.get()) {
            Ok(Kind { tests: None, test: None }) => {
                serde_json::from_str(row.get()).map(Self::Sample)
            }
            Ok(_) => serde_json::from_str(row.get()).map(Self::Problem),
            Err(e) => Err(e),
        };
        read.map_err(de::Error::custom)
    }
}

#[derive(Default)]
struct Stats {
    rows: usize,
    patterns: BTreeSet<String>,
    families: BTreeSet<String>,
    sources: BTreeMap<String, usize>,
    rounds: BTreeMap<u32, usize>,
    solvability: Vec<f64>,
    tests: BTreeMap<usize, usize>,
    prompts: Lengths,
    responses: Lengths,
}

impl Stats {
    fn read(path: &Path, prompt: &GtgPrompt) -> Result<Self> {
        let mut stats = Self::default();
        for row in rows::rows::<Row>(path)? {
            stats.rows += 1;
            match row? {
                Row::Sample(sample) => stats.add_sample(sample),
                Row::Problem(problem) => stats.add_problem(&problem, prompt)?,
            }
        }
        let problems: usize = stats.tests.values().sum();
        if problems > 0 && problems < stats.rows {
            return Err(usage(format!(
                "{}: {problems} of {} rows are problems (tests), the others samples (messages)",
                path.display(),
                stats.rows
            )));
        }
        Ok(stats)
    }

    fn add_sample(&mut self, sample: Sample) {
        for message in &sample.messages {
            match message.role.as_str() {
                "assistant" => self.responses.add(&message.content),
                _ => self.prompts.add(&message.content),
            }
        }
        self.patterns.extend(sample.problem_id);
        if let Some(rounds) = sample.rounds {
            *self.rounds.entry(rounds).or_default() += 1;
        }
        if let Some(source) = sample.source {
            *self.sources.entry(source).or_default() += 1;
        }
    }

    fn add_problem(&mut self, problem: &Problem, prompt: &GtgPrompt) -> Result<()> {
        self.prompts.add(&prompt.render(problem)?);
        self.patterns.insert(problem.problem_id.clone());
        self.families.extend(problem.family.clone());
        self.solvability.extend(problem.solvability);
        *self.tests.entry(problem.tests.len()).or_default() += 1;
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = format!("  rows        {}\n", self.rows);
        let mut line = |label: &str, value: String| {
            if !value.is_empty() {
                let _ = writeln!(text, "  {label:<11} {value}");
            }
        };
        line("patterns", some(self.patterns.len()));
        line("families", some(self.families.len()));
        line("sources", counts(&self.sources));
        line("rounds", counts(&self.rounds));
        line("tests", counts(&self.tests));
        if let Some(mean) = mean(&self.solvability) {
            line("solvability", format!("mean {mean:.3} of {}", self.solvability.len()));
        }
        line("prompts", self.prompts.text());
        line("responses", self.responses.text());
        text
    }
}

fn some(count: usize) -> String {
    if count == 0 { String::new() } else { count.to_string() }
}

fn counts<K: std::fmt::Display>(counts: &BTreeMap<K, usize>) -> String {
    let parts: Vec<String> = counts.iter().map(|(key, count)| format!("{key}: {count}")).collect();
    parts.join(", ")
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The lengths of texts in words and characters.
#[derive(Default)]
struct Lengths {
    words: Vec<usize>,
    chars: Vec<usize>,
}

impl Lengths {
    fn add(&mut self, text: &str) {
        self.words.push(text.split_whitespace().count());
        self.chars.push(text.chars().count());
    }

    fn text(&self) -> String {
        if self.words.is_empty() {
            return String::new();
        }
        let of = |values: &[usize]| {
            let mut sorted = values.to_vec();
            sorted.sort_unstable();
            let mean = sorted.iter().sum::<usize>() as f64 / sorted.len() as f64;
            let p95 = sorted[(sorted.len() * 95).div_ceil(100) - 1];
            format!("mean {mean:.1}, p95 {p95}, longest {}", sorted[sorted.len() - 1])
        };
        format!("words {}; characters {}", of(&self.words), of(&self.chars))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_mean_and_percentile() {
        let mut lengths = Lengths::default();
        for n in 1..=20 {
            lengths.add(&"ab ".repeat(n));
        }
        assert_eq!(
            lengths.text(),
            "words mean 10.5, p95 19, longest 20; characters mean 31.5, p95 57, longest 60"
        );
    }
}
