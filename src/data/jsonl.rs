//! Rows of JSON in and out: an object a line, or one array of objects.
//!
//! Contract: a file whose first character is `[` is an array, whatever its name; it is held in memory as
//! text. A malformed row is the user's mistake and is named by file, line and column.

use super::header::Header;
use crate::base::error::usage;
use crate::base::fs::AtomicFile;
use anyhow::{Context, Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

/// Bytes that tell how long lines are.
const HEADER: u64 = 1 << 20;
/// What some editors begin a file with.
const MARK: char = '\u{feff}';

/// The rows of `path`, read as they are asked for; blank lines are skipped.
pub fn rows<T: DeserializeOwned>(path: &Path) -> Result<impl Iterator<Item = Result<T>> + use<T>> {
    Ok(numbered_rows(path)?.map(|row| Ok(row?.1)))
}

/// The same with the number of each line, or of each element of an array, counted from 1.
pub fn numbered_rows<T: DeserializeOwned>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<(usize, T)>> + Send + use<T>> {
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut reader = BufReader::new(file);
    let path = path.to_owned();
    let (array, lines) = if is_array(&mut reader).map_err(|e| unreadable(&path, &e))? {
        (elements(reader, &path)?, None)
    } else {
        (Vec::new(), Some(reader.lines()))
    };
    let elements = {
        let path = path.clone();
        array.into_iter().enumerate().map(move |(i, element)| {
            let row = serde_json::from_str(element.get());
            let named = |e| usage(format!("{}: row {}: {e}", path.display(), i + 1));
            row.map(|row| (i + 1, row)).map_err(named)
        })
    };
    let lines = lines.into_iter().flatten().enumerate().filter_map(move |(i, line)| {
        let place = || format!("{}:{}", path.display(), i + 1);
        match line {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => {
                let row = serde_json::from_str(without_mark(i, &line));
                Some(row.map(|row| (i + 1, row)).map_err(|e| mistake(&place(), &e)))
            }
            Err(e) => Some(Err(usage(format!("{}: cannot read the line: {e}", place())))),
        }
    });
    Ok(elements.chain(lines))
}

/// Whether the first character opens an array.
fn is_array(reader: &mut impl BufRead) -> std::io::Result<bool> {
    let start = reader.fill_buf()?;
    let start = start.strip_prefix(MARK.to_string().as_bytes()).unwrap_or(start);
    Ok(start.trim_ascii_start().first() == Some(&b'['))
}

/// The elements of the array in `reader`, as text.
fn elements(mut reader: impl Read, path: &Path) -> Result<Vec<Box<RawValue>>> {
    let mut text = String::new();
    reader.read_to_string(&mut text).map_err(|e| unreadable(path, &e))?;
    serde_json::from_str(without_mark(0, &text)).map_err(|e| {
        let place = format!("{}:{}", path.display(), e.line());
        mistake(&place, &e).context(format!("{}: not a JSON array of rows", path.display()))
    })
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    usage(format!("cannot read {}: {error}", path.display()))
}

/// What is wrong with the JSON that begins at `place`, and where.
fn mistake(place: &str, error: &serde_json::Error) -> Error {
    let reason = reason(error);
    let reason = match error.is_eof() {
        true => format!("{reason}; expected a JSON object a line (JSON Lines), or one JSON array"),
        false => reason,
    };
    match error.column() {
        // Found when the whole row had been read.
        0 => usage(format!("{place}: {reason}")),
        column => usage(format!("{place}:{column}: {reason}")),
    }
}

/// The line without the byte order mark that some editors begin a file with.
fn without_mark(index: usize, line: &str) -> &str {
    let marked = if index == 0 { line.strip_prefix(MARK) } else { None };
    marked.unwrap_or(line)
}

/// serde's words without its line, which is always the first.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    rows(path)?.collect()
}

pub fn count(path: &Path) -> Result<u64> {
    let unreadable = |e| unreadable(path, &e);
    let mut reader = BufReader::new(File::open(path).map_err(unreadable)?);
    if is_array(&mut reader).map_err(unreadable)? {
        return Ok(elements(reader, path)?.len() as u64);
    }
    let (mut count, mut line) = (0, Vec::new());
    while reader.read_until(b'\n', &mut line).map_err(unreadable)? > 0 {
        count += u64::from(!line.trim_ascii().is_empty());
        line.clear();
    }
    Ok(count)
}

/// What the first lines say of the whole file, or all elements of an array.
pub fn header(path: &Path) -> Result<Header> {
    let unreadable = |e| unreadable(path, &e);
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len() as f64;
    let mut reader = BufReader::new(file);
    if is_array(&mut reader).map_err(unreadable)? {
        return Ok(Header { rows: elements(reader, path)?.len() as f64, text_bytes: size });
    }
    let mut start = Vec::new();
    reader.take(HEADER).read_to_end(&mut start).map_err(unreadable)?;
    let lines = start.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let rows = lines.count() as f64 * size / start.len().max(1) as f64;
    Ok(Header { rows: rows.round(), text_bytes: size })
}

/// Writes one object a line; the file appears whole or not at all.
pub fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    for row in rows {
        serde_json::to_writer(&mut file, row).context("encoding a row")?;
        file.write_all(b"\n").with_context(|| format!("writing {}", path.display()))?;
    }
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Vec<u32>>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        std::fs::write(&path, text).unwrap();
        #[derive(serde::Deserialize)]
        struct Row {
            n: Vec<u32>,
        }
        let rows: Vec<Row> = read(&path)?;
        assert_eq!(count(&path).unwrap(), rows.len() as u64, "{text}");
        assert_eq!(header(&path).unwrap().rows, rows.len() as f64, "{text}");
        Ok(rows.into_iter().map(|row| row.n).collect())
    }

    #[test]
    fn an_array_and_lines_hold_the_same_rows() {
        for text in [
            "{\"n\": [1]}\n\n{\"n\": [2]}",
            "[{\"n\": [1]}, {\"n\": [2]}]",
            "\u{feff}\n [\n {\"n\":\n [1]},\n {\"n\": [2]}\n]\n",
        ] {
            assert_eq!(read_text(text).unwrap(), [[1], [2]], "{text}");
        }
        assert!(read_text("").unwrap().is_empty());
        assert!(read_text("[]").unwrap().is_empty());
    }

    #[test]
    fn a_bad_row_is_named_by_its_place() {
        for (text, part) in [
            ("{\"n\": [1]}\n{\"n\": 2}", "a.json:2:7: invalid type"),
            ("[{\"n\": [1]}, {\"n\": 2}]", "a.json: row 2: invalid type"),
            ("[{\"n\": [1]},\n 5 6]", "not a JSON array of rows: "),
            (
                "{\n \"n\": [1]\n}",
                "a.json:1:1: EOF while parsing an object; expected a JSON object",
            ),
        ] {
            let error = format!("{:#}", read_text(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
