//! JSON Lines in and out. A malformed line is the user's error and is named by file, line and column.

use super::input::Header;
use crate::base::error::usage;
use crate::base::fs::AtomicFile;
use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

/// Bytes that tell how long lines are.
const HEADER: u64 = 1 << 20;

/// The lines of `path`, read as they are asked for; blank lines are skipped.
pub fn rows<T: DeserializeOwned>(path: &Path) -> Result<impl Iterator<Item = Result<T>> + use<T>> {
    Ok(numbered_rows(path)?.map(|row| Ok(row?.1)))
}

/// The same with the number of each line, counted from 1.
pub fn numbered_rows<T: DeserializeOwned>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<(usize, T)>> + use<T>> {
    let unreadable = |e| usage(format!("cannot read {}: {e}", path.display()));
    let lines = BufReader::new(File::open(path).map_err(unreadable)?).lines();
    let path = path.to_owned();
    Ok(lines.enumerate().filter_map(move |(i, line)| {
        let place = || format!("{}:{}", path.display(), i + 1);
        match line {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(match serde_json::from_str(without_mark(i, &line)) {
                Ok(row) => Ok((i + 1, row)),
                // Column 0: found when the whole line had been read.
                Err(e) if e.column() == 0 => Err(usage(format!("{}: {}", place(), reason(&e)))),
                Err(e) => Err(usage(format!("{}:{}: {}", place(), e.column(), reason(&e)))),
            }),
            Err(e) => Some(Err(usage(format!("{}: cannot read the line: {e}", place())))),
        }
    }))
}

/// The line without the byte order mark that some editors begin a file with.
fn without_mark(index: usize, line: &str) -> &str {
    let marked = if index == 0 { line.strip_prefix('\u{feff}') } else { None };
    marked.unwrap_or(line)
}

/// serde's words without its line, which is always the first.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// Reads every line of `path`; blank lines are skipped.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    rows(path)?.collect()
}

/// How many lines `path` has, blank ones aside.
pub fn count(path: &Path) -> Result<u64> {
    let unreadable = |e| usage(format!("cannot read {}: {e}", path.display()));
    let mut reader = BufReader::new(File::open(path).map_err(unreadable)?);
    let (mut count, mut line) = (0, Vec::new());
    while reader.read_until(b'\n', &mut line).map_err(unreadable)? > 0 {
        count += u64::from(!line.trim_ascii().is_empty());
        line.clear();
    }
    Ok(count)
}

/// What the first lines say of the whole file.
pub fn header(path: &Path) -> Result<Header> {
    let unreadable = |e| usage(format!("cannot read {}: {e}", path.display()));
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len() as f64;
    let mut start = Vec::new();
    file.take(HEADER).read_to_end(&mut start).map_err(unreadable)?;
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
