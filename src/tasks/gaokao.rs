//! GAOKAO-Bench, the objective questions of China's college entrance examination (Zhang et al., 2023).
//!
//! Read is the published layout: the files of `Data/Objective_Questions`. A question may hold several sub-answers, and
//! weighs what they score together: the average over questions is then the official rate. Left out: subjective
//! questions.

use super::Sampling;
use super::benchmark::{Settings, files, json_file, place};
use super::grade::FormatError;
use super::quiz::{Mark, Question, Quiz, raw};
use crate::base::error::usage;
use anyhow::Result;
use minijinja::context;
use minijinja::value::Serde;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::LazyLock;

/// The rules of asking and grading GAOKAO-Bench.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GaokaoPreset {
    /// Zero-shot with reasoning; only letters that stand behind the mark 【答案】 count
    #[default]
    Ours,
    /// OpenCompass's objective questions (GaokaoBench_no_subjective_gen_4c31db), which are the official rules
    #[value(name = "opencompass-4c31db")]
    #[serde(rename = "opencompass-4c31db")]
    Opencompass4c31db,
}

/// How a file's questions are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// One letter.
    SingleChoice,
    /// Some letters; a part of the right ones, and no wrong one, is worth half.
    MultiChoice,
    /// A letter for each sub-question.
    MultiQuestionChoice,
    /// Five of seven letters.
    FiveOutOfSeven,
}

#[derive(Deserialize)]
struct File {
    keywords: String,
    example: Vec<Example>,
}

#[derive(Deserialize, Serialize)]
struct Example {
    #[serde(default)]
    year: String,
    #[serde(default)]
    category: String,
    question: String,
    answer: Vec<String>,
    score: f64,
}

/// The right letters of each sub-question.
pub struct Gold {
    kind: Kind,
    answers: Vec<String>,
}

/// The objective questions of GAOKAO-Bench in a directory of files.
pub fn gaokao(settings: &Settings<GaokaoPreset>) -> Result<Quiz<Gold>> {
    let dir = place(&settings.data, &["Data/Objective_Questions", "Objective_Questions", "."])?;
    let mut questions = Vec::new();
    for path in files(&dir, ".json")? {
        let File { keywords, example } = json_file(&path)?;
        let kind = kind(&keywords, &path)?;
        for (number, example) in example.into_iter().enumerate() {
            questions.push(question(&keywords, kind, number, example, &path)?);
        }
    }
    let bundled = match settings.preset {
        GaokaoPreset::Ours => {
            Some((include_str!("../../data/prompts/gaokao.txt"), "data/prompts/gaokao.txt"))
        }
        GaokaoPreset::Opencompass4c31db => None,
    };
    let (mark, max_new_tokens): (fn(&str, &Gold) -> Mark, usize) = match settings.preset {
        GaokaoPreset::Ours => (ours, 4096),
        GaokaoPreset::Opencompass4c31db => (opencompass, 1024),
    };
    let sampling = Sampling { rollouts: 1, temperature: 0.0, max_new_tokens };
    Quiz::new("gaokao", settings, questions, (settings.words(bundled)?, sampling), mark)
}

/// The files say their subject and nothing of how they are answered.
fn kind(keywords: &str, path: &Path) -> Result<Kind> {
    const KINDS: [(&str, Kind); 14] = [
        ("Math_II_MCQs", Kind::SingleChoice),
        ("Math_I_MCQs", Kind::SingleChoice),
        ("History_MCQs", Kind::SingleChoice),
        ("Biology_MCQs", Kind::SingleChoice),
        ("Political_Science_MCQs", Kind::SingleChoice),
        ("Chemistry_MCQs", Kind::SingleChoice),
        ("English_MCQs", Kind::SingleChoice),
        ("Physics_MCQs", Kind::MultiChoice),
        ("Chinese_Modern_Lit", Kind::MultiQuestionChoice),
        ("English_Fill_in_Blanks", Kind::MultiQuestionChoice),
        ("Geography_MCQs", Kind::MultiQuestionChoice),
        ("English_Reading_Comp", Kind::MultiQuestionChoice),
        ("Chinese_Lang_and_Usage_MCQs", Kind::MultiQuestionChoice),
        ("English_Cloze_Test", Kind::FiveOutOfSeven),
    ];
    let known = KINDS.iter().find(|(subject, _)| keywords.ends_with(subject));
    known.map(|(_, kind)| *kind).ok_or_else(|| {
        usage(format!(
            "{}: keywords {keywords:?} name no objective questions of GAOKAO-Bench",
            path.display()
        ))
    })
}

