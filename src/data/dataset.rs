//! What a run learns from: the `[data]` table, and the tokenised sources that it describes.
//!
//! Contract: every source is tokenised once, in parallel, into a [`TokenFile`]. Large inputs go to a
//! cache directory, under a key over the tokenizer's files, the rules and the inputs (path, size, time
//! of change); what is stale or damaged is made anew and replaced in one step. Small ones are
//! tokenised in memory each time, unless `cache_dir` is given. Nothing that was dropped is silent.
//!
//! Left out: downloading, and the order of samples ([`super::mixture`], [`super::loader`]).

use super::input::{InputFile, resolve};
use super::loader::{Cursor, Loader};
use super::mixture::{MixBy, Part};
use super::rules::{CodeAnswers, Counts, Decision, OverLength, Reason, Rules, TULU3_CODE};
use super::token_file::{Hash, Stale, TokenFile, TokenWriter};
use super::tokenized::{self, Line};
use crate::base::error::{Interrupted, usage};
use crate::base::fs::AtomicFile;
use crate::base::{human, interrupt, progress::Progress};
use crate::tokenizer::{Message, Tokenized, Tokenizer};
use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Inputs of more bytes go to the cache though nobody named a directory.
const LARGE: u64 = 64 << 20;
/// Rows tokenised at a time.
const CHUNK: usize = 1024;
/// Tasks below this many samples take no bar.
const WORTH_A_BAR: u64 = 20_000;
/// Part of the key: changes with the meaning of what is stored.
const VERSION: &[u8] = b"codeseq tokens 1";

/// The `[data]` table of `sft.toml`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Files, directories or data-set ids of one unnamed source, all of whose samples are used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// Several sources by name, in place of `files`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, SourceConfig>,
    /// Most tokens of a sample (Table 6: max-length-per-sample).
    pub max_length: usize,
    /// Samples with fewer tokens are dropped (Table 6: min-length).
    #[serde(default)]
    pub min_length: usize,
    /// What happens to samples of more than `max_length` tokens.
    #[serde(default)]
    pub over_length: OverLength,
    /// Samples without anything to learn that may be skipped, in each source; one more is an error.
    #[serde(default)]
    pub max_empty: u64,
    /// What weights are shares of.
    #[serde(default)]
    pub mix_by: MixBy,
    /// Samples to look through for one that fits into the rest of a row; 0 takes them as they come.
    #[serde(default)]
    pub pack_ahead: usize,
    /// Where tokenised samples are kept [default: $XDG_CACHE_HOME/codeseq, for large inputs only].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
}

/// A source of samples.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Files (.jsonl, .parquet), directories, or ids of data sets in the Hugging Face cache.
    pub paths: Vec<String>,
    /// Its share beside the other sources' weights.
    #[serde(default = "one")]
    pub weight: f64,
    /// Longer samples are dropped, in tokens (the paper: 3K for Tülu 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Samples are dropped whose `source` is one of these [default: the code sources of Tülu 3].
    #[serde(default = "tulu3_code")]
    pub drop_sources: Vec<String>,
    /// Samples are dropped that a model called code: JSON Lines of `{"id": ..., "is_code": ...}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_answers: Option<PathBuf>,
}

fn one() -> f64 {
    1.0
}

fn tulu3_code() -> Vec<String> {
    TULU3_CODE.map(str::to_owned).to_vec()
}

impl DataConfig {
    /// Refuses a table that names no samples, or rows that could not hold them.
    pub fn check(&self, seq_len: usize) -> Result<()> {
        if self.files.is_empty() == self.sources.is_empty() {
            return Err(usage("data: give either `files`, or tables `[data.sources.NAME]`"));
        }
        if self.max_length > seq_len {
            return Err(usage(format!(
                "data.max_length is {}, but a row holds train.seq_len = {seq_len} tokens",
                self.max_length
            )));
        }
        for (name, source) in &self.sources {
            if !(source.weight > 0.0 && source.weight.is_finite()) {
                return Err(usage(format!(
                    "data.sources.{name}.weight is {}: it must be above 0",
                    source.weight
                )));
            }
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || !name.chars().all(is_plain) {
                return Err(usage(format!(
                    "data.sources: {name:?} is no name for a source: use letters, digits, - and _"
                )));
            }
        }
        Ok(())
    }

