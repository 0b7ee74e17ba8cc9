//! Writes JSON as Python's `json.dumps` does: chat templates embed tools in that spelling.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Is the `tojson` filter of Hugging Face's template environment: without HTML escapes, with Python's
/// separators.
pub(crate) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let default = if indent.is_some() { [",", ": "] } else { [", ", ": "] };
    let [item, key] = match separators.as_deref() {
        None => default.map(str::to_owned),
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(invalid("separators: expected two strings")),
    };
    let json = plain(value)?;
    let mut writer = Writer {
        out: String::new(),
        item,
        key,
        indent,
        ensure_ascii: ensure_ascii.unwrap_or(false),
        sort_keys: sort_keys.unwrap_or(false),
    };
    writer.value(&json, 0);
    Ok(writer.out)
}

/// Converts a value to JSON, with the keys of objects spelled as Python does.
fn plain(value: &Value) -> Result<serde_json::Value, Error> {
    let key = |key: &Value| match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::None | ValueKind::Bool | ValueKind::Number => Ok(plain(key)?.to_string()),
        kind => Err(invalid(&format!("a {kind} cannot be a key"))),
    };
    match value.kind() {
        ValueKind::Map => {
            let keys = value.try_iter()?.checked();
            keys.map(|name| {
                let name = name?;
                Ok((key(&name)?, plain(&value.get_item(&name)?)?))
            })
            .collect()
        }
        ValueKind::Seq => value.try_iter()?.checked().map(|item| plain(&item?)).collect(),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::String => {
            serde_json::to_value(value).map_err(|e| invalid(&e.to_string()))
        }
        kind => Err(invalid(&format!("{kind} is not JSON"))),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"))
}

struct Writer {
    out: String,
    item: String,
    key: String,
    indent: Option<usize>,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &serde_json::Value, depth: usize) {
        match value {
            serde_json::Value::Array(items) if !items.is_empty() => {
                self.out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.value(item, depth + 1);
                }
                self.line(depth);
                self.out.push(']');
            }
            serde_json::Value::Object(entries) if !entries.is_empty() => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.out.push('{');
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.text(&serde_json::Value::from(key.as_str()).to_string());
                    self.out.push_str(&self.key.clone());
                    self.value(value, depth + 1);
                }
                self.line(depth);
                self.out.push('}');
            }
            scalar => self.text(&scalar.to_string()),
        }
    }

    fn separate(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(&self.item);
        }
        self.line(depth);
    }

    fn line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }

    fn text(&mut self, json: &str) {
        if !self.ensure_ascii {
            return self.out.push_str(json);
        }
        for c in json.chars() {
            if c.is_ascii() {
                self.out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    self.out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    /// The expected texts are those of Python's json.dumps.
    #[test]
    fn json_is_spelled_as_python_does() {
        let mut env = Environment::new();
        env.add_filter("tojson", super::tojson);
        let render =
            |expression: &str| env.render_str(expression, context! { v => "é<&'\"\n" }).unwrap();
        assert_eq!(
            render("{{ {'b': [1, 2.5, none], 'a': {}, 'c': true}|tojson }}"),
            r#"{"b": [1, 2.5, null], "a": {}, "c": true}"#
        );
        assert_eq!(render("{{ v|tojson }}"), r#""é<&'\"\n""#);
        assert_eq!(render("{{ v|tojson(ensure_ascii=true) }}"), r#""\u00e9<&'\"\n""#);
        assert_eq!(
            render("{{ {'b': [1, 2], 'a': []}|tojson(indent=2, sort_keys=true) }}"),
            "{\n  \"a\": [],\n  \"b\": [\n    1,\n    2\n  ]\n}"
        );
        assert_eq!(render("{{ [1, 2]|tojson(separators=[',', ':']) }}"), "[1,2]");
    }
}