fn question(
    family: &str,
    kind: Kind,
    number: usize,
    example: Example,
    path: &Path,
) -> Result<Question<Gold>> {
    let num_answers = example.answer.len();
    if num_answers == 0 || example.score <= 0.0 {
        return Err(usage(format!(
            "{}: example {}: {num_answers} answers worth {} each cannot be scored",
            path.display(),
            number + 1,
            example.score
        )));
    }
    Ok(Question {
        id: format!("{family}/{number}"),
        family: Some(family.to_owned()),
        weight: example.score * num_answers as f64,
        shown: context! {
            subject => family, question => &example.question, kind => Serde(kind), num_answers
        },
        row: raw(&example)?,
        gold: Gold { kind, answers: example.answer },
    })
}

/// The mark of so many sub-answers as were found.
fn mark(found: Vec<String>, Gold { kind, answers }: &Gold) -> Mark {
    let is_whole = found.len() == answers.len();
    let worth = |(found, right): (&String, &String)| match found == right {
        true => 1.0,
        false if *kind == Kind::MultiChoice && found.chars().all(|c| right.contains(c)) => 0.5,
        false => 0.0,
    };
    let sum: f64 = found.iter().zip(answers).map(worth).sum();
    let credit = if is_whole { sum / answers.len() as f64 } else { 0.0 };
    let read = is_whole.then(|| found.join(" ")).ok_or(FormatError::NoAnswer);
    Mark { read, credit, expected: answers.join(" ") }
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("invariant: the pattern is written here")
}

/// Letters behind the mark of an answer: of each sub-question one mark, or one mark with all letters. Order and
/// repeats of a choice of several letters do not count.
fn ours(answer: &str, gold: &Gold) -> Mark {
    static MARKED: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r"【答案】[\s:：*（(]*([A-G](?:[\s、,，.．;；和0-9()（）]*[A-G])*)")
    });
    let count = gold.answers.len();
    let runs: Vec<String> = MARKED
        .captures_iter(answer)
        .map(|found| found[1].chars().filter(char::is_ascii_uppercase).collect())
        .collect();
    let found: Vec<String> = match (gold.kind, runs.last()) {
        (Kind::MultiChoice, Some(last)) => {
            let mut letters: Vec<char> = last.chars().collect();
            letters.sort_unstable();
            letters.dedup();
            vec![letters.into_iter().collect()]
        }
        (_, Some(last)) if last.len() == count => last.chars().map(String::from).collect(),
        _ => {
            let last = runs.len().saturating_sub(count);
            runs[last..].iter().filter(|run| run.len() == 1).cloned().collect()
        }
    };
    mark(found, gold)
}

