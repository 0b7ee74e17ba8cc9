//! `train eval`: score a model.

use super::attempts::AttemptArgs;
use super::judge::JudgeArgs;
use super::print;
use crate::base::error::usage;
use crate::base::fs::write_json;
use crate::base::table::Table;
use crate::eval::cases::{self, CaseAnalysis};
use crate::eval::journal::Journal;
use crate::eval::responses;
use crate::eval::score::{self, Evaluation, Score};
use crate::sandbox::Judge;
use crate::tasks::{NextNumber, NumberSequences, Task, TaskKind};
use anyhow::Result;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Arguments of `train eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

/// What is scored.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// General-term generation: pass@k over rollouts, judged by running code
    Gtg(GtgArgs),
    /// The next term of a sequence whose first terms are shown: pass@k over rollouts
    NextNumber(NextNumberArgs),
    /// Case analysis: are a model's own cases right where its programs are?
    Cases(CasesArgs),
}

/// What every score is written into.
#[derive(Debug, clap::Args)]
struct ScoreArgs {
    /// Write the whole result here (JSON)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write every response with its grade here (JSON Lines)
    #[arg(long, value_name = "FILE")]
    save_responses: Option<PathBuf>,
}

/// Arguments of `train eval gtg`.
#[derive(Debug, clap::Args)]
struct GtgArgs {
    #[command(flatten)]
    attempts: AttemptArgs,
    #[command(flatten)]
    score: ScoreArgs,
    #[command(flatten)]
    judge: JudgeArgs,
}

/// Arguments of `train eval next-number`.
#[derive(Debug, clap::Args)]
struct NextNumberArgs {
    #[command(flatten)]
    attempts: AttemptArgs,
    #[command(flatten)]
    score: ScoreArgs,
}

/// Arguments of `train eval cases`.
#[derive(Debug, clap::Args)]
struct CasesArgs {
    #[command(flatten)]
    attempts: AttemptArgs,
    /// Ask at most this often for a response with a case
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    max_tries: u16,
    /// Write the whole result here (JSON)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    judge: JudgeArgs,
}

/// Scores, prints a table, and writes the result.
pub fn run(args: Args) -> Result<()> {
    match args.what {
        What::Gtg(args) => gtg(&args),
        What::NextNumber(args) => next_number(&args),
        What::Cases(args) => cases(&args),
    }
}

fn gtg(args: &GtgArgs) -> Result<()> {
    args.attempts.check(&args.score.outs()?)?;
    let judge = Judge::start(args.judge.options())?;
    let task = args
        .attempts
        .open(TaskKind::Gtg, |problems, prompt| NumberSequences::open(problems, prompt, &judge))?;
    score_on(&task, &args.attempts, &args.score)
}

fn next_number(args: &NextNumberArgs) -> Result<()> {
    args.attempts.check(&args.score.outs()?)?;
    let task = args.attempts.open(TaskKind::NextNumber, NextNumber::open)?;
    score_on(&task, &args.attempts, &args.score)
}

/// Scores a model on a task, whatever it is.
fn score_on(task: &dyn Task, attempts: &AttemptArgs, args: &ScoreArgs) -> Result<()> {
    let mut prepared = attempts.prepare(task, args.out.as_deref())?;
    let evaluation = score::evaluate(
        &mut prepared.candidate.generator(),
        task,
        &prepared.settings,
        task.name(),
        prepared.journal.as_mut(),
    );
    let Evaluation { score, answers } = prepared.or_how_to_resume(evaluation)?;
    if let Some(path) = &args.save_responses {
        responses::write(path, task, &answers)?;
    }
    write(args.out.as_deref(), &score)?;
    prepared.forget_journal()?;
    print(score_text(task.name(), &score))
}

fn cases(args: &CasesArgs) -> Result<()> {
    let outs: Vec<&Path> = args.out.iter().map(PathBuf::as_path).collect();
    args.attempts.check(&outs)?;
    let judge = Judge::start(args.judge.options())?;
    let task = args
        .attempts
        .open(TaskKind::Gtg, |problems, prompt| NumberSequences::open(problems, prompt, &judge))?;
    cases::check(&task)?;
    let mut prepared = args.attempts.prepare(&task, args.out.as_deref())?;
    let analysis = cases::analyse(
        &mut prepared.candidate.generator(),
        &task,
        &prepared.settings,
        usize::from(args.max_tries),
        prepared.journal.as_mut(),
    );
    let analysis = prepared.or_how_to_resume(analysis)?;
    write(args.out.as_deref(), &analysis)?;
    prepared.forget_journal()?;
    print(cases_text(&analysis))
}

impl ScoreArgs {
    /// The files that will be written, which must be different ones.
    fn outs(&self) -> Result<Vec<&Path>> {
        if let (Some(out), Some(responses)) = (&self.out, &self.save_responses) {
            let absolute = |path: &Path| std::path::absolute(path).ok();
            for (taken, what) in [(out.clone(), "result"), (Journal::path_for(out), "journal")] {
                if absolute(&taken) == absolute(responses) {
                    return Err(usage(format!(
                        "--save-responses is {}, where the {what} of --out goes: name another file",
                        responses.display()
                    )));
                }
            }
        }
        Ok(self.out.iter().chain(&self.save_responses).map(PathBuf::as_path).collect())
    }
}

fn write(out: Option<&Path>, result: &impl Serialize) -> Result<()> {
    match out {
        Some(path) => write_json(path, result),
        None => Ok(()),
    }
}

/// More families than this would fill a terminal.
const MOST_FAMILIES: usize = 24;

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn with_interval(share: f64, interval: Option<[f64; 2]>) -> String {
    let interval =
        interval.map(|[low, high]| format!("  [{:.1}, {:.1}]", 100.0 * low, 100.0 * high));
    percent(share) + &interval.unwrap_or_default()
}

/// pass@1 of all and of each family, pass@k for some k, why responses failed, and what was left out.
fn score_text(task: &str, score: &Score) -> String {
    let mut table = Table::new([task, "pass@1", "problems"]);
    table.row([
        "all".to_owned(),
        with_interval(score.pass_at_1, Some(score.ci95)),
        score.num_problems.to_string(),
    ]);
    let (shown, left_out) = match score.families.len() {
        n if n > MOST_FAMILIES => {
            (0, format!("{n} families, each of which is in the file of --out\n"))
        }
        n => (n, String::new()),
    };
    for (family, of_family) in score.families.iter().take(shown) {
        table.row([
            family.clone(),
            with_interval(of_family.pass_at_1, of_family.ci95),
            of_family.num_problems.to_string(),
        ]);
    }
    let mut by_k = Table::new(["pass@k", "share"]);
    for (k, estimate) in score.pass_at_k.iter().filter(|(k, _)| k.is_power_of_two()) {
        by_k.row([k.to_string(), with_interval(estimate.mean, Some(estimate.ci95))]);
    }
    let mut failures = Table::new(["did not pass", "responses"]);
    for (reason, count) in &score.failures {
        failures.row([reason.clone(), count.to_string()]);
    }
    format!(
        "{table}{left_out}\n{by_k}\n{failures}\n{} rollouts for each problem, {:.0} tokens on average, {} in the \
         wrong format, {} without a verdict\n",
        score.num_rollouts,
        score.mean_response_tokens,
        percent(score.format_errors),
        score.num_infra
    )
}

/// The four quadrants, and how often was asked.
fn cases_text(analysis: &CaseAnalysis) -> String {
    let mut table = Table::new(["own cases", "program right", "program wrong"]);
    if let Some([c_c, c_f, no_c, no_f]) = analysis.shares {
        let cell = |name: &str, share: f64| format!("{name} {}", percent(share));
        table.row(["all right".to_owned(), cell("C-C", c_c), cell("C-F", c_f)]);
        table.row(["some wrong".to_owned(), cell("No-C", no_c), cell("No-F", no_f)]);
    }
    let asked: Vec<String> = analysis.num_asked.iter().map(usize::to_string).collect();
    format!(
        "{table}\n{} responses to {} problems; asked at each try: {}; {} without a case in the end, {} \
         without a verdict\n",
        analysis.num_problems * analysis.num_rollouts,
        analysis.num_problems,
        asked.join(", "),
        analysis.quadrants.without_cases,
        analysis.num_infra
    )
}
