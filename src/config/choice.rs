//! Tables that stand for one of several choices, such as `warmup = { ratio = 0.1 }`.
//!
//! Contract: of the choices that different files and `--set`s make, the last one counts; two in the
//! same text contradict each other and stay, for an error. Only the type knows what is a choice,
//! and it says so by refusing the merged table.

use super::entries::{Entry, entries, remove};
use super::source::Sources;
use toml::de::DeTable;

/// The table that `error` refuses for making several choices, and those.
pub(crate) fn contradiction<'e>(
    entries: &'e [Entry],
    error: &toml::de::Error,
) -> Option<(&'e Entry, Vec<&'e Entry>)> {
    if !error.message().contains("more than 1 element") {
        return None;
    }
    let choices_of = |table: &Entry| -> Vec<&'e Entry> {
        let is_choice = |entry: &&Entry| {
            entry.path.rsplit_once('.').is_some_and(|(above, _)| above == table.path)
        };
        entries.iter().filter(is_choice).collect()
    };
    // A table has the place of one in it where a header such as `[a.b]` names both.
    let refused = entries.iter().filter(|entry| Some(&entry.value) == error.span().as_ref());
    refused.map(|table| (table, choices_of(table))).find(|(_, choices)| choices.len() > 1)
}

/// Takes earlier choices out of the table that `error` is about; says whether there were any.
pub(crate) fn keep_last(
    merged: &mut DeTable<'_>,
    error: &toml::de::Error,
    sources: &Sources,
) -> bool {
    let entries = entries(merged);
    let Some((_, choices)) = contradiction(&entries, error) else { return false };
    let text_of = |choice: &Entry| sources.text_of(choice.value.start);
    let last = choices.iter().map(|choice| text_of(choice)).max();
    let is_earlier = |choice: &&&Entry| Some(text_of(choice)) < last;
    let earlier: Vec<&str> =
        choices.iter().filter(is_earlier).map(|choice| choice.path.as_str()).collect();
    earlier.iter().for_each(|path| remove(merged, path));
    !earlier.is_empty()
}
