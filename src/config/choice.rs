//! Tables that stand for one of several choices, such as `warmup = { ratio = 0.1 }`.
//!
//! Contract: of the choices that different files and `--set`s make, the last one counts; two in the
//! same text contradict each other and stay, for an error. Only the type knows what is a choice,
//! and it says so by refusing the merged table.

use super::explain::{Entry, entries, remove};
use super::source::Sources;
use toml::de::DeTable;

/// Takes earlier choices out of the table that `error` is about; says whether there were any.
pub(super) fn keep_last(
    merged: &mut DeTable<'_>,
    error: &toml::de::Error,
    sources: &Sources,
) -> bool {
    let entries = entries(merged);
    let is_choice = |entry: &&Entry| entry.is_table && Some(&entry.value) == error.span().as_ref();
    let choice = entries.iter().find(is_choice).filter(|_| error.message().contains("more than 1"));
    let Some(prefix) = choice.map(|entry| format!("{}.", entry.path)) else { return false };
    let is_direct = |path: &str| path.strip_prefix(&prefix).is_some_and(|key| !key.contains('.'));
    let given: Vec<(usize, &str)> = entries
        .iter()
        .filter(|entry| is_direct(&entry.path))
        .map(|entry| (sources.text_of(entry.value.start), entry.path.as_str()))
        .collect();
    let last = given.iter().map(|&(text, _)| text).max();
    let earlier: Vec<&str> =
        given.iter().filter(|&&(text, _)| Some(text) < last).map(|&(_, path)| path).collect();
    earlier.iter().for_each(|path| remove(merged, path));
    !earlier.is_empty()
}
