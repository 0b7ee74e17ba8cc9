//! Writes a data set and says what is in it: `manifest.json` for programs, `DATA_CARD.md` to read.

use super::family::{Family, Pattern};
use super::{Config, Dataset, Splits, split};
use crate::base::fs::{write_atomic, write_dir_atomic, write_json};
use crate::data::jsonl;
use crate::data::prompt::GtgPrompt;
use crate::data::sample::Sample;
use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// The data card: what a data set holds.
#[derive(Debug, Clone, Serialize)]
pub struct Card {
    /// The seed that determines the data set.
    pub seed: u64,
    /// The SHA-256 of the prompt template.
    pub prompt_sha256: String,
    /// The number of families, unseen ones included.
    pub families: usize,
    /// The number of distinct patterns that the generator could choose from.
    pub distinct_patterns: usize,
    /// The number of training patterns that were dropped because they share a run of terms with a test sequence.
    pub dropped_patterns: usize,
    /// The length of such a run, in terms.
    pub run_length: usize,
    /// The number of patterns in each split.
    pub patterns: BTreeMap<&'static str, usize>,
    /// The number of samples or problems in each split.
    pub rows: BTreeMap<&'static str, usize>,
    /// The number of SFT samples with 0, 1, 2, ... reflection rounds.
    pub rounds: Vec<usize>,
    /// The number of samples of each kind in the corpus of the starting checkpoint.
    pub pretrain_kinds: BTreeMap<String, usize>,
    /// Each family's kind, and its number of patterns for SFT, RL, test and pretraining.
    pub family_table: BTreeMap<&'static str, FamilyRow>,
    /// The SHA-256 of each file; empty until the files are written.
    pub files: BTreeMap<String, String>,
}

/// One family's line in the card.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FamilyRow {
    kind: &'static str,
    sft: usize,
    rl: usize,
    test: usize,
    pretrain: usize,
}

impl Card {
    /// Counts what was made of `splits`.
    pub fn new(
        config: &Config,
        families: &[Family],
        splits: &Splits,
        sft: &[Sample],
        pretrain: &[Sample],
        prompt: &GtgPrompt,
    ) -> Self {
        let rest: &[Pattern] = if pretrain.is_empty() { &[] } else { &splits.rest };
        let mut table: BTreeMap<&'static str, FamilyRow> = families
            .iter()
            .map(|f| (f.name, FamilyRow { kind: f.kind, ..FamilyRow::default() }))
            .collect();
        let mut count = |patterns: &[Pattern], cell: fn(&mut FamilyRow) -> &mut usize| {
            for pattern in patterns {
                *cell(table.entry(pattern.family.name).or_default()) += 1;
            }
        };
        count(&splits.sft, |row| &mut row.sft);
        count(&splits.rl, |row| &mut row.rl);
        count(&splits.test, |row| &mut row.test);
        count(&splits.unseen, |row| &mut row.test);
        count(rest, |row| &mut row.pretrain);
        let mut rounds = vec![0; config.rounds.len()];
        for sample in sft {
            rounds[sample.rounds.unwrap_or(0) as usize] += 1;
        }
        let mut kinds = BTreeMap::new();
        for sample in pretrain {
            *kinds.entry(sample.source.clone().unwrap_or_default()).or_default() += 1;
        }
        let patterns = [
            ("sft", splits.sft.len()),
            ("rl", splits.rl.len()),
            ("test", splits.test.len()),
            ("test_unseen", splits.unseen.len()),
            ("pretrain", rest.len()),
        ];
        let rows = [
            ("sft", sft.len()),
            ("rl", splits.rl.len()),
            ("test", splits.test.len()),
            ("test_unseen", splits.unseen.len()),
            ("pretrain", pretrain.len()),
        ];
        Self {
            seed: config.seed,
            prompt_sha256: prompt.hash().to_owned(),
            families: families.len(),
            distinct_patterns: splits.distinct,
            dropped_patterns: splits.dropped,
            run_length: split::WINDOW,
            patterns: patterns.into_iter().collect(),
            rows: rows.into_iter().collect(),
            rounds,
            pretrain_kinds: kinds,
            family_table: table,
            files: BTreeMap::new(),
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# Generated number-sequence problems\n\n\
             Made by `train data generate` with seed {}; the same command gives the same bytes \
             (`manifest.json` has SHA-256 sums). No text or sequence is taken from anywhere: \
             stories are templates, terms are computed.\n\n\
             {} families give {} distinct patterns (a pattern is a family with its numbers). No \
             pattern is in two files, no two patterns are the same sequence, and no run of {} \
             consecutive terms of a test sequence occurs in a training sequence ({} patterns were \
             dropped for that).\n\n| file | rows | patterns |\n|---|---|---|\n",
            self.seed,
            self.families,
            self.distinct_patterns,
            self.run_length,
            self.dropped_patterns
        );
        for (name, rows) in &self.rows {
            let _ = writeln!(text, "| {name}.jsonl | {rows} | {} |", self.patterns[name]);
        }
        let _ = writeln!(text, "\nSFT samples by reflection rounds, from 0: {:?}.\n", self.rounds);
        if !self.pretrain_kinds.is_empty() {
            text.push_str(
                "`pretrain.jsonl` is for the starting checkpoint. It holds problems and responses \
                 but never a problem with its response, and its patterns are in no other file:\n\n",
            );
            for (kind, count) in &self.pretrain_kinds {
                let _ = writeln!(text, "- {kind}: {count}");
            }
            text.push('\n');
        }
        text.push_str(
            "Patterns of each family:\n\n| family | kind | SFT | RL | test | pretraining |\n\
             |---|---|---|---|---|---|\n",
        );
        for (name, row) in &self.family_table {
            let FamilyRow { kind, sft, rl, test, pretrain } = row;
            let _ = writeln!(text, "| {name} | {kind} | {sft} | {rl} | {test} | {pretrain} |");
        }
        text
    }
}

/// Writes every file of `dataset` into the new directory `out`, all or nothing; returns the card.
pub fn write(dataset: &Dataset, out: &Path) -> Result<Card> {
    let mut card = dataset.card.clone();
    write_dir_atomic(out, |dir| {
        jsonl::write(&dir.join("sft.jsonl"), &dataset.sft)?;
        jsonl::write(&dir.join("rl.jsonl"), &dataset.rl)?;
        jsonl::write(&dir.join("test.jsonl"), &dataset.test)?;
        jsonl::write(&dir.join("test_unseen.jsonl"), &dataset.test_unseen)?;
        jsonl::write(&dir.join("pretrain.jsonl"), &dataset.pretrain)?;
        for name in card.rows.keys() {
            let name = format!("{name}.jsonl");
            let bytes =
                std::fs::read(dir.join(&name)).with_context(|| format!("reading back {name}"))?;
            card.files.insert(name, format!("{:x}", Sha256::digest(bytes)));
        }
        write_json(&dir.join("manifest.json"), &card)?;
        write_atomic(&dir.join("DATA_CARD.md"), card.text().as_bytes())
    })?;
    Ok(card)
}
