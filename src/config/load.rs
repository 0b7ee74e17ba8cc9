//! Turns files and `--set` arguments into a typed configuration.

use super::entries::entries;
use super::keys;
use super::resolved::Resolved;
use super::shape::Shape;
use super::source::{Profile, Sources};
use crate::base::error::usage;
use anyhow::{Context, Result};
use schemars::{JsonSchema, schema_for};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::path::PathBuf;
use toml::Spanned;
use toml::de::{DeTable, Deserializer};

/// Merges `files` from left to right, applies `sets` (`a.b=VALUE`), and reads the result as a `T`.
pub fn load<T: DeserializeOwned + Serialize + JsonSchema>(
    files: &[PathBuf],
    sets: &[String],
) -> Result<Resolved<T>> {
    load_over(&[], files, sets)
}

/// Does the same over one of `profiles`: the one that the key `profile` names, or else the first. `T` has
/// that key too.
pub fn load_over<T: DeserializeOwned + Serialize + JsonSchema>(
    profiles: &[Profile],
    files: &[PathBuf],
    sets: &[String],
) -> Result<Resolved<T>> {
    let sources = Sources::read(files, sets)?.over_profile(profiles)?;
    let mut merged = sources.merged()?;
    let schema = schema_for!(T).to_value();
    let shape = Shape::of_schema(&schema);
    keys::keep_last_choices(&mut merged, shape, &sources);
    keys::check(&merged, shape, &sources)?;
    let origins: BTreeMap<_, _> = entries(&merged)
        .into_iter()
        .map(|entry| (entry.path, sources.origin(entry.value.start)))
        .collect();
    let value: T = typed(merged).map_err(|error| {
        let place = error.span().filter(|span| !span.is_empty());
        let place =
            place.map_or_else(|| sources.names(), |span| sources.origin(span.start).to_string());
        usage(format!("{place}: {}", error.message().replace('\n', ", ")))
    })?;
    let table = toml::Table::try_from(&value).context("encoding the resolved configuration")?;
    Ok(Resolved { value, table, origins })
}

/// Returns the JSON Schema of a `T`, with which editors complete and check its TOML.
pub fn schema<T: JsonSchema>() -> Result<String> {
    let schema = serde_json::to_string_pretty(&schema_for!(T)).context("encoding a schema")?;
    Ok(schema + "\n")
}

