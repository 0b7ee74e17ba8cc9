//! `train completions`: the completion script of a shell.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// Arguments of this command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "train", &mut script);
    super::print(String::from_utf8_lossy(&script))
}
