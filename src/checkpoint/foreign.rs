//! Recognises models in formats that are not supported, and says what to do with them.

use crate::base::error::usage;
use crate::base::fs::children;
use std::path::Path;

/// Returns why `model`, a path that may not exist, is no model directory; `None` where it may be one.
pub(crate) fn refusal(model: &Path) -> Option<anyhow::Error> {
    let has_end =
        |path: &Path, end: &str| path.extension().is_some_and(|extension| extension == end);
    if model.is_dir() {
        if model.join("config.json").is_file() {
            return None;
        }
        let files = children(model).ok()?;
        let gguf = files.iter().filter(|file| has_end(file, "gguf")).min()?;
        return Some(is_gguf(gguf));
    }
    if has_end(model, "gguf") || begins_as_gguf(model) {
        return Some(is_gguf(model));
    }
    let what = "is a file; a model is a directory with config.json, tokenizer.json and safetensors";
    model.is_file().then(|| usage(format!("{} {what}", model.display())))
}

fn begins_as_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == *b"GGUF"
}

fn is_gguf(file: &Path) -> anyhow::Error {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = file.file_name().unwrap_or_default().display();
    usage(format!(
        "{} is a GGUF file, the format of llama.cpp, which is not read: take the model's directory with \
         safetensors, or convert it with: python -c \"from transformers import AutoModelForCausalLM as M, \
         AutoTokenizer as T; [c.from_pretrained('{}', gguf_file='{name}').save_pretrained('NEW') for c in (M, \
         T)]\"",
        file.display(),
        dir.display(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    #[test]
    fn a_gguf_file_is_named_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (named, unnamed) = (dir.path().join("q4.gguf"), dir.path().join("model"));
        for path in [&named, &unnamed] {
            std::fs::write(path, b"GGUF\x03").unwrap();
        }
        for path in [&named, &unnamed, dir.path(), Path::new("gone/q4.gguf")] {
            let error = refusal(path).unwrap();
            assert_eq!(exit_code(&error), 2);
            let message = error.to_string();
            assert!(message.contains("GGUF") && message.contains("python -c"), "{message}");
        }
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(refusal(dir.path()).is_none());
        assert!(
            refusal(&dir.path().join("config.json")).unwrap().to_string().contains("is a file")
        );
        assert!(refusal(Path::new("owner/name")).is_none());
    }
}
