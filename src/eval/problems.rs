//! A set of problems that attempts can be scored on.

use crate::base::error::usage;
use crate::data::problem::Problem;
use crate::rewards::{Reference, RewardConfig, RewardKind};
use anyhow::Result;
use std::collections::HashSet;

/// Refuses a set without problems, with an id twice, or with a problem that no program can be judged
/// or no case compared on; the problem is named.
pub fn check(problems: &[Problem]) -> Result<()> {
    if problems.is_empty() {
        return Err(usage("there are no problems to attempt"));
    }
    let mut ids = HashSet::new();
    for problem in problems {
        check_next(problem, &mut ids)?;
        reference(problem)?;
    }
    Ok(())
}

/// Refuses a problem that no program can be judged on, or whose id is among `ids` already.
pub fn check_next(problem: &Problem, ids: &mut HashSet<String>) -> Result<()> {
    let id = &problem.problem_id;
    if problem.tests.is_empty() {
        return Err(usage(format!("problem {id:?} has no tests")));
    }
    if !ids.insert(id.clone()) {
        return Err(usage(format!("problem {id:?} occurs twice: ids must differ")));
    }
    Ok(())
}

/// Refuses, as [`check`] does, and also problems without terms to check a model's own cases against.
pub fn check_with_terms(problems: &[Problem]) -> Result<()> {
    check(problems)?;
    match problems.iter().find(|problem| problem.terms.is_empty()) {
        None => Ok(()),
        Some(problem) => Err(usage(format!(
            "problem {:?} has no terms to check the model's own cases against",
            problem.problem_id
        ))),
    }
}

/// What cases are compared with.
pub fn reference(problem: &Problem) -> Result<Reference> {
    let config = RewardConfig { kind: RewardKind::Binary, ..RewardConfig::default() };
    Reference::new(problem, &config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn mistake(check: fn(&[Problem]) -> Result<()>, problems: Value) -> String {
        let problems: Vec<Problem> = serde_json::from_value(problems).unwrap();
        let error = check(&problems).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        error.to_string()
    }

    #[test]
    fn a_problem_that_cannot_be_scored_is_named() {
        let good = json!({"problem_id": "a", "tests": [{"input": 1, "output": 1}]});
        check(&serde_json::from_value::<Vec<Problem>>(json!([good])).unwrap()).unwrap();
        assert!(mistake(check, json!([])).contains("no problems"));
        assert!(mistake(check, json!([good, good])).contains("\"a\" occurs twice"));
        let untested = json!({"problem_id": "b", "tests": []});
        assert!(mistake(check, json!([good, untested])).contains("\"b\" has no tests"));
        let mut odd = good.clone();
        odd["terms"] = json!(["1", "one"]);
        assert!(mistake(check, json!([odd])).contains("bad term"));
        assert!(mistake(check_with_terms, json!([good])).contains("\"a\" has no terms"));
    }
}
