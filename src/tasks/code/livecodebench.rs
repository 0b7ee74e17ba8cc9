//! LiveCodeBench, generation of code: contest problems with the date of their contest (Jain et al., 2024).
//!
//! Read are the published release files (`test.jsonl`, `test2.jsonl`, ..), one file or a directory of them. Private
//! cases are JSON, or base64 of zlib of a pickle of a JSON string, which is read without executing anything
//! (`pickle`). Programs read standard input, or a method is called with JSON arguments. Left out: the benchmark's other
//! tasks (repair, execution, prediction of outputs).

use super::{Coding, CodingProblem, Tests, last_block, pickle};
use crate::base::error::usage;
use crate::data::rows;
use crate::sandbox::{Case, Judge};
use crate::tasks::Sampling;
use crate::tasks::benchmark::{Settings, files};
use crate::tasks::grade::FormatError;
use crate::tasks::quiz::raw;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use flate2::read::ZlibDecoder;
use minijinja::context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Read;

/// The rules of asking and grading LiveCodeBench.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LiveCodeBenchPreset {
    /// The last Python block; compared as the authors do
    #[default]
    Ours,
    /// The authors' extraction: what lies between the last two lines with a fence
    Official,
}

/// The contests whose problems are asked, by day (YYYY-MM-DD), both included.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Ask only problems of contests from this day on
    #[arg(long, value_name = "YYYY-MM-DD")]
    #[serde(default)]
    from: Option<String>,
    /// Ask only problems of contests until this day
    #[arg(long, value_name = "YYYY-MM-DD")]
    #[serde(default)]
    to: Option<String>,
}

#[derive(Clone, Deserialize, Serialize)]
struct Row {
    question_id: String,
    question_content: String,
    contest_date: String,
    starter_code: String,
    difficulty: String,
    public_test_cases: String,
    private_test_cases: String,
    metadata: String,
}

#[derive(Deserialize)]
struct Test {
    input: String,
    output: String,
    testtype: String,
}

/// Far more than any problem's cases.
const MOST_BYTES: u64 = 1 << 31;
/// What the authors put before every program.
const PRELUDE: &str = "from string import *\nfrom re import *\nfrom datetime import *\nfrom collections import *\nfrom heapq import *\nfrom bisect import *\nfrom copy import *\nfrom math import *\nfrom random import *\nfrom statistics import *\nfrom itertools import *\nfrom functools import *\nfrom operator import *\nfrom io import *\nfrom sys import *\nfrom json import *\nfrom builtins import *\nfrom typing import *\nimport string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools, functools, operator, io, sys, json\nsys.setrecursionlimit(600000)\n";

/// LiveCodeBench in a release file or a directory of them.
pub fn livecodebench<'j>(
    settings: &Settings<LiveCodeBenchPreset>,
    window: &Window,
    judge: &'j Judge,
) -> Result<Coding<'j>> {
    window.check()?;
    let paths = match settings.data.is_dir() {
        true => files(&settings.data, ".jsonl")?,
        false => vec![settings.data.clone()],
    };
    let mut problems = Vec::new();
    let mut seen = HashSet::new();
    for path in &paths {
        for row in rows::numbered::<Row>(path, None)? {
            let (number, row) = row?;
            if !window.holds(&row.contest_date) || !seen.insert(row.question_id.clone()) {
                continue;
            }
            let place = || format!("{}: row {number} ({})", path.display(), row.question_id);
            let problem = problem(&row).map_err(|e| usage(format!("{}: {e:#}", place())))?;
            problems.push(problem);
        }
    }
    let problems = settings.chosen(problems)?;
    let bundled =
        (include_str!("../../../data/prompts/livecodebench.txt"), "data/prompts/livecodebench.txt");
    let extract = match settings.preset {
        LiveCodeBenchPreset::Ours => ours,
        LiveCodeBenchPreset::Official => official,
    };
    let sampling = Sampling { rollouts: 1, temperature: 0.0, max_new_tokens: 8192 };
    let words = settings.words(Some(bundled))?;
    Coding::new("livecodebench", settings, problems, (words, sampling), extract, judge)
}

