//! Entry point: parse, set up logging, dispatch, and turn an error into one clear line and an exit
//! code.

use anyhow::Result;
use codeseq::base::{error, log, terminal, threads};
use codeseq::cli;
use codeseq::sandbox::launcher;
use std::process::ExitCode;

fn main() -> ExitCode {
    if launcher::run_if_asked() {
        return ExitCode::SUCCESS;
    }
    match threads::check_stack().and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads stdout has seen enough, as `head` does.
        Err(e) if e.downcast_ref::<cli::OutputClosed>().is_some() => ExitCode::SUCCESS,
        Err(e) => {
            terminal::line(format_args!("error: {e:#}"));
            ExitCode::from(error::exit_code(&e))
        }
    }
}

fn run() -> Result<()> {
    let cli = cli::Cli::read()?;
    log::init(cli.verbosity());
    cli::run(cli)
}
