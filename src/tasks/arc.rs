//! ARC-AGI 1 and 2: grids that one rule changes (Chollet, 2019).
//!
//! Read is the published layout: a directory of `TASK.json` files with the pairs `train` and `test`. Each test input is
//! a problem of its own; those of a task weigh one together, so that the average is one over tasks. Two attempts a
//! pair, as the ARC Prize allows, are pass@2 of two rollouts. Nothing but an equal grid is right.

use super::Sampling;
use super::benchmark::{Settings, files, json_file, place, stem};
use super::quiz::{Mark, Question, Quiz, raw};
use crate::base::error::usage;
use anyhow::Result;
use minijinja::{Value, context};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The rules of asking and grading ARC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArcPreset {
    /// Every test input; the last grid of the response
    #[default]
    Ours,
    /// OpenCompass (arc_prize_public_evaluation_gen_872059): only a task's first test input; what lies between the
    /// first "[[" and the next "]]"
    #[value(name = "opencompass-872059")]
    #[serde(rename = "opencompass-872059")]
    Opencompass872059,
}

type Grid = Vec<Vec<u8>>;

#[derive(Deserialize, Serialize)]
struct Pair {
    input: Grid,
    output: Grid,
}

#[derive(Deserialize)]
struct File {
    train: Vec<Pair>,
    test: Vec<Pair>,
}

/// ARC in a directory of files.
pub fn arc(settings: &Settings<ArcPreset>) -> Result<Quiz<Grid>> {
    let dir = place(&settings.data, &["data/evaluation", "evaluation", "."])?;
    let mut questions = Vec::new();
    for path in files(&dir, ".json")? {
        let task = stem(&path, ".json");
        let File { train, mut test } = json_file(&path)?;
        check(&path, "train", &train)?;
        check(&path, "test", &test)?;
        if settings.preset == ArcPreset::Opencompass872059 {
            test.truncate(1);
        }
        let example =
            |pair: &Pair| context! { input => json(&pair.input), output => json(&pair.output) };
        let examples: Vec<Value> = train.iter().map(example).collect();
        for (number, pair) in test.iter().enumerate() {
            questions.push(Question {
                id: format!("{task}/{number}"),
                family: None,
                weight: 1.0 / test.len() as f64,
                shown: context! { examples => &examples, input => json(&pair.input) },
                gold: pair.output.clone(),
                row: raw(pair)?,
            });
        }
    }
    let bundled = match settings.preset {
        ArcPreset::Ours => {
            Some((include_str!("../../data/prompts/arc.txt"), "data/prompts/arc.txt"))
        }
        ArcPreset::Opencompass872059 => None,
    };
    let (mark, max_new_tokens): (fn(&str, &Grid) -> Mark, usize) = match settings.preset {
        ArcPreset::Ours => (ours, 8192),
        ArcPreset::Opencompass872059 => (opencompass, 2048),
    };
    let sampling = Sampling { rollouts: 1, temperature: 0.0, max_new_tokens };
    Quiz::new("arc", settings, questions, (settings.words(bundled)?, sampling), mark)
}

fn check(path: &Path, part: &str, pairs: &[Pair]) -> Result<()> {
    let is_grid = |grid: &Grid| {
        let width = grid.first().map_or(0, Vec::len);
        width > 0 && grid.iter().all(|row| row.len() == width && row.iter().all(|&cell| cell < 10))
    };
    if pairs.is_empty() {
        return Err(usage(format!("{}: there are no pairs in {part:?}", path.display())));
    }
    match pairs.iter().position(|pair| !(is_grid(&pair.input) && is_grid(&pair.output))) {
        None => Ok(()),
        Some(at) => Err(usage(format!(
            "{}: pair {} of {part:?} is no grid of digits with rows of one length",
            path.display(),
            at + 1
        ))),
    }
}

fn of_grid(grid: Option<Grid>, gold: &Grid) -> Mark {
    Mark::of(grid.as_ref().map(json), &json(gold))
}

/// A grid as JSON, on one line.
fn json(grid: &Grid) -> String {
    let row = |row: &Vec<u8>| {
        let cells: Vec<String> = row.iter().map(u8::to_string).collect();
        format!("[{}]", cells.join(","))
    };
    format!("[{}]", grid.iter().map(row).collect::<Vec<_>>().join(","))
}

