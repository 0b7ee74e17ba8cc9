//! From the name of a model to the directory that holds it: a local directory, the Hugging Face
//! cache, or a download into that cache.
//!
//! Contract: a directory that exists is itself; otherwise `owner/name`, optionally `@revision`, is
//! looked up in the cache and, where files are missing and `HF_HUB_OFFLINE` allows it, downloaded:
//! only what is needed, each file pinned to one commit and resumed where an earlier download stopped.
//! The name points to a commit in the cache once all files are there. `HF_HUB_CACHE`, `HF_HOME`,
//! `HF_ENDPOINT` and `HF_TOKEN` mean what they mean in Python. Left out: data sets and uploads.

use super::shards::{INDEX, WEIGHTS, has_weights, shard_names};
use crate::base::error::usage;
use crate::base::fs::write_atomic;
use crate::base::progress::Progress;
use crate::tokenizer;
use anyhow::{Context, Result, anyhow};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};

const ENDPOINT: &str = "https://huggingface.co";
const CONFIG: &str = "config.json";

/// What of a model is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Its `config.json`.
    Config,
    /// Configuration, tokenizer and weights.
    Model,
}

/// The directory of `model`: a path, or a name as in [`self`].
pub fn resolve(model: &Path, needs: Needs) -> Result<PathBuf> {
    if model.exists() {
        return Ok(model.to_owned());
    }
    let name = Name::parse(model).ok_or_else(|| {
        usage(format!(
            "{}: no such directory; give one that has a config.json, or the name of a model on the \
             Hub, which is owner/name or owner/name@revision",
            model.display()
        ))
    })?;
    Hub::from_env()?.directory(&name, needs)
}

/// A model on the Hub.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    id: String,
    revision: String,
}

impl Name {
    fn parse(text: &Path) -> Option<Self> {
        let text = text.to_str()?;
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let is_plain = |part: &str| {
            let is_known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(is_known)
        };
        let (owner, name) = id.split_once('/')?;
        let is_valid = is_plain(owner) && is_plain(name) && revision.split('/').all(is_plain);
        is_valid.then(|| Self { id: id.to_owned(), revision: revision.to_owned() })
    }
}

/// Where models come from.
struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    is_offline: bool,
}

