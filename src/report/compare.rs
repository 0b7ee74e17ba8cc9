//! Compares any runs: their results, curves and settings.
//!
//! It reads only what every run directory has (`config.toml`, `metrics.jsonl`, result files in JSON), so it
//! works for every kind of run.

use super::curve::Curve;
use super::html::{Page, escape, figures, folded, legend, table, verbatim};
use super::line::{Horizontal, Series, chart};
use super::{axis, terminal};
use crate::base::error::usage;
use crate::base::fs::read_text;
use crate::base::human;
use crate::base::table::Table;
use crate::config;
use crate::run::metrics::{self, Row, step_of};
use anyhow::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The JSON files of a run directory that hold no results.
const NOT_RESULTS: [&str; 3] = ["plan.json", "env.json", "inputs.json"];
const WRITTEN_AT: &str = "time/unix_secs";
const RUN_COLOURS: usize = 6;
/// The number of blocks of a curve that has one line.
const SPARK_COLUMNS: usize = 24;

/// A run as it is stored on disk.
#[derive(Debug, Clone)]
pub struct Run {
    /// The directory as the user named it.
    pub name: String,
    pub rows: Vec<Row>,
    pub config: toml::Table,
    /// The numbers of its result files, each with its path in the file.
    pub results: Vec<(String, Value)>,
}

impl Run {
    pub fn read(dir: &Path) -> Result<Self> {
        let config = dir.join("config.toml");
        let config = match config.exists() {
            true => toml::from_str(&read_text(&config)?)
                .map_err(|e| usage(format!("{}: {}", config.display(), e.message())))?,
            false => toml::Table::new(),
        };
        let rows = metrics::read_run(dir)?;
        Ok(Self { name: dir.display().to_string(), rows, config, results: results(dir)? })
    }

    /// Reads the runs that `path` names: itself, and the runs directly below it (as the demo has them).
    pub fn read_all(path: &Path) -> Result<Vec<Self>> {
        let found: Vec<Self> = std::iter::once(path.to_owned())
            .chain(children(path)?.into_iter().filter(|child| child.join(metrics::FILE).exists()))
            .map(|dir| Self::read(&dir))
            .collect::<Result<_>>()?;
        let found: Vec<Self> = found
            .into_iter()
            .filter(|run| !run.rows.is_empty() || !run.results.is_empty())
            .collect();
        if found.is_empty() {
            return Err(usage(format!(
                "{} holds no run: no metrics and no results",
                path.display()
            )));
        }
        Ok(found)
    }

    fn curve(&self, key: &str) -> Curve {
        Curve::from_rows(&self.name, &self.rows, key)
    }

    fn steps(&self) -> String {
        self.rows.last().and_then(step_of).map_or("-".to_owned(), human::count)
    }

    fn duration(&self) -> String {
        let at = |row: Option<&Row>| row?.get(WRITTEN_AT)?.as_f64();
        match (at(self.rows.first()), at(self.rows.last())) {
            (Some(first), Some(last)) if last > first => human::duration(last - first),
            _ => "-".to_owned(),
        }
    }
}

/// Writes the page that shows `runs` side by side.
pub fn html(runs: &[Run]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let mut page = Page::new("Training runs", &names.join(" · "));
    page.section("Runs", "", &table(&["run", "steps", "time"], &overview(runs)));
    let header: Vec<&str> = std::iter::once("").chain(names.iter().copied()).collect();
    let results = result_rows(runs);
    if !results.is_empty() {
        page.section("Results", "", &table(&header, &results));
    }
    for (area, keys) in areas(runs) {
        let charts: Vec<(String, String)> =
            keys.iter().map(|key| (escape(key), metric_chart(runs, key))).collect();
        let entries = runs.iter().enumerate().map(|(i, run)| (run.name.as_str(), colour_class(i)));
        page.section(&area, "", &(legend(entries) + &figures(&charts)));
    }
    let differences = setting_rows(runs);
    if !differences.is_empty() {
        page.section("Settings that differ", "", &table(&header, &differences));
    }
    let settings: String =
        runs.iter().map(|run| folded(&run.name, &verbatim(&run.config.to_string()))).collect();
    page.section("All settings", "", &settings);
    page.finish()
}

/// Writes `runs` side by side for a terminal: a line for each metric of each run, and the main results.
pub fn text(runs: &[Run]) -> String {
    let titled = |header: &[&str], rows: Vec<Vec<String>>| {
        let mut table = Table::new(header.iter().copied());
        for row in rows {
            table.row(row);
        }
        format!("{table}\n")
    };
    let mut text = titled(&["run", "steps", "time"], overview(runs));
    let names = runs.iter().map(|run| run.name.as_str());
    let header: Vec<&str> = std::iter::once("").chain(names).collect();
    let (results, more): (Vec<_>, Vec<_>) =
        result_rows(runs).into_iter().partition(|row| is_main(&row[0]));
    if !results.is_empty() {
        text.push_str(&titled(&header, results));
    }
    if !more.is_empty() {
        text.push_str(&format!("(--out writes a page with {} more results)\n\n", more.len()));
    }
    let settings = setting_rows(runs);
    if !settings.is_empty() {
        text.push_str(&titled(&header, settings));
    }
    let mut metrics = Table::new(["metric", "run", "", "first", "last"]).left(1).left(2);
    for key in areas(runs).into_iter().flat_map(|(_, keys)| keys) {
        for run in runs {
            let Curve { points, .. } = run.curve(&key);
            if let (Some(first), Some(last)) = (points.first(), points.last()) {
                let spark = terminal::spark(&points, SPARK_COLUMNS);
                let ends = [first.1, last.1].map(axis::number);
                let [first, last] = ends;
                metrics.row([key.clone(), run.name.clone(), spark, first, last]);
            }
        }
    }
    text + &metrics.to_string()
}

