//! Reads rows from Parquet files, as the same rows would be in JSON Lines.
//!
//! Rows come in the file's order, one at a time. A null is null in a row and in the elements of its lists,
//! such as turns. Deeper it is an absent key: in tool calls, say, a writer's schema has the keys of all
//! rows together. Bytes must be text; decimals, dates and times become text. A file that is damaged, or a
//! row that is not what the reader expects, is the user's mistake and is named by file and row. Nothing is
//! written.

use super::header::Header;
use crate::base::error::usage;
use crate::base::guard::quietly;
use anyhow::{Result, anyhow};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// The column whose text is counted.
const MESSAGES: &str = "messages";

/// Returns the number of rows that the footer gives.
pub fn count(path: &Path) -> Result<u64> {
    Ok(open(path)?.metadata().file_metadata().num_rows().max(0) as u64)
}

/// Returns what the footer says about the whole file.
pub fn header(path: &Path) -> Result<Header> {
    let reader = open(path)?;
    let mut text_bytes = 0;
    for group in reader.metadata().row_groups() {
        let columns = group.columns().iter();
        let text = columns.filter(|column| column.column_path().string().starts_with(MESSAGES));
        text_bytes += text.map(|column| column.uncompressed_size().max(0)).sum::<i64>();
    }
    let rows = reader.metadata().file_metadata().num_rows().max(0);
    Ok(Header { rows: rows as f64, text_bytes: text_bytes as f64 })
}

/// Returns the rows of the file with their numbers, which are read when they are needed. If `columns` is
/// not empty, only these columns are read.
pub fn numbered_rows<T: DeserializeOwned>(
    path: &Path,
    columns: Option<&[&str]>,
) -> Result<impl Iterator<Item = Result<(usize, T)>> + Send + use<T>> {
    let reader = open(path)?;
    let schema = columns.map(|columns| projection(&reader, columns)).transpose();
    let schema = schema.map_err(|e| damaged(path, &e))?;
    let mut rows =
        RowIter::from_file_into(Box::new(reader)).project(schema).map_err(|e| damaged(path, &e))?;
    let path = path.to_owned();
    let mut number = 0;
    Ok(std::iter::from_fn(move || {
        number += 1;
        let row = guarded(|| rows.next().transpose()).transpose()?;
        let read = row.and_then(|row| {
            let row = object(row.into_columns(), 0)?.to_string();
            serde_json::from_str(&row).map_err(|e| anyhow!("{}: {e}", beginning(&row)))
        });
        let named = |e| usage(format!("{}: row {number}: {e:#}", path.display()));
        Some(read.map(|row| (number, row)).map_err(named))
    }))
}

fn open(path: &Path) -> Result<SerializedFileReader<File>> {
    let file =
        File::open(path).map_err(|e| usage(format!("cannot read {}: {e}", path.display())))?;
    guarded(|| SerializedFileReader::new(file)).map_err(|e| damaged(path, &e))
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    usage(format!("{}: not a readable parquet file: {error}", path.display()))
}

/// Runs a step of the parquet library, which panics on some damaged files.
fn guarded<T>(step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    match quietly(step) {
        Some(result) => result.map_err(|e| anyhow!("{e}")),
        None => Err(anyhow!("the file is damaged")),
    }
}

/// Returns the file's schema without the columns that are not read.
fn projection(reader: &SerializedFileReader<File>, columns: &[&str]) -> Result<Type> {
    let schema = reader.metadata().file_metadata().schema();
    let fields: Vec<Arc<Type>> =
        schema.get_fields().iter().filter(|f| columns.contains(&f.name())).cloned().collect();
    Ok(Type::group_type_builder(schema.name()).with_fields(fields).build()?)
}

/// Returns the beginning of a row, for the error to a user who cannot see the columns.
fn beginning(row: &str) -> String {
    match row.char_indices().nth(60) {
        None => format!("{row} in JSON Lines"),
        Some((end, _)) => format!("{}... in JSON Lines", &row[..end]),
    }
}

/// A null in a struct this deep or deeper is an absent key.
const DEEP: usize = 2;

/// Converts a row, or a struct inside `depth` others, to JSON.
fn object(columns: Vec<(String, Field)>, depth: usize) -> Result<Value> {
    let mut keys = Map::new();
    for (name, field) in columns {
        if depth < DEEP || !matches!(field, Field::Null) {
            let value =
                json(field, depth + 1).map_err(|e| e.context(format!("column `{name}`")))?;
            keys.insert(name, value);
        }
    }
    Ok(Value::Object(keys))
}

