//! Finds the files of a directory, or of a data set on the Hub, that hold samples.
//!
//! These are files named `.jsonl`, `.json`, `.ndjson` (these also with `.gz` after that) or `.parquet`, in
//! small or capital letters, in the order of their names (docs/sft.md tells users). Hidden files, and the
//! notes that `datasets` leaves, are not among them. If names tell splits, only the training split is read.
//! What is left out is named in the log, unless it belongs to another split. What cannot be meant is
//! refused: no training split, other compressed files, or the same rows in two formats.

use super::rows::Format;
use crate::base::error::usage;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files that the `datasets` library writes about others.
const NOTES: [&str; 4] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
/// The endings of files that are compressed as a whole. Of these only gzip is read, and only of JSON.
const COMPRESSED: [&str; 6] = ["gz", "zst", "bz2", "xz", "lz4", "br"];
/// The endings of files with rows that are not read.
const FOREIGN: [&str; 5] = ["csv", "tsv", "arrow", "zip", "tar"];

/// The files that are read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Their names, as they were given.
    pub(crate) files: Vec<PathBuf>,
    /// Files that look like samples and are not read, except those of other splits.
    pub(crate) left_out: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Training,
    Other,
}

impl Split {
    /// Returns the split that a word of a name tells.
    fn of_word(word: &str) -> Option<Self> {
        match word.to_lowercase().as_str() {
            "train" | "training" => Some(Self::Training),
            "valid" | "validation" | "val" | "dev" | "test" | "testing" | "eval" | "evaluation" => {
                Some(Self::Other)
            }
            _ => None,
        }
    }

    /// Returns the split of a file: the nearest part of its path that has such a word tells it, by its
    /// first one.
    fn of(path: &Path) -> Option<Self> {
        path.iter().rev().find_map(|part| {
            let part = part.to_string_lossy();
            part.split(|c: char| !c.is_alphabetic()).find_map(Self::of_word)
        })
    }
}

impl Choice {
    /// Chooses among the names of all files of `place`, which are relative to it.
    pub(crate) fn of(place: &str, mut names: Vec<PathBuf>) -> Result<Self> {
        names.sort();
        names.retain(|name| !is_hidden(name) && !is_note(name));
        let (data, others): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| Format::of(name).is_some() || is_compressed(name));
        let mut left_out: Vec<_> = others.into_iter().filter(|name| is_foreign(name)).collect();
        if data.is_empty() {
            return Err(usage(format!(
                "{place}: no .jsonl, .json or .parquet file in it{}",
                list(" (not read: ", &left_out, ")")
            )));
        }
        let files = training(place, data, &mut left_out)?;
        if let Some(file) = files.iter().find(|file| Format::of(file).is_none()) {
            let file = file.display();
            return Err(usage(format!(
                "{place}: {file} is compressed, which is not read: decompress it (zstd -d, xz -d), or \
                 name the files to read"
            )));
        }
        let mut stems: BTreeMap<PathBuf, &Path> = BTreeMap::new();
        for file in &files {
            let stem = if ending(file) == "gz" { file.with_extension("") } else { file.clone() };
            if let Some(twin) = stems.insert(stem.with_extension(""), file) {
                return Err(usage(format!(
                    "{place}: {} and {} may hold the same rows: name the one to read",
                    twin.display(),
                    file.display()
                )));
            }
        }
        Ok(Self { files, left_out })
    }

    /// Names in the log what is not read.
    pub(crate) fn warn(&self, place: &str) {
        if !self.left_out.is_empty() {
            tracing::warn!("{place}:{}", list(" not read: ", &self.left_out, ""));
        }
    }
}

/// Returns the training files, if names tell splits.
fn training(place: &str, data: Vec<PathBuf>, left_out: &mut Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    if data.iter().all(|file| Split::of(file).is_none()) {
        return Ok(data);
    }
    let is_training = |file: &PathBuf| Split::of(file) == Some(Split::Training);
    let (files, others): (Vec<_>, Vec<_>) = data.into_iter().partition(is_training);
    if files.is_empty() {
        return Err(usage(format!(
            "{place}: no training split in it, only{}: name the files to read",
            list(" ", &others, "")
        )));
    }
    left_out.extend(others.into_iter().filter(|file| Split::of(file).is_none()));
    Ok(files)
}

