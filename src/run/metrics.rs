//! `metrics.jsonl` holds one JSON object for each step, and is the source of every other view of a run.
//!
//! A row is on disk when [`Metrics::log`] returns, in one write. When a run resumes at a checkpoint,
//! [`Metrics::truncate_after`] leaves exactly the rows up to it, so a resumed run has neither gaps nor
//! repeats. The TensorBoard events are a copy of the rows and are made again from them. Keys are
//! `area/name`. The keys `time/*` are for what the run took of the machine (time, rates, memory); only they
//! differ between equal runs.

use super::environment::unix_secs;
use super::tensorboard::EventFile;
use crate::base::error::usage;
use crate::base::fs::write_atomic;
use crate::base::jsonl_log::{JsonlLog, whole_rows};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// Converts bytes to the unit of metrics, MiB.
pub(crate) fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The numbers of one step: `step` and `area/name` keys.
pub type Row = serde_json::Map<String, Value>;

pub const FILE: &str = "metrics.jsonl";
const EVENTS: &str = "events.out.tfevents.0.codeseq";
const WRITTEN_AT: &str = "time/unix_secs";

/// The metrics of one run, open for appending.
pub struct Metrics {
    log: JsonlLog,
    events: EventFile,
}

impl Metrics {
    /// Opens the metrics of the run in `dir` and keeps the rows that are there.
    pub fn open(dir: &Path) -> Result<Self> {
        let log = JsonlLog::open(&dir.join(FILE))?;
        let events = rebuild_events(dir, &read(log.path())?)?;
        Ok(Self { log, events })
    }

    /// Drops every row of a step later than `step`, and an incomplete row that a crash left. With `step` 0
    /// it drops all rows, since a run that starts again scores the untrained model (row 0) again.
    pub fn truncate_after(&mut self, step: u64) -> Result<()> {
        let mut rows = read(self.log.path())?;
        rows.retain(|row| step > 0 && step_of(row).is_some_and(|s| s <= step));
        self.replace(&rows)
    }

    fn replace(&mut self, rows: &[Row]) -> Result<()> {
        let mut text = String::new();
        for row in rows {
            text.push_str(&serde_json::to_string(row).context("encoding a row")?);
            text.push('\n');
        }
        let path = self.log.path().to_owned();
        write_atomic(&path, text.as_bytes())?;
        self.log = JsonlLog::open(&path)?;
        self.events = rebuild_events(path.parent().unwrap_or(Path::new(".")), rows)?;
        Ok(())
    }

    /// Appends the numbers of `step`; a number that is not finite becomes null.
    pub fn log(&mut self, step: u64, values: Row) -> Result<()> {
        let mut row = Row::new();
        row.insert("step".to_owned(), step.into());
        row.extend(values);
        // The time is in whole milliseconds: so short a decimal is read back exactly.
        row.insert(WRITTEN_AT.to_owned(), ((unix_secs() * 1e3).round() / 1e3).into());
        self.log.append(&row)?;
        copy_to_events(&mut self.events, &row)
    }

    /// Returns whether the row of `step` has `key`.
    pub fn has(&self, step: u64, key: &str) -> Result<bool> {
        let rows = read(self.log.path())?;
        Ok(rows.iter().any(|row| step_of(row) == Some(step) && row.contains_key(key)))
    }

    /// Adds numbers that were found later to the row of `step`, which is the last.
    pub fn amend(&mut self, step: u64, values: Row) -> Result<()> {
        let mut rows = read(self.log.path())?;
        match rows.last_mut().filter(|row| step_of(row) == Some(step)) {
            Some(row) => row.extend(values),
            None => return self.log(step, values),
        }
        self.replace(&rows)
    }

    /// Forces the rows to disk; call it before a checkpoint is written that includes them.
    pub fn sync(&self) -> Result<()> {
        self.log.sync()
    }
}

