//! What all benchmarks share: where their files lie, by which rules they are asked and graded, in which words.
//!
//! A preset is named after what it reproduces: `opencompass-HASH` is a configuration of OpenCompass, `lm-eval-NAME` a
//! task of lm-evaluation-harness, `ours` neither. A preset whose words are another's text has none here: `--prompt`
//! gives them, and responses that were made elsewhere need none.

use crate::base::error::usage;
use crate::data::prompt::Template;
use anyhow::Result;
use clap::ValueEnum;
use minijinja::Value;
use serde::{Deserialize, de::DeserializeOwned};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// The names of a benchmark's rules.
pub trait Preset: ValueEnum + Default + Send + Sync + 'static {}

impl<P: ValueEnum + Default + Send + Sync + 'static> Preset for P {}

/// A benchmark's files, its rules and its words.
#[derive(Debug, Clone, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings<P: Preset> {
    /// The benchmark's files, as they were published
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// The rules of asking and grading: ours, or those of another harness
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub preset: P,
    /// Prompt template [default: the preset's]
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    pub prompt: Option<PathBuf>,
    /// Ask only so many problems, spread evenly over all
    #[arg(long, value_name = "N")]
    #[serde(default)]
    pub limit: Option<usize>,
}

impl<P: Preset> Settings<P> {
    pub(crate) fn preset_name(&self) -> String {
        let value = self.preset.to_possible_value();
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The words of the user's file, or else those that come with the program for the preset, if any do.
    pub(crate) fn words(&self, bundled: Option<(&str, &str)>) -> Result<Words> {
        let template = match (&self.prompt, bundled) {
            (None, None) => None,
            (file, bundled) => Some(Template::open(file.as_deref(), bundled.unwrap_or_default())?),
        };
        Ok(Words { template: template.map(|(template, _)| template), preset: self.preset_name() })
    }

    /// The problems that are asked.
    pub(crate) fn chosen<T>(&self, problems: Vec<T>) -> Result<Vec<T>> {
        let all = problems.len();
        let wanted = self.limit.unwrap_or(all).min(all);
        if wanted == 0 {
            return Err(usage(format!("{}: there are no problems to ask", self.data.display())));
        }
        let is_chosen = |at: usize| (at + 1) * wanted / all > at * wanted / all;
        Ok(problems
            .into_iter()
            .enumerate()
            .filter(|(at, _)| is_chosen(*at))
            .map(|(_, problem)| problem)
            .collect())
    }
}

/// The words in which a benchmark asks.
pub(crate) struct Words {
    template: Option<Template>,
    preset: String,
}

impl Words {
    pub(crate) fn are_there(&self) -> bool {
        self.template.is_some()
    }

    pub(crate) fn render(&self, id: &str, shown: Value) -> Result<String> {
        match &self.template {
            Some(template) => template.render(shown, || format!("problem {id}")),
            None => Err(usage(format!(
                "preset {} asks in another project's words, which are no part of this program: give them as a \
                 template with --prompt FILE (docs/evaluation.md says what it can show)",
                self.preset
            ))),
        }
    }
}

/// The first of these places below `data`, or `data` itself, that is there.
pub(crate) fn place(data: &Path, below: &[&str]) -> Result<PathBuf> {
    let mut places = below.iter().map(|name| data.join(name));
    places
        .find(|path| path.exists())
        .ok_or_else(|| usage(format!("{}: there is no {}", data.display(), below.join(", nor "))))
}

/// The files of a directory with this ending, by name.
pub(crate) fn files(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let unreadable = |e| usage(format!("cannot read {}: {e}", dir.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.to_string_lossy().ends_with(ending) {
            files.push(path);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(usage(format!("{}: there is no file *{ending}", dir.display()))),
        false => Ok(files),
    }
}

/// The name of a file without its directory and its ending.
pub(crate) fn stem(path: &Path, ending: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(ending).unwrap_or(&name).to_owned()
}

/// The one JSON value that a file holds.
pub(crate) fn json_file<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let file =
        File::open(path).map_err(|e| usage(format!("cannot read {}: {e}", path.display())))?;
    serde_json::from_reader(BufReader::new(file))
        .map_err(|e| usage(format!("{}:{}: {e}", path.display(), e.line())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::MmluPreset;

    fn settings(limit: Option<usize>) -> Settings<MmluPreset> {
        Settings { data: "d".into(), preset: MmluPreset::OpencompassB618ea, prompt: None, limit }
    }

    #[test]
    fn a_limit_takes_problems_from_everywhere() {
        let chosen = |limit| settings(limit).chosen((0..10).collect::<Vec<_>>());
        assert_eq!(chosen(None).unwrap(), (0..10).collect::<Vec<_>>());
        assert_eq!(chosen(Some(99)).unwrap().len(), 10);
        assert_eq!(chosen(Some(3)).unwrap(), [3, 6, 9]);
        assert_eq!(chosen(Some(0)).unwrap_err().to_string(), "d: there are no problems to ask");
    }

    #[test]
    fn words_of_another_project_have_to_be_given() {
        let words = settings(None).words(None).unwrap();
        let error = words.render("p", Value::UNDEFINED).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(
            error.to_string().starts_with("preset opencompass-b618ea asks in another"),
            "{error}"
        );
    }
}