/// Writes some of the names in a line; nothing if there are none.
fn list(before: &str, names: &[PathBuf], after: &str) -> String {
    const SHOWN: usize = 5;
    let mut shown: Vec<_> =
        names.iter().take(SHOWN).map(|name| name.display().to_string()).collect();
    match names.len() {
        0 => return String::new(),
        n if n > SHOWN => shown.push(format!("and {} more", n - SHOWN)),
        _ => {}
    }
    format!("{before}{}{after}", shown.join(", "))
}

fn is_hidden(name: &Path) -> bool {
    name.iter().any(|part| part.to_string_lossy().starts_with('.'))
}

fn is_note(name: &Path) -> bool {
    name.file_name().is_some_and(|name| NOTES.iter().any(|note| name == *note))
}

fn ending(name: &Path) -> String {
    name.extension().map_or(String::new(), |ending| ending.to_string_lossy().to_lowercase())
}

fn is_compressed(name: &Path) -> bool {
    COMPRESSED.contains(&ending(name).as_str()) && Format::of(&name.with_extension("")).is_some()
}

fn is_foreign(name: &Path) -> bool {
    let inner = name.with_extension("");
    FOREIGN.contains(&ending(name).as_str())
        || (COMPRESSED.contains(&ending(name).as_str())
            && FOREIGN.contains(&ending(&inner).as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(names: &[&str]) -> Result<Choice> {
        Choice::of("place", names.iter().map(PathBuf::from).collect())
    }

    fn chosen(names: &[&str]) -> Vec<String> {
        let files = choose(names).unwrap().files;
        files.iter().map(|file| file.display().to_string()).collect()
    }

    fn refused(names: &[&str]) -> String {
        let error = choose(names).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        error.to_string()
    }

    #[test]
    fn rows_are_told_by_the_ending_in_small_or_capital_letters() {
        let names = ["README.md", "b.JSONL", "a.json", ".git/x.jsonl", "c.Parquet", "LICENSE"];
        assert_eq!(chosen(&names), ["a.json", "b.JSONL", "c.Parquet"]);
        assert_eq!(chosen(&["data/a.parquet", "dataset_infos.json"]), ["data/a.parquet"]);
        assert!(refused(&["a.csv", "README.md"]).contains("(not read: a.csv)"));
    }

    #[test]
    fn of_splits_only_training_is_read_wherever_names_tell_them() {
        for names in [
            ["default/train/0.parquet", "default/test/0.parquet", "default/validation/0.parquet"],
            ["my_train.jsonl", "my_test.jsonl", "dev.jsonl"],
            ["data/ds-train-0-of-1.jsonl", "data/ds-test-0-of-1.jsonl", "data/eval.jsonl"],
            ["train1.jsonl", "test1.jsonl", "Test/2.jsonl"],
        ] {
            assert_eq!(chosen(&names), [names[0]]);
        }
        assert_eq!(chosen(&["contest.jsonl", "trainer.jsonl"]), ["contest.jsonl", "trainer.jsonl"]);
        assert_eq!(chosen(&["train/test_cases.jsonl", "train/a.jsonl"]), ["train/a.jsonl"]);
        assert!(refused(&["test.jsonl", "dev.jsonl"]).contains("only dev.jsonl, test.jsonl"));
    }

    #[test]
    fn what_looks_like_samples_and_is_not_read_is_named() {
        let choice = choose(&["train.jsonl", "extra.jsonl", "test.jsonl", "more.csv.gz"]).unwrap();
        assert_eq!(choice.files, [Path::new("train.jsonl")]);
        assert_eq!(choice.left_out, [Path::new("more.csv.gz"), Path::new("extra.jsonl")]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert_eq!(chosen(&["a.jsonl", "b.JSONL.gz"]), ["a.jsonl", "b.JSONL.gz"]);
        assert!(refused(&["a.jsonl", "b.jsonl.xz"]).contains("b.jsonl.xz is compressed"));
        assert!(refused(&["a.parquet.gz"]).contains("a.parquet.gz is compressed"));
        assert!(refused(&["a.jsonl", "a.jsonl.gz"]).contains("may hold the same rows"));
        assert!(refused(&["a.JSON.ZST"]).contains("is compressed"));
        assert!(refused(&["a.jsonl", "a.parquet"]).contains("a.jsonl and a.parquet"));
        assert_eq!(chosen(&["train.jsonl", "test.jsonl.gz"]), ["train.jsonl"]);
    }
}
