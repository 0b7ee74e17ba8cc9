//! What a run will see of its data, told from their beginning before all is tokenised.
//!
//! Contract: reads parquet footers, the first MiB of JSON Lines and the counts of token caches that are
//! fresh, and tokenises at most 512 rows of a source, so it takes a second whatever the size. What
//! a cache says is exact. Other samples and tokens are those of the first rows, as training takes them,
//! times the rows that there are, which for JSON Lines are told from the length of the first; without a
//! tokenizer tokens are those of all rows, at [`BYTES_PER_TOKEN`]. Nothing is downloaded.

use super::input::{InputFile, resolve_here};
use super::mixture::MixBy;
use super::settings::{DataConfig, SourceConfig};
use super::token_cache::TokenCache;
use crate::base::human;
use crate::tokenizer::Tokenizer;
use anyhow::Result;

/// Bytes of text that a token of Llama 3 or Qwen2.5 stands for, about.
pub const BYTES_PER_TOKEN: f64 = 4.0;
/// Rows of a source that tell what the others are like.
const EXAMINED: usize = 512;

/// What is known of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceOutlook {
    /// As the configuration calls it.
    pub name: String,
    /// Its share.
    pub weight: f64,
    /// Its samples; none where it is not on this machine.
    pub size: Option<Size>,
    /// Passes over it in the whole run, where all sources are known.
    pub passes: Option<f64>,
}

/// How much a source holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Samples.
    pub samples: f64,
    /// Tokens.
    pub tokens: f64,
    /// What they are told from.
    pub basis: Basis,
}

/// What a size is told from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// All rows, tokenised.
    All,
    /// The first rows, tokenised.
    First,
    /// Bytes.
    Bytes,
}

/// The sources of a run that reads `total_tokens`. The tokenizer, where there is one, finds what is
/// cached, and counts.
pub fn outlook(
    data: &DataConfig,
    tokenizer: Option<&Tokenizer>,
    total_tokens: f64,
) -> Result<Vec<SourceOutlook>> {
    let configs = data.named_sources();
    let sources = configs.iter().map(|(name, config)| {
        let size = size(data, (name, config), tokenizer)?;
        let name = if name.is_empty() { "data.files" } else { name };
        Ok(SourceOutlook { name: name.to_owned(), weight: config.weight, size, passes: None })
    });
    let mut sources: Vec<SourceOutlook> = sources.collect::<Result<_>>()?;
    count_passes(&mut sources, data.mix_by, total_tokens);
    Ok(sources)
}

