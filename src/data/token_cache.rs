//! The tokens of one source, which are made once.
//!
//! Rows are tokenised in parallel, as they are read, into a [`TokenFile`]. Large inputs go to a cache
//! directory, under a key made of the tokenizer's files, the rules and the inputs (path, size, time of
//! change). A cache that is stale or damaged is made again and replaced atomically. Small inputs are
//! tokenised in memory each time, unless `cache_dir` is given. Everything that is dropped is reported.

use super::code_answers::CodeAnswers;
use super::input::InputFile;
use super::rules::{Counts, Decision, Reason, Rules};
use super::settings::{DataConfig, SourceConfig};
use super::token_file::{Hash, Stale, TokenFile, TokenWriter};
use super::tokenized::{self, Line};
use crate::base::error::usage;
use crate::base::fs::AtomicFile;
use crate::base::hex::hex;
use crate::base::progress::Progress;
use crate::tokenizer::{Message, Tokenized, Tokenizer};
use anyhow::{Context, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Inputs of more bytes are cached even if nobody named a directory.
const LARGE: u64 = 64 << 20;
/// Fewer samples are tokenised without a progress bar.
const WORTH_A_BAR: u64 = 20_000;
/// A part of the key; it changes when the meaning of what is stored changes.
const VERSION: &[u8] = b"codeseq tokens 3";

/// Tokenises one source.
pub(crate) struct TokenCache<'a> {
    name: &'a str,
    rules: Rules,
    max_empty: u64,
    code_answers: Option<&'a Path>,
    files: Vec<InputFile>,
    /// The setting `data.cache_dir`.
    dir: Option<&'a Path>,
    tokenizer: &'a Tokenizer,
}

/// What happens to rows while they are read.
struct Build<W> {
    answers: CodeAnswers,
    writer: TokenWriter<W>,
    counts: Counts,
}

/// What happened to a row.
enum Outcome {
    Kept { sample: Tokenized, origin: Option<String>, unread: BTreeSet<String>, is_cut: bool },
    Dropped(Reason),
}

impl<'a> TokenCache<'a> {
    /// Creates the cache of `files`, which are the files of the source.
    pub(crate) fn new(
        name: &'a str,
        config: &'a SourceConfig,
        data: &'a DataConfig,
        files: Vec<InputFile>,
        tokenizer: &'a Tokenizer,
    ) -> Self {
        let rules = Rules {
            min_length: data.min_length,
            drop_above: config.max_length,
            max_length: data.max_length,
            over_length: data.over_length,
            drop_sources: config.drop_sources.clone(),
        };
        let code_answers = config.code_answers.as_deref();
        let dir = data.cache_dir.as_deref();
        Self { name, rules, max_empty: data.max_empty, code_answers, files, dir, tokenizer }
    }

    /// Returns the tokens, from the cache or made now.
    pub(crate) fn tokens(&self) -> Result<TokenFile> {
        let key = self.key()?;
        let Some(path) = self.path(&key)? else { return self.tokens_in_memory(&key) };
        match TokenFile::open(&path, &key) {
            Ok(tokens) => return Ok(tokens),
            Err(Stale::Absent) => {}
            Err(_) => tracing::warn!("{} is damaged and made anew", path.display()),
        }
        let file = match AtomicFile::create(&path) {
            Ok(file) => file,
            // Nobody chose this place, so the run goes on without a cache.
            Err(e) if self.dir.is_none() => {
                tracing::warn!(
                    "tokens are kept in memory and made anew by each start, as they cannot be stored \
                     (data.cache_dir names another place): {e:#}"
                );
                return self.tokens_in_memory(&key);
            }
            Err(e) => return Err(e.context("data.cache_dir cannot be written")),
        };
        self.build(&key, file)?.commit().context("storing tokens in data.cache_dir")?;
        TokenFile::open(&path, &key)
            .map_err(|e| anyhow::anyhow!("{} cannot be read back: {e:?}", path.display()))
    }

    fn tokens_in_memory(&self, key: &Hash) -> Result<TokenFile> {
        let bytes = self.build(key, Vec::new())?;
        Ok(TokenFile::from_bytes(bytes, key).expect("invariant: just written"))
    }

    /// Returns the counts and the lengths of samples that the cache holds, if it holds these tokens. The
    /// tokens themselves are not read.
    pub(crate) fn summary(&self) -> Result<Option<(Counts, Vec<usize>)>> {
        let key = self.key()?;
        Ok(self.path(&key)?.and_then(|path| TokenFile::read_summary(&path, &key).ok()))
    }

    /// Returns where the tokens are kept; `None` if the inputs are small and nobody named a directory.
    fn path(&self, key: &Hash) -> Result<Option<PathBuf>> {
        let size: u64 = self.files.iter().map(InputFile::size).sum::<Result<_>>()?;
        let default_dir = || (size >= LARGE).then(default_cache_dir).flatten();
        let dir = self.dir.map(Path::to_owned).or_else(default_dir);
        let name = if self.name.is_empty() { "files" } else { self.name };
        Ok(dir.map(|dir| dir.join(format!("{name}-{}.tokens", hex(&key[..8])))))
    }

