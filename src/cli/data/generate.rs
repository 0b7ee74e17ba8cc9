//! `train data generate`: makes procedural problems, reflection samples and splits.

use crate::base::error::{Interrupted, usage};
use crate::base::fs::check_new_dir;
use crate::base::progress::Progress;
use crate::base::{human, interrupt};
use crate::cli::judge::JudgeArgs;
use crate::cli::print;
use crate::data::prompt::GtgPrompt;
use crate::problems::{Config, Program, card, generate};
use crate::sandbox::{Ending, Judge, Outcome, Watch};
use anyhow::{Result, bail};
use std::cell::Cell;
use std::path::PathBuf;
use std::time::Instant;

/// The judge gets this many programs at a time. The command notices an interrupt between two batches.
const BATCH: usize = 1024;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Create this directory with sft.jsonl, rl.jsonl, test.jsonl, test_unseen.jsonl, pretrain.jsonl,
    /// manifest.json and DATA_CARD.md
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Use this seed, which determines everything
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Make this many SFT samples
    #[arg(long, value_name = "N", default_value_t = 5_500)]
    sft: usize,
    /// Let the SFT samples share this many patterns [default: as in the paper, 1271 for 5487]
    #[arg(long, value_name = "N")]
    sft_patterns: Option<usize>,
    /// Make this many RL problems, each of its own pattern
    #[arg(long, value_name = "N", default_value_t = 1_500)]
    rl: usize,
    /// Make this many test problems of known families
    #[arg(long, value_name = "N", default_value_t = 200)]
    test: usize,
    /// Make this many test problems of unseen families
    #[arg(long, value_name = "N", default_value_t = 60)]
    unseen: usize,
    /// Make this many samples for the starting checkpoint: problems, responses and drills, never together
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pretrain: usize,
    /// Use these weights for 0, 1, 2, ... reflection rounds, at most 5 [default: the paper's Table 13]
    #[arg(long, value_name = "W,W,...", value_delimiter = ',')]
    rounds_distribution: Option<Vec<u32>>,
    /// Read the template of the prompt from this file [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
    /// How the judge runs programs.
    #[command(flatten)]
    judge: JudgeArgs,
}

pub fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let config = config(&args)?;
    check_new_dir(&args.out)?;
    let prompt = GtgPrompt::open(args.prompt.as_deref())?;
    interrupt::install()?;
    let judge = Judge::start(args.judge.options())?;
    tracing::info!("{}", judge.layers());
    let dataset = generate(&config, &prompt, &mut |programs| judge_all(&judge, programs))?;
    let card = card::write(&dataset, &args.out)?;
    let rows: Vec<String> = card.rows.iter().map(|(name, rows)| format!("{name} {rows}")).collect();
    print(format_args!(
        "{}: {} in {}\n",
        args.out.display(),
        rows.join(", "),
        human::duration(started.elapsed().as_secs_f64())
    ))
}

fn config(args: &Args) -> Result<Config> {
    let rounds = args.rounds_distribution.clone().unwrap_or(Config::PAPER_ROUNDS.to_vec());
    if rounds.len() > Config::PAPER_ROUNDS.len() || rounds.iter().all(|&weight| weight == 0) {
        return Err(usage(
            "--rounds-distribution: give one to six weights for 0 to 5 rounds, not all zero",
        ));
    }
    let sft_patterns = args.sft_patterns.unwrap_or(Config::paper_patterns(args.sft));
    if sft_patterns == 0 && args.sft > 0 {
        return Err(usage("--sft-patterns: SFT samples need at least one pattern"));
    }
    Ok(Config {
        seed: args.seed,
        sft: args.sft,
        sft_patterns,
        rl: args.rl,
        test: args.test,
        unseen: args.unseen,
        pretrain: args.pretrain,
        rounds,
    })
}

fn judge_all(judge: &Judge, programs: &[Program]) -> Result<Vec<Vec<Option<String>>>> {
    let progress = Progress::new("judge", programs.len() as u64, "programs");
    let mut outputs = Vec::with_capacity(programs.len());
    for batch in programs.chunks(BATCH) {
        if interrupt::requested() {
            return Err(anyhow::Error::new(Interrupted));
        }
        let seen = Cell::new(0);
        let advance = |done: usize| progress.inc((done - seen.replace(done)) as u64);
        let watch = Watch { progress: Some(&advance), ..Watch::default() };
        for (program, outcome) in batch.iter().zip(judge.run_watched(batch, watch)) {
            outputs.push(printed(program, outcome)?);
        }
    }
    progress.finish();
    Ok(outputs)
}

fn printed(program: &Program, outcome: Outcome) -> Result<Vec<Option<String>>> {
    if outcome.is_infra() {
        let why = outcome.cases.into_iter().find_map(|case| case.error);
        bail!(
            "the judge could not run a program ({}):\n{}",
            why.map_or_else(|| "no reason given".to_owned(), |error| error.message),
            program.code
        );
    }
    let text = |output: Vec<u8>| String::from_utf8(output).ok().map(|s| s.trim().to_owned());
    let cases = outcome.cases.into_iter();
    Ok(cases.map(|c| if c.ending == Ending::Finished { text(c.output) } else { None }).collect())
}