fn opencompass(answer: &str, gold: &Gold) -> Mark {
    static MARKED: LazyLock<Regex> = LazyLock::new(|| pattern(r"【答案】\s*[:：]*\s*([A-Z])"));
    let letters = |text: &str, last: char| -> Vec<String> {
        text.chars().filter(|c| ('A'..=last).contains(c)).map(String::from).collect()
    };
    let found = match gold.kind {
        Kind::SingleChoice => letters(answer, 'D').pop().into_iter().collect(),
        Kind::MultiQuestionChoice => {
            let marked: Vec<String> =
                MARKED.captures_iter(answer).map(|found| found[1].to_owned()).collect();
            match marked.len() == gold.answers.len() {
                true => marked,
                false => {
                    let mut all = letters(answer, 'Z');
                    all.truncate(gold.answers.len());
                    all
                }
            }
        }
        Kind::MultiChoice => {
            let text: String = answer.chars().filter(|c| !c.is_whitespace()).collect();
            let end = match text.find("【答案】") {
                Some(at) if at > 0 => &text[at..],
                _ => {
                    let start = text.char_indices().rev().nth(9).map_or(0, |(at, _)| at);
                    &text[start..]
                }
            };
            Some(letters(end, 'D').concat()).filter(|run| !run.is_empty()).into_iter().collect()
        }
        Kind::FiveOutOfSeven => {
            let mut all = letters(answer, 'G');
            all.truncate(5);
            all
        }
    };
    mark(found, gold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tasks::Task;

    fn open(keywords: &str, answer: &str, preset: GaokaoPreset) -> Result<Quiz<Gold>> {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            r#"{{"keywords":"{keywords}","example":[{{"year":"2030","category":"甲卷","question":"1. A. B.","answer":{answer},"analysis":"","index":0,"score":6}}]}}"#
        );
        std::fs::write(dir.path().join("x.json"), text).unwrap();
        gaokao(&Settings { data: dir.path().to_owned(), preset, prompt: None, limit: None })
    }

    fn credit(keywords: &str, answer: &str, preset: GaokaoPreset, response: &str) -> f64 {
        open(keywords, answer, preset).unwrap().grade(0, response, &|| false).unwrap().credit()
    }

    #[test]
    fn a_choice_of_several_letters_is_worth_half_where_none_is_wrong() {
        let credit =
            |preset, response: &str| credit("P_Physics_MCQs", r#"["BD"]"#, preset, response);
        let (ours, official) = (GaokaoPreset::Ours, GaokaoPreset::Opencompass4c31db);
        for (response, both) in [("x【答案】BD", 1.0), ("x【答案】B", 0.5), ("x【答案】AB", 0.0)]
        {
            assert_eq!(credit(ours, response), both, "{response}");
            assert_eq!(credit(official, response), both, "{response}");
        }
        assert_eq!(credit(ours, "【答案】D、B"), 1.0, "the order does not count");
        assert_eq!(credit(official, "x【答案】DB"), 0.5, "the order counts");
        assert_eq!((credit(ours, "选BD"), credit(official, "选BD")), (0.0, 1.0));
    }

    #[test]
    fn sub_answers_are_counted_one_by_one_and_a_wrong_number_is_none() {
        let credit = |preset, response: &str| {
            credit("G_Geography_MCQs", r#"["A","B","C"]"#, preset, response)
        };
        let (ours, official) = (GaokaoPreset::Ours, GaokaoPreset::Opencompass4c31db);
        for preset in [ours, official] {
            assert_eq!(credit(preset, "【答案】A\n【答案】 ：B\n【答案】D"), 2.0 / 3.0);
            assert_eq!(credit(preset, "【答案】A"), 0.0);
        }
        assert_eq!(credit(ours, "【答案】A、B、C"), 1.0);
        assert_eq!((credit(ours, "ABC"), credit(official, "ABC")), (0.0, 1.0));
        let task = open("G_Geography_MCQs", r#"["A","B","C"]"#, ours).unwrap();
        assert_eq!(task.about(0).weight, 18.0);
        assert!(task.messages(0).unwrap()[0].content.contains("本题共有3个小题"));
    }

    #[test]
    fn the_last_letter_counts_of_one_choice_and_the_first_five_of_five() {
        let official = GaokaoPreset::Opencompass4c31db;
        assert_eq!(credit("M_Math_I_MCQs", r#"["C"]"#, official, "A or C"), 1.0);
        assert_eq!(
            credit("M_Math_I_MCQs", r#"["C"]"#, GaokaoPreset::Ours, "【答案】A【答案】(C)"),
            1.0
        );
        let five = r#"["A","B","C","G","E"]"#;
        assert_eq!(credit("E_English_Cloze_Test", five, official, "ABCGE F"), 1.0);
        assert_eq!(credit("E_English_Cloze_Test", five, official, "I: ABCGE"), 1.0);
        assert_eq!(credit("E_English_Cloze_Test", five, GaokaoPreset::Ours, "【答案】ABCGF"), 0.8);
    }

    #[test]
    fn files_of_other_questions_and_unscored_ones_are_refused() {
        let refusal = |keywords, answer| {
            let error = open(keywords, answer, GaokaoPreset::Ours).err().unwrap();
            assert_eq!(exit_code(&error), 2);
            error.to_string()
        };
        assert!(refusal("History_Essays", r#"["A"]"#).contains("name no objective questions"));
        assert!(refusal("M_Math_I_MCQs", "[]").contains("x.json: example 1: 0 answers"));
    }
}
