//! Every committed configuration is one that its command accepts.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

use codeseq::config::load;
use codeseq::model::ModelConfig;
use codeseq::train::rl;
use codeseq::train::sft;
use std::path::{Path, PathBuf};

/// The files below `configs` with an extension.
fn configs(extension: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, files) } else { files.push(path) }
        }
    }
    let mut files = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs"), &mut files);
    files.retain(|file| file.extension().is_some_and(|e| e == extension));
    assert!(!files.is_empty());
    files
}

#[test]
fn every_training_configuration_is_accepted_by_its_command() {
    for file in configs("toml") {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let files = [file];
        let is_profile = files[0].parent().is_some_and(|dir| dir.ends_with("profiles"));
        let checked = if is_profile || name == "dapo" {
            // Read over or under another one; it has no model or data of its own.
            Ok(())
        } else if name.contains("grpo") {
            rl::Config::load(&files, &[]).and_then(|resolved| resolved.value.check())
        } else if name.contains("sft") || name.contains("pretrain") {
            load::<sft::Config>(&files, &[]).and_then(|resolved| resolved.value.check())
        } else {
            panic!("{name}.toml names no training command: add it here");
        };
        checked.unwrap_or_else(|e| panic!("{}: {e:#}", files[0].display()));
    }
}

#[test]
fn every_model_configuration_is_one_the_decoder_computes() {
    for file in configs("json") {
        let text = std::fs::read_to_string(&file).unwrap();
        ModelConfig::from_json(&text).unwrap_or_else(|e| panic!("{}: {e:#}", file.display()));
    }
}
