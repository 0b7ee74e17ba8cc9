//! `train judge`: runs solutions on problems' tests and writes one verdict a line.

use crate::base::error::{Interrupted, usage};
use crate::base::fs::{AtomicFile, check_writable};
use crate::base::interrupt;
use crate::base::json;
use crate::base::progress::Progress;
use crate::data::problem::Problem;
use crate::data::rows;
use crate::sandbox::{
    Job, Judge, Limits, Mode, Options, Profile, Verdict, VerdictKind, Watch, verdicts_with,
};
use crate::tasks::{program, with_opened_thought};
use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read the problems with their tests from this file (JSON Lines)
    #[arg(long, value_name = "FILE")]
    problems: PathBuf,
    /// Read the solutions from this file: problem_id, and code or response (JSON Lines)
    #[arg(long, value_name = "FILE")]
    solutions: PathBuf,
    /// Write the verdicts to this file, in the order of the solutions (JSON Lines)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Read responses as if <think> stood before them: without </think> they have no program
    #[arg(long)]
    thought_opened: bool,
    /// How the judge runs programs.
    #[command(flatten)]
    judge: JudgeArgs,
}

/// The options of the judge, for every command that runs programs.
#[derive(Debug, Clone, clap::Args)]
pub struct JudgeArgs {
    /// Run this many programs at the same time [default: one and a half for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// Limit the CPU time of one case [default: 1000; a benchmark's own]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    cpu_ms_per_case: Option<u64>,
    /// Limit the CPU time of all cases of a program together [default: 3000; a benchmark's own]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    cpu_ms_per_program: Option<u64>,
    /// Limit the time that a case sleeps or waits
    #[arg(long, value_name = "SECS", default_value_t = Limits::default().wall_secs_per_case, value_parser = clap::value_parser!(u64).range(1..))]
    wall_secs_per_case: u64,
    /// Limit the address space of a program [default: 512; a benchmark's own]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(64..1 << 20))]
    memory_mb: Option<u64>,
    /// Limit the output of one case [default: 262144; a benchmark's own]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    output_bytes: Option<u64>,
    /// Set Python's recursion limit
    #[arg(long, value_name = "N", default_value_t = Limits::default().recursion, value_parser = clap::value_parser!(u32).range(50..10_000_000))]
    recursion: u32,
    /// Pass a case's input unchanged, even if it does not end with a line break
    #[arg(long)]
    raw_input: bool,
    /// Give programs these builtins
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Start the processes of programs in this way
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Run every case in a process of its own
    #[arg(long)]
    isolate_cases: bool,
    /// Run without namespaces
    #[arg(long)]
    no_namespaces: bool,
    /// Run programs with this Python interpreter [default: found on the path]
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Remember this many outcomes of equal programs and inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    cache_entries: usize,
    /// Run even if neither Landlock nor seccomp protects this machine from programs
    #[arg(long = "unsafe")]
    allow_unsafe: bool,
}

impl JudgeArgs {
    pub fn options(&self) -> Options {
        self.options_within(Limits::default())
    }

    /// The same where `limits` hold unless an argument says otherwise.
    pub fn options_within(&self, limits: Limits) -> Options {
        let options = Options::default();
        let output_bytes = self.output_bytes.map_or(limits.output_bytes, |bytes| bytes as usize);
        Options {
            workers: self.workers.map_or(options.workers, usize::from),
            limits: Limits {
                cpu_ms_per_case: self.cpu_ms_per_case.unwrap_or(limits.cpu_ms_per_case),
                cpu_ms_per_program: self.cpu_ms_per_program.unwrap_or(limits.cpu_ms_per_program),
                wall_secs_per_case: self.wall_secs_per_case,
                memory_mb: self.memory_mb.unwrap_or(limits.memory_mb),
                output_bytes,
                recursion: self.recursion,
                raw_input: self.raw_input,
            },
            profile: self.profile,
            mode: self.mode,
            isolate_cases: self.isolate_cases,
            python: self.python.clone(),
            cache_entries: self.cache_entries,
            namespaces: !self.no_namespaces,
            allow_unsafe: self.allow_unsafe,
            ..options
        }
    }
}

/// A line of the solutions. A program or response that is null or no text cannot be run and is judged as
/// `no_code`.
#[derive(Deserialize)]
struct Solution {
    problem_id: Id,
    #[serde(default, deserialize_with = "given")]
    code: Option<Given>,
    #[serde(default, deserialize_with = "given")]
    response: Option<Given>,
}

/// The text of a key that the line has; `None` if its value is no text.
type Given = Option<String>;

fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Given>, D::Error> {
    let written = Box::<RawValue>::deserialize(deserializer)?;
    Ok(Some(serde_json::from_str(written.get()).ok()))
}

impl Solution {
    /// Returns the program to run, if there is one. A line with none or both of the keys is an error.
    fn program(&self, thought_opened: bool) -> Result<Option<String>, &'static str> {
        match (&self.code, &self.response) {
            (Some(Some(_)), Some(Some(_))) | (None, None) => Err("give either code or response"),
            (Some(Some(code)), _) => Ok(Some(code.clone())),
            (_, Some(Some(response))) => {
                Ok(program(&with_opened_thought(response, thought_opened)).ok())
            }
            (Some(None), _) | (_, Some(None)) => Ok(None),
        }
    }
}

