//! `train report` shows runs side by side, in the terminal or as one HTML page, or their best and worst
//! samples.

use crate::base::error::usage;
use crate::base::fs::{check_writable, write_atomic};
use crate::report::compare::{self, Run};
use crate::report::samples::{self, End};
use anyhow::Result;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show the runs in these directories; a directory that holds several runs stands for all of them
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// Write a self-contained HTML page with every result
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Draw curves of this metric, or of all metrics whose name begins with it (`reward`), in the terminal
    #[arg(long = "metric", value_name = "KEY", conflicts_with_all = ["out", "samples"])]
    metrics: Vec<String>,

    /// Show the responses with the highest or lowest rewards
    #[arg(long, value_name = "END", conflicts_with = "out")]
    samples: Option<End>,

    /// Show this many responses
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5, requires = "samples")]
    count: usize,
}

pub fn run(args: Args) -> Result<()> {
    if args.count == 0 {
        return Err(usage("-n is 0: it must be at least 1"));
    }
    args.out.as_deref().map_or(Ok(()), |page| check_writable(page, &[]))?;
    if let Some(end) = args.samples {
        let texts = args.runs.iter().map(|run| samples::text(run, end, args.count));
        return super::print(texts.collect::<Result<String>>()?);
    }
    let mut runs = Vec::new();
    for path in &args.runs {
        runs.extend(Run::read_all(path)?);
    }
    match args.out {
        Some(page) => {
            write_atomic(&page, compare::html(&runs).as_bytes())?;
            super::print(format_args!("{}\n", page.display()))
        }
        None if args.metrics.is_empty() => super::print(compare::text(&runs)),
        None => super::print(compare::curves(&runs, &args.metrics)?),
    }
}
