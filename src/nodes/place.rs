//! This file finds out which node of a run this process is.
//!
//! Contract: it reads the variables that people, torchrun and Slurm set. Values that do not fit
//! together are a mistake of the user.

use crate::base::error::usage;
use anyhow::Result;

/// One of these variables says how many nodes there are: ours, torchrun's, Slurm's.
const COUNT: [&str; 3] = ["NNODES", "GROUP_WORLD_SIZE", "SLURM_NNODES"];
/// One of these variables says which of them this is.
const RANK: [&str; 3] = ["NODE_RANK", "GROUP_RANK", "SLURM_NODEID"];

/// The place of this process among the nodes of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// Nodes are numbered from 0.
    pub rank: usize,
    pub count: usize,
    /// This is the host name or address of node 0.
    pub master: String,
    /// Node 0 listens on this port.
    pub port: u16,
}

impl Nodes {
    /// Reads the variables `NNODES`, `NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT`, or those that
    /// torchrun (`GROUP_WORLD_SIZE`, `GROUP_RANK`) and Slurm (`SLURM_NNODES`, `SLURM_NODEID`,
    /// `SLURM_JOB_NODELIST`) set in their place. Without any of them the run is on this node alone.
    /// Under torchrun node 0 listens on the port after `MASTER_PORT`.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(process_variable)
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let count = number(&variable, &COUNT, 1)?;
        let rank = number(&variable, &RANK, 0)?;
        if count == 0 {
            return Err(usage(
                "NNODES is 0: it counts all nodes of the run, so it must be 1 or more",
            ));
        }
        if rank >= count {
            let last = count - 1;
            return Err(usage(format!(
                "NODE_RANK is {rank} and NNODES is {count}: node ranks must be 0 to {last}"
            )));
        }
        if number(&variable, &["LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"], 1)? > 1 {
            let what = "start one process per node: it drives all GPUs of the node (torchrun \
                        --nproc-per-node 1, srun --ntasks-per-node 1)";
            return Err(usage(what));
        }
        let first_of_slurm = || variable("SLURM_JOB_NODELIST").map(|list| first_host(&list));
        let master = variable("MASTER_ADDR").or_else(first_of_slurm);
        let master = match master {
            Some(master) => master,
            None if count == 1 => "localhost".to_owned(),
            None => return Err(usage("MASTER_ADDR is not set: give it the address of node 0")),
        };
        // Where torchrun runs a store of its own, it listens on the port itself.
        let is_taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|used| used == "True");
        let last = usize::from(u16::MAX) - usize::from(is_taken);
        let port = number(&variable, &["MASTER_PORT"], 29_500)?;
        if !(1..=last).contains(&port) {
            return Err(usage(format!("MASTER_PORT is {port}: it must be 1 to {last}")));
        }
        Ok(Self { rank, count, master, port: port as u16 + u16::from(is_taken) })
    }

    /// Returns how many of `ranks` ranks are on this node.
    pub fn share(&self, ranks: usize) -> Result<usize> {
        match ranks.is_multiple_of(self.count) {
            true => Ok(ranks / self.count),
            false => Err(usage(format!(
                "train.ranks is {ranks}, for all nodes together: it must be a multiple of the {} nodes \
                 (NNODES)",
                self.count
            ))),
        }
    }
}

/// Refuses a command that every node would run by itself.
pub fn expect_one() -> Result<()> {
    match number(process_variable, &COUNT, 1)? {
        ..=1 => Ok(()),
        count => Err(usage(format!(
            "this is one of {count} nodes (NNODES or SLURM_NNODES), but only sft and grpo work over several: \
             run it on one node, with NNODES=1"
        ))),
    }
}

/// Returns a variable of this process, if it is not empty.
fn process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns the number in the first variable of `names` that is set.
fn number(
    variable: impl Fn(&str) -> Option<String>,
    names: &[&str],
    default: usize,
) -> Result<usize> {
    let Some((name, value)) = names.iter().find_map(|n| Some((n, variable(n)?))) else {
        return Ok(default);
    };
    let parsed = value.trim().parse();
    parsed.map_err(|_| usage(format!("{name} is {value:?}, not a whole number")))
}

/// Returns the first host of a Slurm list such as `gpu[003-010,015],login1`.
fn first_host(list: &str) -> String {
    let Some((prefix, rest)) = list.split_once('[') else {
        return list.split(',').next().unwrap_or_default().to_owned();
    };
    if let Some((first, _)) = prefix.split_once(',') {
        return first.to_owned();
    }
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    format!("{prefix}{digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Nodes> {
        Nodes::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn ranks_are_divided_evenly_among_nodes() {
        let nodes = parse(&[("NNODES", "4"), ("MASTER_ADDR", "a")]).unwrap();
        assert_eq!(nodes.share(32).unwrap(), 8);
        let error = nodes.share(6).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(error.to_string().contains("train.ranks is 6"), "{error}");
    }

    #[test]
    fn variables_of_torchrun_and_slurm_are_understood() {
        let plain =
            [("NNODES", "2"), ("NODE_RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "7")];
        let expected = Nodes { rank: 1, count: 2, master: "a".to_owned(), port: 7 };
        assert_eq!(parse(&plain).unwrap(), expected);
        let torchrun = [("GROUP_WORLD_SIZE", "2"), ("GROUP_RANK", "1"), ("LOCAL_WORLD_SIZE", "1")];
        let address = [("MASTER_ADDR", "a"), ("MASTER_PORT", "7")];
        assert_eq!(parse(&[&torchrun[..], &address].concat()).unwrap(), expected);
        let store = [("TORCHELASTIC_USE_AGENT_STORE", "True")];
        assert_eq!(parse(&[&torchrun[..], &address, &store].concat()).unwrap().port, 8);
        let slurm = [("SLURM_NNODES", "2"), ("SLURM_NODEID", "1"), ("MASTER_PORT", "7")];
        let list = [("SLURM_JOB_NODELIST", "a,b")];
        assert_eq!(parse(&[&slurm[..], &list].concat()).unwrap(), expected);
    }

    #[test]
    fn the_first_host_of_a_slurm_list_is_found() {
        for (list, first) in [
            ("gpu7", "gpu7"),
            ("gpu7,gpu9", "gpu7"),
            ("gpu[003-010,015]", "gpu003"),
            ("gpu[12,15],login", "gpu12"),
            ("login,gpu[1-2]", "login"),
        ] {
            assert_eq!(first_host(list), first);
        }
    }

    #[test]
    fn impossible_variables_are_mistakes_of_the_user() {
        for (variables, words) in [
            (&[("NNODES", "two")][..], "NNODES is \"two\""),
            (&[("NNODES", "0")], "NNODES is 0"),
            (&[("NNODES", "2"), ("NODE_RANK", "2")], "node ranks must be 0 to 1"),
            (&[("NNODES", "2"), ("NODE_RANK", "1")], "MASTER_ADDR is not set"),
            (&[("LOCAL_WORLD_SIZE", "8")], "one process per node"),
            (&[("MASTER_PORT", "70000")], "must be 1 to 65535"),
            (&[("MASTER_PORT", "0")], "MASTER_PORT is 0"),
        ] {
            let error = parse(variables).unwrap_err();
            assert_eq!(crate::base::error::exit_code(&error), 2);
            assert!(format!("{error:#}").contains(words), "{error:#}");
        }
    }
}