/// Draws curves for a terminal. Each of `metrics` is a key, or the part of keys before the slash. Refuses
/// metrics that no run has.
pub fn curves(runs: &[Run], metrics: &[String]) -> Result<String> {
    let areas = areas(runs);
    let mut text = String::new();
    for metric in metrics {
        let in_area = |(area, keys): &(String, Vec<String>)| {
            let is_meant = |key: &&String| *key == metric || area == metric;
            keys.iter().filter(is_meant).cloned().collect::<Vec<_>>()
        };
        let keys: Vec<String> = areas.iter().flat_map(in_area).collect();
        if keys.is_empty() {
            let known = areas.iter().map(|(area, _)| area.as_str()).collect::<Vec<_>>().join(", ");
            return Err(usage(format!(
                "--metric {metric}: no run has it; `train report` lists all, of: {known}"
            )));
        }
        for key in keys {
            for run in runs {
                let name = format!("{key}  {}", run.name);
                let drawn = terminal::curve(&Curve { name, ..run.curve(&key) });
                if !drawn.is_empty() {
                    text.push_str(&format!("{drawn}\n"));
                }
            }
        }
    }
    Ok(text)
}

fn overview(runs: &[Run]) -> Vec<Vec<String>> {
    runs.iter().map(|run| vec![run.name.clone(), run.steps(), run.duration()]).collect()
}

fn metric_chart(runs: &[Run], key: &str) -> String {
    let series: Vec<Series<'_>> = runs
        .iter()
        .enumerate()
        .map(|(i, run)| Series {
            name: &run.name,
            colour: colour(i),
            points: run.curve(key).points,
        })
        .collect();
    chart(key, "step", Horizontal::Linear, axis::Format::Number, &series)
}

fn colour(run: usize) -> usize {
    1 + run % RUN_COLOURS
}

fn colour_class(run: usize) -> String {
    format!("c{}", colour(run))
}

/// Groups metric keys by the part before the slash, in the order in which they appear; `time` comes last.
fn areas(runs: &[Run]) -> Vec<(String, Vec<String>)> {
    let mut areas: Vec<(String, Vec<String>)> = Vec::new();
    for (key, value) in runs.iter().flat_map(|run| &run.rows).flatten() {
        if key == "step" || key == WRITTEN_AT || !value.is_number() {
            continue;
        }
        let area = key.split_once('/').map_or("metrics", |(area, _)| area);
        let index = areas.iter().position(|(name, _)| name == area).unwrap_or_else(|| {
            areas.push((area.to_owned(), Vec::new()));
            areas.len() - 1
        });
        if !areas[index].1.contains(key) {
            areas[index].1.push(key.clone());
        }
    }
    areas.sort_by_key(|(area, _)| area == "time");
    areas
}

fn setting_rows(runs: &[Run]) -> Vec<Vec<String>> {
    let configs: Vec<toml::Table> = runs.iter().map(|run| run.config.clone()).collect();
    config::differences(&configs)
        .into_iter()
        .map(|(key, values)| {
            let values = values.into_iter().map(|value| value.unwrap_or_else(|| "-".to_owned()));
            std::iter::once(key).chain(values).collect()
        })
        .collect()
}

fn result_rows(runs: &[Run]) -> Vec<Vec<String>> {
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in runs.iter().flat_map(|run| &run.results) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let cell = |run: &Run, key: &String| {
        let found = run.results.iter().find(|(k, _)| k == key);
        found.map_or("-".to_owned(), |(_, value)| match value.as_f64() {
            Some(number) => axis::number(number),
            None => value.to_string(),
        })
    };
    keys.into_iter()
        .map(|key| {
            std::iter::once(key.clone()).chain(runs.iter().map(|run| cell(run, key))).collect()
        })
        .collect()
}

/// Returns whether a result is a main one: it is not of a single family, and the k of a pass@k is a power
/// of two.
fn is_main(key: &str) -> bool {
    let parts: Vec<&str> = key.split('.').collect();
    let is_main_k = |at: usize| {
        let k = parts.get(at + 1).and_then(|k| k.parse().ok());
        k.is_none_or(usize::is_power_of_two) && !parts.ends_with(&["ci95"])
    };
    !parts.contains(&"families")
        && parts.iter().position(|&part| part == "pass_at_k").is_none_or(is_main_k)
}

