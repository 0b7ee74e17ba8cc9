//! Finds the directory of a model that is given by name: a local directory, the Hugging Face cache, or a
//! download into that cache.
//!
//! A directory or a GGUF file that exists is taken as it is; anything else is a name as described in
//! [`crate::base::hub`]. Only the configuration, the tokenizer and safetensors are downloaded.

use super::foreign;
use super::shards::{INDEX, WEIGHTS, has_weights, shard_names};
use crate::base::error::usage;
use crate::base::fs::children;
use crate::base::hub::{Download, Extent, Hub, Kind, Repo};
use crate::tokenizer::{self, MORE_TEMPLATES};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";

/// The part of a model that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Its `config.json`.
    Config,
    /// Its configuration and tokenizer.
    Tokenizer,
    /// Its configuration, tokenizer and weights.
    Model,
}

/// Returns the files that make up a model: configuration, tokenizer and weights of its directory, or its GGUF
/// file.
pub fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let kinds = ["json", "jinja", "safetensors"];
    let mut files = children(model)?;
    let templates = model.join(MORE_TEMPLATES);
    if templates.is_dir() {
        files.extend(children(&templates)?);
    }
    files.retain(|path| path.extension().is_some_and(|e| kinds.iter().any(|kind| e == *kind)));
    files.sort();
    Ok(files)
}

/// Returns the directory or the GGUF file of `model`, which is a path or a name. Downloads what is needed and
/// missing.
pub fn resolve(model: &Path, needs: Needs) -> Result<PathBuf> {
    if let Some(refusal) = foreign::refusal(model) {
        return Err(refusal);
    }
    if let Some(checkpoint) = last_checkpoint(model) {
        return Err(usage(format!(
            "{} is a run, whose models are its checkpoints: give one, such as {}",
            model.display(),
            checkpoint.display()
        )));
    }
    if model.join("adapter_config.json").is_file() && !model.join(CONFIG).exists() {
        return Err(usage(format!(
            "{0} holds an adapter (LoRA), which is not read: merge it into its model with: python -c \"from \
             peft import AutoPeftModelForCausalLM as M; \
             M.from_pretrained('{0}').merge_and_unload().save_pretrained('NEW')\", and copy the tokenizer",
            model.display()
        )));
    }
    if model.exists() {
        return Ok(model.to_owned());
    }
    let repo = model.to_str().and_then(|text| Repo::parse(Kind::Model, text)).ok_or_else(|| {
        usage(format!(
            "{}: no such directory; give one that has a config.json, or the name of a model on the \
             Hub, which is owner/name or owner/name@revision",
            model.display()
        ))
    })?;
    find(&Hub::from_env()?, &repo, needs)
}

/// The last checkpoint of a run directory, if it is one.
fn last_checkpoint(dir: &Path) -> Option<PathBuf> {
    let is_model = |dir: &PathBuf| dir.join(CONFIG).is_file();
    let checkpoints = children(&dir.join("checkpoints")).ok()?;
    checkpoints.into_iter().filter(is_model).max().filter(|_| !dir.join(CONFIG).exists())
}

fn find(hub: &Hub, repo: &Repo, needs: Needs) -> Result<PathBuf> {
    let found = hub.directory(
        repo,
        |snapshot| is_complete(snapshot, needs),
        |download| fetch(download, needs),
    );
    match needs {
        Needs::Config => found.context(
            "planning, for which a directory with config.json is enough (--set model.path=DIR)",
        ),
        _ => found,
    }
}

fn fetch(download: &Download<'_>, needs: Needs) -> Result<Extent> {
    download.fetch(CONFIG)?;
    if needs == Needs::Config {
        return Ok(Extent::Part);
    }
    for file in download.files().iter().filter(|file| tokenizer::is_tokenizer_file(file)) {
        download.fetch(file)?;
    }
    if needs == Needs::Tokenizer {
        return Ok(Extent::Part);
    }
    if download.has(WEIGHTS) {
        download.fetch(WEIGHTS)?;
    } else if download.has(INDEX) {
        for shard in shard_names(&download.fetch(INDEX)?)? {
            download.fetch(&shard)?;
        }
    } else {
        return Err(usage(format!("the model has no {WEIGHTS} and no {INDEX}")));
    }
    Ok(Extent::Whole)
}

