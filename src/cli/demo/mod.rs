//! `train demo`: runs the whole loop on the bundled data and writes a report.
//!
//! SFT and GRPO run with the functions and config files of `train sft` and `train grpo`, and scores with
//! those of `train eval gtg`, so these commands one by one give the same bits.

mod page;

use super::print;
use crate::base::error::usage;
use crate::base::fs::{write_atomic, write_json};
use crate::base::{human, interrupt};
use crate::checkpoint::LanguageModel;
use crate::config::{self, Resolved};
use crate::data::jsonl;
use crate::data::problem::Problem;
use crate::engine::generator::Generator;
use crate::eval::score::{self, Evaluation};
use crate::plan::Plan;
use crate::rollout::AttemptSettings;
use crate::run::{Existing, RunDir};
use crate::sandbox::{Judge, Options};
use crate::tasks::{NumberSequences, Task};
use crate::train::rehearsal;
use crate::train::rl;
use crate::train::sft;
use anyhow::Result;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show in about a minute that everything runs, with fewer steps, problems and rollouts
    #[arg(long)]
    quick: bool,
    /// Write runs, scores and the report to this directory
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
    /// Replace an earlier demo in that directory
    #[arg(long)]
    overwrite: bool,
    /// Override one value of sft.toml, such as optim.lr=0.001
    #[arg(long, value_name = "KEY=VALUE")]
    sft_set: Vec<String>,
    /// Override one value of grpo.toml
    #[arg(long, value_name = "KEY=VALUE")]
    grpo_set: Vec<String>,
    /// Sample this many rollouts for each test problem
    #[arg(long, value_name = "N")]
    rollouts: Option<usize>,
}

const CONFIGS: &str = "configs/demo";
const DATA: &str = "data/demo";

/// Everything that a demo leaves in its directory.
const OWN: [&str; 7] = [
    "sft",
    "grpo",
    "gtg-base.json",
    "gtg-sft.json",
    "gtg-grpo.json",
    "report.html",
    "summary.json",
];

/// The amount of work that the demo does.
struct Size {
    test_problems: usize,
    unseen_problems: usize,
    rollouts: usize,
    base_rollouts: usize,
    sft_set: &'static [&'static str],
    grpo_set: &'static [&'static str],
}

const FULL: Size = Size {
    test_problems: usize::MAX,
    unseen_problems: usize::MAX,
    rollouts: 32,
    base_rollouts: 4,
    sft_set: &[],
    grpo_set: &[],
};

const QUICK: Size = Size {
    test_problems: 24,
    unseen_problems: 8,
    rollouts: 8,
    base_rollouts: 2,
    sft_set: &["train.total_steps=12"],
    grpo_set: &["train.total_steps=3", "rollout.num_prompts=8"],
};

/// The rollouts for each problem of unseen families: few, since their score is a side result.
const UNSEEN_ROLLOUTS: usize = 8;

/// Returns the settings with which the demo scores; `train eval gtg` takes the same ones as flags.
fn settings(num_samples: usize) -> AttemptSettings {
    AttemptSettings {
        num_samples,
        temperature: 1.0,
        max_new_tokens: 320,
        max_sequences: 128,
        key: 0,
        ..AttemptSettings::default()
    }
}

/// The test problems, and those of families that training never shows.
struct Examination<'j> {
    test: NumberSequences<'j>,
    unseen: NumberSequences<'j>,
}

/// A model's scores on both sets.
struct Scores {
    test: Evaluation,
    unseen: Evaluation,
}

impl Examination<'_> {
    fn score(&self, dir: &Path, out: &Path, rollouts: usize, label: &str) -> Result<Scores> {
        let model = LanguageModel::open(dir)?;
        let evaluate = |task: &NumberSequences<'_>, rollouts, label: &str| {
            let mut generator = Generator::of_trained(&model, 1);
            score::evaluate(&mut generator, task, &settings(rollouts), label, None)
        };
        let test = evaluate(&self.test, rollouts, &format!("score {label}"))?;
        write_json(out, &test.score)?;
        let label = format!("score {label}, unseen families");
        let unseen = evaluate(&self.unseen, rollouts.min(UNSEEN_ROLLOUTS), &label)?;
        Ok(Scores { test, unseen })
    }
}

/// The seconds of each stage, in order.
struct Clock {
    started: Instant,
    seconds: Vec<(String, f64)>,
}

impl Clock {
    fn time<R>(&mut self, stage: &str, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let started = Instant::now();
        let result = work()?;
        self.seconds.push((stage.to_owned(), started.elapsed().as_secs_f64()));
        Ok(result)
    }
}

