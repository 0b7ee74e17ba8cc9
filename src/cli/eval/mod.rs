//! `train eval`: score a model, or responses that were made elsewhere.

mod cases;
mod score;
mod text;

use super::attempts::ProblemArgs;
use super::judge::JudgeArgs;
use crate::sandbox::{Judge, Limits};
use crate::tasks::{
    ArcPreset, BbhPreset, Coding, GaokaoPreset, HumanEvalPreset, LiveCodeBenchPreset, MbppPreset,
    MmluPreset, NextNumber, NumberSequences, Preset, Quiz, Settings, TaskKind, Window, arc, bbh,
    gaokao, humaneval, humaneval_limits, livecodebench, livecodebench_limits, mbpp, mbpp_limits,
    mmlu,
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
    /// HumanEval or HumanEval+: functions to complete
    #[command(name = "humaneval")]
    HumanEval(CodingArgs<HumanEvalPreset>),
    /// MBPP, full or sanitized: short functions with assertions
    Mbpp(CodingArgs<MbppPreset>),
    /// LiveCodeBench: contest problems by date
    #[command(name = "livecodebench")]
    LiveCodeBench(LiveCodeBenchArgs),
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

/// Arguments of a benchmark of programs.
#[derive(Debug, clap::Args)]
struct CodingArgs<P: Preset> {
    #[command(flatten)]
    benchmark: Settings<P>,
    #[command(flatten)]
    score: ScoreArgs,
    #[command(flatten)]
    judge: JudgeArgs,
}

/// Arguments of `train eval livecodebench`.
#[derive(Debug, clap::Args)]
struct LiveCodeBenchArgs {
    #[command(flatten)]
    coding: CodingArgs<LiveCodeBenchPreset>,
    #[command(flatten)]
    window: Window,
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
        What::HumanEval(args) => coding(&args, humaneval_limits(), humaneval),
        What::Mbpp(args) => coding(&args, mbpp_limits(), mbpp),
        What::LiveCodeBench(LiveCodeBenchArgs { coding: args, window }) => {
            coding(&args, livecodebench_limits(), |settings, judge| {
                livecodebench(settings, &window, judge)
            })
        }
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

/// Scores on the benchmark that `open` makes of the settings and of a judge with these limits.
fn coding<P: Preset>(
    args: &CodingArgs<P>,
    limits: Limits,
    open: impl for<'j> FnOnce(&Settings<P>, &'j Judge) -> Result<Coding<'j>>,
) -> Result<()> {
    args.score.check(&args.benchmark.data)?;
    let judge = Judge::start(args.judge.options_within(limits))?;
    args.score.run(&open(&args.benchmark, &judge)?)
}

fn next_number(args: &NextNumberArgs) -> Result<()> {
    args.score.check(&args.problems.data)?;
    args.score.run(&args.problems.open(TaskKind::NextNumber, NextNumber::open)?)
}
