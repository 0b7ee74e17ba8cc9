//! `train data solvability`: estimate solvability by rollouts and select problems by range.
//!
//! Paper section 3, step 8: of N = 32 rollouts N_p pass all tests, Sov = N_p / N, and problems
//! with 1 to 15 are kept. Left out: resuming a run that was stopped.

use crate::base::error::usage;
use crate::base::interrupt;
use crate::checkpoint::LanguageModel;
use crate::cli::attempts::AttemptArgs;
use crate::cli::print;
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::eval::gtg;
use anyhow::Result;
use std::path::PathBuf;

/// Arguments of `train data solvability`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    attempts: AttemptArgs,
    /// The problems that are kept, with their solvability (JSON Lines)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Fewest passing rollouts of a problem that is kept
    #[arg(long, default_value_t = 1)]
    min_passed: usize,
    /// Most passing rollouts of a problem that is kept
    #[arg(long, default_value_t = 15)]
    max_passed: usize,
    /// Keep at most this many problems, the first ones
    #[arg(long, value_name = "N")]
    most: Option<usize>,
}

/// Attempts every problem, writes those in range, prints statistics.
pub fn run(args: Args) -> Result<()> {
    interrupt::install()?;
    let problems: Vec<Problem> = jsonl::read(&args.attempts.data)?;
    let model = LanguageModel::open(&args.attempts.model)?;
    let judge = args.attempts.start_judge()?;
    let score =
        gtg::evaluate(&model, &judge, &problems, &args.attempts.settings(), "solvability")?.score;
    let mut kept = Vec::new();
    for (mut problem, result) in problems.into_iter().zip(&score.problems) {
        let is_known = result.num_judged > 0;
        if is_known && (args.min_passed..=args.max_passed).contains(&result.num_passed) {
            problem.solvability = Some(result.pass_rate());
            kept.push(problem);
        }
    }
    let num_in_range = kept.len();
    kept.truncate(args.most.unwrap_or(usize::MAX));
    if kept.is_empty() {
        return Err(usage(format!(
            "no problem passes {} to {} of {} rollouts; choose another range or model",
            args.min_passed, args.max_passed, args.attempts.rollouts
        )));
    }
    jsonl::write(&args.out, &kept)?;
    let shares: Vec<f64> = kept.iter().filter_map(|p| p.solvability).collect();
    print(format_args!(
        "{} problems, {num_in_range} in range, {} kept; solvability {:.3} to {:.3}, mean {:.3}; \
         pass@1 of all {:.3}\n",
        score.num_problems,
        kept.len(),
        shares.iter().copied().fold(f64::INFINITY, f64::min),
        shares.iter().copied().fold(0.0, f64::max),
        shares.iter().sum::<f64>() / shares.len() as f64,
        score.pass_at_1,
    ))
}
