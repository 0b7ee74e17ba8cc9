//! HumanEval and HumanEval+: a function to complete from its documentation (Chen et al., 2021; Liu et al., 2023).
//!
//! Read is the published file, `HumanEval.jsonl.gz` or unpacked, or a file of HumanEval+ (with `base_input` and
//! `plus_input`, whose right values its own solution gives). A problem whose own solution fails is refused.

use super::{Coding, CodingProblem, calls, last_block};
use crate::base::error::usage;
use crate::data::rows;
use crate::sandbox::Judge;
use crate::tasks::Sampling;
use crate::tasks::benchmark::{Settings, place};
use crate::tasks::grade::FormatError;
use crate::tasks::quiz::raw;
use anyhow::Result;
use minijinja::context;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::LazyLock;

/// The rules of asking and grading HumanEval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HumanEvalPreset {
    /// Asks for the whole function in a Python block; the last one counts
    #[default]
    Ours,
    /// OpenCompass's default (humaneval_openai_sample_evals_gen_dcae0e): the first block, or else the whole text
    OpencompassDcae0e,
}

#[derive(Deserialize, Serialize)]
struct Row {
    task_id: String,
    prompt: String,
    entry_point: String,
    canonical_solution: String,
    #[serde(default)]
    test: String,
    #[serde(default)]
    base_input: Vec<Box<RawValue>>,
    #[serde(default)]
    plus_input: Vec<Box<RawValue>>,
    #[serde(default)]
    atol: f64,
}

/// HumanEval in a file, or in a directory that holds one.
pub fn humaneval<'j>(settings: &Settings<HumanEvalPreset>, judge: &'j Judge) -> Result<Coding<'j>> {
    let path = match settings.data.is_dir() {
        true => place(
            &settings.data,
            &["HumanEval.jsonl.gz", "HumanEval.jsonl", "HumanEvalPlus.jsonl"],
        )?,
        false => settings.data.clone(),
    };
    let rows: Vec<Row> = settings.chosen(rows::read(&path)?)?;
    let asked = rows.iter().map(|row| (row.task_id.clone(), String::new(), tests(row))).collect();
    let tests = calls(judge, asked)?;
    let mut problems = Vec::new();
    for (row, tests) in rows.into_iter().zip(tests) {
        if !row.prompt.contains(&format!("def {}(", row.entry_point)) {
            return Err(usage(format!(
                "{}: problem {}: its prompt does not begin the function {:?}",
                path.display(),
                row.task_id,
                row.entry_point
            )));
        }
        problems.push(CodingProblem {
            shown: context! { prompt => row.prompt.trim_end(), entry_point => &row.entry_point },
            family: None,
            row: raw(&row)?,
            id: row.task_id,
            stub: row.prompt,
            entry: row.entry_point,
            tests,
        });
    }
    let bundled = match settings.preset {
        HumanEvalPreset::Ours => Some((
            include_str!("../../../data/prompts/humaneval.txt"),
            "data/prompts/humaneval.txt",
        )),
        HumanEvalPreset::OpencompassDcae0e => None,
    };
    let extract = match settings.preset {
        HumanEvalPreset::Ours => ours,
        HumanEvalPreset::OpencompassDcae0e => opencompass,
    };
    let sampling = Sampling { rollouts: 1, temperature: 0.0, max_new_tokens: 4096 };
    let words = settings.words(bundled)?;
    Coding::new("humaneval", settings, problems, (words, sampling), extract, judge)
}

/// What `check.py` is asked of a problem.
fn tests(row: &Row) -> Value {
    let program = format!("{}{}", row.prompt, row.canonical_solution);
    if row.base_input.is_empty() {
        return json!({
            "do": "record", "program": program, "test": row.test, "entry": row.entry_point
        });
    }
    // As texts, since integers have any size.
    let inputs: Vec<&str> =
        row.base_input.iter().chain(&row.plus_input).map(|input| input.get()).collect();
    json!({
        "do": "inputs", "program": program, "entry": row.entry_point, "inputs": inputs,
        "atol": row.atol
    })
}

/// The last block after the prompt: a whole function, or what its body goes on with.
fn ours(answer: &str, problem: &CodingProblem) -> Result<String, FormatError> {
    let code = last_block(answer, problem)?;
    let is_whole = code.lines().any(|line| line.starts_with(&format!("def {}", problem.entry)));
    let between = if is_whole { "\n" } else { "" };
    Ok(format!("{}{between}{code}", problem.stub))
}

/// The first closed block, whatever its language, or else the whole text, after the prompt; white space before it
/// goes, so that a body alone never runs.
fn opencompass(answer: &str, problem: &CodingProblem) -> Result<String, FormatError> {
    static BLOCK: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?s)```\w*\n(.*?)```").expect("invariant: the pattern is written here")
    });
    let code =
        BLOCK.captures(answer).map_or(answer, |found| found.get(1).map_or("", |m| m.as_str()));
    Ok(format!("{}{}", problem.stub, code.trim_start()))
}
