//! The rows of one file, whatever its kind.
//!
//! Contract: a row is a JSON object. Files named `.parquet` are Parquet, all others JSON Lines, or one
//! JSON array of objects, as they are or compressed with gzip. The same value is the same row in each of them. Rows are read as they are
//! asked for; a bad one is the user's mistake and is named by its place.

use super::header::Header;
use super::{jsonl, parquet};
use anyhow::Result;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Rows with their numbers, counted from 1: of JSON Lines those of their lines.
pub type NumberedRows<T> = Box<dyn Iterator<Item = Result<(usize, T)>> + Send>;

/// How rows lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line, or one array of them.
    Json,
    Parquet,
}

impl Format {
    /// The format that a name tells by its ending, in small or capital letters; none where it tells another.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "jsonl" | "json" | "ndjson" => Some(Self::Json),
            "gz" => Self::of(&path.with_extension("")).filter(|inner| *inner == Self::Json),
            _ => None,
        }
    }

    /// The format of a file that somebody named, whatever its ending.
    fn or_json(path: &Path) -> Self {
        Self::of(path).unwrap_or(Self::Json)
    }
}

/// The rows of `path`.
pub fn rows<T: DeserializeOwned + Send + 'static>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<T>> + Send + use<T>> {
    Ok(numbered(path, None)?.map(|row| Ok(row?.1)))
}

/// The rows with their numbers. Of Parquet only the `columns` are read, where some are given.
pub fn numbered<T: DeserializeOwned + Send + 'static>(
    path: &Path,
    columns: Option<&[&str]>,
) -> Result<NumberedRows<T>> {
    Ok(match Format::or_json(path) {
        Format::Json => Box::new(jsonl::numbered_rows(path)?),
        Format::Parquet => Box::new(parquet::numbered_rows(path, columns)?),
    })
}

pub fn read<T: DeserializeOwned + Send + 'static>(path: &Path) -> Result<Vec<T>> {
    rows(path)?.collect()
}

pub fn count(path: &Path) -> Result<u64> {
    match Format::or_json(path) {
        Format::Json => jsonl::count(path),
        Format::Parquet => parquet::count(path),
    }
}

/// What the beginning or the footer of `path` says of it.
pub fn header(path: &Path) -> Result<Header> {
    match Format::or_json(path) {
        Format::Json => jsonl::header(path),
        Format::Parquet => parquet::header(path),
    }
}
