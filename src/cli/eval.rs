//! `train eval`: score a model.

use super::attempts::AttemptArgs;
use super::print;
use crate::base::interrupt;
use crate::base::table::Table;
use crate::checkpoint::LanguageModel;
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::eval::gtg::{self, GtgScore};
use anyhow::Result;
use std::path::PathBuf;

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
}

/// Arguments of `train eval gtg`.
#[derive(Debug, clap::Args)]
struct GtgArgs {
    #[command(flatten)]
    attempts: AttemptArgs,
    /// Write the whole result here (JSON)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Scores, prints a table, and writes the result.
pub fn run(args: Args) -> Result<()> {
    let What::Gtg(args) = args.what;
    interrupt::install()?;
    let problems: Vec<Problem> = jsonl::read(&args.attempts.data)?;
    let model = LanguageModel::open(&args.attempts.model)?;
    let judge = args.attempts.start_judge()?;
    let score = gtg::evaluate(&model, &judge, &problems, &args.attempts.settings(), "gtg")?.score;
    if let Some(path) = &args.out {
        crate::base::fs::write_atomic(path, &serde_json::to_vec_pretty(&score)?)?;
    }
    print(table(&score))
}

/// The score as a table, families below.
fn table(score: &GtgScore) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut table = Table::new(["GTG", "pass@1", "problems"]);
    table.row([
        "all".to_owned(),
        format!(
            "{}  [{:.1}, {:.1}]",
            percent(score.pass_at_1),
            100.0 * score.ci95[0],
            100.0 * score.ci95[1]
        ),
        score.num_problems.to_string(),
    ]);
    for (family, of_family) in &score.families {
        table.row([
            family.clone(),
            percent(of_family.pass_at_1),
            of_family.num_problems.to_string(),
        ]);
    }
    table.to_string()
}
