//! What the training commands share: their arguments, and everything around the loop: plan, dry run, run
//! directory and result.

use super::print;
use crate::base::{interrupt, memory};
use crate::config::{self, Resolved};
use crate::nodes::Nodes;
use crate::plan::{Device, Plan, Workload};
use crate::run::{Existing, RunConfig, RunDir};
use crate::trainer::serve;
use anyhow::Result;
use schemars::JsonSchema;
use std::path::{Path, PathBuf};

/// Where the configuration comes from, and what happens to the run directory.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgs {
    /// Read this TOML file; several are merged from left to right (lists replace)
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Vec<PathBuf>,

    /// Override one value, such as optim.lr=0.001
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Print the plan and every setting with its origin, then stop
    #[arg(long)]
    pub dry_run: bool,

    /// Continue from the run directory's latest checkpoint
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,

    /// Replace the run that is in the run directory
    #[arg(long)]
    pub overwrite: bool,
}

impl ConfigArgs {
    /// Reads and merges the configuration.
    pub fn load<T: RunConfig + JsonSchema>(&self) -> Result<Resolved<T>> {
        config::load(&self.config, &self.set)
    }

    /// Returns what `work` returns, which comes before [`launch`]. If it fails on one of several nodes, the
    /// others are told why.
    pub fn prepare<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        work().inspect_err(|error| {
            if let (false, Ok(nodes)) = (self.dry_run, Nodes::from_env()) {
                nodes.call_off_early(error);
            }
        })
    }

    /// Plans a run. `--dry-run` refuses a model that GPUs do not compute here, because no check of the machine
    /// follows it.
    pub fn plan(&self, workload: &Workload) -> Result<Plan> {
        let plan = Plan::new(workload);
        if self.dry_run {
            plan.check_shape()?;
        }
        Ok(plan)
    }

    /// Returns what happens to a run that is already in the run directory.
    pub fn existing(&self) -> Existing {
        match (self.resume, self.overwrite) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Overwrite,
            _ => Existing::Refuse,
        }
    }
}

/// Prints the plan and the settings for `--dry-run`. Otherwise takes the run directory `out`, trains in it,
/// and prints the trained model's directory. A node other than node 0 works for that node instead.
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
        plan.check_machine(&nodes).inspect_err(|error| nodes.call_off(error))?;
        return serve(&nodes, plan.ranks);
    }
    nodes.listen()?;
    let work = || {
        plan.check_machine(&nodes)?;
        interrupt::install()?;
        let run = RunDir::create(out, resolved, args.existing())?;
        run.write_plan(plan)?;
        let before = memory::resident();
        let model_dir = train(&run).map_err(|e| run.ended_by(e))?;
        if let (Device::Cpu, Some(before), Some(peak)) =
            (plan.device, before, memory::peak_resident())
        {
            let [planned, taken] = [plan.total_bytes() as u64, peak.saturating_sub(before)];
            let [planned, taken] = [planned, taken].map(|bytes| bytes as f64 / 1e9);
            tracing::info!("memory: planned {planned:.3} GB, taken {taken:.3} GB at most");
        }
        Ok(model_dir)
    };
    let model_dir = work().inspect_err(|error| nodes.call_off(error))?;
    print(format!("{}\n", model_dir.display()))
}

pub fn command_line() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}
