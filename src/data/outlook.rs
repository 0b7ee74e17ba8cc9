//! Estimates what a run will see of its data, before all of it is tokenised.
//!
//! It reads parquet footers, the first MiB of JSON Lines and token caches that are fresh, and tokenises at
//! most 512 rows of a source, so it takes about a second for any size. What a cache says is exact. Other
//! numbers of samples and tokens are those of the first rows, as training takes them, scaled to all rows;
//! the number of rows of JSON Lines is estimated from the length of the first ones. Without a tokenizer,
//! tokens are estimated for all rows, at [`BYTES_PER_TOKEN`]. How often a source is read follows from
//! packing samples of these lengths into the run's first rows. Nothing is downloaded.

use super::input::{InputFile, resolve_here};
use super::loader::TELLING_ROWS;
use super::mixture::{Draw, Mixture, Part};
use super::packer::Packer;
use super::settings::{DataConfig, SourceConfig};
use super::token_cache::TokenCache;
use crate::base::human;
use crate::tokenizer::Tokenizer;
use anyhow::Result;

/// A token of Llama 3 or Qwen2.5 stands for about this many bytes of text.
pub const BYTES_PER_TOKEN: f64 = 4.0;
/// More passes over a source are hardly intended.
const MANY_PASSES: f64 = 100.0;
/// This many rows of a source are examined to estimate the others.
const EXAMINED: usize = 512;

/// What is known about a source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceOutlook {
    /// Its name in the configuration.
    pub name: String,
    pub weight: f64,
    /// How much it holds; `None` if it is not on this machine.
    pub size: Option<Size>,
    /// The number of passes over it in the whole run, if all sources are known.
    pub passes: Option<f64>,
}

/// How much a source holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    pub samples: f64,
    pub tokens: f64,
    pub basis: Basis,
}

/// What a size is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Every row was tokenised.
    All,
    /// Only the first rows were tokenised.
    First,
    Bytes,
}

/// The rows that a run reads.
#[derive(Debug, Clone, Copy)]
pub struct RunRows {
    pub num_rows: usize,
    /// A row has at most this many tokens.
    pub seq_len: usize,
    pub seed: u64,
}

/// Returns the outlook of each source of a run that reads `rows`. A tokenizer, if given, finds what is
/// cached, and counts tokens.
pub fn outlook(
    data: &DataConfig,
    tokenizer: Option<&Tokenizer>,
    rows: RunRows,
) -> Result<Vec<SourceOutlook>> {
    let configs = data.named_sources();
    let mut sources = Vec::new();
    let mut lengths = Vec::new();
    for (name, config) in &configs {
        let known = examine(data, (name, config), tokenizer)?;
        let title = if name.is_empty() { "data.files" } else { name };
        sources.push(SourceOutlook {
            name: title.to_owned(),
            weight: config.weight,
            size: known.as_ref().map(|known| known.size),
            passes: None,
        });
        lengths.extend(known.map(|known| known.lengths));
    }
    if lengths.len() == sources.len() && lengths.iter().all(|lengths| !lengths.is_empty()) {
        let names: Vec<&String> = configs.keys().collect();
        count_passes(&mut sources, &names, &lengths, data, rows)?;
    }
    Ok(sources)
}

/// A source, and the lengths of its samples, or of some that represent all.
struct Known {
    size: Size,
    lengths: Vec<usize>,
}

