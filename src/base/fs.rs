//! Files that are either whole or absent.
//!
//! Contract: a reader never sees a half-written file or directory: content goes to a sibling
//! named `codeseq-*`, is flushed to disk, and takes its final name by an atomic rename. A symbolic
//! link stays one: the file it leads to is replaced. Devices, FIFOs and open descriptors
//! (`/dev/stdout`, `/dev/fd/N`) cannot be replaced and are written into as they are. A file's siblings
//! that a killed process left are removed by the next writer of that file. Missing parent directories
//! are made with what is written into them, not before. Errors name the path.

use super::error::usage;
use anyhow::{Context, Result};
use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The number of symbolic links in a row that the kernel follows.
const MAX_LINKS: usize = 40;

/// Reads a whole text file, without its byte order mark; the error names the path.
pub fn read_text(path: &Path) -> Result<String> {
    let mut text = fs::read_to_string(path)
        .map_err(|e| usage(format!("cannot read {}: {e}", path.display())))?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// Replaces `path` with `content` in one step.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(content).with_context(|| format!("writing {}", path.display()))?;
    file.commit()
}

/// Replaces `path` with `value` as JSON for people, in one step.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text =
        serde_json::to_vec_pretty(value).with_context(|| format!("encoding {}", path.display()))?;
    text.push(b'\n');
    write_atomic(path, &text)
}

/// Refuses, before any work is done and without a trace, a `path` that cannot become an output file: it is
/// a directory or one of the `inputs`, or no file can be made there.
pub fn check_writable(path: &Path, inputs: &[&Path]) -> Result<()> {
    let refuse = |why: String| usage(format!("cannot write {}: {why}", path.display()));
    match Place::find(path)? {
        Place::Descriptor(_) => Ok(()),
        Place::Special(device) => {
            access(&device, AccessFlags::W_OK).map_err(|e| refuse(e.desc().to_owned()))
        }
        Place::Regular(file) => {
            check_parent(&file).map_err(refuse)?;
            let identity =
                |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
            let output = identity(&file);
            match inputs.iter().find(|input| output.is_some() && identity(input) == output) {
                Some(input) => Err(refuse(format!("it is also the input {}", input.display()))),
                None => Ok(()),
            }
        }
    }
}

/// Refuses, in the same way, a directory that cannot be made: it may exist only if it is empty.
pub fn check_new_dir(path: &Path) -> Result<()> {
    let refuse = |why: String| usage(format!("cannot make {}: {why}", path.display()));
    // A directory takes the place of an empty one, but not of a link to one or of the current one.
    if path.is_symlink() || path.file_name().is_none() {
        return Err(refuse("name a new directory".to_owned()));
    }
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(false) => Err(refuse("it exists and is not empty; name another directory".to_owned())),
        Err(e) if e.kind() != ErrorKind::NotFound => Err(refuse(e.to_string())),
        _ => check_parent(path).map_err(refuse),
    }
}

/// Tries to make a nameless file in the nearest directory above `path` that exists.
fn check_parent(path: &Path) -> std::result::Result<(), String> {
    let above = path.ancestors().skip(1).map(|dir| match dir.as_os_str().is_empty() {
        true => Path::new("."),
        false => dir,
    });
    let nearest = above.into_iter().find(|dir| fs::symlink_metadata(dir).is_ok());
    let nearest = nearest.ok_or("there is no directory above it")?;
    tempfile::tempfile_in(nearest).map(drop).map_err(|e| format!("{}: {e}", nearest.display()))
}

/// The place to which writing to a path leads.
enum Place {
    /// A file at the end of any symbolic links; it need not exist yet.
    Regular(PathBuf),
    /// A device, a FIFO or a socket.
    Special(PathBuf),
    /// A descriptor of this process.
    Descriptor(RawFd),
}

