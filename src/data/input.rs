//! The files behind a source of samples, and their rows.
//!
//! Contract: a place is a file (`.jsonl`, `.json` or `.parquet`), a directory, whose files are taken
//! in the order of their names (of a data set with splits only `train*`), or the id of a data set in
//! the Hugging Face cache, with a revision after `@` if wanted. Rows are read as they are asked for;
//! a bad one is named by file and row.
//!
//! Left out: downloading.

use super::tokenized::Line;
use super::{jsonl, parquet};
use crate::base::error::usage;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Rows of one file.
pub type Rows = Box<dyn Iterator<Item = Result<Line>> + Send>;

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

    /// Its rows, in order.
    pub fn rows(&self) -> Result<Rows> {
        Ok(if self.is_parquet {
            Box::new(parquet::rows(&self.path)?.map(|sample| sample.map(Line::Sample)))
        } else {
            Box::new(jsonl::rows(&self.path)?)
        })
    }

    /// How many rows it has, without reading them whole.
    pub fn count(&self) -> Result<u64> {
        if self.is_parquet { parquet::count(&self.path) } else { jsonl::count(&self.path) }
    }
}

/// The files of a place.
pub fn resolve(place: &str) -> Result<Vec<InputFile>> {
    let path = Path::new(place);
    if path.is_dir() {
        return files_below(path);
    }
    if path.is_file() {
        return InputFile::of(path).map(|file| vec![file]).ok_or_else(|| {
            usage(format!("{place}: unknown kind of file; samples lie in .jsonl or .parquet"))
        });
    }
    match snapshot(place, &cache_dir()) {
        Some(dir) => files_below(&dir),
        None => Err(usage(absent(place))),
    }
}

fn absent(place: &str) -> String {
    let (id, revision) = place.split_once('@').unwrap_or((place, "main"));
    if is_dataset_id(id) {
        format!(
            "{place}: neither a file, nor a directory, nor a data set in {}; fetch it with `hf \
             download --repo-type dataset --revision {revision} {id}`",
            cache_dir().display()
        )
    } else {
        format!("{place}: no such file or directory")
    }
}

/// Whether the place may be `organisation/name` rather than a path.
fn is_dataset_id(place: &str) -> bool {
    let is_name = |part: &str| !part.is_empty() && !part.starts_with('.');
    let is_file = InputFile::of(Path::new(place)).is_some();
    !is_file
        && place.split_once('/').is_some_and(|(a, b)| is_name(a) && is_name(b) && !b.contains('/'))
}

/// The hub's cache, as its own tools find it.
fn cache_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || var("HOME").unwrap_or_default();
    let hub = || var("HF_HOME").unwrap_or_else(|| home().join(".cache/huggingface")).join("hub");
    var("HF_HUB_CACHE").unwrap_or_else(hub)
}

/// The directory of a cached data set at its revision.
fn snapshot(place: &str, cache: &Path) -> Option<PathBuf> {
    let (id, revision) = place.split_once('@').unwrap_or((place, "main"));
    if !is_dataset_id(id) {
        return None;
    }
    let repository = cache.join(format!("datasets--{}", id.replace('/', "--")));
    let commit = std::fs::read_to_string(repository.join("refs").join(revision));
    let commit = commit.map_or(revision.to_owned(), |text| text.trim().to_owned());
    Some(repository.join("snapshots").join(commit)).filter(|dir| dir.is_dir())
}

fn files_below(dir: &Path) -> Result<Vec<InputFile>> {
    let mut files = Vec::new();
    collect(dir, &mut files).with_context(|| format!("listing {}", dir.display()))?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let is_training = |f: &InputFile| {
        f.path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("train"))
    };
    if files.iter().any(is_training) {
        files.retain(is_training);
    }
    if files.is_empty() {
        return Err(usage(format!("{}: no .jsonl or .parquet file in it", dir.display())));
    }
    Ok(files)
}

fn collect(dir: &Path, files: &mut Vec<InputFile>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if is_hidden {
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
    fn a_data_set_is_found_in_the_cache_at_its_revision() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("datasets--org--name");
        write_atomic(&repository.join("refs/main"), b"abc\n").unwrap();
        write_atomic(&repository.join("snapshots/abc/data/train.jsonl"), b"").unwrap();
        write_atomic(&repository.join("snapshots/def/train.jsonl"), b"").unwrap();
        let found = |place| snapshot(place, cache.path());
        assert!(found("org/name").unwrap().ends_with("snapshots/abc"));
        assert!(found("org/name@def").unwrap().ends_with("snapshots/def"));
        assert_eq!(found("org/name@gone"), None);
        assert_eq!(found("a/b/c"), None);
    }

    #[test]
    fn what_is_not_there_is_named_with_what_to_do() {
        let error = resolve("org/absent").unwrap_err().to_string();
        assert!(error.contains("hf download --repo-type dataset"), "{error}");
        let error = resolve("data/absent.jsonl").unwrap_err().to_string();
        assert_eq!(error, "data/absent.jsonl: no such file or directory");
    }
}
