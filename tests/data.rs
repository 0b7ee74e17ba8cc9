//! The commands about data as a user meets them: asking a model which samples are code, and what a dry
//! run says before anything is tokenised.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const MODEL: &str = "data/demo/base";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `train` in the root of the repository; `@name` is a path in this place.
    fn train(&self, words: &str) -> Output {
        let here = format!("{}/", self.0.path().display());
        let words = words.split_whitespace().map(|word| word.replace('@', &here));
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.args(words).env("HF_HOME", self.path("hf")).env("HF_HUB_OFFLINE", "1");
        command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
    }

    fn done(&self, words: &str) -> String {
        let output = self.train(words);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{words}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn mistake(&self, words: &str) -> String {
        let output = self.train(words);
        assert_eq!(output.status.code(), Some(2), "{words}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn samples(ids: &[&str]) -> String {
    let line = |id: &&str| {
        let turns = r#"[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]"#;
        format!("{{\"id\":\"{id}\",\"messages\":{turns}}}\n")
    };
    ids.iter().map(line).collect()
}

fn ids(answers: &Path) -> Vec<String> {
    let text = fs::read_to_string(answers).unwrap();
    let mut ids: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|answer| answer["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

#[test]
fn a_model_is_asked_about_each_sample_once_and_its_answers_are_kept() {
    let place = Place::new();
    fs::write(place.path("ask.txt"), "Is this code? {{ messages[0].content }}").unwrap();
    fs::write(place.path("a.jsonl"), samples(&["one", "two", "three"])).unwrap();
    let ask = format!("data classify --model {MODEL} --data @a.jsonl --out @answers.jsonl");
    let asked = place.done(&format!("{ask} --prompt @ask.txt"));
    let answers = place.path("answers.jsonl");
    assert_eq!(ids(&answers), ["one", "three", "two"], "{asked}");

    let mut torn = fs::read_to_string(&answers).unwrap();
    torn.truncate(torn.len() - 5);
    fs::write(&answers, torn).unwrap();
    fs::write(place.path("a.jsonl"), samples(&["one", "two", "three", "four"])).unwrap();
    let again = place.done(&format!("{ask} --prompt @ask.txt"));
    assert!(again.contains("2  answered before"), "{again}");
    assert_eq!(ids(&answers), ["four", "one", "three", "two"]);

    let all_too_long = place.done(
        &ask.replace("@answers", "@others").replace("classify", "classify --max-prompt-tokens 3"),
    );
    assert!(all_too_long.contains("4  too long"), "{all_too_long}");
}

#[test]
fn questions_that_cannot_be_asked_are_the_users_mistake() {
    let place = Place::new();
    fs::write(place.path("a.jsonl"), samples(&["one"]).replace("\"id\":\"one\",", "")).unwrap();
    let ask = format!("data classify --model {MODEL} --data @a.jsonl --out @answers.jsonl");
    let error = place.mistake(&ask);
    assert!(error.contains("a.jsonl: sample 1") && error.contains("`id`"), "{error}");
    fs::write(place.path("bad.txt"), "{{ nonsense }}").unwrap();
    fs::write(place.path("a.jsonl"), samples(&["one"])).unwrap();
    let error = place.mistake(&format!("{ask} --prompt @bad.txt"));
    assert!(error.contains("bad.txt") && error.contains("`messages`"), "{error}");
    fs::write(place.path("bad.txt"), "{{ messages[0].content }} {{ nonsense }}").unwrap();
    let error = place.mistake(&format!("{ask} --prompt @bad.txt"));
    assert!(error.contains("sample one"), "{error}");
    fs::write(place.path("bad.txt"), "one\n{{ messages[ }}\nthree").unwrap();
    let error = place.mistake(&format!("{ask} --prompt @bad.txt"));
    assert!(error.contains("bad.txt") && error.lines().count() == 1, "{error}");
    assert!(!place.path("answers.jsonl").exists());
}

#[test]
fn a_question_longer_than_the_models_positions_is_too_long_to_ask() {
    let place = Place::new();
    fs::write(place.path("ask.txt"), "{{ messages[0].content }}").unwrap();
    let long = samples(&["long"]).replace("\"q\"", &format!("\"{}\"", "17 ".repeat(600)));
    fs::write(place.path("a.jsonl"), long + &samples(&["short"])).unwrap();
    let asked = place.done(&format!(
        "data classify --model {MODEL} --data @a.jsonl --out @new/answers.jsonl --prompt @ask.txt"
    ));
    assert!(asked.contains("1  too long"), "{asked}");
    assert_eq!(ids(&place.path("new/answers.jsonl")), ["long", "short"]);
}

#[test]
fn keys_of_problems_that_nobody_knows_survive_a_selection() {
    let place = Place::new();
    let first =
        fs::read_to_string("data/demo/rl.jsonl").unwrap().lines().next().unwrap().to_owned();
    let keys = r#"{"answer_key":{"gold":12345678901234567890123},"level":1.50,"#;
    fs::write(place.path("p.jsonl"), first.replacen('{', keys, 1)).unwrap();
    let select = "data solvability --data @p.jsonl --out @o.jsonl --rollouts 2 --max-new-tokens 8";
    place.done(&format!("{select} --min-passed 0 --max-passed 2 --model {MODEL}"));
    let kept = fs::read_to_string(place.path("o.jsonl")).unwrap();
    assert!(kept.contains(r#""answer_key":{"gold":12345678901234567890123}"#), "{kept}");
    assert!(kept.contains(r#""level":1.50"#), "{kept}");
}

#[test]
fn samples_longer_than_the_models_positions_are_refused_by_training_and_scoring_alike() {
    let place = Place::new();
    let long = samples(&["long"]).replace("\"id\":\"long\",", "");
    let long = long.replace("\"q\"", &format!("\"{}\"", "17 ".repeat(600)));
    fs::write(place.path("a.jsonl"), long).unwrap();
    let sets = format!(
        "--set model.path={MODEL} --set data.files=['{}'] --set data.max_length=4096",
        place.path("a.jsonl").display()
    );
    let trained = place.mistake(&format!("sft --config configs/demo/sft.toml {sets} --out @run"));
    let scored = place.mistake(&format!("score --model {MODEL} --data @a.jsonl --out @scores"));
    for error in [trained, scored] {
        assert!(error.contains("but the model has 1024 positions"), "{error}");
    }
}

#[test]
fn keys_of_turns_that_the_template_does_not_use_are_named() {
    let place = Place::new();
    fs::write(place.path("a.jsonl"), samples(&["one"]).replace("\"q\"", "\"q\",\"name\":\"Bo\""))
        .unwrap();
    let shown = place.train(&format!("data inspect --data @a.jsonl --tokenizer {MODEL}"));
    let errors = String::from_utf8(shown.stderr).unwrap();
    assert!(errors.contains("the template does not use: `name`"), "{errors}");
    let stats = format!("data stats --config configs/demo/sft.toml --set model.path={MODEL}");
    let files = place.path("a.jsonl").display().to_string();
    let counted = place.done(&format!("{stats} --set data.files=['{files}']"));
    assert!(counted.contains("`name` in 1"), "{counted}");
}

#[test]
fn all_files_of_a_directory_are_counted() {
    let place = Place::new();
    fs::create_dir(place.path("all")).unwrap();
    fs::write(place.path("all/a.jsonl"), samples(&["one", "two"])).unwrap();
    fs::write(place.path("all/b.jsonl"), samples(&["three"])).unwrap();
    let stats = place.done("data stats @all");
    assert!(stats.contains("all/a.jsonl\n  rows        2"), "{stats}");
    assert!(stats.contains("all/b.jsonl\n  rows        1"), "{stats}");
}

#[test]
fn a_dry_run_tells_what_the_data_hold_before_and_after_they_are_tokenised() {
    let place = Place::new();
    let lines: Vec<String> = (0..30).map(|i| samples(&[&i.to_string()])).collect();
    fs::write(place.path("a.jsonl"), lines.concat()).unwrap();
    let sets = format!(
        "--set model.path={MODEL} --set data.files=['{}'] --set data.cache_dir='{}'",
        place.path("a.jsonl").display(),
        place.path("cache").display()
    );
    let words = format!("--config configs/demo/sft.toml {sets}");
    let plan = place.done(&format!("sft --dry-run {words}"));
    assert!(plan.contains("about 30 samples of"), "{plan}");
    place.done(&format!("data stats {words}"));
    let plan = place.done(&format!("sft --dry-run {words}"));
    assert!(plan.contains(" 30 samples of") && !plan.contains("about 30"), "{plan}");
    let absent = place.done(&format!("sft --dry-run {words} --set data.files=['owner/name']"));
    assert!(absent.contains("not on this machine"), "{absent}");
}

#[test]
fn a_dry_run_of_reinforcement_counts_its_problems_and_refuses_files_that_are_not_there() {
    let place = Place::new();
    fs::write(place.path("p.jsonl"), "{}\n{}\n{}\n").unwrap();
    let words = format!("grpo --dry-run --config configs/demo/grpo.toml --set model.path={MODEL}");
    let file = place.path("p.jsonl").display().to_string();
    let held_out = format!("--set validation={{files=['{file}'],every=1,rollouts=1}}");
    let plan = place.done(&format!("{words} --set data.files=['{file}','{file}'] {held_out}"));
    let counts: Vec<_> = plan.lines().filter(|line| line.starts_with("data: ")).collect();
    assert!(counts[0].contains("data.files") && counts[0].ends_with(" 6 problems"), "{plan}");
    assert!(counts[1].contains("validation.files") && counts[1].ends_with(" 3 problems"), "{plan}");
    let absent = place.mistake(&format!("{words} --set data.files=['absent.jsonl']"));
    assert!(absent.contains("absent.jsonl"), "{absent}");
}
