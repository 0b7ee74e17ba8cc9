//! What every set of problems must fulfil before a model is asked.

use crate::base::error::usage;
use crate::data::problem::Problem;
use anyhow::Result;
use std::collections::HashSet;

/// Refuses a set without problems, with an id twice, or with a solvability that is no share; the problem is
/// named.
pub(crate) fn check(problems: &[Problem]) -> Result<()> {
    if problems.is_empty() {
        return Err(usage("there are no problems to attempt"));
    }
    let mut ids = HashSet::new();
    for Problem { problem_id: id, solvability, .. } in problems {
        if !ids.insert(id) {
            return Err(usage(format!("problem {id:?} occurs twice: ids must differ")));
        }
        if let Some(share) = solvability.filter(|share| !(0.0..=1.0).contains(share)) {
            return Err(usage(format!("problem {id:?}: solvability {share} is not a share")));
        }
    }
    Ok(())
}
