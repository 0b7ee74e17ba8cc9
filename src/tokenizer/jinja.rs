//! Imitates with minijinja the Jinja2 environment that transformers sets up for chat templates.
//!
//! A filter, test, method or function returns here what it returns there; one that is missing here is
//! refused by name when a template uses it. `tests/golden/jinja.json` records what Jinja2 returns, and what
//! is refused here. Differences of syntax are rewritten in [`super::dialect`]. Values of different types
//! can be compared here, while Python raises an error.

use super::json;
use super::python;
use chrono::NaiveDate;
use chrono::format::{Item, StrftimeItems};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::{globals, pycompat};
use std::fmt::Write;

/// The names of functions that [`super::dialect`] puts into a template.
pub(crate) const OPEN: &str = "codeseq_open";
pub(crate) const CLOSE: &str = "codeseq_close";
pub(crate) const EACH: &str = "codeseq_each";
pub(crate) const SLICE: &str = "codeseq_slice";

/// A template may execute this many instructions for one text: about a second of work. Long conversations
/// take some hundred thousand.
pub(crate) const FUEL: u64 = 1 << 24;

/// The filters of minijinja that return something else than those of Jinja2.
const OTHER_FILTERS: [&str; 3] = ["pprint", "attr", "urlencode"];

/// Returns the environment in which templates are rendered. `date` is their date of today.
pub(crate) fn environment(date: NaiveDate) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_unknown_method_callback(method);
    add_tests(&mut environment);
    add_filters(&mut environment);
    environment.add_function("raise_exception", |message: String| -> Result<(), Error> {
        Err(invalid(message))
    });
    environment.add_function("strftime_now", move |format: &str| strftime(date, format));
    environment.add_function("joiner", globals::joiner);
    environment
}

fn add_tests(environment: &mut Environment<'_>) {
    environment.add_test("iterable", |v: &Value| !v.is_none() && v.try_iter().is_ok());
    // In Python a sequence is whatever has a length and items: strings and dictionaries too.
    environment.add_test("sequence", |v: &Value| match v.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => v.len().is_some(),
        _ => false,
    });
    environment.add_test("callable", |v: &Value| {
        matches!(v.kind(), ValueKind::Undefined | ValueKind::Plain)
    });
}

fn add_filters(environment: &mut Environment<'_>) {
    OTHER_FILTERS.iter().for_each(|name| environment.remove_filter(name));
    let of_items = [
        ("join", Value::from_function(filters::join)),
        ("list", Value::from_function(filters::list)),
        ("sort", Value::from_function(filters::sort)),
        ("unique", Value::from_function(filters::unique)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("sum", Value::from_function(filters::sum)),
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
    ];
    for (name, filter) in of_items {
        environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args: Vec<Value> = args.iter().map(|arg| (**arg).clone()).collect();
            args.first().map_or(Ok(()), refuse_none)?;
            filter.call(state, &args)
        });
    }
    environment.add_filter("first", |value: Value| filters::first(&keys(value)));
    environment.add_filter("last", |value: Value| filters::last(keys(value)));
    environment.add_filter("reverse", |value: Value| filters::reverse(&keys(value)));
    for name in ["length", "count"] {
        environment.add_filter(name, |value: Value| filters::length(&keys(value)));
    }
    environment.add_filter("items", |value: Value| {
        if value.is_undefined() { Ok(keys(value)) } else { filters::items(&value) }
    });
    environment.add_filter(
        "replace",
        |value: &Value, old: &str, new: &str, count: Option<usize>| {
            let text = value.to_string();
            count.map_or_else(|| text.replace(old, new), |count| text.replacen(old, new, count))
        },
    );
    environment.add_filter(EACH, |value: Value| refuse_none(&value).map(|()| value));
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("trim", |value: &Value, chars: Option<&str>| {
        python::strip(&value.to_string(), "strip", chars).to_owned()
    });
    environment.add_filter("center", |value: &Value, width: Option<usize>| {
        python::pad(&value.to_string(), "center", width.unwrap_or(80), ' ')
    });
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, |value: &Value| escape(&value.to_string()));
    }
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("wordcount", |value: &Value| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        value.to_string().split(|c| !is_part(c)).filter(|word| !word.is_empty()).count()
    });
}

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if name == SLICE {
        return python::slice(value, args);
    }
    if let Some(text) = value.as_str()
        && let Some(result) = python::string_method(text, name, args)?
    {
        return Ok(result);
    }
    match (value.kind(), name) {
        (ValueKind::Seq, "index") => python::index(value, args),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Returns what Python iterates over: the keys of a dictionary, and nothing for an undefined value.
fn keys(value: Value) -> Value {
    match value.kind() {
        ValueKind::Undefined => Value::from(Vec::<Value>::new()),
        ValueKind::Map => value.try_iter().map_or(value.clone(), Iterator::collect),
        _ => value,
    }
}

/// Refuses none as an iterable, as Python does; minijinja takes it for an empty list.
fn refuse_none(value: &Value) -> Result<(), Error> {
    if value.is_none() { Err(invalid("'NoneType' object is not iterable")) } else { Ok(()) }
}

fn strftime(date: NaiveDate, format: &str) -> Result<String, Error> {
    let bad = || invalid(format!("strftime_now: bad format {format:?}"));
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    let mut text = String::new();
    let time = date.and_time(chrono::NaiveTime::MIN);
    match items.contains(&Item::Error) {
        true => Err(bad()),
        false => write!(text, "{}", time.format_with_items(items.iter())).map_err(|_| bad()),
    }?;
    Ok(text)
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            _ => out.push(c),
        }
    }
    out
}