/// A problem's id, and whether it was written as a string or as an integer.
struct Id {
    text: String,
    written: Box<RawValue>,
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Box::<RawValue>::deserialize(deserializer)?;
        let text = json::text(&*written).map_err(de::Error::custom)?;
        Ok(Self { text, written })
    }
}

/// A line of the problems.
struct Judged {
    problem: Problem,
    tolerance: Option<f64>,
}

impl<'de> Deserialize<'de> for Judged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Extra {
            tolerance: Option<f64>,
        }
        let line = Box::<RawValue>::deserialize(deserializer)?;
        let problem = serde_json::from_str(line.get()).map_err(de::Error::custom)?;
        let Extra { tolerance } = serde_json::from_str(line.get()).map_err(de::Error::custom)?;
        match tolerance {
            Some(t) if t < 0.0 => Err(de::Error::custom("tolerance: not below zero")),
            tolerance => Ok(Self { problem, tolerance }),
        }
    }
}

/// A line of the output.
#[derive(Serialize)]
struct Row<'a> {
    problem_id: &'a RawValue,
    #[serde(flatten)]
    verdict: Verdict,
}

pub fn run(args: Args) -> Result<()> {
    check_writable(&args.out, &[&args.problems, &args.solutions])?;
    let problems: Vec<Judged> = rows::read(&args.problems)?;
    let by_id = index(&problems, &args.problems)?;
    let solutions: Vec<Solution> = rows::read(&args.solutions)?;
    let mut jobs = Vec::with_capacity(solutions.len());
    for (number, solution) in solutions.iter().enumerate() {
        let place = || format!("{}: solution {}", args.solutions.display(), number + 1);
        let &at = by_id.get(solution.problem_id.text.as_str()).ok_or_else(|| {
            usage(format!(
                "{}: no problem {:?} in {}",
                place(),
                solution.problem_id.text,
                args.problems.display()
            ))
        })?;
        let code = solution
            .program(args.thought_opened)
            .map_err(|why| usage(format!("{}: {why}", place())))?;
        let Judged { problem, tolerance } = &problems[at];
        jobs.push(Job { code, cases: &problem.tests, tolerance: *tolerance });
    }
    interrupt::install()?;
    let judge = Judge::start(args.judge.options())?;
    tracing::info!("{}", judge.layers());
    let verdicts = watched(&judge, &jobs)?;
    let summary = Summary::of(&verdicts);
    let mut out = AtomicFile::create(&args.out)?;
    let writing = || format!("writing {}", args.out.display());
    for (solution, verdict) in solutions.iter().zip(verdicts) {
        let row = Row { problem_id: &solution.problem_id.written, verdict };
        serde_json::to_writer(&mut out, &row).with_context(writing)?;
        out.write_all(b"\n").with_context(writing)?;
    }
    out.commit()?;
    super::print(format!("{}\n", summary.text()))
}

/// Judges with a progress bar; an interrupt stops it.
fn watched(judge: &Judge, jobs: &[Job<'_>]) -> Result<Vec<Verdict>> {
    let programs = jobs.iter().filter(|job| job.code.is_some()).count();
    let bar = Progress::new("judge", programs as u64, "programs");
    let shown = Cell::new(0);
    let advance = |done: usize| {
        let more = done - shown.replace(done);
        // Programs that were given up count as done.
        if !interrupt::requested() {
            bar.inc(more as u64);
        }
    };
    let watch = Watch { progress: Some(&advance), cancel: Some(&interrupt::requested) };
    let verdicts = verdicts_with(judge, jobs, watch);
    bar.finish();
    match interrupt::requested() {
        true => Err(Interrupted.into()),
        false => Ok(verdicts),
    }
}

fn index<'a>(problems: &'a [Judged], path: &Path) -> Result<HashMap<&'a str, usize>> {
    let mut by_id = HashMap::new();
    for (at, Judged { problem, .. }) in problems.iter().enumerate() {
        let id = problem.problem_id.as_str();
        if problem.tests.is_empty() {
            return Err(usage(format!("{}: problem {id:?} has no tests", path.display())));
        }
        if by_id.insert(id, at).is_some() {
            return Err(usage(format!("{}: problem {id:?} occurs twice", path.display())));
        }
    }
    Ok(by_id)
}

/// The counts of all verdicts.
struct Summary {
    total: usize,
    passed: usize,
    infra: usize,
    near_limit: usize,
    reasons: BTreeMap<String, usize>,
}

impl Summary {
    fn of(verdicts: &[Verdict]) -> Self {
        let count = |is: &dyn Fn(&Verdict) -> bool| verdicts.iter().filter(|v| is(v)).count();
        let mut reasons = BTreeMap::new();
        for verdict in verdicts {
            if let VerdictKind::Fail(reason) = verdict.kind {
                *reasons.entry(reason.to_string()).or_default() += 1;
            }
        }
        Self {
            total: verdicts.len(),
            passed: count(&|v| v.kind == VerdictKind::Pass),
            infra: count(&|v| v.kind == VerdictKind::Infra),
            near_limit: count(&|v| v.near_limit),
            reasons,
        }
    }

    fn text(&self) -> String {
        let failed = self.total - self.passed - self.infra;
        let reasons: Vec<String> =
            self.reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let reasons = match reasons.is_empty() {
            true => String::new(),
            false => format!(" ({})", reasons.join(", ")),
        };
        format!(
            "{} solutions: {} pass, {failed} fail{reasons}, {} infra; {} within a factor of two of a limit",
            self.total, self.passed, self.infra, self.near_limit
        )
    }
}
