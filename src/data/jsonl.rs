//! Reads and writes rows of JSON: an object a line, or one array of objects.
//!
//! A file whose first character is `[` is an array, whatever its name; its text is held in memory. A file that
//! begins as gzip does is decompressed, whatever its name. A malformed row is the user's mistake and is named
//! by file, line and column. So is a line that is not UTF-8, unless the bytes are in a value that `T` keeps as
//! it was written. There they become escapes of lone surrogates (`\udcff`), as in Python, which are no text.

use super::header::Header;
use crate::base::error::usage;
use crate::base::fs::AtomicFile;
use anyhow::{Context, Error, Result};
use flate2::bufread::MultiGzDecoder;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

/// The lengths of lines are estimated from this many bytes.
const HEADER: u64 = 1 << 20;
/// The byte order mark with which some editors begin a file.
const MARK: char = '\u{feff}';
/// What gzip begins a file with; no JSON does.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The text of a file, from its beginning.
struct Text {
    reader: Box<dyn BufRead + Send>,
    /// Bytes of the text; not known of a compressed file.
    size: Option<u64>,
}

impl Text {
    fn open(path: &Path) -> Result<Self> {
        let unreadable = |e| unreadable(path, &e);
        let file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let mut reader = BufReader::new(file);
        Ok(match reader.fill_buf().map_err(unreadable)?.starts_with(&GZIP) {
            true => {
                let reader = BufReader::new(MultiGzDecoder::new(reader));
                Self { reader: Box::new(reader), size: None }
            }
            false => Self { reader: Box::new(reader), size: Some(size) },
        })
    }
}

/// Returns the rows of `path`, which are read when they are needed; blank lines are skipped.
pub fn rows<T: DeserializeOwned>(path: &Path) -> Result<impl Iterator<Item = Result<T>> + use<T>> {
    Ok(numbered_rows(path)?.map(|row| Ok(row?.1)))
}

/// Returns the rows with the number of each line, or of each element of an array, counted from 1.
pub fn numbered_rows<T: DeserializeOwned>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<(usize, T)>> + Send + use<T>> {
    let mut reader = Text::open(path)?.reader;
    let path = path.to_owned();
    let (array, lines) = if is_array(&mut reader).map_err(|e| unreadable(&path, &e))? {
        (elements(reader, &path)?, None)
    } else {
        (Vec::new(), Some(reader.split(b'\n')))
    };
    let elements = {
        let path = path.clone();
        array.into_iter().enumerate().map(move |(i, element)| {
            let row = serde_json::from_str(element.get());
            let place = || format!("{}: row {}", path.display(), i + 1);
            row.map(|row| (i + 1, row))
                .map_err(|e| usage(format!("{}: {}", place(), reason(&e, element.get()))))
        })
    };
    let lines = lines.into_iter().flatten().enumerate().filter_map(move |(i, line)| {
        let place = || format!("{}:{}", path.display(), i + 1);
        match line {
            Ok(line) if line.trim_ascii().is_empty() => None,
            Ok(line) => Some(row_of(i, &line, place).map(|row| (i + 1, row))),
            Err(e) => Some(Err(usage(format!("{}: cannot read the line: {e}", place())))),
        }
    });
    Ok(elements.chain(lines))
}

/// Reads the row of line number `index`, counted from 0.
fn row_of<T: DeserializeOwned>(index: usize, line: &[u8], place: impl Fn() -> String) -> Result<T> {
    let text = match str::from_utf8(line) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(escaped(line)),
    };
    let text = without_mark(index, &text);
    serde_json::from_str(text).map_err(|e| match str::from_utf8(line) {
        Ok(_) => mistake(&place(), &e, text),
        Err(e) => usage(format!("{}:{}: not valid UTF-8", place(), e.valid_up_to() + 1)),
    })
}

/// Replaces bytes that are not UTF-8 by escapes of lone surrogates.
fn escaped(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\udc{byte:02x}");
        }
    }
    text
}

/// Returns whether the first character opens an array.
fn is_array(reader: &mut impl BufRead) -> std::io::Result<bool> {
    let start = reader.fill_buf()?;
    let start = start.strip_prefix(MARK.to_string().as_bytes()).unwrap_or(start);
    Ok(start.trim_ascii_start().first() == Some(&b'['))
}

/// Returns the elements of the array in `reader`, as text.
fn elements(mut reader: impl Read, path: &Path) -> Result<Vec<Box<RawValue>>> {
    let mut text = String::new();
    reader.read_to_string(&mut text).map_err(|e| unreadable(path, &e))?;
    serde_json::from_str(without_mark(0, &text)).map_err(|e| {
        let place = format!("{}:{}", path.display(), e.line());
        mistake(&place, &e, "{").context(format!("{}: not a JSON array of rows", path.display()))
    })
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    usage(format!("cannot read {}: {error}", path.display()))
}

/// Says what is wrong with the JSON `text` that begins at `place`, and where.
fn mistake(place: &str, error: &serde_json::Error, text: &str) -> Error {
    let reason = reason(error, text);
    let reason = match error.is_eof() {
        true => format!("{reason}; expected a JSON object a line (JSON Lines), or one JSON array"),
        false => reason,
    };
    match error.column() {
        // The mistake was found when the whole row had been read.
        0 => usage(format!("{place}: {reason}")),
        column => usage(format!("{place}:{column}: {reason}")),
    }
}

