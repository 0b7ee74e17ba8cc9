//! The files of a source of samples, and their rows.
//!
//! A place is a file ([`super::rows`]), a directory ([`super::directory`] says which of its files hold
//! samples), or the name of a data set on the Hub ([`crate::base::hub`]). Rows are read when they are
//! needed; an error names the file and the row.

use super::directory::Choice;
use super::header::Header;
use super::rows::{self, Format};
use super::tokenized::{self, Line};
use crate::base::error::{Interrupted, usage};
use crate::base::hub::{Extent, Hub, Kind, Repo};
use crate::base::interrupt;
use crate::tokenizer::{Tokenized, Tokenizer};
use anyhow::{Context, Result};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// This many rows are held at a time.
const CHUNK: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile(PathBuf);

impl InputFile {
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn rows(&self) -> Result<impl Iterator<Item = Result<Line>> + Send + use<>> {
        let rows = rows::numbered(&self.0, Some(&Line::keys()))?;
        Ok(rows.map(|row| Ok(row?.1)))
    }

    /// Passes the rows to `take` in order, some at a time, until the user stops the program.
    pub fn for_each_chunk(&self, mut take: impl FnMut(Vec<Line>) -> Result<()>) -> Result<()> {
        let mut rows = self.rows()?;
        loop {
            let chunk: Vec<Line> = rows.by_ref().take(CHUNK).collect::<Result<_>>()?;
            if chunk.is_empty() {
                return Ok(());
            }
            take(chunk)?;
            if interrupt::requested() {
                return Err(Interrupted.into());
            }
        }
    }

    pub fn size(&self) -> Result<u64> {
        let unreadable = |e| usage(format!("cannot read {}: {e}", self.0.display()));
        Ok(self.0.metadata().map_err(unreadable)?.len())
    }

    pub fn header(&self) -> Result<Header> {
        rows::header(&self.0)
    }

    /// Counts the rows without decoding them.
    pub fn count(&self) -> Result<u64> {
        rows::count(&self.0)
    }
}

/// Returns the files of a place; a data set that is not on this machine is downloaded.
pub fn resolve(place: &str) -> Result<Vec<InputFile>> {
    if let Some(files) = local(place)? {
        return Ok(files);
    }
    files_below(&find(&Hub::from_env()?, place)?)
}

/// Returns the files of a place that are on this machine; `None` for a data set that is not, or not
/// completely.
pub fn resolve_here(place: &str) -> Result<Option<Vec<InputFile>>> {
    if let Some(files) = local(place)? {
        return Ok(Some(files));
    }
    let snapshot = Hub::from_env()?.snapshot(&repo(place)?).filter(|dir| is_complete(dir));
    snapshot.map(|dir| files_below(&dir)).transpose()
}

/// Returns the files of a path; `None` if it does not exist.
fn local(place: &str) -> Result<Option<Vec<InputFile>>> {
    let path = Path::new(place);
    if path.is_dir() {
        return files_below(path).map(Some);
    }
    if !path.exists() {
        return Ok(None);
    }
    if !path.is_file() {
        return Err(usage(format!(
            "{place}: neither a file nor a directory; samples are read more than once, so put them into \
             a .jsonl file first"
        )));
    }
    if Format::of(path).is_none() {
        return Err(usage(format!(
            "{place}: not a kind of file that is read: samples lie in .jsonl, .json, their .gz, or .parquet; \
             decompress others first (zstd -d, xz -d)"
        )));
    }
    Ok(Some(vec![InputFile(path.to_owned())]))
}

/// Returns the data set that a place names.
fn repo(place: &str) -> Result<Repo> {
    let is_file = Format::of(Path::new(place)).is_some();
    Repo::parse(Kind::Dataset, place).filter(|_| !is_file).ok_or_else(|| {
        usage(format!(
            "{place}: no such file or directory, nor a data set's name (owner/name or \
             owner/name@revision)"
        ))
    })
}

/// Returns the data set's directory in the cache. Downloads what is missing.
fn find(hub: &Hub, place: &str) -> Result<PathBuf> {
    hub.directory(&repo(place)?, is_complete, |download| {
        let names = download.files().iter().map(PathBuf::from);
        let choice = Choice::of(place, names.collect())?;
        for file in choice.files {
            download.fetch(&file.to_string_lossy())?;
        }
        Ok(Extent::Whole)
    })
}

/// Returns whether a snapshot has samples, and all parts of each file that is in parts.
fn is_complete(snapshot: &Path) -> bool {
    let mut parts: BTreeMap<String, usize> = BTreeMap::new();
    let Ok(files) = files_below(snapshot) else { return false };
    for path in files.iter().map(|file| file.0.to_string_lossy()) {
        // A name of this form is train-00000-of-00006.parquet.
        if let Some((part, total)) = path.rsplit_once("-of-")
            && let Some((name, _)) = part.rsplit_once('-')
        {
            *parts.entry(format!("{name}-of-{total}")).or_default() += 1;
        }
    }
    parts.iter().all(|(name, &found)| {
        let total = name.rsplit_once("-of-").and_then(|(_, rest)| rest.split('.').next());
        total.and_then(|digits| digits.parse().ok()).is_none_or(|total: usize| found >= total)
    })
}

