//! Says what lies in a place that holds neither a model directory nor a GGUF file, and what to do.

use crate::base::error::usage;
use crate::base::fs::children;
use std::path::Path;

/// Returns why `model`, a path that may not exist, is neither a model directory nor a GGUF file; `None` where
/// it may be one.
pub(crate) fn refusal(model: &Path) -> Option<anyhow::Error> {
    let has_end = |path: &Path| path.extension().is_some_and(|extension| extension == "gguf");
    if model.is_dir() {
        if model.join("config.json").is_file() {
            return None;
        }
        let mut files = children(model).ok()?;
        files.retain(|file| has_end(file));
        files.sort();
        let file = files.first()?.display();
        let (dir, count) = (model.display(), files.len());
        return Some(usage(match count {
            1 => format!("{dir} has no config.json, but a GGUF file: give the file itself, {file}"),
            _ => format!(
                "{dir} has no config.json, but {count} GGUF files: give one of them, such as {file}"
            ),
        }));
    }
    if has_end(model) && !model.exists() {
        return Some(usage(format!("{}: no such file", model.display())));
    }
    let what = "is a file, but no GGUF file; a model is such a file, or a directory with config.json, \
                tokenizer.json and safetensors";
    let is_other = model.is_file() && !has_end(model) && !begins_as_gguf(model);
    is_other.then(|| usage(format!("{} {what}", model.display())))
}

fn begins_as_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == *b"GGUF"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    #[test]
    fn a_gguf_file_is_taken_and_named_where_its_directory_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let (named, unnamed) = (dir.path().join("q4.gguf"), dir.path().join("model"));
        for path in [&named, &unnamed] {
            std::fs::write(path, b"GGUF\x03").unwrap();
            assert!(refusal(path).is_none());
        }
        for (path, said) in [
            (dir.path(), "give the file itself"),
            (Path::new("gone/q4.gguf"), "gone/q4.gguf: no such file"),
        ] {
            let error = refusal(path).unwrap();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains(said), "{error}");
        }
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(refusal(dir.path()).is_none());
        assert!(
            refusal(&dir.path().join("config.json")).unwrap().to_string().contains("no GGUF file")
        );
        assert!(refusal(Path::new("owner/name")).is_none());
    }
}