impl Hub {
    fn from_env() -> Result<Self> {
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

    /// The snapshot of the model in the cache, downloaded if need be.
    fn directory(&self, name: &Name, needs: Needs) -> Result<PathBuf> {
        if let Some(snapshot) = self.snapshot(name)
            && is_complete(&snapshot, needs)
        {
            return Ok(snapshot);
        }
        let Name { id, revision } = name;
        if self.is_offline {
            return Err(usage(format!(
                "{id}: neither a directory nor complete in {} at {revision}, and HF_HUB_OFFLINE \
                 forbids to download it",
                self.cache.display()
            )));
        }
        self.download(name, needs)
            .with_context(|| format!("downloading {id} at {revision} from {}", self.endpoint))
    }

    fn repo_dir(&self, name: &Name) -> PathBuf {
        self.cache.join(format!("models--{}", name.id.replace('/', "--")))
    }

    /// Where the revision, a name or a commit, lies in the cache.
    fn snapshot(&self, name: &Name) -> Option<PathBuf> {
        let repo = self.repo_dir(name);
        let commit = std::fs::read_to_string(repo.join("refs").join(&name.revision));
        let commit = commit.map_or_else(|_| name.revision.clone(), |text| text.trim().to_owned());
        Some(repo.join("snapshots").join(commit)).filter(|snapshot| snapshot.is_dir())
    }

    fn download(&self, name: &Name, needs: Needs) -> Result<PathBuf> {
        let api = self.api()?;
        let repo = |revision: &str| {
            let (id, revision) = (name.id.clone(), revision.to_owned());
            api.repo(Repo::with_revision(id, RepoType::Model, revision))
        };
        let info = repo(&name.revision).info().map_err(|e| explain(e, name))?;
        let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let snapshot = self.repo_dir(name).join("snapshots").join(&info.sha);
        let pinned = repo(&info.sha);
        let fetch = |file: &str| fetch(&pinned, &snapshot, file, name);
        fetch(CONFIG)?;
        if needs == Needs::Config {
            return Ok(snapshot);
        }
        for file in tokenizer::FILES.iter().filter(|file| files.iter().any(|f| f == *file)) {
            fetch(file)?;
        }
        if files.iter().any(|file| file == WEIGHTS) {
            fetch(WEIGHTS)?;
        } else if files.iter().any(|file| file == INDEX) {
            fetch(INDEX)?;
            shard_names(&snapshot.join(INDEX))?.iter().try_for_each(|shard| fetch(shard))?;
        } else {
            return Err(usage(format!("{}: it has no {WEIGHTS} and no {INDEX}", name.id)));
        }
        write_atomic(&self.repo_dir(name).join("refs").join(&name.revision), info.sha.as_bytes())?;
        Ok(snapshot)
    }

    fn api(&self) -> Result<Api> {
        let builder = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_retries(3);
        builder.build().context("setting up the connection")
    }
}

/// Downloads one file unless it lies in the snapshot.
fn fetch(repo: &ApiRepo, snapshot: &Path, file: &str, name: &Name) -> Result<()> {
    if snapshot.join(file).is_file() {
        return Ok(());
    }
    let progress = FileProgress { view: None, bytes: 0 };
    let path = repo.download_with_progress(file, progress).map_err(|e| explain(e, name))?;
    if !path.starts_with(snapshot) {
        return Err(anyhow!("{file}: the server gave another commit than was asked for"));
    }
    Ok(())
}

/// What a failed request means.
fn explain(error: ApiError, Name { id, revision }: &Name) -> anyhow::Error {
    let text = error.to_string();
    if text.contains("404") {
        usage(format!("{id}: neither a directory nor a model on the Hub with revision {revision}"))
    } else if text.contains("401") || text.contains("403") {
        usage(format!(
            "{id}: no such model on the Hub, or one that needs permission: accept its terms there \
             and set HF_TOKEN"
        ))
    } else {
        anyhow!("{text}; the same command goes on where it stopped")
    }
}

/// Whether a snapshot has all that is needed; what lies in it may be a part.
fn is_complete(snapshot: &Path, needs: Needs) -> bool {
    let has = |file: &str| snapshot.join(file).is_file();
    let has_tokenizer =
        has("tokenizer_config.json") && (has("tokenizer.json") || has("tokenizer.model"));
    has(CONFIG) && (needs == Needs::Config || has_tokenizer && has_weights(snapshot))
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
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const FILES: [(&str, &str); 5] = [
        ("config.json", "{}"),
        ("tokenizer.json", "{\"t\": 1}"),
        ("tokenizer_config.json", "{\"c\": 1}"),
        ("model.safetensors.index.json", r#"{"weight_map": {"a": "one.safetensors"}}"#),
        ("one.safetensors", "the weights of the model"),
    ];

    fn hub(cache: &Path, endpoint: &str, is_offline: bool) -> Hub {
        let endpoint = endpoint.to_owned();
        Hub { cache: cache.to_owned(), endpoint, token: None, is_offline }
    }

    fn name(text: &str) -> Name {
        Name::parse(Path::new(text)).unwrap()
    }

    /// Serves the model `owner/name` for as long as the test runs; the address.
    fn serve() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                let headers: Vec<String> =
                    lines.map_while(|l| l.ok().filter(|l| !l.is_empty())).collect();
                let path = request.split(' ').nth(1).unwrap();
                stream.write_all(respond(path, &headers).as_bytes()).unwrap();
            }
        });
        address
    }

    fn respond(path: &str, headers: &[String]) -> String {
        let reply = |status: &str, more: &str, body: &str| {
            let len = body.len();
            format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len}\r\n{more}\r\n{body}"
            )
        };
        if path == "/api/models/owner/name/revision/main" {
            let siblings: Vec<String> = FILES
                .iter()
                .chain(&[("pytorch_model.bin", ""), ("README.md", "")])
                .map(|(file, _)| format!("{{\"rfilename\": \"{file}\"}}"))
                .collect();
            let siblings = siblings.join(",");
            let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{siblings}]}}");
            return reply("200 OK", "Content-Type: application/json\r\n", &body);
        }
        let file = path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"));
        let Some((file, body)) = FILES.iter().find(|(name, _)| Some(*name) == file) else {
            return reply("404 Not Found", "", "");
        };
        let range = headers.iter().find_map(|header| {
            let (key, value) = header.split_once(": ")?;
            key.eq_ignore_ascii_case("range").then(|| value.trim_start_matches("bytes="))
        });
        let (first, last) = range.unwrap().split_once('-').unwrap();
        let first: usize = first.parse().unwrap();
        let end = last.parse::<usize>().map_or(body.len(), |last| body.len().min(last + 1));
        let more = format!(
            "ETag: \"etag-{file}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {first}-{}/{}\r\n",
            end - 1,
            body.len()
        );
        reply("206 Partial Content", &more, &body[first..end])
    }

    #[test]
    fn names_are_told_from_paths() {
        let pinned = Name { id: "Qwen/Qwen2.5-7B".into(), revision: "v1".into() };
        assert_eq!(name("Qwen/Qwen2.5-7B@v1"), pinned);
        assert_eq!(name("a/b").revision, "main");
        for path in ["gpt2", "/a/b", "./a/b", "a/b/c", "../b", "a/..", "a/b c", "a/b@", "a/b@../c"]
        {
            assert_eq!(Name::parse(Path::new(path)), None, "{path}");
        }
        let error = resolve(Path::new("runs/gone/x"), Needs::Model).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("runs/gone/x: no such directory"), "{error}");
    }

    #[test]
    fn a_model_in_the_cache_is_found_by_name_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--owner--name");
        let snapshot = repo.join("snapshots").join(COMMIT);
        for (file, content) in FILES {
            write_atomic(&snapshot.join(file), content.as_bytes()).unwrap();
        }
        write_atomic(&repo.join("refs/main"), COMMIT.as_bytes()).unwrap();
        let hub = hub(cache.path(), "http://localhost:9", true);
        for text in ["owner/name", &format!("owner/name@{COMMIT}")] {
            assert_eq!(hub.directory(&name(text), Needs::Model).unwrap(), snapshot);
        }
        std::fs::remove_file(snapshot.join("one.safetensors")).unwrap();
        assert_eq!(hub.directory(&name("owner/name"), Needs::Config).unwrap(), snapshot);
        let error = hub.directory(&name("owner/name"), Needs::Model).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    }

    #[test]
    fn what_is_missing_is_downloaded_once_and_resumed() {
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(cache.path(), &serve(), false);
        let blobs = cache.path().join("models--owner--name/blobs");
        // What an interrupted download leaves: the server is only asked for the rest.
        write_atomic(&blobs.join("etag-one.part"), b"THE WEIGHTS").unwrap();
        let snapshot = hub.directory(&name("owner/name"), Needs::Model).unwrap();
        for (file, content) in &FILES[..4] {
            assert_eq!(read_text(&snapshot.join(file)).unwrap(), *content);
        }
        let weights = read_text(&snapshot.join("one.safetensors")).unwrap();
        assert_eq!(weights, "THE WEIGHTS of the model");
        assert_eq!(std::fs::read_dir(&snapshot).unwrap().count(), FILES.len());
        let offline = Hub { is_offline: true, ..hub };
        assert_eq!(offline.directory(&name("owner/name"), Needs::Model).unwrap(), snapshot);
    }

    #[test]
    fn an_unknown_model_is_the_users_error() {
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(cache.path(), &serve(), false);
        let error = hub.directory(&name("owner/other"), Needs::Model).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(format!("{error:#}").contains("owner/other: neither a directory"), "{error:#}");
    }
}