/// The last list of lists of integers in the text.
fn ours(answer: &str, gold: &Grid) -> Mark {
    let starts: Vec<usize> = answer.match_indices('[').map(|(at, _)| at).collect();
    let grid = starts.into_iter().rev().find_map(|at| {
        let mut values =
            serde_json::Deserializer::from_str(&answer[at..]).into_iter::<Vec<Vec<i64>>>();
        values.next()?.ok()
    });
    of_grid(grid.map(narrow), gold)
}

fn opencompass(answer: &str, gold: &Grid) -> Mark {
    let found = answer.find("[[").and_then(|start| {
        let end = answer[start..].find("]]")? + 2;
        serde_json::from_str::<Vec<Vec<i64>>>(&answer[start..start + end]).ok()
    });
    of_grid(Some(found.map_or_else(|| vec![vec![0]], narrow)), gold)
}

/// Numbers that no cell has become one that no cell has.
fn narrow(grid: Vec<Vec<i64>>) -> Grid {
    let cell = |value| u8::try_from(value).unwrap_or(u8::MAX);
    grid.into_iter().map(|row| row.into_iter().map(cell).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tasks::{FormatError, Task};

    const TASK: &str = r#"{"train":[{"input":[[0,1]],"output":[[1,0]]}],"test":[{"input":[[2,0],[1,1]],"output":[[0,2],[1,1]]},{"input":[[3]],"output":[[3]]}]}"#;

    fn open(text: &str, preset: ArcPreset) -> Result<Quiz<Grid>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0a1b2c3d.json"), text).unwrap();
        arc(&Settings { data: dir.path().to_owned(), preset, prompt: None, limit: None })
    }

    #[test]
    fn each_test_input_is_asked_and_those_of_a_task_weigh_one_together() {
        let task = open(TASK, ArcPreset::Ours).unwrap();
        assert_eq!((task.num_problems(), task.about(1).id), (2, "0a1b2c3d/1"));
        assert_eq!(task.about(0).weight, 0.5);
        let prompt = &task.messages(0).unwrap()[0].content;
        assert!(prompt.contains("Input: [[0,1]]\nOutput: [[1,0]]\n"), "{prompt}");
        assert!(prompt.contains("Last input: [[2,0],[1,1]]\n") && !prompt.contains("[[0,2]"));
        assert_eq!(open(TASK, ArcPreset::Opencompass872059).unwrap().num_problems(), 1);
    }

    #[test]
    fn the_last_grid_is_the_answer_in_any_layout() {
        let task = open(TASK, ArcPreset::Ours).unwrap();
        let grade = |response: &str| task.grade(0, response, &|| false).unwrap();
        for response in [
            "[[2,0],[1,1]] becomes [[0, 2], [1, 1]].",
            "```json\n[\n  [0, 2],\n  [1, 1]\n]\n```",
            "\\boxed{[[0,2],[1,1]]}",
        ] {
            assert!(grade(response).passed(), "{response}");
        }
        for response in
            ["[[0,2],[1,1]] or [[2,0],[1,1]]", "[[0,2]]", "[[0,2],[1,257]]", "[[0,2.0],[1,1]]"]
        {
            assert!(!grade(response).passed(), "{response}");
        }
        assert_eq!(grade("no [grid]").format_error, Some(FormatError::NoAnswer));
    }

    #[test]
    fn opencompass_does_not_find_a_grid_with_line_ends() {
        let task = open(TASK, ArcPreset::Opencompass872059).unwrap();
        let passes = |response: &str| task.grade(0, response, &|| false).unwrap().passed();
        assert!(passes("[[0,2],\n[1,1]] and [[9]]"));
        assert!(!passes("[\n[0,2],[1,1]]"));
    }

    #[test]
    fn a_file_that_holds_no_grids_is_named() {
        for (text, part) in [
            (r#"{"train":[],"test":[]}"#, "there are no pairs in \"train\""),
            (&TASK.replace("[[3]]", "[[3],[]]"), "pair 2 of \"test\" is no grid"),
            (&TASK.replace("[[1,0]]", "[[1,10]]"), "pair 1 of \"train\" is no grid"),
            ("{\"train\":", "0a1b2c3d.json:1:"),
        ] {
            let error = format!("{:#}", open(text, ArcPreset::Ours).err().unwrap());
            assert!(error.contains(part), "{error}");
            assert_eq!(exit_code(&open(text, ArcPreset::Ours).err().unwrap()), 2);
        }
    }
}
