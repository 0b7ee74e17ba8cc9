//! Evaluations as a user makes them: scored, killed, interrupted, resumed, and mistaken.
//!
//! A tiny model learns to give one of three answers: right with a right case, wrong with a wrong
//! case, right without a case.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod support;

use codeseq::base::progress::Progress;
use codeseq::checkpoint::LanguageModel;
use codeseq::data::jsonl;
use codeseq::data::problem::Problem;
use codeseq::data::prompt::GtgPrompt;
use codeseq::engine::generator::Generator;
use codeseq::eval::score;
use codeseq::rollout::AttemptSettings;
use codeseq::rollout::attempts::{attempt, attempt_each};
use codeseq::sandbox::{Judge, Options};
use codeseq::tasks::NumberSequences;
use codeseq::tokenizer::Message;
use codeseq::tokenizer::bpe::{self, BpeOptions};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;
use support::{
    Place, done, interrupt, kill, lines, problem, sft_config, shape, start, stderr, train,
};

const ANSWERS: [&str; 3] = [
    "case: 2 -> 4\n```python\nprint(2 * int(input()))\n```",
    "case: 2 -> 5\n```python\nprint(3 + int(input()))\n```",
    "```python\nprint(2 * int(input()))\n```",
];
const PROBLEMS: usize = 10;
const ROLLOUTS: usize = 12;

/// The model's directory, and beside it problems and the score of a run that nothing disturbed.
static INPUTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("evals");
    let _absent_at_first = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("tmp")).unwrap();
    let problems: Vec<Value> = (0..PROBLEMS).map(problem).collect();
    fs::write(dir.join("problems.jsonl"), lines(&problems)).unwrap();
    let prompt = GtgPrompt::bundled().unwrap();
    let samples: Vec<Vec<Message>> = problems
        .iter()
        .flat_map(|problem| {
            let problem: Problem = serde_json::from_value(problem.clone()).unwrap();
            let question = prompt.render(&problem).unwrap();
            ANSWERS.map(|answer| {
                vec![Message::new("user", question.clone()), Message::new("assistant", answer)]
            })
        })
        .collect();
    let options = BpeOptions { vocab_size: 512, max_token_length: 16 };
    bpe::train(&samples, options, &dir.join("tokenizer")).unwrap();
    let rows: Vec<Value> = samples.iter().map(|messages| json!({"messages": messages})).collect();
    fs::write(dir.join("samples.jsonl"), lines(&rows)).unwrap();
    fs::write(dir.join("model.json"), shape(512).to_string()).unwrap();
    fs::write(dir.join("sft.toml"), sft_config(&dir)).unwrap();
    let model = done(train(&dir).args(["sft", "--config", "sft.toml", "--out", "run"]));
    fs::rename(dir.join(model.trim()), dir.join("model")).unwrap();
    done(train(&dir).args(["eval", "gtg", "--out", "score.json"]).args(COMMON));
    dir
});

/// Arguments of every evaluation, in a directory that has the inputs.
const COMMON: [&str; 8] =
    ["--model", "model", "--data", "problems.jsonl", "--rollouts", "12", "--max-new-tokens", "40"];

/// What makes a run slow enough to be stopped midway, and changes nothing else.
const SLOW: &str = "--max-sequences 2";

/// A place with the inputs in it.
struct Evals(Place);