impl Place {
    /// Follows symbolic links from `path`.
    fn find(path: &Path) -> Result<Self> {
        let refuse = |why: &str| usage(format!("cannot write {}: {why}", path.display()));
        if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(refuse("it is a directory; name a file"));
        }
        let mut at = path.to_owned();
        for _ in 0..MAX_LINKS {
            let found = match fs::symlink_metadata(&at) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::Regular(at)),
                found => found.map_err(|e| refuse(&e.to_string()))?,
            };
            if let Some(number) = own_descriptor(&at) {
                return Ok(Self::Descriptor(number));
            } else if found.is_dir() {
                return Err(refuse("it is a directory; name a file"));
            } else if found.is_file() {
                return Ok(Self::Regular(at));
            } else if !found.is_symlink() {
                return Ok(Self::Special(at));
            }
            let target = fs::read_link(&at).map_err(|e| refuse(&e.to_string()))?;
            at = parent(&at).join(target);
        }
        Err(refuse("its symbolic links lead nowhere"))
    }
}

/// Returns the number of the descriptor that a path such as `/dev/fd/3` means.
fn own_descriptor(path: &Path) -> Option<RawFd> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let descriptors = fs::canonicalize("/proc/self/fd").ok()?;
    (fs::canonicalize(parent(path)).ok()? == descriptors).then_some(number)
}

/// A file under construction. It appears at its path on [`AtomicFile::commit`] and leaves nothing
/// behind when it is dropped before. A place that cannot be replaced is written to from the start.
pub struct AtomicFile {
    writer: BufWriter<Sink>,
    path: PathBuf,
}

enum Sink {
    /// A temporary sibling, which takes the name of the path in the end.
    Sibling(tempfile::NamedTempFile, PathBuf),
    Direct(File),
}

impl AtomicFile {
    /// Opens a temporary sibling of `path`, creating its directory when missing.
    pub fn create(path: &Path) -> Result<Self> {
        let opening = || format!("opening {}", path.display());
        let sink = match Place::find(path)? {
            Place::Regular(file) => Sink::Sibling(sibling(&file)?, file),
            Place::Special(device) => {
                Sink::Direct(File::options().write(true).open(device).with_context(opening)?)
            }
            Place::Descriptor(number) => {
                // SAFETY: the number named an open descriptor a moment ago, and it is only
                // duplicated; should it be closed meanwhile, that fails.
                let fd = unsafe { BorrowedFd::borrow_raw(number) };
                Sink::Direct(fd.try_clone_to_owned().with_context(opening)?.into())
            }
        };
        Ok(Self { writer: BufWriter::with_capacity(1 << 20, sink), path: path.to_owned() })
    }

    /// Flushes to disk and gives the file its name.
    pub fn commit(self) -> Result<()> {
        let path = self.path;
        let writing = || format!("writing {}", path.display());
        let sink = self.writer.into_inner().map_err(|e| e.into_error()).with_context(writing)?;
        let Sink::Sibling(temp, file) = sink else { return Ok(()) };
        temp.as_file().sync_all().with_context(writing)?;
        temp.persist(&file).map_err(|e| e.error).with_context(writing)?;
        sync_dir(parent(&file))
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

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Sibling(temp, _) => temp.write(buf),
            Self::Direct(file) => file.write(buf),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Sibling(temp, _) => temp.flush(),
            Self::Direct(file) => file.flush(),
        }
    }
}

/// Makes a temporary file beside `file`, and removes those that killed processes left there. It is locked
/// as long as somebody writes it.
fn sibling(file: &Path) -> Result<tempfile::NamedTempFile> {
    const NAME_CHARS: usize = 60;
    let dir = parent(file);
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("codeseq-{}-", name.chars().take(NAME_CHARS).collect::<String>());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_sibling = entry.file_name().to_string_lossy().starts_with(&prefix)
            && entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_sibling && File::open(entry.path()).is_ok_and(|left| left.try_lock().is_ok()) {
            // Whoever cannot remove it can still write beside it.
            let _ = fs::remove_file(entry.path());
        }
    }
    let temp = tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .with_context(|| format!("creating a file in {}", dir.display()))?;
    // A file system without locks only keeps what killed processes leave.
    let _ = temp.as_file().try_lock();
    Ok(temp)
}

