//! The files behind a source of samples, and their rows.
//!
//! Contract: a place is a file (`.jsonl`, `.json` or `.parquet`), a directory, whose files are taken
//! in the order of their names (of a data set with splits only `train*`), or the name of a data set
//! on the Hub ([`crate::base::hub`]). Rows are read as they are asked for; a bad one is named by file
//! and row.

use super::tokenized::Line;
use super::{jsonl, parquet};
use crate::base::error::{Interrupted, usage};
use crate::base::hub::{Extent, Hub, Kind, Repo};
use crate::base::interrupt;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rows held at a time.
const CHUNK: usize = 1024;

/// Rows of one file.
pub type Rows = Box<dyn Iterator<Item = Result<Line>> + Send>;

/// How much a file holds, as far as that can be told at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    /// Rows: of JSON Lines an estimate, unless the file is short.
    pub rows: f64,
    /// Bytes of the text in them, about.
    pub text_bytes: f64,
}

/// A file of samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    path: PathBuf,
    is_parquet: bool,
}

impl InputFile {
    /// A file by its extension; none for another kind of file.
    fn of(path: &Path) -> Option<Self> {
        let is_parquet = match path.extension()?.to_str()? {
            "parquet" => true,
            "jsonl" | "json" => false,
            _ => return None,
        };
        Some(Self { path: path.to_owned(), is_parquet })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is Parquet, which holds conversations only; otherwise it is JSON Lines.
    pub fn is_parquet(&self) -> bool {
        self.is_parquet
    }

    /// Its rows, in order.
    pub fn rows(&self) -> Result<Rows> {
        Ok(if self.is_parquet {
            Box::new(parquet::rows(&self.path)?.map(|sample| sample.map(Line::Sample)))
        } else {
            Box::new(jsonl::rows(&self.path)?)
        })
    }

    /// Its rows in order, some at a time, until the user stops the program.
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

    /// Its bytes.
    pub fn size(&self) -> Result<u64> {
        let unreadable = |e| usage(format!("cannot read {}: {e}", self.path.display()));
        Ok(self.path.metadata().map_err(unreadable)?.len())
    }

    /// What its beginning or its footer says of it.
    pub fn header(&self) -> Result<Header> {
        if self.is_parquet { parquet::header(&self.path) } else { jsonl::header(&self.path) }
    }

    /// How many rows it has, without reading them whole.
    pub fn count(&self) -> Result<u64> {
        if self.is_parquet { parquet::count(&self.path) } else { jsonl::count(&self.path) }
    }
}

/// The files of a place; a data set that is not on this machine is downloaded.
pub fn resolve(place: &str) -> Result<Vec<InputFile>> {
    if let Some(files) = local(place)? {
        return Ok(files);
    }
    files_below(&find(&Hub::from_env()?, &repo(place)?)?)
}

/// The files of a place that are on this machine; none of a data set that is not, or not wholly.
pub fn resolve_here(place: &str) -> Result<Option<Vec<InputFile>>> {
    if let Some(files) = local(place)? {
        return Ok(Some(files));
    }
    let snapshot = Hub::from_env()?.snapshot(&repo(place)?).filter(|dir| is_complete(dir));
    snapshot.map(|dir| files_below(&dir)).transpose()
}

/// The files of a path, if there is one.
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
    let file = InputFile::of(path).ok_or_else(|| {
        usage(format!("{place}: unknown kind of file; samples lie in .jsonl or .parquet"))
    })?;
    Ok(Some(vec![file]))
}

/// The data set that a place names.
fn repo(place: &str) -> Result<Repo> {
    let is_file = InputFile::of(Path::new(place)).is_some();
    Repo::parse(Kind::Dataset, place).filter(|_| !is_file).ok_or_else(|| {
        usage(format!(
            "{place}: no such file or directory, nor a data set's name (owner/name or \
             owner/name@revision)"
        ))
    })
}

/// The data set's directory in the cache, downloaded if need be.
fn find(hub: &Hub, repo: &Repo) -> Result<PathBuf> {
    hub.directory(repo, is_complete, |download| {
        let names = download.files().iter().map(Path::new);
        let files =
            wanted(names.filter(|name| !is_hidden(name)).filter_map(InputFile::of).collect());
        if files.is_empty() {
            return Err(usage("the data set has no .jsonl and no .parquet file"));
        }
        for file in files {
            download.fetch(&file.path.to_string_lossy())?;
        }
        Ok(Extent::Whole)
    })
}

/// Whether a snapshot has samples, and of each file in parts all parts.
fn is_complete(snapshot: &Path) -> bool {
    let mut parts: BTreeMap<String, usize> = BTreeMap::new();
    let Ok(files) = files_below(snapshot) else { return false };
    for path in files.iter().map(|file| file.path.to_string_lossy()) {
        // Such as train-00000-of-00006.parquet.
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
    let mut files = Vec::new();
    collect(dir, &mut files).with_context(|| format!("listing {}", dir.display()))?;
    let files = wanted(files);
    if files.is_empty() {
        return Err(usage(format!("{}: no .jsonl or .parquet file in it", dir.display())));
    }
    Ok(files)
}

/// In the order of their names; of splits only the training ones.
fn wanted(mut files: Vec<InputFile>) -> Vec<InputFile> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let is_training = |f: &InputFile| {
        f.path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("train"))
    };
    if files.iter().any(is_training) {
        files.retain(is_training);
    }
    files
}

fn is_hidden(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().starts_with('.'))
}

fn collect(dir: &Path, files: &mut Vec<InputFile>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if is_hidden(Path::new(&entry.file_name())) {
            continue;
        }
        // Follows links: the hub's cache consists of them.
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.extend(InputFile::of(&path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs::write_atomic;
    use crate::base::hub::tests::{hub, serve};

    fn names(files: &[InputFile]) -> Vec<String> {
        files.iter().map(|f| f.path.file_name().unwrap().to_string_lossy().into_owned()).collect()
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
        let name = repo("owner/name").unwrap();
        let online = hub(cache.path(), &serve(Kind::Dataset, &FILES), false);
        let dir = find(&online, &name).unwrap();
        let parts = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"];
        assert_eq!(names(&files_below(&dir).unwrap()), parts);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "only data/");
        let offline = hub(cache.path(), "http://localhost:9", true);
        assert_eq!(find(&offline, &name).unwrap(), dir);
        std::fs::remove_file(dir.join("data").join(parts[0])).unwrap();
        let error = find(&offline, &name).unwrap_err().to_string();
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
