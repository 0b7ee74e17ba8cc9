//! Repositories on the Hugging Face Hub, models and data sets: found in its cache on this machine, or
//! downloaded into it.
//!
//! Contract: `owner/name`, optionally `@revision`, is looked up in the cache and, where files are
//! missing and `HF_HUB_OFFLINE` allows it, downloaded: only what the caller asks for, each file pinned
//! to one commit and resumed where an earlier download stopped. The name points to a commit in the
//! cache once all files are there. `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` mean what
//! they mean in Python. Left out: which files make a model or a data set, and uploads.

#[cfg(test)]
pub(crate) mod test_support;

use super::error::usage;
use super::fs::write_atomic;
use super::progress::Progress;
use anyhow::{Context, Result, anyhow};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, RepoType};
use std::path::{Path, PathBuf};

const ENDPOINT: &str = "https://huggingface.co";

/// The kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Model,
    Dataset,
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }
}

/// A repository at a revision: a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    kind: Kind,
    id: String,
    revision: String,
}

impl Repo {
    /// Reads `owner/name` or `owner/name@revision`; `None` for text that can only be a path.
    pub fn parse(kind: Kind, text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let is_plain = |part: &str| {
            let is_known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(is_known)
        };
        let (owner, name) = id.split_once('/')?;
        let is_valid = is_plain(owner) && is_plain(name) && revision.split('/').all(is_plain);
        is_valid.then(|| Self { kind, id: id.to_owned(), revision: revision.to_owned() })
    }

    fn at_revision(&self, revision: &str) -> hf_hub::Repo {
        let kind = match self.kind {
            Kind::Model => RepoType::Model,
            Kind::Dataset => RepoType::Dataset,
        };
        hf_hub::Repo::with_revision(self.id.clone(), kind, revision.to_owned())
    }
}

/// The extent to which a repository was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything that is ever asked for was fetched: the name may point to it.
    Whole,
    /// A part was fetched.
    Part,
}

/// The Hub, or a mirror of it, and the cache on this machine.
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    is_offline: bool,
}

impl Hub {
    /// Reads the address and the cache from the environment.
    pub fn from_env() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = variable("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("huggingface")))
            .or_else(|| variable("HOME").map(|dir| Path::new(&dir).join(".cache/huggingface")))
            .ok_or_else(|| usage("HOME is not set: set HF_HOME to the Hugging Face directory"))?;
        let saved = || std::fs::read_to_string(home.join("token")).ok();
        let token = variable("HF_TOKEN").or_else(saved).map(|token| token.trim().to_owned());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let is_true = |value: String| {
            ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
        };
        Ok(Self {
            cache: variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            is_offline: variable("HF_HUB_OFFLINE").is_some_and(is_true),
        })
    }

    /// Finds the repository in the cache if `is_complete` says that all is there; otherwise it is
    /// downloaded by `fetch`.
    pub fn directory(
        &self,
        repo: &Repo,
        is_complete: impl Fn(&Path) -> bool,
        fetch: impl Fn(&Download<'_>) -> Result<Extent>,
    ) -> Result<PathBuf> {
        if let Some(snapshot) = self.snapshot(repo)
            && is_complete(&snapshot)
        {
            return Ok(snapshot);
        }
        let Repo { id, revision, .. } = repo;
        if self.is_offline {
            return Err(usage(format!(
                "{id}: neither on this machine nor complete in {} at {revision}, and HF_HUB_OFFLINE \
                 forbids to download it",
                self.cache.display()
            )));
        }
        self.download(repo, fetch).with_context(|| {
            format!(
                "{id} is no directory here; downloading it at {revision} from {}",
                self.endpoint
            )
        })
    }

    /// Returns the folder of the revision (a name or a commit) in the cache; it may hold a part only.
    pub fn snapshot(&self, repo: &Repo) -> Option<PathBuf> {
        let dir = self.repo_dir(repo);
        let commit = std::fs::read_to_string(dir.join("refs").join(&repo.revision));
        let commit = commit.map_or_else(|_| repo.revision.clone(), |text| text.trim().to_owned());
        Some(dir.join("snapshots").join(commit)).filter(|snapshot| snapshot.is_dir())
    }

    fn repo_dir(&self, repo: &Repo) -> PathBuf {
        self.cache.join(repo.at_revision(&repo.revision).folder_name())
    }

    fn download(
        &self,
        repo: &Repo,
        fetch: impl Fn(&Download<'_>) -> Result<Extent>,
    ) -> Result<PathBuf> {
        let api = self.api()?;
        let info =
            api.repo(repo.at_revision(&repo.revision)).info().map_err(|e| explain(e, repo))?;
        let download = Download {
            files: info.siblings.into_iter().map(|file| file.rfilename).collect(),
            snapshot: self.repo_dir(repo).join("snapshots").join(&info.sha),
            pinned: api.repo(repo.at_revision(&info.sha)),
            repo,
        };
        if fetch(&download)? == Extent::Whole {
            let name = self.repo_dir(repo).join("refs").join(&repo.revision);
            write_atomic(&name, info.sha.as_bytes())?;
        }
        Ok(download.snapshot)
    }

    fn api(&self) -> Result<Api> {
        let builder = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_retries(3);
        builder.build().context("setting up the connection")
    }
}

/// A repository being downloaded, pinned to a commit.
pub struct Download<'a> {
    repo: &'a Repo,
    pinned: ApiRepo,
    files: Vec<String>,
    snapshot: PathBuf,
}

impl Download<'_> {
    /// Lists the files of the repository.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Returns whether the repository has a file.
    pub fn has(&self, file: &str) -> bool {
        self.files.iter().any(|f| f == file)
    }

