//! The judge's numbers: programs a second, CPU time a program and latency, in both modes.
//!
//!     cargo bench --bench judge                          2,000 programs of 7 cases, both modes
//!     cargo bench --bench judge -- --programs 50000      the soak: also memory, processes, descriptors
//!     cargo bench --bench judge -- --export DIR          the same programs as files, for other judges
//!
//! CPU time counts everything: this process, servers and children. It is the number to compare;
//! programs a second depend on what else the machine does (the load average is printed).

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

#[path = "../tests/judge_support/mod.rs"]
mod judge_support;

use anyhow::{Context, Result};
use codeseq::sandbox::{Case, Judge, Mode, Options, Program, VerdictKind, verdicts};
use judge_support::{Solved, mix};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let count = value("--programs").map_or(Ok(2_000), |n| n.parse()).context("--programs")?;
    let programs = mix(count);
    if let Some(dir) = value("--export") {
        return export(&programs, Path::new(dir));
    }
    println!("{count} programs of 7 cases, load average {}", load()?);
    measure(Mode::ForkServer, false, &programs)?;
    if count <= 2_000 {
        measure(Mode::ForkServer, true, &programs[..count.min(320)])?;
        measure(Mode::OneShot, false, &programs[..count.min(320)])?;
    }
    Ok(())
}

fn measure(mode: Mode, isolate_cases: bool, programs: &[Solved]) -> Result<()> {
    let options = Options { mode, isolate_cases, ..Options::default() };
    let workers = options.workers;
    let jobs: Vec<(Option<String>, &[Case])> =
        programs.iter().map(|p| (Some(p.code.clone()), &p.cases[..])).collect();
    let cpu_before = cpu_time()?;
    let judge = Judge::start(options)?;
    verdicts(&judge, &jobs[..workers.min(jobs.len())]);
    let before = footprint(&judge);
    let began = Instant::now();
    let mut wrong = 0;
    for batch in jobs.chunks(BATCH) {
        let results = verdicts(&judge, batch);
        wrong += results.iter().filter(|v| v.kind != VerdictKind::Pass).count();
    }
    let elapsed = began.elapsed();
    let after = footprint(&judge);
    anyhow::ensure!(wrong == 0, "{wrong} of {} right programs did not pass", programs.len());
    let latencies = latencies(&judge, programs);
    drop(judge);
    let singles = programs.len().min(LATENCY_PROGRAMS);
    let ran = (programs.len() + singles + workers) as f64;
    let cpu = cpu_time()? - cpu_before;
    let isolation = if isolate_cases { ", a process a case" } else { "" };
    println!(
        "{mode:?}{isolation}: {:.0} programs/s on {workers} workers, {:.2} ms CPU a program, \
         latency p50 {:.1} ms, p99 {:.1} ms",
        programs.len() as f64 / elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e3 / ran,
        latencies[latencies.len() / 2].as_secs_f64() * 1e3,
        latencies[latencies.len() * 99 / 100].as_secs_f64() * 1e3,
    );
    println!("  before: {before}\n  after:  {after}");
    Ok(())
}

/// Programs whose results are held at a time: a soak measures the judge, not what it is asked for.
const BATCH: usize = 2_000;
const LATENCY_PROGRAMS: usize = 500;

/// Sorted times of single programs, one after the other.
fn latencies(judge: &Judge, programs: &[Solved]) -> Vec<Duration> {
    let mut latencies: Vec<Duration> = programs
        .iter()
        .take(LATENCY_PROGRAMS)
        .map(|solved| {
            let inputs = solved.cases.iter().map(|case| case.input.clone()).collect();
            let program = [Program { code: solved.code.clone(), inputs }];
            let began = Instant::now();
            judge.run(&program);
            began.elapsed()
        })
        .collect();
    latencies.sort();
    latencies
}

fn cpu_time() -> Result<Duration> {
    let mut total = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            total +=
                Duration::from_micros(time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64);
        }
    }
    Ok(total)
}

/// Memory, processes and descriptors of this process and its servers.
fn footprint(judge: &Judge) -> String {
    let memory_kb = |pid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
    };
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let (mut processes, mut servers_kb) = (0, 0);
    let mut waiting: Vec<String> = judge.server_pids().iter().map(u32::to_string).collect();
    while let Some(pid) = waiting.pop() {
        processes += 1;
        servers_kb += memory_kb(&pid);
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        waiting.extend(children.unwrap_or_default().split_whitespace().map(str::to_owned));
    }
    format!(
        "{} kB resident, {descriptors} descriptors; {processes} server processes with {servers_kb} kB",
        memory_kb("self")
    )
}

fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("reading the load average")?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

fn export(programs: &[Solved], dir: &Path) -> Result<()> {
    let (mut problems, mut solutions) = (String::new(), String::new());
    for (id, solved) in programs.iter().enumerate() {
        problems += &json!({ "problem_id": id, "tests": solved.cases }).to_string();
        solutions += &json!({ "problem_id": id, "code": solved.code }).to_string();
        problems.push('\n');
        solutions.push('\n');
    }
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("problems.jsonl"), problems)?;
    std::fs::write(dir.join("solutions.jsonl"), solutions)?;
    Ok(())
}
