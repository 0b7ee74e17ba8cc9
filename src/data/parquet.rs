//! Samples in parquet files with the columns of `allenai/tulu-3-sft-mixture`: `messages`
//! (list of struct `role`, `content`), and where present `id` and `source`.
//!
//! Contract: rows come in the file's order, one at a time; a column's fields may come in any order
//! and `id`, `source` and a message's content may be null. A file that is damaged, or a row that is
//! no conversation, is the user's error and is named by file and row.
//!
//! Left out: other columns, which are not even decompressed, and writing.

use super::input::Header;
use super::sample::{Message, Sample};
use crate::base::error::usage;
use anyhow::{Result, anyhow};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::{Arc, Once};

const MESSAGES: &str = "messages";
const COLUMNS: [&str; 3] = [MESSAGES, "id", "source"];

/// How many rows the file says it has.
pub fn count(path: &Path) -> Result<u64> {
    Ok(open(path)?.metadata().file_metadata().num_rows().max(0) as u64)
}

/// What the footer says.
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

/// The samples of the file, read as they are asked for.
pub fn rows(path: &Path) -> Result<impl Iterator<Item = Result<Sample>> + use<>> {
    let reader = open(path)?;
    let columns = columns(&reader).map_err(|e| usage(format!("{}: {e}", path.display())))?;
    let mut rows = RowIter::from_file_into(Box::new(reader))
        .project(Some(columns))
        .map_err(|e| damaged(path, &e))?;
    let path = path.to_owned();
    let mut number = 0;
    Ok(std::iter::from_fn(move || {
        number += 1;
        let sample = guarded(|| rows.next().transpose())
            .and_then(|row| row.map(sample).transpose())
            .map_err(|e| usage(format!("{}: row {number}: {e}", path.display())));
        sample.transpose()
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

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a step of the parquet library, which panics on some damaged files, in silence.
fn guarded<T>(step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                report(panic);
            }
        }));
    });
    IS_GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(step));
    IS_GUARDED.set(false);
    match result {
        Ok(result) => result.map_err(|e| anyhow!("{e}")),
        Err(_) => Err(anyhow!("the file is damaged")),
    }
}

/// The file's schema without the columns that are not read.
fn columns(reader: &SerializedFileReader<File>) -> Result<Type> {
    let schema = reader.metadata().file_metadata().schema();
    let fields: Vec<Arc<Type>> =
        schema.get_fields().iter().filter(|f| COLUMNS.contains(&f.name())).cloned().collect();
    if !fields.iter().any(|field| field.name() == MESSAGES) {
        return Err(anyhow!("no column `{MESSAGES}`: expected rows of role and content"));
    }
    Ok(Type::group_type_builder(schema.name()).with_fields(fields).build()?)
}

fn sample(row: Row) -> Result<Sample> {
    let mut sample = Sample::default();
    for (name, field) in row.into_columns() {
        match (name.as_str(), field) {
            (MESSAGES, Field::ListInternal(list)) => {
                sample.messages = list.elements().iter().map(message).collect::<Result<_>>()?;
            }
            (MESSAGES, _) => return Err(anyhow!("`{MESSAGES}` is not a list")),
            ("id", field) => sample.id = text(field),
            (_, field) => sample.source = text(field),
        }
    }
    Ok(sample)
}

fn message(field: &Field) -> Result<Message> {
    let Field::Group(group) = field else { return Err(anyhow!("a message is not a struct")) };
    let find = |name: &str| {
        let value = group.get_column_iter().find(|(column, _)| *column == name);
        value.and_then(|(_, field)| text(field.clone()))
    };
    let role = find("role").ok_or_else(|| anyhow!("a message has no role"))?;
    Ok(Message::new(role, find("content").unwrap_or_default()))
}

/// A string, or a number as it is spelled; none where it is null.
fn text(field: Field) -> Option<String> {
    match field {
        Field::Null => None,
        Field::Str(text) => Some(text),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    /// Two row groups of made-up rows, by scripts/golden/parquet_rows.py.
    const GOLDEN: &str = "tests/golden/data/rows.parquet";

    fn golden() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN)
    }

    fn read(path: &Path) -> Result<Vec<Sample>> {
        rows(path)?.collect()
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