fn size(
    data: &DataConfig,
    (name, config): (&str, &SourceConfig),
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<Size>> {
    let mut files = Vec::new();
    for place in &config.paths {
        let Some(found) = resolve_here(place)? else { return Ok(None) };
        files.extend(found);
    }
    let Some(tokenizer) = tokenizer else { return size_by_bytes(&files).map(Some) };
    let cache = TokenCache::new(name, config, data, files.clone(), tokenizer);
    if let Some(counts) = cache.counts()? {
        let (samples, tokens) = (counts.kept as f64, counts.tokens as f64);
        return Ok(Some(Size { samples, tokens, basis: Basis::All }));
    }
    let mut size = Size { samples: 0.0, tokens: 0.0, basis: Basis::First };
    for file in &files {
        let first = cache.counts_of_first(file, EXAMINED.div_ceil(files.len()))?;
        let times = file.header()?.rows / first.read.max(1) as f64;
        size.samples += times * first.kept as f64;
        size.tokens += times * first.tokens as f64;
    }
    Ok(Some(size))
}

fn size_by_bytes(files: &[InputFile]) -> Result<Size> {
    let headers = files.iter().map(InputFile::header).collect::<Result<Vec<_>>>()?;
    let samples = headers.iter().map(|header| header.rows).sum();
    let bytes: f64 = headers.iter().map(|header| header.text_bytes).sum();
    Ok(Size { samples, tokens: bytes / BYTES_PER_TOKEN, basis: Basis::Bytes })
}

fn count_passes(sources: &mut [SourceOutlook], mix_by: MixBy, total_tokens: f64) {
    let Some(sizes) = sources.iter().map(|source| source.size).collect::<Option<Vec<_>>>() else {
        return;
    };
    let unit = |size: &Size| match mix_by {
        MixBy::Tokens => 1.0,
        MixBy::Samples => size.tokens / size.samples,
    };
    let tokens: f64 = sources.iter().zip(&sizes).map(|(s, size)| s.weight * unit(size)).sum();
    for (source, size) in sources.iter_mut().zip(&sizes) {
        let own = total_tokens * source.weight * unit(size) / tokens;
        source.passes = Some(own / size.tokens).filter(|passes| passes.is_finite());
    }
}

impl SourceOutlook {
    /// In a line: `about 939,344 samples of 770 tokens, read 0.72 times`.
    pub fn describe(&self) -> String {
        let Some(Size { samples, tokens, basis }) = self.size else {
            return "not on this machine: the run downloads it".to_owned();
        };
        let (about, how) = match basis {
            Basis::All => ("", String::new()),
            Basis::First => ("about ", String::new()),
            Basis::Bytes => ("about ", format!(", estimated at {BYTES_PER_TOKEN} bytes a token")),
        };
        let samples_text = human::count(samples as u64);
        let mean = if samples > 0.0 { tokens / samples } else { 0.0 };
        let passes = self.passes.map_or(String::new(), |n| format!(", read {n:.2} times"));
        format!("{about}{samples_text} samples of {mean:.0} tokens{how}{passes}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::bpe;

    fn source(weight: f64, samples: f64, tokens: f64) -> SourceOutlook {
        let size = Some(Size { samples, tokens, basis: Basis::All });
        SourceOutlook { name: "a".to_owned(), weight, size, passes: None }
    }

    fn passes(mix_by: MixBy) -> Vec<f64> {
        let mut sources = [source(5.0, 1000.0, 100_000.0), source(1.0, 100.0, 40_000.0)];
        count_passes(&mut sources, mix_by, 60_000.0);
        sources.iter().map(|source| source.passes.unwrap()).collect()
    }

    #[test]
    fn passes_follow_from_weights_and_sizes() {
        let close = |found: Vec<f64>, expected: [f64; 2]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        };
        close(passes(MixBy::Tokens), [0.5, 0.25]);
        // Of 900 tokens 500 are of the first source: five samples of 100, one of 400.
        close(
            passes(MixBy::Samples),
            [60_000.0 * 5.0 / 9.0 / 100_000.0, 60_000.0 * 4.0 / 9.0 / 4e4],
        );
    }

    #[test]
    fn a_source_that_is_not_here_is_said_to_be_missing() {
        let mut sources =
            [source(1.0, 10.0, 100.0), SourceOutlook { size: None, ..source(1.0, 0.0, 0.0) }];
        count_passes(&mut sources, MixBy::Tokens, 50.0);
        assert_eq!(sources[0].describe(), "10 samples of 10 tokens");
        assert!(sources[1].describe().contains("not on this machine"));
    }

    #[test]
    fn samples_are_counted_by_the_first_rows_and_exact_from_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(dir.path());
        let file = dir.path().join("a.jsonl");
        let line = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
        let long = serde_json::json!({"input_ids": vec![5; 100], "labels": vec![-100; 100]});
        let long = long.to_string().replace("-100]", "5]");
        std::fs::write(&file, format!("{line}\n{long}\n").repeat(500)).unwrap();
        let data = DataConfig {
            files: vec![file],
            max_length: 99,
            cache_dir: Some(dir.path().join("cache")),
            ..DataConfig::default()
        };
        let see = || outlook(&data, Some(&tokenizer), 100.0).unwrap().remove(0);
        let estimate = see();
        let counts = data.open(&tokenizer).unwrap().sources[0].samples.counts().clone();
        // Every other sample is too long for a row.
        let exact = Size { samples: 500.0, tokens: counts.tokens as f64, basis: Basis::All };
        assert_eq!(see().size, Some(exact));
        assert_eq!(estimate.size, Some(Size { basis: Basis::First, ..exact }));
        assert!(estimate.describe().starts_with("about 500 samples"), "{}", estimate.describe());
        let guess = outlook(&data, None, 100.0).unwrap().remove(0);
        assert_eq!(guess.size.unwrap().samples, 1000.0);
        assert!(guess.describe().contains("at 4 bytes a token"), "{}", guess.describe());
    }
}