/// Converts a field to JSON. A number that JSON cannot hold exactly becomes text.
fn json(field: Field, depth: usize) -> Result<Value> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Str(text) => Value::String(text),
        // These are columns of text that their writer did not mark as text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => return Err(anyhow!("it holds bytes that are no text (UTF-8)")),
        },
        Field::Double(value) if value.is_finite() => value.into(),
        // The decimal is the one that JSON would have: 0.1 and not 0.10000000149011612.
        Field::Float(value) if value.is_finite() => {
            value.to_string().parse::<f64>().expect("invariant: a number's own text").into()
        }
        Field::Group(row) => object(row.into_columns(), depth)?,
        Field::ListInternal(list) => list
            .elements()
            .iter()
            .cloned()
            .map(|field| json(field, depth))
            .collect::<Result<_>>()?,
        Field::MapInternal(map) => {
            let key = |key: &Field| match key {
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            };
            object(map.entries().iter().map(|(k, v)| (key(k), v.clone())).collect(), depth)?
        }
        // Decimals, dates, times, and numbers that are not finite become text.
        other => Value::String(other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::data::jsonl;
    use crate::data::sample::{Message, Sample};

    /// Returns a file with two row groups of invented rows, made by scripts/golden/parquet_rows.py.
    fn golden() -> std::path::PathBuf {
        golden_file("rows.parquet")
    }

    fn golden_file(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data").join(name)
    }

    fn read(path: &Path) -> Result<Vec<Sample>> {
        numbered_rows(path, None)?.map(|row| Ok(row?.1)).collect()
    }

    #[test]
    fn rows_are_what_was_written_nulls_included() {
        let samples = read(&golden()).unwrap();
        assert_eq!(samples.len() as u64, count(&golden()).unwrap());
        let Header { rows, text_bytes } = header(&golden()).unwrap();
        assert!(rows == samples.len() as f64 && text_bytes > 0.0, "{rows} {text_bytes}");
        assert_eq!(samples[0].id.as_deref(), Some("a"));
        assert_eq!(samples[0].source.as_deref(), Some("s/one"));
        assert_eq!(
            samples[0].messages,
            [Message::new("user", "Wie viele?"), Message::new("assistant", "数列 3."),]
        );
        assert_eq!((&samples[1].id, &samples[1].source), (&None, &None));
        assert_eq!(samples[1].messages[1].content, "", "null content");
        assert_eq!(samples[2].messages.len(), 4, "turns stay together");
    }

    #[test]
    fn every_codec_gives_the_same_rows() {
        let rows = read(&golden()).unwrap();
        for codec in ["none", "gzip", "brotli", "lz4", "zstd"] {
            assert_eq!(
                read(&golden_file(&format!("rows-{codec}.parquet"))).unwrap(),
                rows,
                "{codec}"
            );
        }
    }

    #[test]
    fn the_same_rows_in_json_lines_are_the_same_samples() {
        let samples = read(&golden_file("turns.parquet")).unwrap();
        assert_eq!(samples, jsonl::read::<Sample>(&golden_file("turns.jsonl")).unwrap());
        assert_eq!(samples[0].id.as_deref(), Some("9007199254740993"));
        assert_eq!(samples[0].messages[0], Message::new("user", "Wie viele?"));
        assert!(!samples[0].messages[1].train && samples[1].messages[1].train);
        assert_eq!(samples[1].messages[1].more["tool_calls"][0]["function"]["name"], "weather");
    }

    #[test]
    fn text_in_binary_columns_is_text() {
        let samples = read(&golden_file("bytes.parquet")).unwrap();
        assert_eq!(samples[0].id.as_deref(), Some("7"));
        assert_eq!(
            samples[0].messages,
            [Message::new("user", "ä"), Message::new("assistant", "b")]
        );
    }

    #[test]
    fn a_row_of_another_kind_is_shown_with_what_it_lacks() {
        let error = numbered_rows::<crate::data::problem::Problem>(&golden(), None).unwrap().next();
        let error = error.unwrap().unwrap_err().to_string();
        assert!(error.contains("rows.parquet: row 1: {\"id\":\"a\""), "{error}");
        assert!(error.contains("in JSON Lines: missing field `problem_id`"), "{error}");
    }

    #[test]
    fn a_damaged_or_foreign_file_is_named_and_never_panics() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let whole = std::fs::read(golden()).unwrap();
        let mut refused = 0;
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 0xff;
            std::fs::write(&path, bytes).unwrap();
            if let Err(error) = read(&path) {
                assert_eq!(exit_code(&error), 2);
                assert!(error.to_string().contains("x.parquet"), "{error}");
                refused += 1;
            }
        }
        assert!(refused > 100, "{refused}");
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("not a readable parquet file"));
    }
}
