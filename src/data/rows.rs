//! The rows of one file in any supported format.
//!
//! A row is a JSON object. A file named `.parquet` is Parquet; every other file is JSON Lines, or one JSON
//! array of objects, plain or compressed with gzip. The same value is the same row in each format. Rows are
//! read when they are needed. A row that cannot be read is the user's mistake and is named by its place.

use super::header::Header;
use super::{jsonl, parquet};
use anyhow::Result;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Rows with their numbers, counted from 1; in JSON Lines, the number is that of the line.
pub type NumberedRows<T> = Box<dyn Iterator<Item = Result<(usize, T)>> + Send>;

/// The format of rows in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON object on each line, or one array of them.
    Json,
    Parquet,
}

impl Format {
    /// Returns the format that the ending of a name tells, in small or capital letters; `None` if it tells
    /// none of these.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "jsonl" | "json" | "ndjson" => Some(Self::Json),
            "gz" => Self::of(&path.with_extension("")).filter(|inner| *inner == Self::Json),
            _ => None,
        }
    }

    /// Returns the format of a file that a user named, whatever its ending.
    fn or_json(path: &Path) -> Self {
        Self::of(path).unwrap_or(Self::Json)
    }
}

/// Returns the rows of `path`.
pub fn rows<T: DeserializeOwned + Send + 'static>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<T>> + Send + use<T>> {
    Ok(numbered(path, None)?.map(|row| Ok(row?.1)))
}

/// Returns the rows with their numbers. From Parquet, only the given `columns` are read.
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

/// Returns what the beginning or the footer of `path` says about the whole file.
pub fn header(path: &Path) -> Result<Header> {
    match Format::or_json(path) {
        Format::Json => jsonl::header(path),
        Format::Parquet => parquet::header(path),
    }
}
