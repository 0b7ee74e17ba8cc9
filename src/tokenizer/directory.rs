//! Reads what the files of a directory say about its tokenizer.
//!
//! Facts are taken from where transformers takes them, with its precedence (`docs/tokenizers.md` lists it).
//! Where two files disagree, a warning names both and says which one decides. The vocabulary itself is read
//! from `tokenizer.json` by the tokenizers library.

use crate::base::error::usage;
use crate::base::fs::children;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use tokenizers::AddedToken;

/// The vocabulary.
pub(crate) const VOCABULARY: &str = "tokenizer.json";
/// The model's own configuration, which may name the tokens that end a response.
pub(crate) const MODEL: &str = "config.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
const TEMPLATE: &str = "chat_template";
const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
/// A directory in that of a model.
pub(crate) const MORE_TEMPLATES: &str = "additional_chat_templates";
pub(crate) const GENERATION: &str = "generation_config.json";

/// All files that transformers and vLLM read to tokenise. Those that exist are copied with a model.
pub(crate) const FILES: [&str; 10] = [
    VOCABULARY,
    CONFIG,
    TEMPLATE_FILE,
    TEMPLATE_JSON,
    GENERATION,
    SPECIAL_TOKENS,
    ADDED_TOKENS,
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// The special tokens whose names transformers knows. Other names end in `_token` too.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// The keys that list special tokens without names.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// Returns whether a file of a model, given by its path in the directory, belongs to the tokenizer.
pub(crate) fn is_tokenizer_file(path: &str) -> bool {
    let is_template = || {
        path.ends_with(".jinja")
            && path.split_once('/').is_some_and(|(dir, _)| dir == MORE_TEMPLATES)
    };
    FILES.contains(&path) || is_template()
}

/// What a directory says about its tokenizer.
pub(crate) struct Directory {
    dir: PathBuf,
    /// The tokenizer's files and [`MODEL`], by their paths in the directory.
    files: Vec<(String, Vec<u8>)>,
    /// `tokenizer_config.json`, in which the entries of `special_tokens_map.json` replace others.
    config: Map<String, Value>,
}

/// A chat template, and the file that it is from.
pub(crate) struct Template {
    pub(crate) source: String,
    pub(crate) place: String,
}

impl Directory {
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let more = dir.join(MORE_TEMPLATES);
        let templates = if more.is_dir() { children(&more)? } else { Vec::new() };
        let more = templates.iter().filter_map(|path| path.strip_prefix(dir).ok()?.to_str());
        let is_read =
            |name: &&str| (*name == MODEL || is_tokenizer_file(name)) && dir.join(name).is_file();
        let read = |name: &str| {
            let path = dir.join(name);
            let content =
                std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok((name.to_owned(), content))
        };
        let names = FILES.into_iter().chain([MODEL]).chain(more).filter(is_read);
        Self::of_files(dir, names.map(read).collect::<Result<_>>()?)
    }

    /// Takes these files for those of the directory `dir`, which need not be there.
    pub(crate) fn of_files(dir: &Path, files: Vec<(String, Vec<u8>)>) -> Result<Self> {
        let directory = Self { dir: dir.to_owned(), files, config: Map::new() };
        if directory.content(VOCABULARY).is_none() {
            return Err(usage(format!(
                "cannot read {}: no such file",
                dir.join(VOCABULARY).display()
            )));
        }
        Ok(directory)
    }

    /// Reads what the directory says beside the vocabulary, which comes first: it tells whether this is a
    /// tokenizer at all.
    pub(crate) fn with_config(self) -> Result<Self> {
        Ok(Self { config: self.read_config()?, ..self })
    }

    fn read_config(&self) -> Result<Map<String, Value>> {
        let dir = &self.dir;
        let mut config = self.object(CONFIG)?.ok_or_else(|| {
            usage(format!(
                "{}: no {CONFIG}: expected a tokenizer in Hugging Face layout",
                dir.display()
            ))
        })?;
        let older = self.object(SPECIAL_TOKENS)?.unwrap_or_default();
        let is_superseded = config.contains_key("added_tokens_decoder");
        for (key, value) in older {
            let (ours, theirs) = (config.get(&key).map(text), text(&value));
            if ours.is_some_and(|ours| ours != theirs) {
                let winner = if is_superseded { CONFIG } else { SPECIAL_TOKENS };
                tracing::warn!(
                    "{}: {CONFIG} and {SPECIAL_TOKENS} disagree about {key}; {winner} decides, as in \
                     transformers",
                    dir.display()
                );
            }
            if !is_superseded {
                config.insert(key, value);
            }
        }
        Ok(config)
    }

    fn content(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(file, _)| file == name).map(|(_, content)| content.as_slice())
    }

    /// Returns the text of a file, `None` if there is no such file.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        let wrong = |e| usage(format!("cannot read {}: {e}", self.path(name).display()));
        self.content(name).map(std::str::from_utf8).transpose().map_err(wrong)
    }

    /// Returns the JSON object in a file, `None` if there is no such file.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        self.text(name)?.map(|text| parse_object(&self.path(name), text)).transpose()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns a key of `tokenizer_config.json`.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    /// Returns the names and the spellings of the special tokens that templates know (`bos_token`, ...).
    pub(crate) fn special_tokens(&self) -> Vec<(String, String)> {
        let has_name = |key: &str| NAMED.contains(&key) || key.ends_with("_token");
        let named = self.config.iter().filter(|(key, _)| has_name(key));
        let more = self.config.get("extra_special_tokens").and_then(Value::as_object);
        named
            .chain(more.into_iter().flatten())
            .filter_map(|(key, value)| Some((key.clone(), text(value)?.to_owned())))
            .collect()
    }

    /// Returns the spelling of the token that ends a sequence.
    pub(crate) fn eos_token(&self) -> Option<&str> {
        text(self.config.get("eos_token")?)
    }

    /// Adds the tokens of other files that `tokenizer.json` lacks.
    ///
    /// As in transformers, a new token gets the next free id, in the order of the ids in the files. Where
    /// that is not the id in the file, there is a warning.
    pub(crate) fn add_tokens(&self, tokenizer: &mut tokenizers::Tokenizer) -> Result<()> {
        let named = self.special_tokens();
        let is_named = |content: &str| named.iter().any(|(_, token)| token == content);
        let mut wanted = self.numbered_tokens(is_named)?;
        wanted.sort_by_key(|(id, _)| *id);
        for (id, token) in wanted {
            let content = token.content.clone();
            self.add(tokenizer, token)?;
            let given = tokenizer.token_to_id(&content);
            if given != Some(id) {
                tracing::warn!(
                    "{}: {content} has id {id} in {}, but is token {} of tokenizer.json's vocabulary, as \
                     transformers takes it; a model trained with the other id does not fit",
                    self.dir.display(),
                    if self.get("added_tokens_decoder").is_some() { CONFIG } else { ADDED_TOKENS },
                    given.map_or("no".to_owned(), |given| given.to_string()),
                );
            }
        }
        let known = tokenizer.get_added_vocabulary().get_vocab().clone();
        let lists = LISTS.iter().filter_map(|key| self.config.get(*key)?.as_array()).flatten();
        let listed = lists.filter_map(|token| Some(text(token)?.to_owned()));
        for content in named.into_iter().map(|(_, content)| content).chain(listed) {
            if !known.contains_key(&content) {
                self.add(tokenizer, AddedToken::from(content, true))?;
            }
        }
        Ok(())
    }

    fn add(&self, tokenizer: &mut tokenizers::Tokenizer, token: AddedToken) -> Result<()> {
        let added = tokenizer.add_tokens([token]);
        added.map(drop).map_err(|e| usage(format!("{}: {e}", self.dir.display())))
    }

    /// Returns the tokens that the files give with an id.
    fn numbered_tokens(&self, is_named: impl Fn(&str) -> bool) -> Result<Vec<(u32, AddedToken)>> {
        let wrong =
            |file: &str, what: String| usage(format!("{}: {what}", self.path(file).display()));
        if let Some(decoder) = self.get("added_tokens_decoder") {
            let decoder = decoder.as_object().ok_or_else(|| {
                wrong(
                    CONFIG,
                    "added_tokens_decoder: expected an object of ids and tokens".to_owned(),
                )
            })?;
            let token = |(id, value): (&String, &Value)| {
                let flag = |key: &str| value[key].as_bool();
                let content = value["content"].as_str().map(str::to_owned);
                let (Ok(id), Some(content)) = (id.parse(), content) else {
                    return Err(wrong(
                        CONFIG,
                        format!("added_tokens_decoder.{id}: expected an id and its token"),
                    ));
                };
                let special = flag("special").unwrap_or(false) || is_named(&content);
                let token = AddedToken::from(content, special)
                    .single_word(flag("single_word").unwrap_or(false))
                    .lstrip(flag("lstrip").unwrap_or(false))
                    .rstrip(flag("rstrip").unwrap_or(false))
                    .normalized(flag("normalized").unwrap_or(!special));
                Ok((id, token))
            };
            return decoder.iter().map(token).collect();
        }
        let added = self.object(ADDED_TOKENS)?.unwrap_or_default();
        let token = |(content, id): (String, Value)| {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number =
                number.ok_or_else(|| wrong(ADDED_TOKENS, format!("{content:?}: {id} is no id")))?;
            let special = is_named(&content);
            Ok((number, AddedToken::from(content, special)))
        };
        added.into_iter().map(token).collect()
    }

    /// Returns the chat template that is used without tools: the one named default; files come before keys.
    pub(crate) fn template(&self) -> Result<Option<Template>> {
        let named = self.files.iter().map(|(name, _)| name.as_str());
        let more: Vec<&str> = named.filter(|name| name.starts_with(MORE_TEMPLATES)).collect();
        let is_default = |name: &&str| Path::new(name).file_stem().is_some_and(|s| s == "default");
        let chosen = more.iter().copied().find(is_default).unwrap_or(TEMPLATE_FILE);
        let of_file = self.text(chosen)?.map(|source| Template {
            source: source.to_owned(),
            place: self.path(chosen).display().to_string(),
        });
        let found = [of_file, self.config_template(more.is_empty())?, self.json_template()?];
        let mut found = found.into_iter().flatten();
        let Some(template) = found.next() else {
            if more.is_empty() {
                return Ok(None);
            }
            return Err(usage(format!(
                "{}: no template named \"default\": copy one of the files there to {TEMPLATE_FILE}",
                self.path(MORE_TEMPLATES).display()
            )));
        };
        if let Some(other) = found.find(|other| other.source != template.source) {
            tracing::warn!("{} and {} disagree; the first is used", template.place, other.place);
        }
        Ok(Some(template))
    }

    /// Returns the template of the config's key: a template, a list of named ones, or an object of them.
    fn config_template(&self, must_have_default: bool) -> Result<Option<Template>> {
        let Some(value) = self.get(TEMPLATE) else { return Ok(None) };
        let place = self.path(CONFIG).display().to_string();
        let named: Vec<(&str, Option<&str>)> = match value {
            Value::String(source) => vec![("default", Some(source))],
            Value::Array(list) => list
                .iter()
                .map(|entry| {
                    (entry["name"].as_str().unwrap_or_default(), entry["template"].as_str())
                })
                .collect(),
            Value::Object(named) => {
                named.iter().map(|(name, source)| (name.as_str(), source.as_str())).collect()
            }
            _ => Vec::new(),
        };
        match named.iter().find(|(name, _)| *name == "default") {
            Some((_, Some(source))) => Ok(Some(Template { source: (*source).to_owned(), place })),
            _ if !must_have_default => Ok(None),
            _ => {
                let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
                Err(usage(format!(
                    "{place}: {TEMPLATE}: no template named \"default\", only {names:?}: write the one \
                     that is meant to {TEMPLATE_FILE}"
                )))
            }
        }
    }

    /// Returns the template of a processor's file, which transformers reads only for models of images and
    /// text.
    fn json_template(&self) -> Result<Option<Template>> {
        let object = self.object(TEMPLATE_JSON)?.unwrap_or_default();
        let source = object.get(TEMPLATE).and_then(Value::as_str);
        let place = self.path(TEMPLATE_JSON).display().to_string();
        Ok(source.map(|source| Template { source: source.to_owned(), place }))
    }

    /// Returns the names and the contents of all files of the tokenizer.
    pub(crate) fn into_files(mut self) -> Vec<(String, Vec<u8>)> {
        self.files.retain(|(name, _)| name != MODEL);
        self.files.sort_by_key(|(name, _)| file_order(name));
        self.files
    }
}

