//! Checks the keys and values of merged TOML against the schema of their type.
//!
//! An error is one line that names the file and line (or the `--set`), the key, and what is near or
//! expected. It reports the first unknown key or wrong value. If there is none, it reports all missing keys
//! together. A table that stands for one of several choices, such as `warmup = { ratio = 0.1 }`, is merged
//! as a whole: the last file or `--set` that makes a choice decides, and two choices in the same text are
//! an error.

use super::resolved::dotted;
use super::shape::Shape;
use super::source::Sources;
use crate::base::error::usage;
use anyhow::{Error, Result};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Refuses the first unknown key or wrong value of `table`, or else the keys that are missing.
pub(crate) fn check(table: &DeTable<'_>, shape: Shape<'_>, sources: &Sources) -> Result<()> {
    let mut check = Check { sources, root: shape, missing: Vec::new() };
    check.table(table, shape, "", &sources.names())?;
    let Some((place, _)) = check.missing.first() else { return Ok(()) };
    let is_one_place = check.missing.iter().all(|(other, _)| other == place);
    let place = if is_one_place { place.clone() } else { sources.names() };
    let keys: Vec<String> = check.missing.iter().map(|(_, path)| format!("`{path}`")).collect();
    Err(usage(match keys.as_slice() {
        [key] => format!("{place}: the key {key} is required"),
        keys => format!("{place}: the keys {} are required", keys.join(", ")),
    }))
}

/// Keeps of each choice only what the last text that makes it says.
pub(crate) fn keep_last_choices(table: &mut DeTable<'_>, shape: Shape<'_>, sources: &Sources) {
    let choices = shape.choices();
    if !choices.is_empty() {
        let text_of = |value: &Spanned<DeValue<'_>>| sources.text_of(value.span().start);
        let last = table.values().map(text_of).max();
        let entries = std::mem::take(table).into_iter();
        *table = entries.filter(|(_, value)| Some(text_of(value)) == last).collect();
    }
    for (key, value) in table.iter_mut() {
        let name: &str = key.get_ref();
        let chosen = choices.iter().find(|(choice, _)| *choice == name);
        let below = chosen.map_or_else(|| shape.field(name), |(_, shape)| *shape);
        if let (Some(shape), DeValue::Table(table)) = (below, value.get_mut()) {
            keep_last_choices(table, shape, sources);
        }
    }
}

struct Check<'c> {
    sources: &'c Sources,
    root: Shape<'c>,
    /// The missing keys, each after the place of the table that lacks it.
    missing: Vec<(String, String)>,
}