    /// Downloads one file unless the snapshot has it, and returns its path.
    pub fn fetch(&self, file: &str) -> Result<PathBuf> {
        let path = self.snapshot.join(file);
        if path.is_file() {
            return Ok(path);
        }
        let progress = FileProgress { view: None, bytes: 0 };
        let got = self.pinned.download_with_progress(file, progress);
        if !got.map_err(|e| explain(e, self.repo))?.starts_with(&self.snapshot) {
            return Err(anyhow!("{file}: the server gave another commit than was asked for"));
        }
        Ok(path)
    }
}

/// Explains a failed request.
fn explain(error: ApiError, Repo { kind, id, revision }: &Repo) -> anyhow::Error {
    let text = error.to_string();
    let kind = kind.title();
    if text.contains("404") {
        usage(format!("{id}: neither a path nor a {kind} on the Hub with revision {revision}"))
    } else if text.contains("401") || text.contains("403") {
        usage(format!(
            "{id}: no such {kind} on the Hub, or one that needs permission: accept its terms there \
             and set HF_TOKEN"
        ))
    } else {
        anyhow!("{text}; the same command goes on where it stopped")
    }
}

/// A bar for each file, in MiB.
struct FileProgress {
    view: Option<Progress>,
    bytes: u64,
}

impl hf_hub::api::Progress for FileProgress {
    fn init(&mut self, size: usize, filename: &str) {
        let unit = || Progress::new(filename, (size >> 20) as u64, "MiB");
        self.view.get_or_insert_with(unit);
    }

    fn update(&mut self, size: usize) {
        let before = self.bytes;
        self.bytes += size as u64;
        if let Some(view) = &self.view {
            view.inc((self.bytes >> 20) - (before >> 20));
        }
    }

    fn finish(&mut self) {
        if let Some(view) = self.view.take() {
            view.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::base::fs::read_text;
    use test_support::{COMMIT, hub, serve};

    fn repo(text: &str) -> Repo {
        Repo::parse(Kind::Dataset, text).unwrap()
    }

    const FILES: [(&str, &str); 2] = [("a.txt", "the text of the file"), ("b/c.txt", "other")];

    fn fetch_all(download: &Download<'_>) -> Result<Extent> {
        download.files().iter().try_for_each(|file| download.fetch(file).map(|_| ()))?;
        Ok(Extent::Whole)
    }

    #[test]
    fn names_are_told_from_paths() {
        let pinned = repo("Qwen/Qwen2.5-7B@v1");
        assert_eq!((pinned.id.as_str(), pinned.revision.as_str()), ("Qwen/Qwen2.5-7B", "v1"));
        assert_eq!(repo("a/b").revision, "main");
        for path in ["gpt2", "/a/b", "./a/b", "a/b/c", "../b", "a/..", "a/b c", "a/b@", "a/b@../c"]
        {
            assert_eq!(Repo::parse(Kind::Model, path), None, "{path}");
        }
    }

    #[test]
    fn what_is_missing_is_downloaded_once_and_resumed() {
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(cache.path(), &serve(Kind::Dataset, &FILES), false);
        let blobs = cache.path().join("datasets--owner--name/blobs");
        // An interrupted download leaves this; the server is asked only for the rest.
        write_atomic(&blobs.join("etag-a.part"), b"THE TEXT").unwrap();
        let is_complete = |dir: &Path| dir.join("a.txt").is_file();
        let name = repo("owner/name");
        let snapshot = hub.directory(&name, is_complete, fetch_all).unwrap();
        assert!(snapshot.ends_with(COMMIT));
        assert_eq!(read_text(&snapshot.join("a.txt")).unwrap(), "THE TEXT of the file");
        assert_eq!(read_text(&snapshot.join("b/c.txt")).unwrap(), "other");
        let offline = Hub { is_offline: true, ..hub };
        let never = |_: &Download<'_>| -> Result<Extent> { panic!("nothing is missing") };
        for text in ["owner/name".to_owned(), format!("owner/name@{COMMIT}")] {
            assert_eq!(offline.directory(&repo(&text), is_complete, never).unwrap(), snapshot);
        }
        let error = offline.directory(&name, |_| false, never).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    }

    #[test]
    fn a_part_does_not_give_the_name_a_commit() {
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(cache.path(), &serve(Kind::Dataset, &FILES), false);
        let fetch = |download: &Download<'_>| download.fetch("a.txt").map(|_| Extent::Part);
        let snapshot = hub.directory(&repo("owner/name"), |_| true, fetch).unwrap();
        assert!(snapshot.join("a.txt").is_file());
        assert_eq!(hub.snapshot(&repo("owner/name")), None);
    }

    #[test]
    fn an_unknown_repository_is_the_users_error() {
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(cache.path(), &serve(Kind::Dataset, &FILES), false);
        let error = hub.directory(&repo("owner/other"), |_| true, fetch_all).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        let text = format!("{error:#}");
        assert!(text.contains("owner/other: neither a path nor a data set on the Hub"), "{text}");
    }
}