fn results(dir: &Path) -> Result<Vec<(String, Value)>> {
    let mut results = Vec::new();
    for path in children(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(stem) = name.strip_suffix(".json") else { continue };
        if NOT_RESULTS.contains(&name.as_str()) {
            continue;
        }
        let value: Value = serde_json::from_str(&read_text(&path)?)
            .map_err(|e| usage(format!("{}:{}: {e}", path.display(), e.line())))?;
        numbers(stem, &value, &mut results);
    }
    Ok(results)
}

/// Collects the numbers in nested objects. Lists longer than an interval are too long for a table and are
/// left out.
fn numbers(path: &str, value: &Value, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                numbers(&format!("{path}.{key}"), value, found);
            }
        }
        Value::Array(items) if items.len() == 2 && items.iter().all(Value::is_number) => {
            found.push((path.to_owned(), value.clone()));
        }
        Value::Number(_) | Value::Bool(_) => found.push((path.to_owned(), value.clone())),
        _ => {}
    }
}

fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let listing = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect());
    let mut paths: Vec<PathBuf> =
        listing.map_err(|e| usage(format!("cannot read {}: {e}", dir.display())))?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs::write_atomic;
    use crate::run::metrics::{Metrics, row};

    fn make_run(dir: &Path, lr: &str) {
        write_atomic(
            &dir.join("config.toml"),
            format!("seed = 1\n[optim]\nlr = {lr}\n").as_bytes(),
        )
        .unwrap();
        let mut metrics = Metrics::open(dir).unwrap();
        for step in 1..=50 {
            let loss = 1.0 / step as f64;
            metrics.log(step, row([("loss/nll", loss), ("time/step_secs", 0.1)])).unwrap();
        }
        write_atomic(&dir.join("eval.json"), b"{\"gtg\":{\"pass_at_1\":0.31,\"ci95\":[0.2,0.4]}}")
            .unwrap();
    }

    #[test]
    fn two_runs_are_compared_by_curves_settings_and_results() {
        let dir = tempfile::tempdir().unwrap();
        for (name, lr) in [("a", "0.1"), ("b", "0.2")] {
            make_run(&dir.path().join(name), lr);
        }
        let runs = Run::read_all(dir.path()).unwrap();
        assert_eq!(runs.len(), 2);
        let (page, text) = (html(&runs), text(&runs));
        for part in ["optim.lr", "0.2", "loss/nll", "eval.gtg.pass_at_1", "0.310"] {
            assert!(page.contains(part), "{part}");
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!page.contains("time/unix_secs"));
        assert!(!setting_rows(&runs).iter().any(|row| row[0] == "seed"));
    }

    #[test]
    fn a_metric_has_a_line_and_on_request_a_chart() {
        let dir = tempfile::tempdir().unwrap();
        make_run(dir.path(), "0.1");
        let runs = Run::read_all(dir.path()).unwrap();
        let text = text(&runs);
        let line = text.lines().find(|line| line.starts_with("loss/nll")).unwrap();
        assert!(line.contains("█▃") && line.ends_with("1.00  0.020"), "{line}");
        for metric in ["loss", "loss/nll"] {
            let drawn = curves(&runs, &[metric.to_owned()]).unwrap();
            assert!(drawn.starts_with("loss/nll") && drawn.contains('│'), "{drawn}");
        }
        let error = curves(&runs, &["los".to_owned()]).unwrap_err();
        assert!(format!("{error:#}").contains("of: loss, time"), "{error:#}");
    }

    #[test]
    fn a_terminal_shows_the_main_results_and_the_page_all() {
        let dir = tempfile::tempdir().unwrap();
        make_run(dir.path(), "0.1");
        let of_k: serde_json::Map<String, Value> = (1..=8)
            .map(|k| (k.to_string(), serde_json::json!({"mean": 0.5, "ci95": [0.25, 0.75]})))
            .collect();
        let score = serde_json::json!({"pass_at_1": 0.5, "ci95": [0.25, 0.75], "pass_at_k": of_k,
            "families": {"lucas": {"pass_at_1": 0.5}}});
        write_atomic(&dir.path().join("gtg.json"), score.to_string().as_bytes()).unwrap();
        let runs = [Run::read(dir.path()).unwrap()];
        let (page, text) = (html(&runs), text(&runs));
        for key in ["gtg.pass_at_1", "gtg.ci95", "gtg.pass_at_k.8.mean"] {
            assert!(page.contains(key) && text.contains(key), "{key} in\n{text}");
        }
        for key in ["gtg.pass_at_k.7.mean", "gtg.pass_at_k.8.ci95", "gtg.families.lucas"] {
            assert!(page.contains(key) && !text.contains(key), "{key} in\n{text}");
        }
        // Only the page has the means for four values of k, the intervals for all eight, and a family.
        assert!(text.contains("(--out writes a page with 13 more results)"), "{text}");
    }

    #[test]
    fn a_directory_without_a_run_is_the_users_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let error = Run::read_all(dir.path()).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(Run::read_all(&dir.path().join("absent")).is_err());
    }
}