    /// Reads and tokenises every source, or finds that it has been done.
    pub fn open(&self, tokenizer: &Tokenizer) -> Result<Dataset> {
        let alone = BTreeMap::from([(String::new(), self.files_as_source())]);
        let configs = if self.sources.is_empty() { &alone } else { &self.sources };
        let sources = configs.iter().map(|(name, config)| {
            let builder = Builder::new(name, config, self, tokenizer)?;
            let samples = builder.tokens(self.cache_dir.as_deref())?;
            let source = Source { name: name.clone(), weight: config.weight, samples };
            let (title, counts) = (source.part().title(), source.samples.counts());
            if source.samples.is_empty() {
                return Err(usage(format!(
                    "{title}: nothing is left to learn: {} (data.max_length = {}, data.min_length \
                     = {})",
                    counts.describe(),
                    self.max_length,
                    self.min_length
                )));
            }
            tracing::info!(
                "{title}: {}; {} tokens",
                counts.describe(),
                human::count(counts.tokens)
            );
            Ok(source)
        });
        let sources = sources.collect::<Result<_>>()?;
        Ok(Dataset { sources, mix_by: self.mix_by, pack_ahead: self.pack_ahead })
    }

    fn files_as_source(&self) -> SourceConfig {
        SourceConfig {
            paths: self.files.iter().map(|file| file.to_string_lossy().into_owned()).collect(),
            weight: 1.0,
            max_length: None,
            drop_sources: Vec::new(),
            code_answers: None,
        }
    }
}

/// Tokenised sources.
pub struct Dataset {
    /// In the order of their names.
    pub sources: Vec<Source>,
    mix_by: MixBy,
    pack_ahead: usize,
}

/// A tokenised source.
pub struct Source {
    /// As the configuration calls it; none for `data.files`.
    pub name: String,
    /// Its share.
    pub weight: f64,
    /// What is learnt.
    pub samples: TokenFile,
}

impl Dataset {
    /// Packed rows of at most `seq_len` tokens, from `cursor` on.
    pub fn loader(self, seq_len: usize, seed: u64, cursor: Cursor) -> Result<Loader> {
        Loader::of_sources(self.sources, self.mix_by, self.pack_ahead, seq_len, seed, cursor)
    }
}

impl Source {
    /// The source as the mixture sees it.
    pub fn part(&self) -> Part {
        Part {
            name: self.name.clone(),
            weight: self.weight,
            len: self.samples.len(),
            data: hex(&self.samples.checksum()[..8]),
        }
    }

    /// A source of samples made by a test.
    #[cfg(test)]
    pub(crate) fn in_memory(name: &str, weight: f64, samples: &[Tokenized]) -> Self {
        Self { name: name.to_owned(), weight, samples: super::token_file::in_memory(samples) }
    }
}

/// Tokenises one source.
struct Builder<'a> {
    name: &'a str,
    rules: Rules,
    max_empty: u64,
    code_answers: Option<&'a Path>,
    files: Vec<InputFile>,
    tokenizer: &'a Tokenizer,
}

/// What became of a row.
enum Outcome {
    Kept { sample: Tokenized, origin: Option<String>, is_cut: bool },
    Dropped(Reason),
}

impl<'a> Builder<'a> {
    fn new(
        name: &'a str,
        config: &'a SourceConfig,
        data: &DataConfig,
        tokenizer: &'a Tokenizer,
    ) -> Result<Self> {
        let mut files = Vec::new();
        for place in &config.paths {
            files.extend(resolve(place)?);
        }
        let rules = Rules {
            min_length: data.min_length,
            drop_above: config.max_length,
            max_length: data.max_length,
            over_length: data.over_length,
            drop_sources: config.drop_sources.clone(),
        };
        let code_answers = config.code_answers.as_deref();
        Ok(Self { name, rules, max_empty: data.max_empty, code_answers, files, tokenizer })
    }

    /// The tokens: from the cache, or made now.
    fn tokens(&self, cache_dir: Option<&Path>) -> Result<TokenFile> {
        let (key, size) = self.key()?;
        let default_dir = (size >= LARGE).then(default_cache_dir).flatten();
        let Some(dir) = cache_dir.or(default_dir.as_deref()) else {
            let bytes = self.build(&key, Vec::new())?;
            return Ok(TokenFile::from_bytes(bytes, &key).expect("invariant: just written"));
        };
        let name = if self.name.is_empty() { "files" } else { self.name };
        let path = dir.join(format!("{name}-{}.tokens", hex(&key[..8])));
        match TokenFile::open(&path, &key) {
            Ok(tokens) => return Ok(tokens),
            Err(Stale::Absent) => {}
            Err(_) => tracing::warn!("{} is damaged and made anew", path.display()),
        }
        self.build(&key, AtomicFile::create(&path)?)?.commit()?;
        TokenFile::open(&path, &key)
            .map_err(|e| anyhow::anyhow!("{} cannot be read back: {e:?}", path.display()))
    }