impl Window {
    fn check(&self) -> Result<()> {
        let is_day = |day: &str| chrono::NaiveDate::parse_from_str(day, "%Y-%m-%d").is_ok();
        for (option, day) in [("--from", &self.from), ("--to", &self.to)] {
            if let Some(day) = day.as_ref().filter(|day| !is_day(day) || day.len() != 10) {
                return Err(usage(format!("{option} is {day:?}: it must be a day as YYYY-MM-DD")));
            }
        }
        Ok(())
    }

    /// Days in this form are ordered as text is.
    fn holds(&self, date: &str) -> bool {
        let day = date.get(..10).unwrap_or(date);
        self.from.as_deref().is_none_or(|from| from <= day)
            && self.to.as_deref().is_none_or(|to| day <= to)
    }
}

fn problem(row: &Row) -> Result<CodingProblem> {
    let tests = all_tests(row)?;
    let is_functional = tests[0].testtype == "functional";
    let tests = match is_functional {
        true => functional(row, &tests)?,
        false => {
            // Cases are decoded again when they are needed: all together are many times larger than the file.
            let kept = row.clone();
            Tests::Printed(Box::new(move || {
                let case = |test: Test| Case { input: test.input, output: test.output };
                Ok(all_tests(&kept)?.into_iter().map(case).collect())
            }))
        }
    };
    Ok(CodingProblem {
        id: row.question_id.clone(),
        family: Some(row.difficulty.clone()),
        shown: context! {
            question => row.question_content.trim_end(), starter_code => row.starter_code.trim_end()
        },
        stub: String::new(),
        entry: String::new(),
        tests,
        row: raw(row)?,
    })
}

/// Public and private cases, at least one, all of one kind.
fn all_tests(row: &Row) -> Result<Vec<Test>> {
    let public: Vec<Test> =
        serde_json::from_str(&row.public_test_cases).context("public_test_cases")?;
    let private = match serde_json::from_str::<Vec<Test>>(&row.private_test_cases) {
        Ok(tests) => tests,
        Err(_) => decode(&row.private_test_cases).context("private_test_cases")?,
    };
    let tests: Vec<Test> = public.into_iter().chain(private).collect();
    ensure!(!tests.is_empty(), "there are no test cases");
    let kind = &tests[0].testtype;
    ensure!(["stdin", "functional"].contains(&kind.as_str()), "unknown testtype {kind:?}");
    ensure!(tests.iter().all(|test| &test.testtype == kind), "test cases are of two kinds");
    Ok(tests)
}

fn decode(text: &str) -> Result<Vec<Test>> {
    let packed = base64::engine::general_purpose::STANDARD.decode(text.trim()).context("base64")?;
    let mut pickled = Vec::new();
    ZlibDecoder::new(&packed[..]).take(MOST_BYTES).read_to_end(&mut pickled).context("zlib")?;
    Ok(serde_json::from_str(&pickle::string(&pickled)?)?)
}

/// Cases that call a method: each is one of `call.py`.
fn functional(row: &Row, tests: &[Test]) -> Result<Tests> {
    let metadata: Value = serde_json::from_str(&row.metadata).context("metadata")?;
    let name = metadata["func_name"].as_str().context("metadata has no func_name")?;
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    ensure!(is_name, "func_name {name:?} is no name");
    let case = |test: &Test| -> Result<String> {
        let lines = test.input.split('\n').filter(|line| !line.trim().is_empty());
        // A string of JSON within a string of Python: nothing in it is code.
        let argument = |line: &str| {
            serde_json::from_str::<Value>(line).context("an argument is no JSON")?;
            Ok(format!("__import__('json').loads({})", serde_json::to_string(line)?))
        };
        let arguments: Vec<String> = lines.map(argument).collect::<Result<_>>()?;
        let call = format!("Solution().{name}({})", arguments.join(", "));
        Ok(json!({"setup": "", "calls": [call]}).to_string())
    };
    let cases = tests.iter().map(case).collect::<Result<_>>()?;
    let expected: Vec<&str> = tests.iter().map(|test| test.output.as_str()).collect();
    Ok(Tests::Calls { cases, check: json!({"do": "check_equal", "expected": expected}) })
}

