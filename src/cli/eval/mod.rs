//! `train eval`: score a model, or responses that were made elsewhere.

mod cases;
mod score;
mod text;

use super::attempts::ProblemArgs;
use super::judge::JudgeArgs;
use crate::sandbox::Judge;
use crate::tasks::{
    ArcPreset, BbhPreset, GaokaoPreset, MmluPreset, NextNumber, NumberSequences, Preset, Quiz,
    Settings, TaskKind, arc, bbh, gaokao, mmlu,
};
use anyhow::Result;
use cases::CasesArgs;
use score::ScoreArgs;

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
    /// MMLU: multiple-choice questions about 57 subjects
    Mmlu(QuizArgs<MmluPreset>),
    /// BIG-Bench Hard: 27 tasks of reasoning
    Bbh(QuizArgs<BbhPreset>),
    /// GAOKAO-Bench: the objective questions of China's college entrance examination
    Gaokao(QuizArgs<GaokaoPreset>),
    /// ARC-AGI 1 or 2: grids that one rule changes
    Arc(QuizArgs<ArcPreset>),
    /// Case analysis: are a model's own cases right where its programs are?
    Cases(CasesArgs),
}

/// Arguments of `train eval gtg`.
#[derive(Debug, clap::Args)]
struct GtgArgs {
    #[command(flatten)]
    problems: ProblemArgs,
    #[command(flatten)]
    score: ScoreArgs,
    #[command(flatten)]
    judge: JudgeArgs,
}

/// Arguments of `train eval next-number`.
#[derive(Debug, clap::Args)]
struct NextNumberArgs {
    #[command(flatten)]
    problems: ProblemArgs,
    #[command(flatten)]
    score: ScoreArgs,
}

/// Arguments of a benchmark of questions.
#[derive(Debug, clap::Args)]
struct QuizArgs<P: Preset> {
    #[command(flatten)]
    benchmark: Settings<P>,
    #[command(flatten)]
    score: ScoreArgs,
}

/// Scores, prints a table, and writes the result.
pub fn run(args: Args) -> Result<()> {
    match args.what {
        What::Gtg(args) => gtg(&args),
        What::NextNumber(args) => next_number(&args),
        What::Mmlu(args) => quiz(&args, mmlu),
        What::Bbh(args) => quiz(&args, bbh),
        What::Gaokao(args) => quiz(&args, gaokao),
        What::Arc(args) => quiz(&args, arc),
        What::Cases(args) => cases::run(&args),
    }
}

fn gtg(args: &GtgArgs) -> Result<()> {
    args.score.check(&args.problems.data)?;
    let judge = Judge::start(args.judge.options())?;
    let task = args
        .problems
        .open(TaskKind::Gtg, |problems, prompt| NumberSequences::open(problems, prompt, &judge))?;
    args.score.run(&task)
}

/// Scores on the benchmark that `open` makes of the settings.
fn quiz<P, G>(args: &QuizArgs<P>, open: fn(&Settings<P>) -> Result<Quiz<G>>) -> Result<()>
where
    P: Preset,
    G: Sync,
{
    args.score.check(&args.benchmark.data)?;
    args.score.run(&open(&args.benchmark)?)
}

fn next_number(args: &NextNumberArgs) -> Result<()> {
    args.score.check(&args.problems.data)?;
    args.score.run(&args.problems.open(TaskKind::NextNumber, NextNumber::open)?)
}
