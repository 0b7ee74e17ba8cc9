//! A data set is what a run learns from: the tokenised sources that `[data]` describes.
//!
//! Every source is found, or downloaded, and tokenised once ([`super::token_cache`]). The order of samples
//! is made in [`super::mixture`] and [`super::loader`].

use super::input::{InputFile, resolve};
use super::loader::{Cursor, Loader};
use super::mixture::MixBy;
pub use super::settings::{DataConfig, SourceConfig};
pub use super::source::Source;
use super::token_cache::TokenCache;
use super::token_file::TokenFile;
use crate::base::error::usage;
use crate::base::human;
use crate::tokenizer::Tokenizer;
use anyhow::Result;

impl SourceConfig {
    /// Returns the source's files; a data set that is not on this machine is downloaded.
    fn files(&self) -> Result<Vec<InputFile>> {
        let files = self.paths.iter().map(|place| resolve(place)).collect::<Result<Vec<_>>>()?;
        Ok(files.concat())
    }
}

impl DataConfig {
    /// Reads and tokenises every source, or takes its tokens from the cache.
    pub fn open(&self, tokenizer: &Tokenizer) -> Result<Dataset> {
        let configs = self.named_sources();
        let sources = configs.iter().map(|(name, config)| {
            let files = config.files()?;
            let samples = TokenCache::new(name, config, self, files, tokenizer).tokens()?;
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
            if !teaches_ends(&source.samples, tokenizer.eos_ids()) {
                tracing::warn!(
                    "{title}: the first samples teach no token that ends a sequence, so a model that learns \
                     from them alone never ends a response. The chat template has to write such a token \
                     behind what an assistant says, and within its generation tags, if it has any"
                );
            }
            Ok(source)
        });
        let sources = sources.collect::<Result<_>>()?;
        Ok(Dataset { sources, mix_by: self.mix_by, pack_ahead: self.pack_ahead })
    }
}

/// Samples that tell whether a source teaches where responses end.
const TELLING_SAMPLES: usize = 64;

/// Whether one of the first samples has one of `ends` among what is learnt.
fn teaches_ends(samples: &TokenFile, ends: &[u32]) -> bool {
    samples.iter().take(TELLING_SAMPLES).any(|sample| {
        let mut tokens = sample.input_ids.iter().zip(&sample.loss_mask);
        tokens.any(|(id, &is_learnt)| is_learnt && ends.contains(id))
    })
}

pub struct Dataset {
    /// The sources, in the order of their names.
    pub sources: Vec<Source>,
    mix_by: MixBy,
    pack_ahead: usize,
}

impl Dataset {
    pub fn longest(&self) -> usize {
        let lengths = |source: &Source| source.samples.longest();
        self.sources.iter().map(lengths).max().unwrap_or(0)
    }

    /// Returns packed rows of at most `seq_len` tokens, from `cursor` on.
    pub fn loader(self, seq_len: usize, seed: u64, cursor: Cursor) -> Result<Loader> {
        Loader::of_sources(self.sources, self.mix_by, self.pack_ahead, seq_len, seed, cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::data::rules::{Counts, Reason, TULU3_CODE};
    use crate::data::token_file::in_memory;
    use crate::tokenizer::Tokenized;
    use crate::tokenizer::test_support::small_tokenizer;
    use std::path::{Path, PathBuf};
    use tempfile::TempDir;

    /// Makes a directory with a tokenizer and a file of samples with these lengths.
    fn place(lengths: &[usize]) -> (TempDir, Tokenizer, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
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
    fn only_an_end_that_is_learnt_teaches_where_responses_end() {
        let teaches = |loss_mask: [bool; 3]| {
            let sample = Tokenized { input_ids: vec![5, 6, 7], loss_mask: loss_mask.to_vec() };
            teaches_ends(&in_memory(&[sample]), &[7])
        };
        assert!(teaches([false, true, true]));
        assert!(!teaches([false, true, false]), "it lies behind the generation tags");
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
    fn a_cache_that_cannot_be_written_is_named_with_its_key() {
        let (_dir, tokenizer, file) = place(&[4, 7]);
        let cached = DataConfig { cache_dir: Some("/proc/absent".into()), ..config(&file, 7) };
        let error = format!("{:#}", cached.open(&tokenizer).err().unwrap());
        assert!(error.contains("data.cache_dir") && error.contains("/proc/absent"), "{error}");
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
}