    /// A hash of all that the tokens depend on, and the bytes of the inputs.
    fn key(&self) -> Result<(Hash, u64)> {
        let mut hash = Sha256::new_with_prefix(VERSION);
        hash.update(self.tokenizer.fingerprint());
        hash.update(serde_json::to_vec(&(&self.rules, self.max_empty)).context("encoding rules")?);
        let mut size = 0;
        for path in self.files.iter().map(InputFile::path).chain(self.code_answers) {
            let unreadable = |e| usage(format!("cannot read {}: {e}", path.display()));
            let metadata = path.metadata().map_err(unreadable)?;
            let changed = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            hash.update(path.as_os_str().as_encoded_bytes());
            hash.update([0]);
            hash.update(metadata.len().to_le_bytes());
            hash.update(changed.map_or(0, |time| time.as_nanos()).to_le_bytes());
            size += metadata.len();
        }
        Ok((hash.finalize().into(), size))
    }

    /// Tokenises every row into `out`.
    fn build<W: Write>(&self, key: &Hash, out: W) -> Result<W> {
        let answers = self.code_answers.map(CodeAnswers::read).transpose()?.unwrap_or_default();
        let total: u64 = self.files.iter().map(InputFile::count).sum::<Result<_>>()?;
        let progress = if total >= WORTH_A_BAR {
            Progress::new("tokenize", total, "samples")
        } else {
            Progress::hidden()
        };
        let mut counts = Counts::default();
        let mut writer = TokenWriter::new(out);
        for file in &self.files {
            let mut rows = file.rows()?;
            let mut number = 0;
            loop {
                let chunk: Vec<Line> = rows.by_ref().take(CHUNK).collect::<Result<_>>()?;
                if chunk.is_empty() {
                    break;
                }
                progress.inc(chunk.len() as u64);
                let outcomes: Vec<Result<Outcome>> =
                    chunk.into_par_iter().map(|line| self.decide(line, &answers)).collect();
                for outcome in outcomes {
                    number += 1;
                    outcome
                        .and_then(|outcome| self.add(outcome, &mut writer, &mut counts))
                        .with_context(|| format!("{}: sample {number}", file.path().display()))?;
                }
                if interrupt::requested() {
                    return Err(Interrupted.into());
                }
            }
        }
        progress.finish();
        writer.finish(&counts, key)
    }

    fn decide(&self, line: Line, answers: &CodeAnswers) -> Result<Outcome> {
        let origin = match &line {
            Line::Sample(sample) => {
                sample.messages.iter().try_for_each(Message::check_role)?;
                if let Some(reason) = self.rules.of_sample(sample, answers) {
                    return Ok(Outcome::Dropped(reason));
                }
                sample.source.clone()
            }
            Line::Ids(_) => None,
        };
        let mut sample = tokenized::encode(line, self.tokenizer)?;
        if sample.learnt() > 0 {
            sample.check_mask("conversation")?;
        }
        Ok(match self.rules.of_tokens(&mut sample)? {
            Decision::Drop(reason) => Outcome::Dropped(reason),
            decision => Outcome::Kept { sample, origin, is_cut: decision == Decision::Truncate },
        })
    }

    fn add<W: Write>(
        &self,
        outcome: Outcome,
        writer: &mut TokenWriter<W>,
        counts: &mut Counts,
    ) -> Result<()> {
        match outcome {
            Outcome::Kept { sample, origin, is_cut } => {
                counts.keep(&sample, origin.as_deref(), is_cut);
                writer.push(&sample)
            }
            Outcome::Dropped(reason) => {
                counts.drop(reason);
                let empty = counts.dropped.get(&Reason::Empty).copied().unwrap_or(0);
                if reason == Reason::Empty && empty > self.max_empty {
                    return Err(usage(format!(
                        "no token carries loss: is there an assistant turn? (data.max_empty = {} \
                         such samples are skipped in each source)",
                        self.max_empty
                    )));
                }
                Ok(())
            }
        }
    }
}

