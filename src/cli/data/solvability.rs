//! `train data solvability`: estimates solvability by rollouts and selects problems by it.

use crate::base::error::usage;
use crate::base::table::Table;
use crate::cli::agent::{AskedArgs, answered_by};
use crate::cli::attempts::{AttemptArgs, ProblemArgs};
use crate::cli::judge::JudgeArgs;
use crate::cli::print;
use crate::data::jsonl;
use crate::eval::score;
use crate::eval::solvability::Selection;
use crate::sandbox::Judge;
use crate::tasks::{NumberSequences, TaskKind};
use anyhow::Result;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    asked: AskedArgs,
    #[command(flatten)]
    problems: ProblemArgs,
    #[command(flatten)]
    attempts: AttemptArgs,
    /// Write the problems that are kept to this file, with their solvability (JSON Lines)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Keep problems with at least this many passing rollouts
    #[arg(long, default_value_t = 1)]
    min_passed: usize,
    /// Keep problems with at most this many passing rollouts
    #[arg(long, default_value_t = 15)]
    max_passed: usize,
    /// Keep at most this many problems, the first ones
    #[arg(long, value_name = "N")]
    most: Option<usize>,
    #[command(flatten)]
    judge: JudgeArgs,
}

/// Attempts every problem, writes those in range, and prints statistics.
pub fn run(args: Args) -> Result<()> {
    let range = args.min_passed..=args.max_passed;
    let rollouts = args.attempts.rollouts();
    if range.is_empty() || args.min_passed > rollouts {
        return Err(usage(format!(
            "--min-passed {} is above --max-passed {} or the {rollouts} rollouts: no problem could be kept",
            args.min_passed, args.max_passed
        )));
    }
    if args.most == Some(0) {
        return Err(usage("--most 0 would keep no problem: leave it out, or give at least 1"));
    }
    args.attempts.check(Some(&args.asked), &[&args.out], &[&args.problems.data])?;
    let judge = Judge::start(args.judge.options())?;
    let task = args
        .problems
        .open(TaskKind::Gtg, |problems, prompt| NumberSequences::open(problems, prompt, &judge))?;
    let mut prepared = args.attempts.prepare(&args.asked, &task, Some(&args.out))?;
    let evaluation = score::evaluate(
        prepared.candidate.as_mut(),
        &task,
        &prepared.settings,
        "solvability",
        prepared.journal.as_mut(),
    );
    let evaluation = prepared.or_how_to_resume(evaluation)?;
    let most = args.most.unwrap_or(usize::MAX);
    let selection = Selection::new(task.problems(), &evaluation, &range, rollouts, most);
    if selection.kept.is_empty() {
        let path = prepared.journal.as_ref().map(|journal| journal.path().display().to_string());
        return Err(usage(format!(
            "no problem passes {} to {} of {rollouts} rollouts; choose another range with --resume (the \
             rollouts are kept in {}), or another model",
            args.min_passed,
            args.max_passed,
            path.unwrap_or_default()
        )));
    }
    jsonl::write(&args.out, &selection.kept)?;
    prepared.forget_journal()?;
    let answered_by = answered_by(evaluation.score.answered_by.as_ref());
    print(text(&selection, evaluation.score.pass_at_1) + &answered_by)
}

/// Writes Table 1 of the paper for the kept problems, and how many others there are.
fn text(selection: &Selection, pass_at_1: f64) -> String {
    let counts = selection.counts;
    let mut table = Table::new(["solvability", ""]);
    let mut row = |name: &str, value: String| {
        table.row([name.to_owned(), value]);
    };
    row("problems kept", selection.kept.len().to_string());
    row("in range", counts.within.to_string());
    row("solved less often", counts.below.to_string());
    row("solved more often", counts.above.to_string());
    row("without a verdict", counts.unknown.to_string());
    if let Some([min, max, mean]) = selection.solvability() {
        row("solvability of kept", format!("{min:.2} to {max:.2}, mean {mean:.2}"));
    }
    row("longest response", format!("{} tokens", selection.longest_response));
    row("pass@1 of all", format!("{:.1} %", 100.0 * pass_at_1));
    table.to_string()
}