impl Check<'_> {
    fn table(
        &mut self,
        table: &DeTable<'_>,
        shape: Shape<'_>,
        path: &str,
        place: &str,
    ) -> Result<()> {
        for (key, value) in table {
            let Some(field) = shape.field(key.get_ref()) else {
                return Err(self.unknown_key(key, shape, path));
            };
            self.value(value, field, &dotted(path, key.get_ref()), key.span().start)?;
        }
        for name in shape.required().filter(|name| !table.contains_key(*name)) {
            self.lacks(shape.field(name), dotted(path, name), place);
        }
        Ok(())
    }

    /// Notes a missing key; for a missing table, notes the keys that it must have.
    fn lacks(&mut self, shape: Option<Shape<'_>>, path: String, place: &str) {
        let required: Vec<&str> = shape.into_iter().flat_map(Shape::required).collect();
        if required.is_empty() {
            self.missing.push((place.to_owned(), path));
            return;
        }
        for name in required {
            let field = shape.and_then(|shape| shape.field(name));
            self.lacks(field, dotted(&path, name), place);
        }
    }

    fn value(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        shape: Shape<'_>,
        path: &str,
        key_at: usize,
    ) -> Result<()> {
        let choices = shape.choices();
        let is_table = matches!(value.get_ref(), DeValue::Table(_));
        let place = self.place(if is_table { key_at } else { value.span().start });
        match value.get_ref() {
            DeValue::Table(table) if !choices.is_empty() => {
                self.choice(table, &choices, path, &place)
            }
            DeValue::String(name) if !choices.is_empty() => {
                match choices.iter().find(|(choice, _)| choice == name) {
                    Some((_, None)) => Ok(()),
                    Some((choice, Some(shape))) => Err(usage(format!(
                        "{place}: `{path}.{choice}` needs a value: {}",
                        shape.expected()
                    ))),
                    None => Err(unknown_value(name, &choices, path, &place)),
                }
            }
            _ if choices.iter().any(|(_, shape)| shape.is_some()) => {
                Err(usage(format!("{place}: `{path}` must be a name or a table with one key")))
            }
            DeValue::Table(table) if shape.is_table() => self.table(table, shape, path, &place),
            DeValue::Integer(number)
                if i64::from_str_radix(number.as_str(), number.radix()).is_err() =>
            {
                Err(usage(format!(
                    "{place}: `{path}` is {}: TOML has whole numbers from -2^63 to 2^63 - 1 only",
                    self.sources.text(value.span())
                )))
            }
            value if choices.is_empty() && shape.accepts(value) => Ok(()),
            DeValue::Table(_) => {
                Err(usage(format!("{place}: `{path}` is a table: expected {}", shape.expected())))
            }
            _ => Err(usage(format!(
                "{place}: `{path}` is {}: expected {}",
                self.sources.text(value.span()),
                shape.expected()
            ))),
        }
    }

    /// Checks a table that stands for one of `choices`.
    fn choice(
        &mut self,
        table: &DeTable<'_>,
        choices: &[(&str, Option<Shape<'_>>)],
        path: &str,
        place: &str,
    ) -> Result<()> {
        let mut chosen = table.iter();
        let (Some((key, value)), None) = (chosen.next(), chosen.next()) else {
            return Err(usage(format!("{place}: `{path}` takes exactly one key")));
        };
        let name: &str = key.get_ref();
        match choices.iter().find(|(choice, _)| *choice == name) {
            Some((_, Some(shape))) => {
                self.value(value, *shape, &dotted(path, name), key.span().start)
            }
            Some((_, None)) => {
                Err(usage(format!("{place}: `{path}` is a name: write {path} = {name:?}")))
            }
            None => Err(unknown_value(name, choices, path, &self.place(key.span().start))),
        }
    }

    fn unknown_key(&self, key: &Spanned<impl AsRef<str>>, shape: Shape<'_>, path: &str) -> Error {
        let (place, name) = (self.place(key.span().start), key.get_ref().as_ref());
        let here: Vec<&str> = shape.keys().collect();
        let elsewhere = || {
            let paths = self.root.paths().into_iter();
            paths.into_iter().find(|known| known.rsplit('.').next() == Some(name))
        };
        let hint = match nearest(name, &here) {
            Some(near) => format!("did you mean `{}`?", dotted(path, near)),
            None => match elsewhere() {
                Some(elsewhere) => format!("did you mean `{elsewhere}`?"),
                None => format!("known keys here: {}", here.join(", ")),
            },
        };
        usage(format!("{place}: unknown key `{}`; {hint}", dotted(path, name)))
    }

    fn place(&self, position: usize) -> String {
        self.sources.origin(position).to_string()
    }
}

fn unknown_value(
    given: &str,
    choices: &[(&str, Option<Shape<'_>>)],
    path: &str,
    place: &str,
) -> Error {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let hint = nearest(given, &names).map_or_else(
        || format!("known values: {}", names.join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    usage(format!("{place}: unknown value `{given}` of `{path}`; {hint}"))
}

/// Returns the nearest candidate, if its edit distance is at most a third of the letters of `name` (at
/// least two).
fn nearest<'c>(name: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let allowed = (name.len() / 3).max(2).min(name.len().saturating_sub(1));
    candidates
        .iter()
        .map(|&candidate| (edits(name, candidate), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Returns the edit distance with insertions, deletions, substitutions and swaps of neighbours.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = substituted.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_of_neighbours_is_one_edit() {
        assert_eq!(edits("setps", "steps"), 1);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }

    #[test]
    fn the_nearest_name_is_near_or_none() {
        assert_eq!(nearest("max_token", &["min_tokens", "max_tokens"]), Some("max_tokens"));
        assert_eq!(nearest("batch", &["steps", "seed"]), None);
        assert_eq!(nearest("x", &["lr"]), None);
    }
}