/// Fills a temporary directory with `fill` and renames it to `path`, which must not exist.
pub fn write_dir_atomic(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = parent(path);
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let temp = tempfile::Builder::new()
        .prefix("codeseq-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(dir)
        .with_context(|| format!("creating a directory in {}", dir.display()))?;
    fill(temp.path())?;
    sync_dir(temp.path())?;
    fs::rename(temp.path(), path).with_context(|| format!("creating {}", path.display()))?;
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

/// Lists the directory `path`, in no order.
pub(crate) fn children(path: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .with_context(|| format!("listing {}", path.display()))
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
    fn json_ends_with_a_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_json(&path, &[1]).unwrap();
        assert_eq!(read_text(&path).unwrap(), "[\n  1\n]\n");
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

    #[test]
    fn a_symbolic_link_stays_one_and_its_target_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::os::unix::fs::symlink("target", &link).unwrap();
        for content in ["made", "replaced"] {
            write_atomic(&link, content.as_bytes()).unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(read_text(&target).unwrap(), content);
        }
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        assert!(write_atomic(&dir.path().join("loop"), b"x").is_err());
    }

    #[test]
    fn what_cannot_be_replaced_is_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = {
            let fifo = fifo.clone();
            std::thread::spawn(move || fs::read(fifo).unwrap())
        };
        write_atomic(&fifo, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        let kind = fs::symlink_metadata(&fifo).unwrap().file_type();
        assert!(std::os::unix::fs::FileTypeExt::is_fifo(&kind));
        let (mut reader, writer) = std::io::pipe().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&writer);
        write_atomic(Path::new(&format!("/dev/fd/{number}")), b"through").unwrap();
        drop(writer);
        assert_eq!(std::io::read_to_string(&mut reader).unwrap(), "through");
        write_atomic(Path::new("/dev/null"), b"gone").unwrap();
        assert!(!fs::symlink_metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn what_cannot_become_an_output_is_refused_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("input");
        fs::write(&input, "x").unwrap();
        std::os::unix::fs::symlink(&input, dir.path().join("link")).unwrap();
        let why = |path: &Path| {
            let error = check_writable(path, &[&input]).unwrap_err();
            assert_eq!(crate::base::error::exit_code(&error), 2);
            error.to_string()
        };
        assert!(why(dir.path()).contains("a directory"));
        assert!(why(&dir.path().join("new/")).contains("a directory"));
        assert!(why(&input.join("out")).contains("Not a directory"));
        assert!(why(&input).contains("also the input"));
        assert!(why(&dir.path().join("link")).contains("also the input"));
        assert!(why(Path::new("/proc/made/out")).contains("/proc"));
        let missing = dir.path().join("missing/parents/out");
        for path in [dir.path().join("out"), missing, "/dev/null".into(), "/dev/fd/1".into()] {
            check_writable(&path, &[&input]).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_directory_to_be_made_must_be_new_or_empty() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        for name in ["empty", "new", "missing/parents/new", "new/"] {
            check_new_dir(&dir.path().join(name)).unwrap();
        }
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let link = dir.path().join("empty/link");
        std::os::unix::fs::symlink(".", &link).unwrap();
        let proc = Path::new("/proc/new");
        for path in [dir.path(), &file, &file.join("new"), &link, proc, Path::new(".")] {
            let error = check_new_dir(path).unwrap_err();
            assert_eq!(crate::base::error::exit_code(&error), 2);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let living = AtomicFile::create(&path).unwrap();
        fs::write(dir.path().join("codeseq-out-killed"), "half").unwrap();
        fs::write(dir.path().join("codeseq-other-killed"), "half").unwrap();
        write_atomic(&path, b"whole").unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(left.iter().any(|name| name == "codeseq-other-killed"));
        living.commit().unwrap();
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        fs::write(&path, "\u{feff}a\u{feff}").unwrap();
        assert_eq!(read_text(&path).unwrap(), "a\u{feff}");
    }
}