/// Where large inputs are cached if nobody says: none without a home.
fn default_cache_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || var("HOME").map(|home| home.join(".cache"));
    Some(var("XDG_CACHE_HOME").or_else(home)?.join("codeseq"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tokenizer::bpe;
    use tempfile::TempDir;

    /// A directory with a tokenizer and a file of samples of these lengths.
    fn place(lengths: &[usize]) -> (TempDir, Tokenizer, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(dir.path());
        let file = dir.path().join("samples.jsonl");
        let lines = lengths.iter().map(|&length| {
            let ids: Vec<usize> = (0..length).collect();
            let labels: Vec<i64> =
                (0..length as i64).map(|i| if i < 2 { -100 } else { i }).collect();
            serde_json::json!({"input_ids": ids, "labels": labels}).to_string()
        });
        std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
        (dir, tokenizer, file)
    }

    fn config(file: &Path, max_length: usize) -> DataConfig {
        DataConfig { files: vec![file.to_owned()], max_length, ..DataConfig::default() }
    }

    fn counts(config: &DataConfig, tokenizer: &Tokenizer) -> Result<Counts> {
        Ok(config.open(tokenizer)?.sources[0].samples.counts().clone())
    }

    #[test]
    fn samples_that_are_too_long_are_dropped_and_none_left_is_refused() {
        let (_dir, tokenizer, file) = place(&[4, 7]);
        assert_eq!(counts(&config(&file, 7), &tokenizer).unwrap().kept, 2);
        let some = counts(&config(&file, 6), &tokenizer).unwrap();
        assert_eq!(some.describe(), "1 of 2 samples kept (1 too long)");
        let error = config(&file, 3).open(&tokenizer).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("data.max_length = 3"), "{error}");
    }

    #[test]
    fn samples_with_nothing_to_learn_are_skipped_up_to_a_limit() {
        let (_dir, tokenizer, file) = place(&[4, 2, 1, 5]);
        let limit = |max_empty| DataConfig { max_empty, ..config(&file, 7) };
        let counts = counts(&limit(2), &tokenizer).unwrap();
        assert_eq!((counts.kept, counts.dropped[&Reason::Empty]), (2, 2));
        let error = limit(1).open(&tokenizer).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        let text = format!("{error:#}");
        assert!(text.contains("samples.jsonl: sample 3: no token carries loss"), "{text}");
    }

    #[test]
    fn a_cache_is_used_until_something_it_depends_on_changes() {
        let (dir, tokenizer, file) = place(&[4, 7, 9]);
        let cache = dir.path().join("cache");
        let cached =
            |max_length| DataConfig { cache_dir: Some(cache.clone()), ..config(&file, max_length) };
        let files = || {
            let mut files: Vec<PathBuf> =
                std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect();
            files.sort();
            files
        };
        counts(&cached(7), &tokenizer).unwrap();
        let [first] = &files()[..] else { panic!("{:?}", files()) };
        let written = first.metadata().unwrap().modified().unwrap();
        counts(&cached(7), &tokenizer).unwrap();
        assert_eq!(first.metadata().unwrap().modified().unwrap(), written, "read, not made anew");
        assert_eq!(counts(&cached(9), &tokenizer).unwrap().kept, 3);
        assert_eq!(files().len(), 2, "another rule, another key");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.lines().next().unwrap()).unwrap();
        assert_eq!(counts(&cached(7), &tokenizer).unwrap().read, 1, "another input");
        assert_eq!(files().len(), 3);
    }

    #[test]
    fn a_damaged_cache_is_made_anew() {
        let (dir, tokenizer, file) = place(&[4, 7]);
        let cache = dir.path().join("cache");
        let cached = DataConfig { cache_dir: Some(cache.clone()), ..config(&file, 7) };
        let before: Vec<_> = cached.open(&tokenizer).unwrap().sources[0].samples.iter().collect();
        let path = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let after: Vec<_> = cached.open(&tokenizer).unwrap().sources[0].samples.iter().collect();
        assert_eq!(before, after);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_source_mixes_kinds_of_files_and_drops_code_by_default() {
        let (dir, tokenizer, _) = place(&[4]);
        let turns = r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#;
        let row = |source: &str| format!("{{\"messages\": {turns}, \"source\": \"{source}\"}}\n");
        let lines = row("maths") + &row(TULU3_CODE[0]) + &row(TULU3_CODE[1]);
        let file = dir.path().join("tulu.jsonl");
        std::fs::write(&file, lines).unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/data/rows.parquet");
        let text = format!(
            "max_length = 99\nmax_empty = 1\n[sources.tulu]\npaths = ['{}', '{golden}']",
            file.display()
        );
        let config: DataConfig = toml::from_str(&text).unwrap();
        config.check(99).unwrap();
        let counts = counts(&config, &tokenizer).unwrap();
        assert_eq!((counts.read, counts.kept, counts.dropped[&Reason::Source]), (6, 3, 2));
        assert_eq!(counts.origins.keys().collect::<Vec<_>>(), ["maths", "s/one", "s/two"]);
    }

    #[test]
    fn a_table_that_makes_no_sense_is_refused() {
        for (text, part) in [
            ("max_length = 9", "either `files`"),
            ("files = ['a']\nmax_length = 9\n[sources.b]\npaths = ['b']", "either `files`"),
            ("files = ['a']\nmax_length = 11", "train.seq_len = 10"),
            ("max_length = 9\n[sources.b]\npaths = ['b']\nweight = 0", "data.sources.b.weight"),
            ("max_length = 9\n[sources.'a/b']\npaths = ['b']", "a/b"),
        ] {
            let config: DataConfig = toml::from_str(text).unwrap();
            let error = config.check(10).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(toml::from_str::<DataConfig>("max_length = 9\n[sources.a]\npath = 'x'").is_err());
    }
}