/// Returns whether a snapshot has all that is needed; an earlier download may have been partial.
fn is_complete(snapshot: &Path, needs: Needs) -> bool {
    let has = |file: &str| snapshot.join(file).is_file();
    let has_tokenizer =
        has("tokenizer_config.json") && (has("tokenizer.json") || has("tokenizer.model"));
    has(CONFIG)
        && (needs == Needs::Config || has_tokenizer)
        && (needs != Needs::Model || has_weights(snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::base::fs::{read_text, write_atomic};
    use crate::base::hub::test_support::{COMMIT, hub, serve};

    const FILES: [(&str, &str); 7] = [
        ("config.json", "{}"),
        ("tokenizer.json", "{\"t\": 1}"),
        ("tokenizer_config.json", "{\"c\": 1}"),
        ("model.safetensors.index.json", r#"{"weight_map": {"a": "one.safetensors"}}"#),
        ("one.safetensors", "the weights of the model"),
        ("pytorch_model.bin", "not wanted"),
        ("README.md", "not wanted"),
    ];

    fn repo(text: &str) -> Repo {
        Repo::parse(Kind::Model, text).unwrap()
    }

    #[test]
    fn what_is_neither_a_directory_nor_a_name_is_refused() {
        let error = resolve(Path::new("runs/gone/x"), Needs::Model).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("runs/gone/x: no such directory"), "{error}");
    }

    #[test]
    fn a_run_directory_points_to_its_last_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        for step in ["step-000002", "step-000010"] {
            let file = run.path().join("checkpoints").join(step).join(CONFIG);
            write_atomic(&file, b"{}").unwrap();
        }
        let error = resolve(run.path(), Needs::Config).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().ends_with("checkpoints/step-000010"), "{error}");
        let model = run.path().join("checkpoints/step-000002");
        assert_eq!(resolve(&model, Needs::Config).unwrap(), model);
    }

    #[test]
    fn an_adapter_is_named_with_the_line_that_merges_it() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(&dir.path().join("adapter_config.json"), b"{}").unwrap();
        let error = resolve(dir.path(), Needs::Model).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("merge_and_unload"), "{error}");
    }

    #[test]
    fn a_model_in_the_cache_is_found_by_name_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("models--owner--name");
        let snapshot = dir.join("snapshots").join(COMMIT);
        for (file, content) in FILES {
            write_atomic(&snapshot.join(file), content.as_bytes()).unwrap();
        }
        write_atomic(&dir.join("refs/main"), COMMIT.as_bytes()).unwrap();
        let hub = hub(cache.path(), "http://localhost:9", true);
        for text in ["owner/name", &format!("owner/name@{COMMIT}")] {
            assert_eq!(find(&hub, &repo(text), Needs::Model).unwrap(), snapshot);
        }
        std::fs::remove_file(snapshot.join("one.safetensors")).unwrap();
        assert_eq!(find(&hub, &repo("owner/name"), Needs::Config).unwrap(), snapshot);
        let error = find(&hub, &repo("owner/name"), Needs::Model).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
        let error = find(&hub, &repo("owner/other"), Needs::Config).unwrap_err();
        assert!(error.to_string().contains("a directory with config.json"), "{error}");
    }

    #[test]
    fn of_a_model_only_what_it_needs_is_downloaded() {
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(cache.path(), &serve(Kind::Model, &FILES), false);
        let snapshot = find(&hub, &repo("owner/name"), Needs::Model).unwrap();
        for (file, content) in &FILES[..5] {
            assert_eq!(read_text(&snapshot.join(file)).unwrap(), *content);
        }
        assert_eq!(std::fs::read_dir(&snapshot).unwrap().count(), 5);
    }
}
