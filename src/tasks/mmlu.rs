//! MMLU: multiple-choice questions about 57 subjects (Hendrycks et al., 2021).
//!
//! Read is the published layout: `test/SUBJECT_test.csv`, six columns without a header (question, four choices, the
//! letter of the right one), in the data directory or in `data/` below it.

use super::Sampling;
use super::benchmark::{Settings, files, place, stem};
use super::extract::{choice, first_answer_letter};
use super::quiz::{Mark, Question, Quiz, raw};
use crate::base::error::usage;
use anyhow::Result;
use minijinja::context;
use serde::Deserialize;
use std::path::Path;

/// The rules of asking and grading MMLU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MmluPreset {
    /// Zero-shot with brief reasoning; the last letter that the response answers with
    #[default]
    Ours,
    /// OpenCompass's default for chat models (mmlu_openai_simple_evals_gen_b618ea): the first "ANSWER: X"
    #[value(name = "opencompass-b618ea")]
    OpencompassB618ea,
    /// lm-evaluation-harness's mmlu_generative without shots: the first line is the letter
    LmEvalGenerative,
}

const ENDING: &str = "_test.csv";
const LETTERS: &str = "ABCD";

/// The letter of the right choice.
pub struct Letter(String);

/// A row of a file.
type Row = [String; 6];

/// MMLU in a directory of files.
pub fn mmlu(settings: &Settings<MmluPreset>) -> Result<Quiz<Letter>> {
    let mut questions = Vec::new();
    for path in files(&place(&settings.data, &["data/test", "test"])?, ENDING)? {
        let subject = stem(&path, ENDING);
        for (number, row) in rows(&path)?.into_iter().enumerate() {
            questions.push(question(&subject, number, &row)?);
        }
    }
    let bundled = match settings.preset {
        MmluPreset::Ours => {
            Some((include_str!("../../data/prompts/mmlu.txt"), "data/prompts/mmlu.txt"))
        }
        MmluPreset::OpencompassB618ea => None,
        MmluPreset::LmEvalGenerative => Some((
            include_str!("../../data/prompts/lm_eval_mmlu.txt"),
            "data/prompts/lm_eval_mmlu.txt",
        )),
    };
    let (mark, max_new_tokens): (fn(&str, &Letter) -> Mark, usize) = match settings.preset {
        MmluPreset::Ours => (ours, 4096),
        MmluPreset::OpencompassB618ea => (opencompass, 4096),
        MmluPreset::LmEvalGenerative => (first_line, 256),
    };
    let sampling = Sampling { rollouts: 1, temperature: 0.0, max_new_tokens };
    Quiz::new("mmlu", settings, questions, (settings.words(bundled)?, sampling), mark)
}

/// The rows of a subject; a row without six columns or with another letter is named.
fn rows(path: &Path) -> Result<Vec<Row>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_path(path)
        .map_err(|e| usage(format!("cannot read {}: {e}", path.display())))?;
    let mut rows = Vec::new();
    for (number, record) in reader.records().enumerate() {
        let place = || format!("{}: row {}", path.display(), number + 1);
        let record = record.map_err(|e| usage(format!("{}: {e}", place())))?;
        let columns: Vec<String> = record.iter().map(str::to_owned).collect();
        let row: Row = columns.try_into().map_err(|columns: Vec<String>| {
            usage(format!(
                "{}: {} columns, where a question, four choices and a letter are expected",
                place(),
                columns.len()
            ))
        })?;
        if !(row[5].len() == 1 && LETTERS.contains(&row[5])) {
            return Err(usage(format!("{}: the answer is {:?}, not A to D", place(), row[5])));
        }
        rows.push(row);
    }
    match rows.is_empty() {
        true => Err(usage(format!("{}: there are no rows", path.display()))),
        false => Ok(rows),
    }
}

fn question(subject: &str, number: usize, row: &Row) -> Result<Question<Letter>> {
    let [question, choices @ .., answer] = row;
    Ok(Question {
        id: format!("{subject}/{number}"),
        family: Some(subject.to_owned()),
        weight: 1.0,
        shown: context! { subject => subject.replace('_', " "), question, choices },
        gold: Letter(answer.clone()),
        row: raw(row)?,
    })
}

fn ours(answer: &str, gold: &Letter) -> Mark {
    Mark::of(choice(answer, LETTERS).map(String::from), &gold.0)
}

fn opencompass(answer: &str, gold: &Letter) -> Mark {
    Mark::of(first_answer_letter(answer).map(String::from), &gold.0)
}

/// Generation stops at the first line end, white space around it does not count.
fn first_line(answer: &str, gold: &Letter) -> Mark {
    let line = answer.trim_start_matches(' ').lines().next().unwrap_or_default().trim();
    Mark::of((!line.is_empty()).then(|| line.to_owned()), &gold.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tasks::{FormatError, Task};

    const ROWS: &str = "\"Two plus two,\nin base ten?\",3,4,5,6,B\nThe first letter?,A,B,C,D,A\n";

    fn open(test: &str, preset: MmluPreset) -> Result<Quiz<Letter>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("test")).unwrap();
        std::fs::write(dir.path().join("test/some_sums_test.csv"), test).unwrap();
        mmlu(&Settings { data: dir.path().to_owned(), preset, prompt: None, limit: None })
    }

    #[test]
    fn a_row_is_asked_with_its_subject_and_graded_by_its_letter() {
        let task = open(ROWS, MmluPreset::Ours).unwrap();
        assert_eq!((task.num_problems(), task.about(0).id), (2, "some_sums/0"));
        let prompt = &task.messages(0).unwrap()[0].content;
        assert!(prompt.starts_with("Answer this multiple-choice question about some sums.\n"));
        assert!(prompt.contains("\n\nTwo plus two,\nin base ten?\n\nA) 3\nB) 4\n"), "{prompt}");
        let grade = |response: &str| task.grade(0, response, &|| false).unwrap();
        assert!(grade("<think>Answer: A</think>Answer: B").passed());
        assert_eq!(grade("Answer: A").failure().as_deref(), Some("wrong_answer"));
        assert_eq!(grade("four").format_error, Some(FormatError::NoAnswer));
        let open_thought = grade("<think>Answer: B");
        assert_eq!(open_thought.format_error, Some(FormatError::UnclosedThink));
        assert_eq!(open_thought.verdict.failure.unwrap().expected, "B");
    }

    #[test]
    fn presets_differ_in_what_they_read() {
        let passes = |preset, response: &str| {
            open(ROWS, preset).unwrap().grade(0, response, &|| false).unwrap().passed()
        };
        let changed = "Answer: A\nno: Answer: B";
        assert!(passes(MmluPreset::Ours, changed));
        assert!(!passes(MmluPreset::OpencompassB618ea, changed));
        assert!(passes(MmluPreset::LmEvalGenerative, " B\nAnswer: A"));
        assert!(!passes(MmluPreset::LmEvalGenerative, "B."));
    }

    #[test]
    fn a_bad_row_is_named() {
        let refusal = |rows: &str| {
            let error = open(rows, MmluPreset::Ours).err().unwrap();
            assert_eq!(exit_code(&error), 2);
            error.to_string()
        };
        let columns = refusal("q,1,2,3,4,A\nq,1,2,3,A\n");
        assert!(columns.contains("some_sums_test.csv: row 2: 5 columns"), "{columns}");
        assert!(refusal("q,1,2,3,4,E\n").contains("row 1: the answer is \"E\", not A to D"));
        assert!(refusal("").contains("there are no rows"));
    }
}