/// Makes a row of pairs, such as `row([("loss", 1.5), ("lr", 1e-3)])`.
pub fn row<'a>(values: impl IntoIterator<Item = (&'a str, f64)>) -> Row {
    values.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

/// Reads the rows of the run in `dir`; there are none if it has no metrics yet.
pub fn read_run(dir: &Path) -> Result<Vec<Row>> {
    let path = dir.join(FILE);
    if path.exists() { read(&path) } else { Ok(Vec::new()) }
}

/// Reads the complete rows.
fn read(path: &Path) -> Result<Vec<Row>> {
    let content =
        std::fs::read(path).map_err(|e| usage(format!("cannot read {}: {e}", path.display())))?;
    let parse = |(i, line): (usize, &[u8])| {
        serde_json::from_slice(line)
            .map_err(|e| usage(format!("{}:{}: {e}", path.display(), i + 1)))
    };
    whole_rows(&content).split_inclusive(|&byte| byte == b'\n').enumerate().map(parse).collect()
}

pub fn step_of(row: &Row) -> Option<u64> {
    row.get("step")?.as_u64()
}

fn rebuild_events(dir: &Path, rows: &[Row]) -> Result<EventFile> {
    let started = rows.first().and_then(written_at).unwrap_or_else(unix_secs);
    let mut events = EventFile::create(&dir.join(EVENTS), started)?;
    for row in rows {
        copy_to_events(&mut events, row)?;
    }
    Ok(events)
}

fn copy_to_events(events: &mut EventFile, row: &Row) -> Result<()> {
    let scalars = row
        .iter()
        .filter(|(key, _)| *key != "step" && *key != WRITTEN_AT)
        .filter_map(|(key, value)| Some((key.as_str(), value.as_f64()?)));
    events.scalars(step_of(row).unwrap_or(0), written_at(row).unwrap_or(0.0), scalars)
}

fn written_at(row: &Row) -> Option<f64> {
    row.get(WRITTEN_AT)?.as_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(dir: &Path) -> Vec<u64> {
        read_run(dir).unwrap().iter().filter_map(step_of).collect()
    }

    #[test]
    fn a_row_is_readable_as_soon_as_it_is_logged() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path()).unwrap();
        metrics.log(1, row([("loss/policy", 0.5), ("entropy", f64::NAN)])).unwrap();
        let rows = read_run(dir.path()).unwrap();
        assert_eq!(rows[0]["step"], 1);
        assert_eq!(rows[0]["loss/policy"], 0.5);
        assert!(rows[0]["entropy"].is_null());
        assert_eq!(rows[0].keys().next().unwrap(), "step");
    }

    #[test]
    fn resuming_leaves_neither_gaps_nor_repeats() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path()).unwrap();
        for step in 1..=5 {
            metrics.log(step, row([("loss", step as f64)])).unwrap();
        }
        drop(metrics);
        let torn = std::fs::read_to_string(dir.path().join(FILE)).unwrap() + "{\"step\":6,\"lo";
        std::fs::write(dir.path().join(FILE), torn).unwrap();

        let mut metrics = Metrics::open(dir.path()).unwrap();
        metrics.truncate_after(3).unwrap();
        assert_eq!(steps(dir.path()), [1, 2, 3]);
        for step in 4..=6 {
            metrics.log(step, row([("loss", step as f64)])).unwrap();
        }
        assert_eq!(steps(dir.path()), [1, 2, 3, 4, 5, 6]);
        assert!(metrics.sync().is_ok());
    }

    #[test]
    fn a_run_that_starts_anew_scores_the_untrained_model_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path()).unwrap();
        metrics.log(0, row([("val/pass_at_1", 0.5)])).unwrap();
        metrics.truncate_after(0).unwrap();
        assert!(steps(dir.path()).is_empty());
        metrics.log(0, row([("val/pass_at_1", 0.5)])).unwrap();
        metrics.log(1, row([("loss", 1.0)])).unwrap();
        metrics.truncate_after(1).unwrap();
        assert_eq!(steps(dir.path()), [0, 1]);
    }

    #[test]
    fn events_rebuilt_on_resume_equal_those_of_one_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path()).unwrap();
        for step in 1..=3 {
            metrics.log(step, row([("loss", step as f64)])).unwrap();
        }
        let events = dir.path().join(EVENTS);
        let header = 40;
        let before = std::fs::read(&events).unwrap();
        let mut metrics = Metrics::open(dir.path()).unwrap();
        metrics.truncate_after(3).unwrap();
        assert_eq!(std::fs::read(&events).unwrap()[header..], before[header..]);
    }

    #[test]
    fn what_is_found_later_joins_the_row_of_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path()).unwrap();
        for step in 1..=2 {
            metrics.log(step, row([("loss", 0.5)])).unwrap();
        }
        assert!(!metrics.has(2, "val/score").unwrap());
        metrics.amend(2, row([("val/score", 0.25)])).unwrap();
        assert!(metrics.has(2, "val/score").unwrap() && !metrics.has(1, "val/score").unwrap());
        metrics.log(3, row([("loss", 0.25)])).unwrap();
        assert_eq!(steps(dir.path()), [1, 2, 3]);
    }

    #[test]
    fn a_damaged_row_is_named_by_its_line() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(&dir.path().join(FILE), b"{\"step\":1}\nnonsense\n").unwrap();
        let text = format!("{:#}", read_run(dir.path()).unwrap_err());
        assert!(text.contains("metrics.jsonl:2: "), "{text}");
    }
}
