//! What every training command does around its loop: plan, dry run, run directory, result.

use super::config::ConfigArgs;
use super::print;
use crate::base::interrupt;
use crate::config::Resolved;
use crate::nodes::Nodes;
use crate::plan::Plan;
use crate::run::{RunConfig, RunDir};
use crate::trainer::serve;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Prints the plan and settings for `--dry-run`; otherwise takes the run directory `out`, trains in it, and
/// prints the trained model's directory. A node other than node 0 does what that asks for instead.
pub fn launch<C: RunConfig>(
    args: &ConfigArgs,
    resolved: &Resolved<C>,
    plan: &Plan,
    out: &Path,
    train: impl FnOnce(&RunDir) -> Result<PathBuf>,
) -> Result<()> {
    if args.dry_run {
        let lines = plan.lines().into_iter().map(|(label, value)| format!("{label:<40}{value}\n"));
        return print(format!("{}\n{}", lines.collect::<String>(), resolved.render_with_origins()));
    }
    let nodes = Nodes::from_env()?;
    if nodes.rank > 0 {
        plan.check_machine(&nodes)?;
        return serve(&nodes, plan.ranks);
    }
    nodes.listen()?;
    let work = || {
        plan.check_machine(&nodes)?;
        interrupt::install()?;
        let run = RunDir::create(out, resolved, args.existing())?;
        run.write_plan(plan)?;
        train(&run).map_err(|e| run.ended_by(e))
    };
    let model_dir = work().inspect_err(|error| nodes.call_off(error))?;
    print(format!("{}\n", model_dir.display()))
}

/// The command line as it was given.
pub fn command_line() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}
