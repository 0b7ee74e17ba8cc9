//! Files that are either whole or absent.
//!
//! Contract: a reader never sees a half-written file or directory: content goes to a sibling
//! named `codeseq-*`, is flushed to disk, and takes its final name by an atomic rename. Errors name
//! the path.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Reads a whole text file; the error names the path.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|e| crate::base::error::usage(format!("cannot read {}: {e}", path.display())))
}

/// Replaces `path` with `content` in one step.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(content).with_context(|| format!("writing {}", path.display()))?;
    file.commit()
}

/// A file under construction; it appears at its path on [`AtomicFile::commit`] and leaves nothing
/// behind when dropped before.
pub struct AtomicFile {
    writer: BufWriter<tempfile::NamedTempFile>,
    path: PathBuf,
}

impl AtomicFile {
    /// Opens a temporary sibling of `path`, creating its directory when missing.
    pub fn create(path: &Path) -> Result<Self> {
        let dir = parent(path);
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let temp = tempfile::Builder::new()
            .prefix("codeseq-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(dir)
            .with_context(|| format!("creating a file in {}", dir.display()))?;
        Ok(Self { writer: BufWriter::with_capacity(1 << 20, temp), path: path.to_owned() })
    }

    /// Flushes to disk and gives the file its name.
    pub fn commit(self) -> Result<()> {
        let path = self.path;
        let writing = || format!("writing {}", path.display());
        let temp = self.writer.into_inner().map_err(|e| e.into_error()).with_context(writing)?;
        temp.as_file().sync_all().with_context(writing)?;
        temp.persist(&path).map_err(|e| e.error).with_context(writing)?;
        sync_dir(parent(&path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.writer.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

/// Fills a temporary directory with `fill` and renames it to `path`, which must not exist.
pub fn write_dir_atomic(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = parent(path);
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let temp = tempfile::Builder::new()
        .prefix("codeseq-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(dir)
        .with_context(|| format!("creating a directory in {}", dir.display()))?;
    fill(temp.path())?;
    sync_dir(temp.path())?;
    std::fs::rename(temp.path(), path).with_context(|| format!("creating {}", path.display()))?;
    // Renamed away: there is nothing left for the guard to remove.
    let _ = temp.keep();
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .with_context(|| format!("flushing {}", dir.display()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_file_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/out.txt");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path().join("sub")).unwrap().count(), 0);
        write_atomic(&path, b"whole").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn a_failed_directory_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-1");
        assert!(write_dir_atomic(&path, |_| anyhow::bail!("disk full")).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        write_dir_atomic(&path, |d| write_atomic(&d.join("a"), b"1")).unwrap();
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"1");
    }
}