fn default(
    value: Value,
    other: Option<Value>,
    for_false: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = other.map_or_else(|| named.get("default_value"), |other| Ok(Some(other)))?;
    let for_false = for_false.or(named.get("boolean")?).unwrap_or(false);
    named.assert_all_used()?;
    let is_used = value.is_undefined() || for_false && !value.is_true();
    Ok(if is_used { other.unwrap_or_else(|| Value::from("")) } else { value })
}

fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = width.map_or_else(|| named.get("width"), |width| Ok(Some(width)))?;
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let indention = match &width {
        None => "    ".to_owned(),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(width.clone())?),
        },
    };
    let text = format!("{text}\n");
    let lines = python::lines(&text, false).into_iter().enumerate().map(|(i, line)| {
        let is_indented = if i == 0 { first } else { blank || !line.is_empty() };
        if is_indented { format!("{indention}{line}") } else { line.to_owned() }
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn int(value: &Value, other: Option<Value>, base: Option<u32>) -> Result<Value, Error> {
    refuse_undefined(value)?;
    let parsed = match value.as_str() {
        Some(text) => {
            let base = base.unwrap_or(10);
            let digits = text.trim().replace('_', "");
            let digits = match base {
                16 => digits.trim_start_matches("0x"),
                8 => digits.trim_start_matches("0o"),
                2 => digits.trim_start_matches("0b"),
                _ => &digits,
            };
            let whole = (2..=36).contains(&base).then(|| i128::from_str_radix(digits, base).ok());
            whole.flatten().or_else(|| digits.parse::<f64>().ok().map(|number| number as i128))
        }
        None => match value.kind() {
            ValueKind::Bool => Some(i128::from(value.is_true())),
            ValueKind::Number => i128::try_from(value.clone())
                .ok()
                .or_else(|| f64::try_from(value.clone()).ok().map(|number| number as i128)),
            _ => None,
        },
    };
    let small = |number: i128| i64::try_from(number).map_or_else(|_| number.into(), Value::from);
    Ok(parsed.map(small).or(other).unwrap_or_else(|| 0.into()))
}

fn float(value: &Value, other: Option<Value>) -> Result<Value, Error> {
    refuse_undefined(value)?;
    let parsed = match value.as_str() {
        Some(text) => text.trim().parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(parsed.map(Value::from).or(other).unwrap_or_else(|| 0.0.into()))
}

fn refuse_undefined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() { Err(invalid("a value is undefined")) } else { Ok(()) }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::dialect;
    use minijinja::value::Serde;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        context: serde_json::Value,
        cases: Vec<Case>,
        refused: Vec<String>,
    }

    #[derive(Deserialize)]
    struct Case {
        template: String,
        /// Is `None` where Jinja2 raises an error.
        text: Option<String>,
    }

    fn golden() -> (Golden, Value) {
        let text = include_str!("../../tests/golden/jinja.json");
        let golden: Golden = serde_json::from_str(text).unwrap();
        let context = Value::from(Serde(&golden.context));
        (golden, context)
    }

    fn render(source: &str, context: &Value) -> Result<String, Error> {
        let (source, _) = dialect::rewrite(source);
        let date = NaiveDate::from_ymd_opt(2024, 7, 26).unwrap();
        environment(date).render_str(&source, context)
    }

    #[test]
    fn templates_give_what_they_give_in_jinja2() {
        let (golden, context) = golden();
        let mut wrong = Vec::new();
        for Case { template, text } in golden.cases {
            let ours = render(&template, &context).map_err(|e| e.to_string());
            if ours.as_ref().ok() != text.as_ref() {
                wrong.push(format!("{template:?}\n  Jinja2 {text:?}\n  here   {ours:?}"));
            }
        }
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    }

    #[test]
    fn what_is_missing_is_refused() {
        let (golden, context) = golden();
        for template in golden.refused {
            assert!(render(&template, &context).is_err(), "{template}");
        }
    }

    #[test]
    fn the_date_is_spelled_as_python_does() {
        let now = |format: &str| render(&format!("{{{{ strftime_now('{format}') }}}}"), &().into());
        assert_eq!(now("%d %b %Y").unwrap(), "26 Jul 2024");
        assert_eq!(now("%Y-%m-%d %H:%M, %A %j").unwrap(), "2024-07-26 00:00, Friday 208");
        assert!(now("%Q").unwrap_err().to_string().contains("strftime_now"));
        assert!(now("%z").is_err());
    }
}
