//! The texts of a configuration, addressed as if they were one long text.
//!
//! Every file and every `--set` has its own range of positions. So one number says both in which text a
//! value is and where, and the spans of a merged table stay valid.

use crate::base::error::usage;
use crate::base::fs::read_text;
use anyhow::Result;
use std::fmt;
use std::path::PathBuf;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it, so it has its default.
    Default,
    /// It is on a line of a config file.
    File {
        /// The file, as the user named it.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// It is on a line of a named profile.
    Profile {
        name: &'static str,
        /// The line, counted from 1.
        line: usize,
    },
    /// It is in a `--set` argument, given here as it was typed.
    Set(String),
}

/// Values that the user chooses by one name; all that the user gives overrides them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// The name in `profile = "..."`.
    pub name: &'static str,
    /// The values, as TOML.
    pub text: &'static str,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Profile { name, line } => write!(f, "profile {name}:{line}"),
            Self::Set(argument) => write!(f, "--set {argument}"),
        }
    }
}

enum Name {
    Profile(&'static str),
    File(PathBuf),
    Set(String),
}

struct Source {
    name: Name,
    text: String,
    start: usize,
}

/// All texts, in the order in which they apply.
pub(crate) struct Sources(Vec<Source>);

impl Sources {
    /// Reads the files, and turns each `--set` into a line of TOML.
    pub(crate) fn read(files: &[PathBuf], sets: &[String]) -> Result<Self> {
        let mut sources = Self(Vec::new());
        for path in files {
            sources.push(Name::File(path.clone()), read_text(path)?);
        }
        for argument in sets {
            sources.push(Name::Set(argument.clone()), set_as_toml(argument)?);
        }
        Ok(sources)
    }

    /// Puts the profile that the texts choose, or else the first, before them.
    pub(crate) fn over_profile(self, profiles: &[Profile]) -> Result<Self> {
        let Some(default) = profiles.first() else { return Ok(self) };
        let merged = self.merged()?;
        let chosen = match merged.get("profile") {
            None => default,
            Some(value) => profiles
                .iter()
                .find(|profile| value.get_ref().as_str() == Some(profile.name))
                .ok_or_else(|| {
                    let names: Vec<_> = profiles.iter().map(|p| format!("{:?}", p.name)).collect();
                    usage(format!(
                        "{}: `profile` must be one of {}",
                        self.origin(value.span().start),
                        names.join(", ")
                    ))
                })?,
        };
        let mut over = Self(Vec::new());
        over.push(Name::Profile(chosen.name), chosen.text.to_owned());
        self.0.into_iter().for_each(|source| over.push(source.name, source.text));
        Ok(over)
    }

    fn push(&mut self, name: Name, text: String) {
        // A text has one position more than it has bytes, since errors may point at its end.
        let start = self.0.last().map_or(0, |last| last.start + last.text.len() + 1);
        self.0.push(Source { name, text, start });
    }

    /// Parses every text and merges them. Spans are positions in the long text.
    pub(crate) fn merged(&self) -> Result<DeTable<'_>> {
        let mut merged = DeTable::new();
        for source in &self.0 {
            let table = DeTable::parse(&source.text).map_err(|e| {
                let position = source.start + e.span().map_or(0, |span| span.start);
                usage(format!("{}: not valid TOML: {}", self.origin(position), one_line(&e)))
            })?;
            merge(&mut merged, shift_table(table.into_inner(), source.start));
        }
        Ok(merged)
    }

    /// Returns the index of the text at a position. Later texts override earlier ones.
    pub(crate) fn text_of(&self, position: usize) -> usize {
        self.0.partition_point(|source| source.start <= position).saturating_sub(1)
    }

    /// Returns the text at a range of positions.
    pub(crate) fn text(&self, range: std::ops::Range<usize>) -> &str {
        let source = self.0.get(self.text_of(range.start));
        let text = source.and_then(|s| s.text.get(range.start - s.start..range.end - s.start));
        text.unwrap_or_default()
    }

    /// Returns the text and the line at a position.
    pub(crate) fn origin(&self, position: usize) -> Origin {
        let Some(source) = self.0.get(self.text_of(position)) else { return Origin::Default };
        let end = (position - source.start).min(source.text.len());
        let line = 1 + source.text.as_bytes()[..end].iter().filter(|&&b| b == b'\n').count();
        match &source.name {
            Name::Profile(name) => Origin::Profile { name, line },
            Name::File(path) => Origin::File { path: path.clone(), line },
            Name::Set(argument) => Origin::Set(argument.clone()),
        }
    }

    /// Returns the names of the files, for errors that belong to no line.
    pub(crate) fn names(&self) -> String {
        let files = self.0.iter().filter_map(|s| match &s.name {
            Name::File(path) => Some(path.display().to_string()),
            Name::Set(_) | Name::Profile(_) => None,
        });
        let names = files.collect::<Vec<_>>().join(" + ");
        if names.is_empty() { "config".to_owned() } else { names }
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', ", ")
}

/// Turns `a.b=VALUE` into a line of TOML; a VALUE that is not TOML becomes a string.
fn set_as_toml(argument: &str) -> Result<String> {
    let malformed = || {
        usage(format!(
            "--set {argument}: expected KEY=VALUE with a dotted key, such as optim.lr=0.001"
        ))
    };
    let (key, value) = argument.split_once('=').ok_or_else(malformed)?;
    let as_value = format!("{key} = {value}");
    if !value.contains('\n') && DeTable::parse(&as_value).is_ok() {
        return Ok(as_value);
    }
    let as_string = format!("{key} = {}", toml::Value::String(value.to_owned()));
    match DeTable::parse(&as_string) {
        Ok(_) => Ok(as_string),
        Err(_) => Err(malformed()),
    }
}

fn merge<'i>(into: &mut DeTable<'i>, from: DeTable<'i>) {
    for (key, value) in from {
        let name: &str = key.get_ref();
        let span = value.span();
        match (into.get_mut(name).map(Spanned::get_mut), value.into_inner()) {
            (Some(DeValue::Table(old)), DeValue::Table(new)) => merge(old, new),
            (_, new) => {
                into.insert(key, Spanned::new(span, new));
            }
        }
    }
}

fn shift_table(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    table
        .into_iter()
        .map(|(key, value)| {
            (Spanned::new(moved(key.span(), by), key.into_inner()), shift(value, by))
        })
        .collect()
}

fn shift(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = moved(value.span(), by);
    let inner = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shift_table(table, by)),
        DeValue::Array(items) => {
            DeValue::Array(items.into_iter().map(|item| shift(item, by)).collect())
        }
        scalar => scalar,
    };
    Spanned::new(span, inner)
}

fn moved(span: std::ops::Range<usize>, by: usize) -> std::ops::Range<usize> {
    span.start + by..span.end + by
}
