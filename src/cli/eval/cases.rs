//! `train eval cases`: are a model's own cases right where its programs are?

use super::text::cases_text;
use crate::base::fs::write_json;
use crate::cli::agent::{AskedArgs, answered_by};
use crate::cli::attempts::{AttemptArgs, ProblemArgs};
use crate::cli::judge::JudgeArgs;
use crate::cli::print;
use crate::eval::cases;
use crate::sandbox::Judge;
use crate::tasks::{NumberSequences, TaskKind};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Arguments of `train eval cases`.
#[derive(Debug, clap::Args)]
pub(crate) struct CasesArgs {
    #[command(flatten)]
    asked: AskedArgs,
    #[command(flatten)]
    problems: ProblemArgs,
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

pub(crate) fn run(args: &CasesArgs) -> Result<()> {
    let outs: Vec<&Path> = args.out.iter().map(PathBuf::as_path).collect();
    args.attempts.check(Some(&args.asked), &outs, &[&args.problems.data])?;
    let judge = Judge::start(args.judge.options())?;
    let task = args
        .problems
        .open(TaskKind::Gtg, |problems, prompt| NumberSequences::open(problems, prompt, &judge))?;
    cases::check(&task)?;
    let mut prepared = args.attempts.prepare(&args.asked, &task, args.out.as_deref())?;
    let analysis = cases::analyse(
        prepared.candidate.as_mut(),
        &task,
        &prepared.settings,
        usize::from(args.max_tries),
        prepared.journal.as_mut(),
    );
    let analysis = prepared.or_how_to_resume(analysis)?;
    if let Some(path) = &args.out {
        write_json(path, &analysis)?;
    }
    prepared.forget_journal()?;
    print(cases_text(&analysis) + &answered_by(analysis.answered_by.as_ref()))
}