fn examine(
    data: &DataConfig,
    (name, config): (&str, &SourceConfig),
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<Known>> {
    let mut files = Vec::new();
    for place in &config.paths {
        let Some(found) = resolve_here(place)? else { return Ok(None) };
        files.extend(found);
    }
    let Some(tokenizer) = tokenizer else { return by_bytes(&files).map(Some) };
    let cache = TokenCache::new(name, config, data, files.clone(), tokenizer);
    if let Some((counts, lengths)) = cache.summary()? {
        let (samples, tokens) = (counts.kept as f64, counts.tokens as f64);
        return Ok(Some(Known { size: Size { samples, tokens, basis: Basis::All }, lengths }));
    }
    let mut size = Size { samples: 0.0, tokens: 0.0, basis: Basis::First };
    let mut lengths = Vec::new();
    for file in &files {
        let first = cache.first(file, EXAMINED.div_ceil(files.len()))?;
        let counts = first.counts();
        let times = file.header()?.rows / counts.read.max(1) as f64;
        size.samples += times * counts.kept as f64;
        size.tokens += times * counts.tokens as f64;
        lengths.extend((0..first.len()).map(|index| first.length(index)));
    }
    Ok(Some(Known { size, lengths }))
}

fn by_bytes(files: &[InputFile]) -> Result<Known> {
    let headers = files.iter().map(InputFile::header).collect::<Result<Vec<_>>>()?;
    let samples: f64 = headers.iter().map(|header| header.rows).sum();
    let bytes: f64 = headers.iter().map(|header| header.text_bytes).sum();
    let tokens = bytes / BYTES_PER_TOKEN;
    let mean = (samples > 0.0).then(|| (tokens / samples).ceil() as usize);
    Ok(Known { size: Size { samples, tokens, basis: Basis::Bytes }, lengths: Vec::from_iter(mean) })
}

/// Packs the run's first rows and counts what they take of each source.
fn count_passes(
    sources: &mut [SourceOutlook],
    names: &[&String],
    lengths: &[Vec<usize>],
    data: &DataConfig,
    rows: RunRows,
) -> Result<()> {
    let sizes: Vec<Size> = sources.iter().filter_map(|source| source.size).collect();
    let parts = sources.iter().zip(names).zip(&sizes).map(|((source, name), size)| Part {
        name: (*name).clone(),
        weight: source.weight,
        len: (size.samples.round() as usize).max(1),
        data: String::new(),
    });
    let mixture = Mixture::new(parts.collect(), data.mix_by, rows.seed, &[])?;
    let mut packer = Packer::new(mixture, Vec::new(), data.pack_ahead, rows.seq_len);
    let length = |draw: Draw| {
        let lengths = &lengths[draw.source];
        lengths[draw.index % lengths.len()].clamp(1, rows.seq_len)
    };
    let told = rows.num_rows.min(TELLING_ROWS);
    let mut taken = vec![0; sources.len()];
    for _ in 0..told {
        for draw in packer.next_row(length) {
            taken[draw.source] += length(draw);
        }
    }
    for ((source, size), taken) in sources.iter_mut().zip(&sizes).zip(taken) {
        let times = rows.num_rows as f64 / told as f64;
        source.passes = Some(taken as f64 * times / size.tokens).filter(|n| n.is_finite());
    }
    Ok(())
}

impl SourceOutlook {
    /// Describes the source in a line: `about 939,344 samples of 770 tokens, read 0.72 times`.
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
        let passes = match self.passes {
            None => String::new(),
            Some(n) if n < MANY_PASSES => format!(", read {n:.2} times"),
            Some(n) => {
                let times = human::count(n as u64);
                format!(", read {times} times, which is learning by heart (train.total_steps?)")
            }
        };
        format!("{about}{samples_text} samples of {mean:.0} tokens{how}{passes}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::loader::Cursor;
    use crate::tokenizer::test_support::small_tokenizer;
    use std::path::Path;

    const ROWS: RunRows = RunRows { num_rows: 40, seq_len: 110, seed: 3 };

    /// Makes two sources of labelled ids, one of which is read several times.
    fn mixture(dir: &Path) -> DataConfig {
        let write = |name: &str, count: usize, length: &dyn Fn(usize) -> usize| {
            let line = |i: usize| {
                let labels = vec![5; length(i) - 1];
                let labels = [&[-100][..], &labels].concat();
                serde_json::json!({"input_ids": vec![5; length(i)], "labels": labels}).to_string()
            };
            let lines: Vec<String> = (0..count).map(line).collect();
            std::fs::write(dir.join(name), lines.join("\n")).unwrap();
        };
        write("a.jsonl", 2, &|_| 30);
        write("b.jsonl", 90, &|i| 10 + 7 * (i % 9));
        let dir = dir.display();
        toml::from_str(&format!(
            "max_length = 99\ncache_dir = '{dir}/cache'\n[sources.a]\npaths = ['{dir}/a.jsonl']\n\
             [sources.b]\npaths = ['{dir}/b.jsonl']"
        ))
        .unwrap()
    }

    #[test]
    fn how_often_sources_are_read_is_what_happens() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let data = mixture(dir.path());
        let passes = |tokenizer| -> Vec<f64> {
            let sources = outlook(&data, tokenizer, ROWS).unwrap();
            sources.iter().map(|source| source.passes.unwrap()).collect()
        };
        let estimate = passes(Some(&tokenizer));
        let dataset = data.open(&tokenizer).unwrap();
        let sizes: Vec<f64> =
            dataset.sources.iter().map(|source| source.samples.counts().tokens as f64).collect();
        let mut loader = dataset.loader(ROWS.seq_len, ROWS.seed, Cursor::default()).unwrap();
        let mut taken = [0.0; 2];
        for _ in 0..ROWS.num_rows {
            let batch = loader.next_batch();
            let tokens = loader.tokens_by_source(&batch);
            tokens.iter().zip(&mut taken).for_each(|((_, n), sum)| *sum += *n as f64);
        }
        let happened = [taken[0] / sizes[0], taken[1] / sizes[1]];
        assert_eq!(passes(Some(&tokenizer)), happened);
        assert_eq!(estimate, happened, "all rows are among the first");
        assert!(passes(None).iter().all(|n| n.is_finite()));
    }

    #[test]
    fn a_source_that_is_not_here_is_said_to_be_missing() {
        let size = Size { samples: 10.0, tokens: 100.0, basis: Basis::All };
        let source = |size| SourceOutlook { name: "a".to_owned(), weight: 1.0, size, passes: None };
        assert_eq!(source(Some(size)).describe(), "10 samples of 10 tokens");
        assert!(source(None).describe().contains("not on this machine"));
        let read = |passes| SourceOutlook { passes: Some(passes), ..source(Some(size)) }.describe();
        assert!(read(99.5).ends_with("read 99.50 times"));
        assert!(read(4321.0).contains("read 4,321 times, which is learning by heart"));
    }

    #[test]
    fn samples_are_counted_by_the_first_rows_and_exact_from_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
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
        let see = || outlook(&data, Some(&tokenizer), ROWS).unwrap().remove(0);
        let estimate = see();
        let counts = data.open(&tokenizer).unwrap().sources[0].samples.counts().clone();
        // Every other sample is too long for a row.
        let exact = Size { samples: 500.0, tokens: counts.tokens as f64, basis: Basis::All };
        assert_eq!(see().size, Some(exact));
        assert_eq!(estimate.size, Some(Size { basis: Basis::First, ..exact }));
        assert!(estimate.describe().starts_with("about 500 samples"), "{}", estimate.describe());
        let guess = outlook(&data, None, ROWS).unwrap().remove(0);
        assert_eq!(guess.size.unwrap().samples, 1000.0);
        assert!(guess.describe().contains("at 4 bytes a token"), "{}", guess.describe());
    }
}
