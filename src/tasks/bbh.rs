//! BIG-Bench Hard: 27 tasks of reasoning, 17 with options and 10 with free answers (Suzgun et al., 2022).
//!
//! Read is the published layout: `bbh/TASK.json`, and for presets with worked examples `cot-prompts/TASK.txt`, of
//! which what follows the line of dashes is shown: the line before it is a canary that no model may read.

use super::Sampling;
use super::benchmark::{Settings, files, json_file, place, stem};
use super::extract::after_last;
use super::quiz::{Mark, Question, Quiz, raw};
use crate::base::error::usage;
use crate::base::fs::read_text;
use anyhow::Result;
use minijinja::context;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::LazyLock;

/// The rules of asking and grading BIG-Bench Hard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BbhPreset {
    /// Zero-shot with reasoning; what follows the last "answer is", compared as a person would
    #[default]
    Ours,
    /// Three worked examples of the data in one turn, graded as ours
    OursShots,
    /// OpenCompass's default (bbh_gen_ee62e9) up to version 0.5.3
    #[value(name = "opencompass-ee62e9")]
    OpencompassEe62e9,
    /// The same since July 2026: free answers are compared more kindly
    #[value(name = "opencompass-ee62e9-2026")]
    #[serde(rename = "opencompass-ee62e9-2026")]
    OpencompassEe62e92026,
    /// lm-evaluation-harness's bbh_cot_fewshot, without its stop strings
    LmEvalCotFewshot,
}

/// Tasks whose answers are no letters of options.
const FREE: [&str; 10] = [
    "boolean_expressions",
    "causal_judgement",
    "dyck_languages",
    "formal_fallacies",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "sports_understanding",
    "web_of_lies",
    "word_sorting",
];

#[derive(Deserialize)]
struct File {
    examples: Vec<Example>,
}

#[derive(Deserialize, Serialize)]
struct Example {
    input: String,
    target: String,
}

/// What is right, and how it is compared.
pub struct Gold {
    target: String,
    is_choice: bool,
}

/// BIG-Bench Hard in a directory of files.
pub fn bbh(settings: &Settings<BbhPreset>) -> Result<Quiz<Gold>> {
    let has_shots = matches!(settings.preset, BbhPreset::OursShots | BbhPreset::LmEvalCotFewshot)
        || settings.prompt.is_some();
    let mut questions = Vec::new();
    for path in files(&place(&settings.data, &["bbh", "data", "."])?, ".json")? {
        let task = stem(&path, ".json");
        let shots = has_shots.then(|| shots(&settings.data, &task)).transpose()?;
        let File { examples } = json_file(&path)?;
        let is_choice = !FREE.contains(&task.as_str());
        for (number, example) in examples.into_iter().enumerate() {
            let question = &example.input;
            questions.push(Question {
                id: format!("{task}/{number}"),
                family: Some(task.clone()),
                weight: 1.0,
                shown: context! { task => &task, question, is_choice, shots => &shots },
                row: raw(&example)?,
                gold: Gold { target: example.target, is_choice },
            });
        }
    }
    let bundled = match settings.preset {
        BbhPreset::Ours => {
            Some((include_str!("../../data/prompts/bbh.txt"), "data/prompts/bbh.txt"))
        }
        BbhPreset::OursShots | BbhPreset::LmEvalCotFewshot => {
            Some((include_str!("../../data/prompts/bbh_shots.txt"), "data/prompts/bbh_shots.txt"))
        }
        BbhPreset::OpencompassEe62e9 | BbhPreset::OpencompassEe62e92026 => None,
    };
    let mark: fn(&str, &Gold) -> Mark = match settings.preset {
        BbhPreset::Ours | BbhPreset::OursShots => ours,
        BbhPreset::OpencompassEe62e9 => opencompass,
        BbhPreset::OpencompassEe62e92026 => opencompass_2026,
        BbhPreset::LmEvalCotFewshot => lm_eval,
    };
    let sampling = Sampling { rollouts: 1, temperature: 0.0, max_new_tokens: 4096 };
    Quiz::new("bbh", settings, questions, (settings.words(bundled)?, sampling), mark)
}