fn files_below(dir: &Path) -> Result<Vec<InputFile>> {
    let mut names = Vec::new();
    collect(dir, Path::new(""), &mut names)
        .with_context(|| format!("listing {}", dir.display()))?;
    let place = dir.display().to_string();
    let choice = Choice::of(&place, names)?;
    choice.warn(&place);
    Ok(choice.files.iter().map(|name| InputFile(dir.join(name))).collect())
}

/// Returns the names of all files below `dir`, relative to it.
fn collect(dir: &Path, below: &Path, names: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        // Links are followed: the Hub's cache consists of them.
        if entry.path().is_dir() {
            collect(&entry.path(), &name, names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

/// Reads and tokenises every sample of a place, in order, and passes each to `take`; only some are held at
/// a time. Refuses, by file and row, a sample whose loss mask is empty or full, and one that the tokenizer
/// or its template refuses.
pub fn for_each(
    place: &str,
    tokenizer: &Tokenizer,
    mut take: impl FnMut(Tokenized) -> Result<()>,
) -> Result<()> {
    let mut unread = BTreeSet::new();
    for file in resolve(place)? {
        let mut number = 0;
        file.for_each_chunk(|lines| {
            let tokenized: Vec<Result<(Tokenized, BTreeSet<String>)>> = lines
                .into_par_iter()
                .map(|line| {
                    let unread = tokenized::unread_keys(&line, tokenizer)?;
                    let sample = tokenized::encode(line, tokenizer)?;
                    sample.check_mask("conversation")?;
                    Ok((sample, unread))
                })
                .collect();
            tokenized.into_iter().try_for_each(|sample| {
                number += 1;
                let name = || format!("{}: sample {number}", file.path().display());
                let (sample, keys) = sample.with_context(name)?;
                unread.extend(keys);
                take(sample)
            })
        })?;
    }
    if !unread.is_empty() {
        let keys = Vec::from_iter(unread).join("`, `");
        tracing::warn!("{place}: turns have keys that the template does not use: `{keys}`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs::write_atomic;
    use crate::base::hub::test_support::{hub, serve};

    fn names(files: &[InputFile]) -> Vec<String> {
        files.iter().map(|f| f.0.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_directory_gives_its_shards_in_order_and_of_splits_only_training() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().to_str().unwrap();
        assert!(resolve(place).unwrap_err().to_string().contains("no .jsonl"));
        for name in ["data/b.jsonl", "data/a.parquet", "README.md", ".hidden/c.jsonl"] {
            write_atomic(&dir.path().join(name), b"").unwrap();
        }
        assert_eq!(names(&resolve(place).unwrap()), ["a.parquet", "b.jsonl"]);
        for name in ["data/train-1.jsonl", "data/train-0.jsonl"] {
            write_atomic(&dir.path().join(name), b"").unwrap();
        }
        assert_eq!(names(&resolve(place).unwrap()), ["train-0.jsonl", "train-1.jsonl"]);
    }

    #[test]
    fn a_data_set_in_the_cache_is_whole_when_all_parts_are_there() {
        let snapshot = tempfile::tempdir().unwrap();
        let write = |name: &str| write_atomic(&snapshot.path().join(name), b"").unwrap();
        assert!(!is_complete(snapshot.path()), "it is empty");
        write("data/train-00000-of-00002.parquet");
        assert!(!is_complete(snapshot.path()), "one of two");
        write("data/train-00001-of-00002.parquet");
        assert!(is_complete(snapshot.path()));
    }

    #[test]
    fn of_a_data_set_the_training_files_are_downloaded_by_its_name() {
        const FILES: [(&str, &str); 5] = [
            (".gitattributes", "not wanted"),
            ("README.md", "not wanted"),
            ("data/test.jsonl", "not wanted"),
            ("data/train-00000-of-00002.jsonl", "{}"),
            ("data/train-00001-of-00002.jsonl", "{}"),
        ];
        let cache = tempfile::tempdir().unwrap();
        let online = hub(cache.path(), &serve(Kind::Dataset, &FILES), false);
        let dir = find(&online, "owner/name").unwrap();
        let parts = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"];
        assert_eq!(names(&files_below(&dir).unwrap()), parts);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "only data/");
        let offline = hub(cache.path(), "http://localhost:9", true);
        assert_eq!(find(&offline, "owner/name").unwrap(), dir);
        std::fs::remove_file(dir.join("data").join(parts[0])).unwrap();
        let error = find(&offline, "owner/name").unwrap_err().to_string();
        assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_twice_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo.jsonl");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = resolve(fifo.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("fifo.jsonl: neither a file nor a directory"), "{error}");
    }

    #[test]
    fn what_is_not_there_is_named() {
        for place in ["data/absent.jsonl", "a/b/c", "absent"] {
            let error = resolve(place).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{place}: no such file or directory")), "{error}");
        }
    }
}