fn ours(answer: &str, problem: &CodingProblem) -> Result<String, FormatError> {
    Ok(format!("{PRELUDE}{}", last_block(answer, problem)?))
}

fn official(answer: &str, _: &CodingProblem) -> Result<String, FormatError> {
    let lines: Vec<&str> = answer.split('\n').collect();
    let fences: Vec<usize> = (0..lines.len()).filter(|&at| lines[at].contains("```")).collect();
    match fences[..] {
        [.., open, close] => Ok(format!("{PRELUDE}{}", lines[open + 1..close].join("\n"))),
        _ => Err(FormatError::NoCode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(private: &str, testtype: &str) -> Row {
        Row {
            question_id: "q".to_owned(),
            question_content: "Sum.".to_owned(),
            contest_date: "2024-01-31T00:00:00".to_owned(),
            starter_code: String::new(),
            difficulty: "easy".to_owned(),
            public_test_cases: json!([{"input": "1\n2", "output": "3", "testtype": testtype}])
                .to_string(),
            private_test_cases: private.to_owned(),
            metadata: json!({"func_name": "add"}).to_string(),
        }
    }

    fn packed(pickle: &[u8]) -> String {
        let mut zlib = Vec::new();
        flate2::read::ZlibEncoder::new(pickle, flate2::Compression::fast())
            .read_to_end(&mut zlib)
            .unwrap();
        base64::engine::general_purpose::STANDARD.encode(zlib)
    }

    #[test]
    fn private_cases_are_read_plain_and_pickled_and_a_hostile_pickle_is_refused() {
        assert_eq!(all_tests(&row("[]", "stdin")).unwrap().len(), 1);
        assert_eq!(all_tests(&row(&packed(b"\x80\x04\x8c\x02[]\x94."), "stdin")).unwrap().len(), 1);
        let refusal =
            |private: &str| format!("{:#}", all_tests(&row(private, "stdin")).err().unwrap());
        let hostile = refusal(&packed(b"cos\nsystem\n(X\x02\0\0\0idtR."));
        assert_eq!(
            hostile,
            "private_test_cases: the pickle holds instruction 0x63, not only a string"
        );
        assert!(refusal("%").starts_with("private_test_cases: base64"));
        assert!(refusal("AAAA").starts_with("private_test_cases: zlib"));
    }

    #[test]
    fn a_call_passes_its_arguments_as_text() {
        let row = row("[]", "functional");
        let Tests::Calls { cases, check } = functional(&row, &all_tests(&row).unwrap()).unwrap()
        else {
            panic!("they are calls")
        };
        let call =
            "Solution().add(__import__('json').loads(\"1\"), __import__('json').loads(\"2\"))";
        assert_eq!(cases, [json!({"setup": "", "calls": [call]}).to_string()]);
        assert_eq!(check["expected"][0], "3");
    }

    #[test]
    fn a_window_holds_both_of_its_days() {
        let day = |day: &str| Some(day.to_owned());
        let window = Window { from: day("2024-01-31"), to: day("2024-01-31") };
        assert!(window.check().is_ok() && window.holds("2024-01-31T00:00:00"));
        assert!(!window.holds("2024-02-01T00:00:00") && !window.holds("2024-01-30"));
        assert!(Window::default().holds("1999-01-01"));
        let error = Window { from: day("2024-1-31"), to: None }.check().unwrap_err();
        assert!(error.to_string().starts_with("--from is \"2024-1-31\""), "{error}");
    }
}
