//! Entry point: parse, dispatch, and turn an error into one clear line and an exit code.

use clap::Parser;
use codeseq::{base::error, cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            #[expect(clippy::print_stderr, reason = "the one place where errors are shown")]
            {
                eprintln!("error: {e:#}");
            }
            ExitCode::from(error::exit_code(&e))
        }
    }
}
