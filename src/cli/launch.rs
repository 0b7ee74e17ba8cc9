//! What every training command does around its loop: plan, dry run, run directory, result.

use super::config::ConfigArgs;
use crate::base::interrupt;
use crate::config::Resolved;
use crate::train::plan::Plan;
use crate::train::run::RunDir;
use anyhow::Result;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Prints the plan and settings for `--dry-run`; otherwise takes the run directory (`default_out`
/// where none is given), trains in it, and prints the trained model's directory.
pub fn launch<T>(
    args: &ConfigArgs,
    resolved: &Resolved<T>,
    plan: &Plan,
    default_out: &str,
    train: impl FnOnce(&RunDir) -> Result<PathBuf>,
) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    if args.dry_run {
        for (label, value) in plan.lines() {
            writeln!(stdout, "{label:<32}{value}")?;
        }
        writeln!(stdout, "\n{}", resolved.render_with_origins())?;
        return Ok(());
    }
    interrupt::install()?;
    let out = args.out.as_deref().unwrap_or(Path::new(default_out));
    let run = RunDir::create(out, &resolved.to_toml(), args.existing())?;
    run.write_plan(plan)?;
    let model_dir = train(&run)?;
    writeln!(stdout, "{}", model_dir.display())?;
    Ok(())
}

/// The command line as it was given.
pub fn command_line() -> Vec<String> {
    std::env::args().collect()
}