/// Runs the demo and prints its report.
pub fn run(args: Args) -> Result<()> {
    interrupt::install()?;
    refuse_used(&args.out, args.overwrite)?;
    let size = if args.quick { QUICK } else { FULL };
    let rollouts = args.rollouts.unwrap_or(size.rollouts);
    let existing = if args.overwrite { Existing::Overwrite } else { Existing::Refuse };
    let sft: Resolved<sft::Config> =
        load(config::load, "sft.toml", size.sft_set, &args.sft_set, &[])?;
    let sft_run = RunDir::create(&args.out.join("sft"), &sft, existing)?;
    let sft_model = sft_run.checkpoints().step_dir(sft.value.train.total_steps);
    let start_from = format!("model.path={:?}", sft_model.display().to_string());
    let grpo = load(rl::Config::load, "grpo.toml", size.grpo_set, &args.grpo_set, &[start_from])?;
    let grpo_run = RunDir::create(&args.out.join("grpo"), &grpo, existing)?;

    let mut clock = Clock { started: Instant::now(), seconds: Vec::new() };
    let limits = grpo.value.judge.clone();
    let judge = Judge::start(Options { limits, ..Options::default() })?;
    let examination = Examination {
        test: problems("test.jsonl", size.test_problems, &judge)?,
        unseen: problems("test_unseen.jsonl", size.unseen_problems, &judge)?,
    };
    let data = page::describe_data(&sft.value, &grpo.value, &examination)?;
    print(page::introduction(&data, &examination))?;
    let base_dir = sft.value.model.path.clone().ok_or_else(|| {
        usage(format!("{CONFIGS}/sft.toml: the demo needs model.path, a starting checkpoint"))
    })?;
    let estimate = clock.time("estimate", || {
        let num_responses = examination.test.num_problems() * rollouts * 2;
        rehearsal::estimate(&sft.value, &grpo.value, num_responses)
    })?;
    print(format!("This will take about {}.\n\n", human::duration(estimate)))?;

    let out = |name: &str| args.out.join(name);
    let command = super::launch::command_line();
    let base = clock.time("score base", || {
        examination.score(&base_dir, &out("gtg-base.json"), size.base_rollouts, "base")
    })?;
    let sft_dir = clock.time("SFT", || {
        sft_run.write_plan(&Plan::new(&sft.value.workload()?))?;
        sft_run.write_environment(&command, judge.layers())?;
        sft::train(&sft.value, &sft_run, "SFT")
    })?;
    let after_sft = clock
        .time("score SFT", || examination.score(&sft_dir, &out("gtg-sft.json"), rollouts, "SFT"))?;
    let grpo_dir = clock.time("GRPO", || {
        grpo_run.write_plan(&Plan::new(&grpo.value.workload()?))?;
        grpo_run.write_environment(&command, judge.layers())?;
        rl::train(&grpo.value, &grpo_run, &judge, "GRPO")
    })?;
    let after_grpo = clock.time("score SFT + RL", || {
        examination.score(&grpo_dir, &out("gtg-grpo.json"), rollouts, "SFT + RL")
    })?;
    let total_secs = clock.started.elapsed().as_secs_f64();

    let steps = [sft.value.train.total_steps, grpo.value.train.total_steps];
    let report = page::report(page::Parts {
        caveat: args.quick.then(|| quick_caveat(steps)),
        data,
        examination: &examination,
        scores: [&base, &after_sft, &after_grpo],
        runs: [&sft_run, &grpo_run],
        configs: vec![
            ("sft.toml".to_owned(), sft.to_toml()),
            ("grpo.toml".to_owned(), grpo.to_toml()),
        ],
        seconds: clock.seconds,
    })?;
    write_atomic(&out("report.html"), report.html().as_bytes())?;
    write_json(&out("summary.json"), &report.summary())?;
    print(format_args!(
        "{}\nDone in {}. The page: {}\n",
        report.text(),
        human::duration(total_secs),
        out("report.html").display()
    ))
}

/// Says how the scores of `--quick`, after these numbers of SFT and GRPO steps, differ from those of a full
/// demo.
fn quick_caveat([sft, grpo]: [u64; 2]) -> String {
    format!(
        "--quick shows that everything runs; its {sft} and {grpo} steps are too few to learn from"
    )
}

/// Refuses a directory that no configuration can name, one with something in it that no demo puts there,
/// and one with a demo unless `overwrite` is set.
fn refuse_used(out: &Path, overwrite: bool) -> Result<()> {
    let name = out.display();
    if out.to_str().is_none() {
        // The path becomes a value of a configuration.
        return Err(usage(format!("cannot use --out {name}: its name is not UTF-8")));
    }
    let entries = match std::fs::read_dir(out) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| usage(format!("cannot use --out {name}: {e}")))?,
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.collect();
    // Files that a killed demo had not finished (see `base::fs`) are its own.
    let is_foreign = |name: &String| !OWN.contains(&name.as_str()) && !name.starts_with("codeseq-");
    let is_own = |name: &&String| OWN.contains(&name.as_str());
    match (names.iter().find(|name| is_foreign(name)), names.iter().find(is_own)) {
        (Some(stranger), _) => Err(usage(format!(
            "{name} holds {stranger}, which is not of a demo; choose a new directory with --out"
        ))),
        (None, Some(_)) if !overwrite => Err(usage(format!(
            "{name} already holds a demo; replace it with --overwrite, or choose another with --out"
        ))),
        _ => Ok(()),
    }
}

/// Reads a config of the demo with `read`, with the overrides of the size and of the user.
fn load<T>(
    read: fn(&[PathBuf], &[String]) -> Result<Resolved<T>>,
    name: &str,
    size: &[&str],
    user: &[String],
    last: &[String],
) -> Result<Resolved<T>> {
    let path = Path::new(CONFIGS).join(name);
    if !path.exists() {
        return Err(usage(format!(
            "{} is not here: run the demo from the root of the repository",
            path.display()
        )));
    }
    let size = size.iter().map(|&s| s.to_owned());
    let sets: Vec<String> = size.chain(user.iter().cloned()).chain(last.iter().cloned()).collect();
    read(&[path], &sets)
}

fn problems<'j>(name: &str, most: usize, judge: &'j Judge) -> Result<NumberSequences<'j>> {
    let mut problems: Vec<Problem> = jsonl::read(&Path::new(DATA).join(name))?;
    problems.truncate(most);
    NumberSequences::open(problems, None, judge)
}