    /// Returns a hash of everything that the tokens depend on.
    fn key(&self) -> Result<Hash> {
        let mut hash = Sha256::new_with_prefix(VERSION);
        hash.update(self.tokenizer.fingerprint());
        hash.update(serde_json::to_vec(&(&self.rules, self.max_empty)).context("encoding rules")?);
        for path in self.files.iter().map(InputFile::path).chain(self.code_answers) {
            let unreadable = |e| usage(format!("cannot read {}: {e}", path.display()));
            let metadata = path.metadata().map_err(unreadable)?;
            let changed = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            hash.update(path.as_os_str().as_encoded_bytes());
            hash.update([0]);
            hash.update(metadata.len().to_le_bytes());
            hash.update(changed.map_or(0, |time| time.as_nanos()).to_le_bytes());
        }
        Ok(hash.finalize().into())
    }

    /// Returns the tokens of the first `most` rows of `file`, which is a file of the source.
    pub(crate) fn first(&self, file: &InputFile, most: usize) -> Result<TokenFile> {
        let mut build = self.begin(Vec::new())?;
        let rows = file.rows()?.take(most).collect::<Result<Vec<_>>>()?;
        self.add_rows(&mut build, file, 0, rows)?;
        let key = Hash::default();
        let bytes = build.writer.finish(&build.counts, &key)?;
        Ok(TokenFile::from_bytes(bytes, &key).expect("invariant: just written"))
    }

    /// Creates a build without rows.
    fn begin<W: Write>(&self, out: W) -> Result<Build<W>> {
        let answers = self.code_answers.map(CodeAnswers::read).transpose()?.unwrap_or_default();
        Ok(Build { answers, writer: TokenWriter::new(out), counts: Counts::default() })
    }

    /// Tokenises every row into `out`.
    fn build<W: Write>(&self, key: &Hash, out: W) -> Result<W> {
        let mut build = self.begin(out)?;
        let total: u64 = self.files.iter().map(InputFile::count).sum::<Result<_>>()?;
        let progress = if total >= WORTH_A_BAR {
            Progress::new("tokenize", total, "samples")
        } else {
            Progress::hidden()
        };
        for file in &self.files {
            let mut before = 0;
            file.for_each_chunk(|rows| {
                let num_rows = rows.len();
                progress.inc(num_rows as u64);
                self.add_rows(&mut build, file, before, rows)?;
                before += num_rows;
                Ok(())
            })?;
        }
        progress.finish();
        build.writer.finish(&build.counts, key)
    }

    /// Tokenises rows of `file`; `before` rows come before them.
    fn add_rows<W: Write>(
        &self,
        build: &mut Build<W>,
        file: &InputFile,
        before: usize,
        rows: Vec<Line>,
    ) -> Result<()> {
        let answers = &build.answers;
        let outcomes: Vec<Result<Outcome>> =
            rows.into_par_iter().map(|row| self.decide(row, answers)).collect();
        outcomes.into_iter().enumerate().try_for_each(|(i, outcome)| {
            outcome
                .and_then(|outcome| self.add(outcome, build))
                .with_context(|| format!("{}: sample {}", file.path().display(), before + i + 1))
        })
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
        let unread = tokenized::unread_keys(&line, self.tokenizer)?;
        let mut sample = tokenized::encode(line, self.tokenizer)?;
        if sample.learnt() > 0 {
            sample.check_mask("conversation")?;
        }
        Ok(match self.rules.of_tokens(&mut sample)? {
            Decision::Drop(reason) => Outcome::Dropped(reason),
            decision => {
                Outcome::Kept { sample, origin, unread, is_cut: decision == Decision::Truncate }
            }
        })
    }

    fn add<W: Write>(&self, outcome: Outcome, build: &mut Build<W>) -> Result<()> {
        let Build { writer, counts, .. } = build;
        match outcome {
            Outcome::Kept { sample, origin, unread, is_cut } => {
                counts.keep(&sample, origin.as_deref(), is_cut);
                unread.into_iter().for_each(|key| *counts.unread.entry(key).or_default() += 1);
                writer.push(&sample)
            }
            Outcome::Dropped(reason) => {
                counts.drop(reason);
                let empty = counts.dropped.get(&Reason::Empty).copied().unwrap_or(0);
                if reason == Reason::Empty && empty > self.max_empty {
                    return Err(usage(format!(
                        "no token carries loss: is there an assistant turn? (data.max_empty = {}: so many \
                         such samples of a source are skipped)",
                        self.max_empty
                    )));
                }
                Ok(())
            }
        }
    }
}

/// Returns where large inputs are cached by default; `None` without a home directory.
fn default_cache_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || var("HOME").map(|home| home.join(".cache"));
    Some(var("XDG_CACHE_HOME").or_else(home)?.join("codeseq"))
}