/// Parses the JSON object in a file.
pub(crate) fn parse_object(path: &Path, text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(usage(format!("{}: expected a JSON object", path.display()))),
        Err(e) => Err(usage(format!("{}: {e}", path.display()))),
    }
}

/// Returns the rank of a tokenizer's file: in the order of [`FILES`], then by name.
pub(crate) fn file_order(name: &str) -> (usize, String) {
    (FILES.iter().position(|file| *file == name).unwrap_or(FILES.len()), name.to_owned())
}

/// Returns a token's spelling. Configs give it as a string or as an object with `content`.
fn text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::base::fs::write_atomic;
    use crate::tokenizer::Tokenizer;
    use crate::tokenizer::test_support::small_tokenizer;
    use serde_json::json;

    /// Makes a tokenizer directory with `config` merged into its config, and with `files`.
    fn directory(config: &Value, files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        small_tokenizer(dir.path());
        std::fs::remove_file(dir.path().join(GENERATION)).unwrap();
        let path = dir.path().join(CONFIG);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut object = parse_object(&path, &text).unwrap();
        object.extend(config.as_object().unwrap().clone());
        write_atomic(&path, Value::from(object).to_string().as_bytes()).unwrap();
        for (name, content) in files {
            write_atomic(&dir.path().join(name), content.as_bytes()).unwrap();
        }
        dir
    }

    /// Returns the ids of `<x>` and `<y>`, counted from the end of the vocabulary in `tokenizer.json`, and
    /// the ids that end a response.
    fn ids(config: &Value, files: &[(&str, &str)]) -> ([Option<u32>; 2], Vec<u32>) {
        let base = Tokenizer::load(directory(&json!({}), &[]).path()).unwrap().vocab_size() as u32;
        let tokenizer = Tokenizer::load(directory(config, files).path()).unwrap();
        let id = |token: &str| match tokenizer.encode(token).unwrap()[..] {
            [id] => id.checked_sub(base),
            _ => None,
        };
        let ends = tokenizer.eos_ids().iter().map(|id| id.checked_sub(base).unwrap_or(1000 + id));
        ([id("<x>"), id("<y>")], ends.collect())
    }

    /// The expected ids are those of transformers 5.24.
    #[test]
    fn tokens_are_added_from_wherever_transformers_reads_them() {
        let first = |config: Value, files: &[(&str, &str)]| ids(&config, files).0;
        assert_eq!(first(json!({}), &[]), [None, None]);
        let decoder =
            json!({"added_tokens_decoder": {"9000": {"content": "<x>", "special": true}}});
        assert_eq!(
            first(decoder.clone(), &[]),
            [Some(0), None],
            "the next free id, not the file's"
        );
        let map = ("special_tokens_map.json", r#"{"bos_token": "<y>"}"#);
        assert_eq!(
            first(decoder, &[map]),
            [Some(0), None],
            "a newer file makes the older one void"
        );
        assert_eq!(first(json!({}), &[map]), [None, Some(0)]);
        let object = (
            "special_tokens_map.json",
            r#"{"bos_token": {"content": "<x>", "lstrip": false},
            "additional_special_tokens": ["<y>"]}"#,
        );
        assert_eq!(first(json!({}), &[object]), [Some(0), Some(1)]);
        let added = ("added_tokens.json", r#"{"<x>": 9001, "<y>": 9000}"#);
        assert_eq!(first(json!({}), &[added]), [Some(1), Some(0)], "in the order of their ids");
        let named = json!({"extra_special_tokens": {"image_token": "<y>"}, "video_token": "<x>"});
        assert_eq!(first(named, &[]), [Some(0), Some(1)]);
    }

    #[test]
    fn the_end_of_a_sequence_is_read_from_the_older_file_too() {
        let map = ("special_tokens_map.json", r#"{"eos_token": {"content": "<x>"}}"#);
        assert_eq!(ids(&json!({}), &[map]).1, [0]);
        let newer =
            json!({"added_tokens_decoder": {"1": {"content": "<|im_end|>", "special": true}}});
        assert_eq!(ids(&newer, &[map]).1, [1001]);
    }

    /// The expected texts are those that transformers 5.24 renders.
    #[test]
    fn the_default_template_is_found_in_every_layout() {
        let rendered = |config: Value, files: &[(&str, &str)]| {
            let tokenizer = Tokenizer::load(directory(&config, files).path())?;
            tokenizer.template()?.render(&[], false)
        };
        let key = |value: Value| json!({"chat_template": value});
        let list = json!([{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]);
        assert_eq!(rendered(key(list), &[]).unwrap(), "D");
        assert_eq!(rendered(key(json!({"default": "D", "rag": "R"})), &[]).unwrap(), "D");
        let (file, more) =
            (("chat_template.jinja", "F"), ("additional_chat_templates/default.jinja", "M"));
        assert_eq!(rendered(key(json!("C")), &[file]).unwrap(), "F");
        assert_eq!(rendered(key(json!("C")), &[more]).unwrap(), "M");
        assert_eq!(rendered(key(json!("C")), &[file, more]).unwrap(), "M");
        let processor = ("chat_template.json", r#"{"chat_template": "P"}"#);
        assert_eq!(rendered(key(Value::Null), &[processor]).unwrap(), "P");
        assert_eq!(rendered(key(json!("C")), &[processor]).unwrap(), "C");
        let refusal = |config: Value, files: &[(&str, &str)]| {
            let error = rendered(config, files).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            error.to_string()
        };
        let named = json!([{"name": "tool_use", "template": "T"}]);
        assert!(refusal(key(named), &[]).contains("[\"tool_use\"]"));
        let other = ("additional_chat_templates/rag.jinja", "R");
        assert!(refusal(key(Value::Null), &[other]).contains("no template named \"default\""));
        assert!(refusal(key(Value::Null), &[]).contains("no chat template"));
    }

    #[test]
    fn every_file_travels_with_a_model() {
        let more = "additional_chat_templates/rag.jinja";
        let dir = directory(&json!({}), &[(more, "R"), ("added_tokens.json", "{}")]);
        let to = tempfile::tempdir().unwrap();
        Tokenizer::load(dir.path()).unwrap().copy_files(to.path()).unwrap();
        for name in [more, "added_tokens.json", "tokenizer.json"] {
            let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
            assert_eq!(read(to.path()), read(dir.path()), "{name}");
        }
    }
}