/// The worked examples of a task, without their canary.
fn shots(data: &Path, task: &str) -> Result<String> {
    let path =
        place(data, &[&format!("cot-prompts/{task}.txt"), &format!("lib_prompt/{task}.txt")])?;
    let text = read_text(&path)?;
    let shown = match text.split_once("-----\n") {
        Some((_, shown)) => shown,
        None if text.contains("canary GUID") => {
            return Err(usage(format!(
                "{}: there is no line of dashes after the canary",
                path.display()
            )));
        }
        None => &text,
    };
    Ok(shown.trim().to_owned())
}

fn ours(answer: &str, Gold { target, is_choice }: &Gold) -> Mark {
    let said = ["answer is", "answer:"].iter().filter_map(|phrase| after_last(answer, phrase));
    let said = said.min_by_key(|rest| rest.len());
    let line = said.and_then(|rest| rest.trim_start_matches([':', ' ', '*']).lines().next());
    let read = line.map(plain).filter(|line| !line.is_empty());
    match is_choice {
        true => Mark::of(
            read.and_then(|line| option_letter(&line)),
            &option_letter(target).unwrap_or_else(|| plain(target)),
        ),
        false => Mark::of(read, &plain(target)),
    }
}

/// A free answer without what people do not read: emphasis, quotes, a final period, letter case, commas and white
/// space between words.
fn plain(text: &str) -> String {
    let text: String = text.chars().filter(|c| !"*`\"$'".contains(*c)).collect();
    let text = text.trim().trim_end_matches('.').replace(',', " ").to_lowercase();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The letter of `(B) blood`, `b` or `(b).`.
fn option_letter(text: &str) -> Option<String> {
    let text = text.trim().to_uppercase();
    let mut chars = text.trim_start_matches('(').chars();
    let letter = chars.next().filter(char::is_ascii_uppercase)?;
    let ends = chars.next().is_none_or(|c| !c.is_alphanumeric());
    ends.then(|| letter.to_string())
}

/// The text between the first and the second "answer is ", or all.
fn first_said(answer: &str) -> &str {
    answer.split("answer is ").nth(1).map_or(answer, str::trim)
}

fn opencompass(answer: &str, gold: &Gold) -> Mark {
    match gold.is_choice {
        true => opencompass_choice(answer, gold),
        false => Mark::of(Some(opencompass_free(answer)), &gold.target),
    }
}

/// The letter of the first bracket, or else the first capital letter; the gold goes the same way.
fn opencompass_choice(answer: &str, Gold { target, .. }: &Gold) -> Mark {
    static BRACKET: LazyLock<Regex> = LazyLock::new(|| pattern(r"\(([A-Z])"));
    static CAPITAL: LazyLock<Regex> = LazyLock::new(|| pattern(r"([A-Z])"));
    let letter = |text: &str| {
        let text = first_said(text);
        let found = BRACKET.captures(text).or_else(|| CAPITAL.captures(text));
        found.map_or_else(|| text.to_owned(), |found| found[1].to_owned())
    };
    Mark::of(Some(letter(answer)), &letter(target))
}

/// The first line without a final period, or what is bold in it.
fn opencompass_free(answer: &str) -> String {
    static BOLD: LazyLock<Regex> = LazyLock::new(|| pattern(r"\*\*(.*?)\*\*"));
    let line = first_said(answer).split('\n').next().unwrap_or_default().trim();
    let line = line.strip_suffix('.').map_or(line, str::trim);
    BOLD.captures(line).map_or_else(|| line.to_owned(), |found| found[1].to_owned())
}

fn opencompass_2026(answer: &str, gold: &Gold) -> Mark {
    if gold.is_choice {
        return opencompass_choice(answer, gold);
    }
    static SAID: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)answer is:?\s*"));
    let rest = SAID.find_iter(answer).last().map_or(answer, |found| &answer[found.end()..]);
    Mark::of(Some(kindly(&opencompass_free(rest))), &kindly(&gold.target))
}

