//! `train report`: runs side by side, in the terminal and as one HTML page.

use crate::base::fs::{check_writable, write_atomic};
use crate::report::compare::{self, Run};
use anyhow::Result;
use std::path::PathBuf;

/// Arguments of this command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run directories; one that holds several runs stands for all of them
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// Write a self-contained HTML page
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    args.out.as_deref().map_or(Ok(()), |page| check_writable(page, &[]))?;
    let mut runs = Vec::new();
    for path in &args.runs {
        runs.extend(Run::read_all(path)?);
    }
    match args.out {
        Some(page) => {
            write_atomic(&page, compare::html(&runs).as_bytes())?;
            super::print(format_args!("{}\n", page.display()))
        }
        None => super::print(compare::text(&runs)),
    }
}
