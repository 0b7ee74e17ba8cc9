//! `train data pairs`: pairs of a passed and a failed response, for `train dpo`.

use crate::base::error::usage;
use crate::base::fs::{check_writable, children};
use crate::base::human;
use crate::base::table::Table;
use crate::cli::print;
use crate::data::jsonl;
use crate::data::pair::Pair;
use crate::data::problem::Problem;
use crate::data::rows;
use crate::eval::pairs::{JudgedResponse, PairRule};
use crate::sandbox::{Judge, Options};
use crate::tasks::{Task, TaskKind};
use crate::tokenizer::Message;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of this command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Judged responses: the samples of a reinforcement run (RUN/samples), or what `train eval
    /// --save-responses` wrote; a file or a directory of them (may be given several times)
    #[arg(long, value_name = "PLACE", required = true)]
    responses: Vec<PathBuf>,
    /// The problems that they answer (JSON Lines; may be given several times)
    #[arg(long, value_name = "FILE", required = true)]
    problems: Vec<PathBuf>,
    /// What was asked
    #[arg(long, value_enum, default_value_t = TaskKind::Gtg)]
    task: TaskKind,
    /// Prompt template [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
    /// Where the pairs go (JSON Lines)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Most pairs of one problem, those whose lengths differ least
    #[arg(long, value_name = "N", default_value_t = 1)]
    per_problem: usize,
    /// Leave out responses with more tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Leave out pairs whose longer response has more than so many times the tokens of the shorter
    #[arg(long, value_name = "RATIO")]
    max_length_ratio: Option<f64>,
}

impl Args {
    fn rule(&self) -> Result<PairRule> {
        let max_length_ratio = self.max_length_ratio.unwrap_or(f64::INFINITY);
        if self.per_problem == 0 || self.max_tokens == Some(0) {
            return Err(usage("--per-problem and --max-tokens must be at least 1"));
        }
        if max_length_ratio.is_nan() || max_length_ratio < 1.0 {
            return Err(usage(format!(
                "--max-length-ratio is {max_length_ratio}: it must be at least 1"
            )));
        }
        let max_tokens = self.max_tokens.unwrap_or(usize::MAX);
        Ok(PairRule { per_problem: self.per_problem, max_tokens, max_length_ratio })
    }
}

/// Writes the pairs, and prints how many there are.
pub fn run(args: Args) -> Result<()> {
    let rule = args.rule()?;
    let inputs: Vec<&Path> =
        args.problems.iter().chain(&args.responses).map(PathBuf::as_path).collect();
    check_writable(&args.out, &inputs)?;
    let mut problems = Vec::new();
    for file in &args.problems {
        problems.extend(rows::read::<Problem>(file)?);
    }
    // Nothing is judged here; a task cannot be had without its judge.
    let judge = Judge::start(Options { workers: 1, ..Options::default() })?;
    let task =
        args.task.open(problems, args.prompt.as_deref(), &judge).context("reading --problems")?;
    let by_problem = read_responses(&args.responses, task.as_ref())?;
    let (mut pairs, mut ratios) = (Vec::new(), Vec::new());
    for (&problem, responses) in &by_problem {
        for pair in rule.pairs(&responses.iter().collect::<Vec<_>>()) {
            ratios.push(pair.length_ratio());
            pairs.push(Pair {
                prompt: task.messages(problem)?,
                chosen: Message::new("assistant", &*pair.chosen.response),
                rejected: Message::new("assistant", &*pair.rejected.response),
                problem_id: Some(task.about(problem).id.to_owned()),
            });
        }
    }
    if pairs.is_empty() {
        return Err(usage(
            "no problem has both a passed and a failed response within --max-tokens and \
             --max-length-ratio: no pair can be made",
        ));
    }
    jsonl::write(&args.out, &pairs)?;
    print(summary(&by_problem, &pairs, &ratios))
}

/// The responses to each problem of the task, by its place there.
fn read_responses(
    places: &[PathBuf],
    task: &dyn Task,
) -> Result<BTreeMap<usize, Vec<JudgedResponse>>> {
    let ids = (0..task.num_problems()).map(|problem| (task.about(problem).id.to_owned(), problem));
    let ids: BTreeMap<String, usize> = ids.collect();
    let mut by_problem: BTreeMap<usize, Vec<JudgedResponse>> = BTreeMap::new();
    for file in files(places)? {
        for row in jsonl::numbered_rows::<JudgedResponse>(&file)? {
            let (line, response) = row?;
            let &problem = ids.get(&response.problem_id).ok_or_else(|| {
                usage(format!(
                    "{}:{line}: problem {:?} is in none of --problems",
                    file.display(),
                    response.problem_id
                ))
            })?;
            by_problem.entry(problem).or_default().push(response);
        }
    }
    Ok(by_problem)
}

/// The files of some places: files as they are, of a directory those of JSON Lines in order.
fn files(places: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for place in places {
        if !place.is_dir() {
            files.push(place.clone());
            continue;
        }
        let mut inside = children(place)?;
        inside.retain(|file| file.extension().is_some_and(|e| e == "jsonl"));
        inside.sort();
        if inside.is_empty() {
            return Err(usage(format!(
                "{}: no .jsonl file lies here (a run's responses are in its samples/)",
                place.display()
            )));
        }
        files.extend(inside);
    }
    Ok(files)
}

fn summary(
    by_problem: &BTreeMap<usize, Vec<JudgedResponse>>,
    pairs: &[Pair],
    ratios: &[f64],
) -> String {
    let mut paired: Vec<&Option<String>> = pairs.iter().map(|pair| &pair.problem_id).collect();
    paired.dedup();
    let mut table = Table::new(["pairs", ""]);
    let mut row = |name: &str, value: String| {
        table.row([name.to_owned(), value]);
    };
    let num_responses: usize = by_problem.values().map(Vec::len).sum();
    row("responses", human::count(num_responses as u64));
    row("problems", human::count(by_problem.len() as u64));
    row("problems with a pair", human::count(paired.len() as u64));
    row("pairs", human::count(pairs.len() as u64));
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    row("longer over shorter response, mean", format!("{mean:.2}"));
    table.to_string()
}
