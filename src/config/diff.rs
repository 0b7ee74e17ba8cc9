//! Finds the values in which configurations differ.

use super::resolved::dotted;
use toml::{Table, Value};

/// Returns every value that is not a table, as its dotted path and TOML text.
fn flatten(table: &Table) -> Vec<(String, String)> {
    let mut values = Vec::new();
    collect(table, "", &mut values);
    values
}

fn collect(table: &Table, prefix: &str, values: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let path = dotted(prefix, key);
        match value {
            Value::Table(below) => collect(below, &path, values),
            value => values.push((path, value.to_string())),
        }
    }
}

/// Returns the paths at which the tables do not all agree, each with the text in every table (`None` where
/// it is absent).
pub fn differences(tables: &[Table]) -> Vec<(String, Vec<Option<String>>)> {
    let flat: Vec<_> = tables.iter().map(flatten).collect();
    let mut paths: Vec<&String> = Vec::new();
    for (path, _) in flat.iter().flatten() {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    let value_in = |values: &[(String, String)], path: &str| {
        values.iter().find(|(p, _)| p == path).map(|(_, value)| value.clone())
    };
    paths
        .into_iter()
        .map(|path| (path.clone(), flat.iter().map(|values| value_in(values, path)).collect()))
        .filter(|(_, values): &(String, Vec<_>)| values.iter().any(|v| *v != values[0]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_listed_and_absence_is_a_difference() {
        let tables = ["a = 1\nb = 2\n[c]\nd = 'x'", "a = 1\nb = 3", "a = 1\nb = 2"]
            .map(|text| toml::from_str::<Table>(text).unwrap());
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(
            differences(&tables),
            [
                ("b".to_owned(), vec![text("2"), text("3"), text("2")]),
                ("c.d".to_owned(), vec![text("\"x\""), None, None]),
            ]
        );
        assert!(differences(&tables[..1]).is_empty());
    }
}
