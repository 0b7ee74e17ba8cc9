//! Entry point: parse, set up logging, dispatch, and turn an error into one clear line and an exit
//! code.

use clap::Parser;
use codeseq::base::{error, log};
use codeseq::cli;
use codeseq::sandbox::launcher;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == launcher::ARGUMENT) {
        launcher::run();
        return ExitCode::SUCCESS;
    }
    let cli = cli::Cli::parse();
    log::init(cli.verbosity());
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads stdout has seen enough, as `head` does.
        Err(e) if e.downcast_ref::<cli::OutputClosed>().is_some() => ExitCode::SUCCESS,
        Err(e) => {
            #[expect(clippy::print_stderr, reason = "the one place where errors are shown")]
            {
                eprintln!("error: {e:#}");
            }
            ExitCode::from(error::exit_code(&e))
        }
    }
}