/// Removes the byte order mark from the first line.
fn without_mark(index: usize, line: &str) -> &str {
    let marked = if index == 0 { line.strip_prefix(MARK) } else { None };
    marked.unwrap_or(line)
}

/// Returns serde's message about `text` without its line number, which is always the first, without names of
/// types, and with long values shortened.
fn reason(error: &serde_json::Error, text: &str) -> String {
    const SHOWN: usize = 40;
    const LONGEST: usize = 200;
    let row = text.trim_start();
    if !row.starts_with('{') {
        let shown: String = row.trim_end().chars().take(SHOWN).collect();
        return format!("expected a JSON object, found {shown}");
    }
    let words = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let words = words.strip_suffix(&place).unwrap_or(&words);
    if words == "expected value" && ["NaN", "Infinity"].iter().any(|name| row.contains(name)) {
        return "expected value; NaN and Infinity, which Python writes, are no JSON: write null"
            .into();
    }
    let words = match words.split_once("expected struct ") {
        Some((found, _)) => format!("{found}expected an object"),
        None => words.to_owned(),
    };
    match words.rsplit_once(", expected ") {
        Some((found, expected)) if found.chars().count() > LONGEST => {
            let found: String = found.chars().take(LONGEST).collect();
            format!("{found}..., expected {expected}")
        }
        _ => words,
    }
}

pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    rows(path)?.collect()
}

pub fn count(path: &Path) -> Result<u64> {
    Ok(measure(Text::open(path)?.reader, path)?.rows as u64)
}

/// Returns what the whole file holds.
fn measure(mut reader: impl BufRead, path: &Path) -> Result<Header> {
    let unreadable = |e| unreadable(path, &e);
    if is_array(&mut reader).map_err(unreadable)? {
        let elements = elements(reader, path)?;
        let text_bytes = elements.iter().map(|element| element.get().len()).sum::<usize>() as f64;
        return Ok(Header { rows: elements.len() as f64, text_bytes });
    }
    let (mut rows, mut size, mut line) = (0u64, 0, Vec::new());
    while reader.read_until(b'\n', &mut line).map_err(unreadable)? > 0 {
        rows += u64::from(!line.trim_ascii().is_empty());
        size += line.len();
        line.clear();
    }
    Ok(Header { rows: rows as f64, text_bytes: size as f64 })
}

/// Returns what the first lines say about the whole file; an array or a compressed file is read whole.
pub fn header(path: &Path) -> Result<Header> {
    let unreadable = |e| unreadable(path, &e);
    let Text { mut reader, size } = Text::open(path)?;
    let is_array = is_array(&mut reader).map_err(unreadable)?;
    let Some(size) = size.filter(|_| !is_array).map(|size| size as f64) else {
        return measure(reader, path);
    };
    let mut start = Vec::new();
    reader.take(HEADER).read_to_end(&mut start).map_err(unreadable)?;
    let lines = start.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let rows = lines.count() as f64 * size / start.len().max(1) as f64;
    Ok(Header { rows: rows.round(), text_bytes: size })
}

/// Writes one object a line, atomically.
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
    fn a_compressed_file_holds_the_rows_that_were_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl.gz");
        let parts = ["{\"n\": 1}\n{\"n\": 2}\n", "\n{\"n\": 3}"];
        // A file that was appended to has several members.
        let members = parts.map(|part| {
            let mut member = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            member.write_all(part.as_bytes()).unwrap();
            member.finish().unwrap()
        });
        std::fs::write(&path, members.concat()).unwrap();
        let rows: Vec<serde_json::Value> = read(&path).unwrap();
        assert_eq!(rows, [1, 2, 3].map(|n| serde_json::json!({"n": n})));
        let text_bytes = parts.concat().len() as f64;
        assert_eq!((count(&path).unwrap(), header(&path).unwrap().rows), (3, 3.0));
        assert_eq!(header(&path).unwrap().text_bytes, text_bytes);
        std::fs::write(&path, &members[0][..20]).unwrap();
        let error = read::<serde_json::Value>(&path).unwrap_err().to_string();
        assert!(error.contains("a.jsonl.gz:2: cannot read the line"), "{error}");
    }

    #[test]
    fn a_line_that_is_no_utf8_is_named_unless_the_value_is_taken_as_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, b"{\"a\": \"b\"}\n{\"a\": \"\xff\xe9\"}\n").unwrap();
        #[derive(serde::Deserialize)]
        struct Row<A> {
            a: A,
        }
        let error = read::<Row<String>>(&path).err().unwrap().to_string();
        assert!(error.ends_with("a.jsonl:2:8: not valid UTF-8"), "{error}");
        let rows: Vec<Row<Box<RawValue>>> = read(&path).unwrap();
        assert_eq!(rows[1].a.get(), r#""\udcff\udce9""#);
    }

    #[test]
    fn a_bad_row_is_named_by_its_place() {
        for (text, part) in [
            ("{\"n\": [1]}\nnull", "a.json:2:4: expected a JSON object, found null"),
            ("{\"n\": [NaN]}", "NaN and Infinity, which Python writes, are no JSON"),
            (&*format!("{{\"n\": {:?}}}", "x".repeat(999)), "xxx..., expected a sequence"),
            ("[{\"n\": [1]}, 5]", "a.json: row 2: expected a JSON object, found 5"),
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
