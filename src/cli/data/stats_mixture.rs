//! `train data stats --config` shows what a run would learn from, source by source, before it starts.
//!
//! It tokenises what is not yet in the cache, so that the run itself starts at once.

use crate::base::{human, table::Table};
use crate::checkpoint::ModelPlace;
use crate::cli::print;
use crate::config;
use crate::data::dataset::Dataset;
use crate::data::loader::Cursor;
use crate::train::sft;
use anyhow::Result;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Prints the statistics of the data of a configuration.
pub(crate) fn run(files: &[PathBuf], sets: &[String], tokenizer: Option<&Path>) -> Result<()> {
    let config = config::load::<sft::Config>(files, sets)?.value;
    config.check()?;
    let tokenizer = match tokenizer {
        Some(model) => ModelPlace::from(model).open_tokenizer()?,
        None => config.model.open_tokenizer()?,
    };
    let dataset = config.data.open(&tokenizer)?;
    let mut text = describe(&dataset);
    let train = &config.train;
    let num_rows = train.total_steps as usize * train.rows_per_step();
    let loader = dataset.loader(train.seq_len, config.seed, Cursor::default())?;
    let _ = writeln!(text, "\n{}", loader.packing(num_rows));
    print(text)
}

fn describe(dataset: &Dataset) -> String {
    let header = ["source", "weight", "read", "kept", "tokens", "with loss", "mean", "longest"];
    let mut table = Table::new(header);
    let mut notes = String::new();
    for source in &dataset.sources {
        let counts = source.samples.counts();
        let title = if source.name.is_empty() { "data.files" } else { &source.name };
        table.row([
            title.to_owned(),
            source.weight.to_string(),
            human::count(counts.read),
            human::count(counts.kept),
            human::count(counts.tokens),
            format!("{:.1} %", 100.0 * counts.learnt as f64 / counts.tokens as f64),
            format!("{:.0}", counts.tokens as f64 / counts.kept as f64),
            source.samples.longest().to_string(),
        ]);
        let _ = writeln!(notes, "\n{title}: {}", counts.describe());
        for (origin, count) in &counts.origins {
            let _ = writeln!(notes, "  {:>9}  {origin}", human::count(*count));
        }
    }
    format!("{table}{notes}")
}