/// Commas that separate no digits are spaces, spaces are one, letter case does not count.
fn kindly(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let is_digit =
        |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(char::is_ascii_digit);
    let spaced: String = chars
        .iter()
        .enumerate()
        .map(|(at, &c)| {
            match c == ',' && !(is_digit(at.checked_sub(1)) && is_digit(Some(at + 1))) {
                true => ' ',
                false => c,
            }
        })
        .collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// What follows the first "the answer is " in its line, without the last character, which is meant to be a period.
fn lm_eval(answer: &str, Gold { target, .. }: &Gold) -> Mark {
    let line = answer.split_once("the answer is ").and_then(|(_, rest)| rest.split('\n').next());
    let mut chars = line.unwrap_or_default().chars();
    chars.next_back();
    let read =
        Some(chars.as_str().to_owned()).filter(|_| line.is_some_and(|line| !line.is_empty()));
    Mark::of(read, target)
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("invariant: the pattern is written here")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Task;

    fn open(preset: BbhPreset) -> Quiz<Gold> {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bbh", "cot-prompts"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let options = r#"{"canary":"c","examples":[{"input":"Which is red?\nOptions:\n(A) sky\n(B) blood","target":"(B)"}]}"#;
        let free = r#"{"canary":"c","examples":[{"input":"Sort: b a","target":"a b"}]}"#;
        std::fs::write(dir.path().join("bbh/colours.json"), options).unwrap();
        std::fs::write(dir.path().join("bbh/word_sorting.json"), free).unwrap();
        for task in ["colours", "word_sorting"] {
            let text = "canary GUID x\n-----\nDo it.\n\nQ: 1\nA: Let's think step by step.\nSo the answer is 1.\n";
            std::fs::write(dir.path().join(format!("cot-prompts/{task}.txt")), text).unwrap();
        }
        bbh(&Settings { data: dir.path().to_owned(), preset, prompt: None, limit: None }).unwrap()
    }

    fn passes(preset: BbhPreset, problem: usize, response: &str) -> bool {
        open(preset).grade(problem, response, &|| false).unwrap().passed()
    }

    #[test]
    fn worked_examples_come_without_their_canary() {
        let task = open(BbhPreset::OursShots);
        let prompt = &task.messages(1).unwrap()[0].content;
        assert!(prompt.starts_with("Do it.\n\nQ: 1\n"), "{prompt}");
        assert!(prompt.ends_with("\n\nQ: Sort: b a\nA: Let's think step by step."), "{prompt}");
        let ours = &open(BbhPreset::Ours).messages(0).unwrap()[0].content;
        assert!(ours.contains("the letter of the right option in brackets"), "{ours}");
    }

    #[test]
    fn ours_reads_answers_as_a_person_does() {
        for response in [
            "So the answer is (B).",
            "The answer is **(b)**",
            "Answer: B",
            "the answer is (A). No: the answer is (B) blood",
        ] {
            assert!(passes(BbhPreset::Ours, 0, response), "{response}");
        }
        for response in
            ["So the answer is a b.", "the answer is: **A, b**", "so the answer is a  b\nreally"]
        {
            assert!(passes(BbhPreset::Ours, 1, response), "{response}");
        }
        for response in ["(B)", "So the answer is (A).", "So the answer is blood."] {
            assert!(!passes(BbhPreset::Ours, 0, response), "{response}");
        }
    }

    #[test]
    fn opencompass_takes_the_first_answer_and_any_capital_letter() {
        let preset = BbhPreset::OpencompassEe62e9;
        assert!(passes(preset, 0, "the answer is (B). No: the answer is (A)."));
        assert!(passes(preset, 0, "Blood"));
        assert!(passes(preset, 0, "It is blood, (B)"));
        assert!(!passes(preset, 0, "It is (C)lear: (B)"));
        assert!(passes(preset, 1, "So the answer is **a b**."));
        assert!(!passes(preset, 1, "So the answer is A b."));
        assert!(passes(
            BbhPreset::OpencompassEe62e92026,
            1,
            "The answer is x. So the Answer is: A, b."
        ));
    }

    #[test]
    fn lm_eval_drops_the_last_character_of_the_line() {
        assert!(passes(BbhPreset::LmEvalCotFewshot, 0, "So the answer is (B)."));
        assert!(!passes(BbhPreset::LmEvalCotFewshot, 0, "So the answer is (B)"));
        assert!(!passes(BbhPreset::LmEvalCotFewshot, 0, "(B)."));
    }
}