fn typed<T: DeserializeOwned>(table: DeTable<'_>) -> Result<T, toml::de::Error> {
    T::deserialize(Deserializer::from(Spanned::new(0..0, table)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::config::Origin;
    use serde::Deserialize;
    use std::path::Path;

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Demo {
        steps: u64,
        #[serde(default)]
        seed: u64,
        #[serde(default)]
        optim: Optim,
        #[serde(default)]
        lists: Vec<i64>,
        eval: Option<Eval>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Optim {
        lr: f64,
        betas: [f64; 2],
        schedule: Schedule,
    }

    impl Default for Optim {
        fn default() -> Self {
            Self { lr: 1e-3, betas: [0.9, 0.95], schedule: Schedule::Constant }
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Schedule {
        Constant,
        Cosine,
        Rise(Rise),
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Rise {
        Steps(u64),
        Ratio(f64),
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Eval {
        rollouts: u32,
        data: PathBuf,
    }

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        crate::base::fs::write_atomic(&path, text.as_bytes()).unwrap();
        path
    }

    fn load_texts(texts: &[&str], sets: &[&str]) -> Result<Resolved<Demo>, String> {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(i, text)| write(dir.path(), &format!("{i}.toml"), text))
            .collect();
        let sets: Vec<_> = sets.iter().map(|&s| s.to_owned()).collect();
        load(&files, &sets).map_err(|e| {
            assert_eq!(exit_code(&e), 2, "{e:#}");
            let text = format!("{e:#}");
            assert!(!text.contains('\n'), "one line: {text}");
            text.replace(&format!("{}/", dir.path().display()), "")
        })
    }

    fn error(texts: &[&str], sets: &[&str]) -> String {
        load_texts(texts, sets).unwrap_err()
    }

    #[test]
    fn a_profile_lies_below_what_the_user_gives_and_is_named_as_origin() {
        #[derive(Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        struct Chosen {
            #[serde(default)]
            profile: Option<String>,
            a: i64,
            b: i64,
        }
        let profiles = [("old", "a = 1\nb = 1"), ("new", "a = 2\nb = 2")]
            .map(|(name, text)| Profile { name, text });
        let dir = tempfile::tempdir().unwrap();
        let file = write(dir.path(), "c.toml", "a = 5");
        let load =
            |set: &[String]| load_over::<Chosen>(&profiles, std::slice::from_ref(&file), set);
        let first = load(&[]).unwrap();
        assert_eq!((first.value.a, first.value.b), (5, 1));
        assert_eq!(first.origin("b").to_string(), "profile old:2");
        let other = load(&["profile=new".to_owned()]).unwrap();
        assert_eq!((other.value.a, other.value.b), (5, 2));
        let error = load(&["profile=newer".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("--set profile=newer") && error.contains("\"old\", \"new\""),
            "{error}"
        );
    }

    #[test]
    fn files_merge_left_to_right_lists_replace_and_set_wins() {
        let resolved = load_texts(
            &[
                "steps = 10\nlists = [1, 2]\n[optim]\nlr = 0.1\nbetas = [0.8, 0.9]\n",
                "lists = [3]\n[optim]\nlr = 1\n[eval]\nrollouts = 32\ndata = 'a'\n",
            ],
            &["optim.schedule=cosine", "eval.data=runs/b.jsonl", "seed = 7"],
        )
        .unwrap();
        let optim = Optim { lr: 1.0, betas: [0.8, 0.9], schedule: Schedule::Cosine };
        let eval = Some(Eval { rollouts: 32, data: "runs/b.jsonl".into() });
        assert_eq!(resolved.value, Demo { steps: 10, seed: 7, optim, lists: vec![3], eval });
        assert_eq!(resolved.origin("optim.schedule"), Origin::Set("optim.schedule=cosine".into()));
        let Origin::File { path, line } = resolved.origin("optim.lr") else { panic!() };
        assert!(path.ends_with("1.toml"));
        assert_eq!(line, 3);
    }

    #[test]
    fn of_several_choices_the_last_one_counts() {
        let file = "steps = 1\n[optim.schedule.rise]\nratio = 0.1\n";
        let schedule = |texts: &[&str], sets: &[&str]| {
            load_texts(texts, sets).map(|resolved| resolved.value.optim.schedule)
        };
        let five = Ok(Schedule::Rise(Rise::Steps(5)));
        let set = "optim.schedule.rise.steps=5";
        assert_eq!(schedule(&[file], &[set]), five);
        assert_eq!(schedule(&[file], &["optim.schedule.rise={steps=5}"]), five);
        assert_eq!(schedule(&[file], &["optim.schedule.rise.ratio=0.2", set]), five);
        assert_eq!(schedule(&["steps = 1"], &["optim.schedule.rise.ratio=0.2", set]), five);
        assert_eq!(
            schedule(
                &["steps = 1\noptim.schedule.rise.ratio = 0.2", "optim.schedule.rise.steps = 5"],
                &[]
            ),
            five
        );
        assert_eq!(schedule(&[file], &["optim.schedule=cosine"]), Ok(Schedule::Cosine));
        assert_eq!(
            error(&[file], &["optim.schedule.rise={steps=5,ratio=0.1}"]),
            "0.toml:2: `optim.schedule.rise` takes exactly one key"
        );
        assert_eq!(
            error(&[file], &["optim.schedule.rise.step=5"]),
            "--set optim.schedule.rise.step=5: unknown value `step` of `optim.schedule.rise`; \
             did you mean `steps`?"
        );
        assert_eq!(
            error(&[file], &["optim.schedule=5"]),
            "--set optim.schedule=5: `optim.schedule` must be a name or a table with one key"
        );
    }

    #[test]
    fn the_rendered_config_is_toml_with_the_origin_of_every_value() {
        let resolved = load_texts(&["steps = 10\n[optim]\nlr = 0.1\n"], &["seed=7"]).unwrap();
        let text = resolved.render_with_origins();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("steps = 10") && lines[0].ends_with("0.toml:1"), "{text}");
        assert!(lines[1].starts_with("seed = 7") && lines[1].ends_with("# --set seed=7"), "{text}");
        assert!(text.contains("betas = [0.9, 0.95]") && text.contains("# default"), "{text}");
        let again: Demo = toml::from_str(&text).unwrap();
        assert_eq!(again, resolved.value);
        assert_eq!(toml::from_str::<Demo>(&resolved.to_toml()).unwrap(), resolved.value);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        assert_eq!(
            error(&["steps = 1\n\n[optim]\nlearning_rate = 1\n"], &[]),
            "0.toml:4: unknown key `optim.learning_rate`; known keys here: lr, betas, schedule"
        );
        assert_eq!(
            error(&["steps = 1", "[optim]\nlrr = 1"], &[]),
            "1.toml:2: unknown key `optim.lrr`; did you mean `optim.lr`?"
        );
        assert_eq!(
            error(&["setps = 1"], &[]),
            "0.toml:1: unknown key `setps`; did you mean `steps`?"
        );
    }

    #[test]
    fn a_key_in_the_wrong_table_is_sent_to_the_right_one() {
        assert_eq!(
            error(&["steps = 1\nlr = 0.1"], &[]),
            "0.toml:2: unknown key `lr`; did you mean `optim.lr`?"
        );
    }

    #[test]
    fn a_wrong_type_or_value_is_named_with_its_place() {
        assert_eq!(
            error(&["steps = 1\n[optim]\nlr = 'fast'"], &[]),
            "0.toml:3: `optim.lr` is 'fast': expected a number"
        );
        assert_eq!(
            error(&["steps = -1"], &[]),
            "0.toml:1: `steps` is -1: expected a whole number, 0 or more"
        );
        assert_eq!(
            error(&["steps = 1\nseed = 0x8000000000000000"], &[]),
            "0.toml:2: `seed` is 0x8000000000000000: TOML has whole numbers from -2^63 to 2^63 - 1 only"
        );
        assert_eq!(
            error(&["steps = 1\noptim = 3"], &[]),
            "0.toml:2: `optim` is 3: expected a table"
        );
        assert_eq!(
            error(&["steps = 1\n[optim]\nschedule = 'cosin'"], &[]),
            "0.toml:3: unknown value `cosin` of `optim.schedule`; did you mean `cosine`?"
        );
        assert_eq!(
            error(&["steps = 1\n[optim]\nbetas = [1]"], &[]),
            "0.toml:3: `optim.betas` is [1]: expected a list of 2"
        );
    }

    #[test]
    fn a_value_that_is_no_name_comes_with_the_names() {
        #[derive(Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        enum Kept {
            All,
            None,
        }
        #[derive(Debug, Serialize, Deserialize, JsonSchema)]
        struct Keeping {
            keep: Kept,
        }
        let text = load::<Keeping>(&[], &["keep=true".to_owned()]).unwrap_err().to_string();
        assert_eq!(text, "--set keep=true: `keep` is true: expected one of all, none");
    }

    #[test]
    fn a_missing_key_is_named_with_its_table() {
        assert_eq!(error(&["seed = 1", ""], &[]), "0.toml + 1.toml: the key `steps` is required");
        assert_eq!(
            error(&["steps = 1\n[eval]\nrollouts = 3"], &[]),
            "0.toml:2: the key `eval.data` is required"
        );
    }

    #[test]
    fn all_missing_keys_are_named_together_also_those_of_missing_tables() {
        #[derive(Debug, Serialize, Deserialize, JsonSchema)]
        struct Whole {
            name: String,
            demo: Demo,
            eval: Eval,
        }
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "a.toml", "[eval]\nrollouts = 1\n");
        let text = format!("{:#}", load::<Whole>(&[path], &[]).unwrap_err());
        assert!(
            text.ends_with("a.toml: the keys `eval.data`, `name`, `demo.steps` are required"),
            "{text}"
        );
    }

    #[test]
    fn errors_caused_by_set_name_the_set() {
        let base = "steps = 1";
        assert_eq!(
            error(&[base], &["optim.lrr=1"]),
            "--set optim.lrr=1: unknown key `optim.lrr`; did you mean `optim.lr`?"
        );
        assert_eq!(
            error(&[base], &["optim.lr=fast"]),
            "--set optim.lr=fast: `optim.lr` is \"fast\": expected a number"
        );
        for malformed in ["steps", "=3", "a b=3"] {
            assert!(error(&[base], &[malformed]).contains("expected KEY=VALUE"), "{malformed}");
        }
    }

    #[test]
    fn broken_toml_and_missing_files_are_one_line() {
        assert!(error(&["steps = 1\nseed = = 2"], &[]).starts_with("0.toml:2: not valid TOML: "));
        let absent = load::<Demo>(&["no/such.toml".into()], &[]).unwrap_err();
        assert_eq!(exit_code(&absent), 2);
        assert!(format!("{absent:#}").contains("no/such.toml"));
    }

    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    struct Lax {
        steps: u64,
    }

    #[test]
    fn a_key_that_a_lax_struct_ignores_is_refused_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "a.toml", "steps = 1\n[stepz]\na = 1\n");
        let text = format!("{:#}", load::<Lax>(&[path], &[]).unwrap_err());
        assert!(text.contains("a.toml:2: unknown key `stepz`"), "{text}");
    }
}