impl Evals {
    fn new() -> Self {
        let place = Place::new();
        for name in ["model", "problems.jsonl"] {
            std::os::unix::fs::symlink(INPUTS.join(name), place.path(name)).unwrap();
        }
        Self(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// An evaluation of the common inputs.
    fn eval(&self, words: &str) -> Command {
        let mut command = self.0.train(words);
        command.args(COMMON);
        command
    }

    fn mistake(&self, words: &str, parts: &[&str]) {
        self.0.mistake(words, parts);
    }

    /// The lines of a result that are not times.
    fn result(&self, name: &str) -> Vec<String> {
        timeless(&self.path(name))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }
}

/// Whether a journal has so many finished problems.
fn has_finished(journal: &Path, count: usize) -> bool {
    let num_lines = fs::read(journal).map_or(0, |text| text.split(|&byte| byte == b'\n').count());
    // One line is the header, one is empty.
    num_lines >= count + 2
}

/// The score of the run that nothing disturbed.
fn score() -> Value {
    serde_json::from_str(&fs::read_to_string(INPUTS.join("score.json")).unwrap()).unwrap()
}

fn num_passed(problem: &Value) -> u64 {
    problem["num_passed"].as_u64().unwrap()
}

fn timeless(path: &Path) -> Vec<String> {
    let times = ["tokens_per_sec", "generation_secs", "judging_secs"];
    let text = fs::read_to_string(path).unwrap();
    let is_time = |line: &str| times.iter().any(|name| line.contains(name));
    text.lines().filter(|line| !is_time(line)).map(str::to_owned).collect()
}

fn settings() -> AttemptSettings {
    AttemptSettings {
        num_samples: ROLLOUTS,
        temperature: 1.0,
        max_new_tokens: 40,
        max_sequences: 8,
        key: 0,
        ..AttemptSettings::default()
    }
}

fn judge() -> Judge {
    let launcher = Some(env!("CARGO_BIN_EXE_train").into());
    Judge::start(Options { launcher, ..Options::default() }).unwrap()
}

fn task(judge: &Judge) -> NumberSequences<'_> {
    let problems: Vec<Problem> = jsonl::read(&INPUTS.join("problems.jsonl")).unwrap();
    NumberSequences::open(problems, None, judge).unwrap()
}

#[test]
fn a_score_has_every_k_with_intervals_and_families() {
    let score = score();
    let share = |k: usize| score["pass_at_k"][k.to_string()]["mean"].as_f64().unwrap();
    assert!((0.1..0.95).contains(&share(1)), "{score}");
    assert!((score["pass_at_1"].as_f64().unwrap() - share(1)).abs() < 1e-12);
    assert_eq!(score["pass_at_k"].as_object().unwrap().len(), ROLLOUTS);
    assert!((2..=ROLLOUTS).all(|k| share(k - 1) <= share(k)));
    assert_eq!(score["families"]["many"]["num_problems"], 8);
    assert!(score["families"]["many"]["ci95"].is_array());
    assert!(score["families"]["few"].get("ci95").is_none());
    assert!(!INPUTS.join("score.partial.jsonl").exists());
}

#[test]
fn neither_batching_nor_the_judges_workers_change_a_score() {
    let place = Evals::new();
    let text = done(&mut place.eval(&format!("eval gtg --out score.json --workers 1 {SLOW}")));
    assert!(text.contains("pass@1") && text.contains("many"), "{text}");
    assert_eq!(place.result("score.json"), timeless(&INPUTS.join("score.json")));
}

#[test]
fn a_model_of_the_cache_is_scored_by_its_name() {
    let place = Evals::new();
    let (repo, commit) = (place.path("hf/hub/models--owner--small"), "0".repeat(40));
    for dir in ["refs", "snapshots"] {
        fs::create_dir_all(repo.join(dir)).unwrap();
    }
    fs::write(repo.join("refs/main"), &commit).unwrap();
    std::os::unix::fs::symlink(INPUTS.join("model"), repo.join("snapshots").join(commit)).unwrap();
    let words = "eval gtg --model owner/small --data problems.jsonl --rollouts 1 --out named.json";
    let mut command = place.0.train(&format!("{words} --max-new-tokens 4"));
    done(command.env("HF_HOME", place.path("hf")).env("HF_HUB_OFFLINE", "1"));
    assert_eq!(place.json("named.json")["num_problems"], PROBLEMS);
}

#[test]
fn a_killed_run_resumes_to_the_result_of_one_never_stopped() {
    let place = Evals::new();
    let journal = place.path("score.partial.jsonl");
    let mut command = place.eval(&format!("eval gtg --out score.json {SLOW}"));
    kill(start(&mut command, || has_finished(&journal, 2)));
    let torn = fs::read_to_string(&journal).unwrap() + "{\"round\":0,\"problem\":9,\"pro";
    fs::write(&journal, torn).unwrap();
    done(&mut place.eval("eval gtg --out score.json --resume"));
    assert_eq!(place.result("score.json"), timeless(&INPUTS.join("score.json")));
    assert!(!journal.exists());
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_guards_its_journal() {
    let place = Evals::new();
    let journal = place.path("score.partial.jsonl");
    let mut command = place.eval(&format!("eval gtg --out score.json {SLOW}"));
    let said = interrupt(start(&mut command, || has_finished(&journal, 1)));
    assert!(said.contains("continue with --resume"), "{said}");

    let again = format!("eval gtg --out score.json {}", COMMON.join(" "));
    place.mistake(&again, &["score.partial.jsonl", "--resume"]);
    place
        .mistake(&format!("{again} --resume --seed 7"), &["score.partial.jsonl", "seed 0 (now 7)"]);
    let kept = fs::read(&journal).unwrap();
    fs::remove_file(place.path("problems.jsonl")).unwrap();
    fs::write(place.path("problems.jsonl"), lines(&[problem(1)])).unwrap();
    place.mistake(&format!("{again} --resume"), &["score.partial.jsonl", "other problems"]);
    assert_eq!(fs::read(&journal).unwrap(), kept);
}

#[test]
fn responses_without_a_case_are_asked_again() {
    let place = Evals::new();
    let text = done(&mut place.eval("eval cases --out cases.json"));
    assert!(text.contains("C-C") && text.contains("No-F"), "{text}");
    let cases = place.json("cases.json");
    let asked: Vec<u64> = serde_json::from_value(cases["num_asked"].clone()).unwrap();
    assert_eq!(asked[0] as usize, PROBLEMS * ROLLOUTS);
    assert!(asked.len() > 1 && asked.is_sorted_by(|a, b| a >= b), "{asked:?}");
    let count = |name: &str| cases["quadrants"][name].as_u64().unwrap();
    assert!(count("cases_right_program_right") > 0 && count("cases_wrong_program_wrong") > 0);
    let counted: u64 =
        cases["quadrants"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(counted, asked[0], "every response is in one quadrant or without a case");

    done(&mut place.eval("eval cases --max-tries 1 --out once.json"));
    let once = place.json("once.json");
    assert_eq!(once["num_asked"], json!([asked[0]]));
    assert_eq!(once["quadrants"]["without_cases"], json!(asked[1]));
    let score = score();
    assert_eq!(once["quadrants"], score["quadrants"], "the first try is GTG's");
}

#[test]
fn a_killed_case_analysis_resumes_to_the_same_result() {
    let place = Evals::new();
    done(&mut place.eval("eval cases --out whole.json"));
    let journal = place.path("cases.partial.jsonl");
    let mut command = place.eval(&format!("eval cases --out cases.json {SLOW}"));
    // All of the first try and some of the second.
    kill(start(&mut command, || has_finished(&journal, PROBLEMS + 1)));
    done(&mut place.eval("eval cases --out cases.json --resume"));
    assert_eq!(place.result("cases.json"), place.result("whole.json"));
}

#[test]
fn solvability_selects_by_what_gtg_counts() {
    let place = Evals::new();
    let score = score();
    let passed: Vec<(String, u64)> = score["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| (problem["problem_id"].as_str().unwrap().to_owned(), num_passed(problem)))
        .collect();
    let middle = passed[0].1;
    let range = format!("--min-passed {middle} --max-passed {ROLLOUTS}");
    let expected: Vec<(String, u64)> = passed.into_iter().filter(|(_, n)| *n >= middle).collect();

    let journal = place.path("kept.partial.jsonl");
    let command = format!("data solvability --out kept.jsonl {range}");
    let mut slow = place.eval(&format!("{command} {SLOW}"));
    kill(start(&mut slow, || has_finished(&journal, 1)));
    let text = done(&mut place.eval(&format!("{command} --resume")));
    assert!(text.contains("solvability of kept"), "{text}");
    let kept: Vec<Problem> = jsonl::read(&place.path("kept.jsonl")).unwrap();
    let kept: Vec<(String, f64)> =
        kept.into_iter().map(|p| (p.problem_id, p.solvability.unwrap())).collect();
    let share = |(id, n): (String, u64)| (id, n as f64 / ROLLOUTS as f64);
    assert_eq!(kept, expected.into_iter().map(share).collect::<Vec<_>>());
    assert!(!journal.exists());
}

#[test]
fn a_range_that_selects_nothing_keeps_the_rollouts_for_another() {
    let place = Evals::new();
    let passed: Vec<u64> = score()["problems"].as_array().unwrap().iter().map(num_passed).collect();
    let none = (0..=ROLLOUTS as u64).find(|n| !passed.contains(n)).unwrap();
    let output = place
        .eval(&format!("data solvability --out kept.jsonl --min-passed {none} --max-passed {none}"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("kept.partial.jsonl"), "{}", stderr(&output));
    done(&mut place.eval(
        "data solvability --out kept.jsonl --min-passed 0 --max-passed 12 --most 3 --resume",
    ));
    assert_eq!(jsonl::read::<Problem>(&place.path("kept.jsonl")).unwrap().len(), 3);
}

#[test]
fn responses_are_saved_with_their_grades_and_the_reasons_are_counted() {
    let place = Evals::new();
    let out = "eval gtg --out score.json --save-responses";
    let given = "--model model --data problems.jsonl";
    place.mistake(&format!("{out} ./score.json {given}"), &["--save-responses", "result of --out"]);
    place.mistake(
        &format!("{out} score.partial.jsonl {given}"),
        &["--save-responses", "journal of --out"],
    );
    let text = done(&mut place.eval("eval gtg --out score.json --save-responses all.jsonl"));
    assert!(text.contains("wrong_answer"), "{text}");
    let rows: Vec<Value> = jsonl::read(&place.path("all.jsonl")).unwrap();
    assert_eq!(rows.len(), PROBLEMS * ROLLOUTS);
    let passed = rows.iter().filter(|row| row["passed"] == true).count() as u64;
    let score = place.json("score.json");
    let problems = score["problems"].as_array().unwrap();
    assert_eq!(passed, problems.iter().map(num_passed).sum::<u64>());
    let failures: u64 =
        score["failures"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(passed + failures, rows.len() as u64);
    let wrong = rows.iter().find(|row| row["failure"] == "wrong_answer").unwrap();
    assert!(wrong["response"].as_str().unwrap().contains("print(3 + int(input()))"));
    assert_eq!(wrong["verdict"]["cases"][0]["verdict"], "fail");
}

#[test]
fn the_next_number_is_asked_without_a_judge_and_resumed() {
    let place = Evals::new();
    let test = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo/test.jsonl");
    let rows = fs::read_to_string(test).unwrap();
    let rows: Vec<&str> = rows.lines().take(PROBLEMS).collect();
    fs::write(place.path("terms.jsonl"), rows.join("\n")).unwrap();
    let words =
        "eval next-number --model model --data terms.jsonl --rollouts 32 --max-new-tokens 40";
    let eval = |more: &str| {
        let mut command = place.0.train(&format!("{words} {more}"));
        command.env("PATH", "");
        command
    };
    let text = done(&mut eval("--out whole.json --save-responses all.jsonl"));
    assert!(text.contains("next-number") && text.contains("pass@1"), "{text}");
    let whole = place.json("whole.json");
    assert_eq!(whole["num_problems"], PROBLEMS);
    assert!(whole.get("quadrants").is_none());
    assert_eq!(jsonl::read::<Value>(&place.path("all.jsonl")).unwrap().len(), 32 * PROBLEMS);

    let journal = place.path("score.partial.jsonl");
    kill(start(&mut eval(&format!("--out score.json {SLOW}")), || has_finished(&journal, 1)));
    let gtg = words.replace("next-number", "gtg") + " --out score.json --resume";
    place.mistake(&gtg, &["score.partial.jsonl", "task next-number (now gtg)"]);
    done(&mut eval("--out score.json --resume"));
    assert_eq!(place.result("score.json"), place.result("whole.json"));
}

#[test]
fn a_prompt_of_ones_own_is_shown_and_part_of_what_is_resumed() {
    let place = Evals::new();
    let bundled =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/prompts/gtg.txt"));
    let bundled = bundled.unwrap();
    fs::write(place.path("same.txt"), &bundled).unwrap();
    fs::write(place.path("other.txt"), format!("{bundled}!")).unwrap();
    fs::write(place.path("empty.txt"), "Write a program.").unwrap();
    done(&mut place.eval("eval gtg --out score.json --prompt same.txt"));
    assert_eq!(place.result("score.json"), timeless(&INPUTS.join("score.json")));

    let common = COMMON.join(" ");
    for command in ["eval gtg", "eval cases", "data solvability"] {
        let words = format!("{command} --out o.json --prompt empty.txt {common}");
        place.mistake(&words, &["empty.txt", "problem.description"]);
    }
    let mut command = place.eval(&format!("eval gtg --out score.json {SLOW}"));
    let journal = place.path("score.partial.jsonl");
    kill(start(&mut command, || has_finished(&journal, 1)));
    let again = format!("eval gtg --out score.json --resume --prompt other.txt {common}");
    place.mistake(&again, &["score.partial.jsonl", "another prompt"]);
}

#[test]
fn mistakes_are_named_in_one_line_before_any_work() {
    let place = Evals::new();
    let write = |name: &str, rows: &[Value]| fs::write(place.path(name), lines(rows)).unwrap();
    let without = |key: &str, value: Value| {
        let mut problem = problem(0);
        problem[key] = value;
        problem
    };
    write("empty.jsonl", &[]);
    write("twice.jsonl", &[problem(0), problem(1), problem(0)]);
    write("untested.jsonl", &[problem(1), without("tests", json!([]))]);
    write("termless.jsonl", &[without("terms", json!([]))]);
    write("long.jsonl", &[without("description", json!("shoe ".repeat(400)))]);
    let gtg = |words: &str| format!("eval gtg --model model {words}");
    let cases: [(String, &[&str]); 11] = [
        (gtg("--data empty.jsonl"), &["empty.jsonl", "no problems"]),
        (gtg("--data twice.jsonl"), &["twice.jsonl", "\"p0\" occurs twice"]),
        (gtg("--data untested.jsonl"), &["untested.jsonl", "\"p0\" has no tests"]),
        (gtg("--data long.jsonl"), &["p0", "max_position_embeddings"]),
        (gtg("--data problems.jsonl --out model"), &["cannot write model", "directory"]),
        (
            gtg("--data problems.jsonl --out empty.jsonl/x.json"),
            &["cannot write empty.jsonl/x.json"],
        ),
        (gtg("--data problems.jsonl --rollouts 0"), &["rollouts"]),
        (gtg("--data problems.jsonl --temperature=-1"), &["temperature is -1"]),
        ("eval cases --model model --data termless.jsonl".into(), &["\"p0\" has no terms"]),
        (
            "data solvability --model model --data problems.jsonl --out k.jsonl --min-passed 9 \
             --max-passed 3"
                .into(),
            &["--min-passed 9"],
        ),
        (
            "data solvability --model model --data problems.jsonl --out k.jsonl --min-passed 9 \
             --rollouts 8"
                .into(),
            &["--min-passed 9", "8"],
        ),
    ];
    for (words, parts) in cases {
        place.mistake(&words, parts);
    }
}

#[test]
fn an_error_while_collecting_ends_sampling_and_judging() {
    let model = LanguageModel::open(&INPUTS.join("model")).unwrap();
    let (judge, settings) = (judge(), settings());
    let mut num_done = 0;
    let error = attempt_each(
        &mut Generator::of_trained(&model, 1),
        &task(&judge),
        &settings.queries(PROBLEMS),
        &settings,
        &Progress::hidden(),
        &mut |_, _| {
            num_done += 1;
            anyhow::bail!("the disk is full")
        },
    );
    assert_eq!(error.unwrap_err().to_string(), "the disk is full");
    assert_eq!(num_done, 1);
}

#[test]
fn attempts_come_in_order_with_their_own_verdicts_and_validation_agrees() {
    let model = LanguageModel::open(&INPUTS.join("model")).unwrap();
    let (judge, settings) = (judge(), settings());
    let task = task(&judge);
    let mut generator = Generator::of_trained(&model, 1);
    let queries = settings.queries(PROBLEMS);
    let (groups, cost) =
        attempt(&mut generator, &task, &queries, &settings, &Progress::hidden()).unwrap();
    for attempt in groups.iter().flat_map(|group| &group.attempts) {
        let is_right = attempt.text.contains("```python\nprint(2 * int(input()))\n```");
        assert_eq!(attempt.grade.passed(), is_right, "{}", attempt.text);
        assert_eq!(attempt.grade.verdict.cases.len(), task.problems()[0].tests.len());
    }
    assert!(cost.judging_cpu > Duration::ZERO && cost.generation > Duration::ZERO);
    let score = score();
    let pass_at_1 = score::validate(&mut generator, &task, &settings).unwrap();
    assert_eq!(json!(pass_at_1), score["pass_at_1"]);
}
