//! MBPP: short Python functions with three assertions each (Austin et al., 2021).
//!
//! Read are the published files `mbpp.jsonl` (974 problems) and `sanitized-mbpp.json` (427). Its test split is
//! `task_id` 11 to 510: 500 and 257 problems.

use super::{Coding, CodingProblem, calls, last_block};
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
use serde_json::json;
use std::sync::LazyLock;

/// The rules of asking and grading MBPP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MbppPreset {
    /// The test split, zero-shot with its assertions shown; the last Python block
    #[default]
    Ours,
    /// The same of all problems of the file
    OursAll,
    /// OpenCompass (sanitized_mbpp_gen_a447ff, mbpp_gen_830460): its extraction, without the setup and imports of tests
    #[value(name = "opencompass-a447ff")]
    #[serde(rename = "opencompass-a447ff")]
    OpencompassA447ff,
    /// The same since July 2026: == in an assertion compares types too
    #[value(name = "opencompass-a447ff-2026")]
    #[serde(rename = "opencompass-a447ff-2026")]
    OpencompassA447ff2026,
}

#[derive(Deserialize, Serialize)]
struct Row {
    task_id: u32,
    #[serde(alias = "prompt")]
    text: String,
    code: String,
    test_list: Vec<String>,
    #[serde(default)]
    test_setup_code: String,
    #[serde(default)]
    test_imports: Vec<String>,
}

/// MBPP in a file, or the sanitized one of a directory.
pub fn mbpp<'j>(settings: &Settings<MbppPreset>, judge: &'j Judge) -> Result<Coding<'j>> {
    let path = match settings.data.is_dir() {
        true => place(&settings.data, &["sanitized-mbpp.json", "mbpp.jsonl"])?,
        false => settings.data.clone(),
    };
    let is_asked =
        |row: &Row| settings.preset == MbppPreset::OursAll || (11..=510).contains(&row.task_id);
    let rows: Vec<Row> = rows::read::<Row>(&path)?.into_iter().filter(is_asked).collect();
    let rows = settings.chosen(rows)?;
    let is_ours = matches!(settings.preset, MbppPreset::Ours | MbppPreset::OursAll);
    let same_type = settings.preset == MbppPreset::OpencompassA447ff2026;
    let asked = rows.iter().map(|row| {
        let setup = match is_ours {
            true => format!("{}\n{}", row.test_imports.join("\n"), row.test_setup_code),
            false => String::new(),
        };
        let tests = json!({
            "do": "split", "program": row.code, "setup": setup, "tests": row.test_list,
            "with_names": !is_ours, "same_type": same_type
        });
        (row.task_id.to_string(), setup, tests)
    });
    let tests = calls(judge, asked.collect())?;
    let mut problems = Vec::new();
    for (row, tests) in rows.into_iter().zip(tests) {
        problems.push(CodingProblem {
            id: row.task_id.to_string(),
            family: None,
            shown: context! { text => &row.text, tests => &row.test_list },
            stub: String::new(),
            entry: String::new(),
            tests,
            row: raw(&row)?,
        });
    }
    let bundled = is_ours
        .then_some((include_str!("../../../data/prompts/mbpp.txt"), "data/prompts/mbpp.txt"));
    let (extract, max_new_tokens): (super::Extract, usize) = match is_ours {
        true => (last_block, 4096),
        false => (opencompass, 512),
    };
    let sampling = Sampling { rollouts: 1, temperature: 0.0, max_new_tokens };
    let words = settings.words(bundled)?;
    Coding::new("mbpp", settings, problems, (words, sampling), extract, judge)
}

/// OpenCompass's rule: the first form that occurs anywhere gives the text, which is cut at what ends a program.
fn opencompass(answer: &str, _: &CodingProblem) -> Result<String, FormatError> {
    const BEGINS: [&str; 2] = [r"\[BEGIN\]\s*", r"BEGIN\s*"];
    const ENDS: [&str; 2] = [r"\s*\[DONE\]", r"\s*DONE"];
    static FORMS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
        let mut forms = Vec::new();
        for (open, close) in [("'", "'"), ("'", ""), ("", "")] {
            for end in ENDS {
                for begin in BEGINS {
                    forms.push(format!("{begin}{open}(.*){close}{end}"));
                }
            }
        }
        let others = [
            r"```python\s*(.*)\s*```",
            r"```\s*(.*)\s*```",
            r"```python\s*(.*)\s*$",
            r"```\s*(.*)\s*$",
            r"(.*)\s*```.*",
            r"\[BEGIN\]\s*'(.*)",
            r"\[BEGIN\](.*)",
            r"'(.*)'\s*\[DONE\]",
        ];
        forms.extend(others.map(str::to_owned));
        let regex = |form: &String| Regex::new(&format!("(?s){form}"));
        forms.iter().map(regex).collect::<Result<_, _>>().expect("invariant: they are written here")
    });
    static DONE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"'?\s*\[?DONE\]?").expect("invariant: the pattern is written here")
    });
    let found = FORMS.iter().find_map(|form| form.captures(answer)?.get(1));
    let text = found.map_or(answer, |found| found.as_str());
    let text = text.split("```").next().unwrap_or_default();
    let text = DONE.split(text).next().unwrap_or_default();
    Ok(text.replace("\\_", "_").trim().to_owned())
}
