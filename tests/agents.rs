//! Models that others serve, as a user asks them: an endpoint that fails in every way, kills, budgets, recordings, and
//! mistakes.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod agents_support;
mod support;

use agents_support::{ANSWER_TOKENS, Act, Endpoint, Incoming, PROMPT_TOKENS, faults};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{Place, done, lines, stderr};

/// Sequences of which the next number is asked for.
fn problems(count: usize) -> String {
    let problem = |i: usize| json!({"problem_id": format!("p{i}"), "tests": [], "terms": ["1", "2", "3", "7"]});
    lines(&(0..count).map(problem).collect::<Vec<Value>>())
}

/// Short waits, so that tests are fast.
const CONFIG: &str = "
[limits]
first_wait_secs = 0.01
read_timeout_secs = 0.5
call_timeout_secs = 1.0
attempts = 40
";

/// A place with so many problems, and a configuration of the endpoint.
fn place(num_problems: usize, config: &str) -> Place {
    let place = Place::new();
    place.write("problems.jsonl", &problems(num_problems));
    place.write("endpoint.toml", &format!("{config}\n{CONFIG}"));
    place
}

/// Asks an endpoint for two next numbers of each problem.
fn ask(place: &Place, endpoint: &Endpoint, words: &str) -> Command {
    let mut command = place.train(
        "eval next-number --data problems.jsonl --rollouts 2 --max-new-tokens 30 --api-config endpoint.toml",
    );
    command.args(["--api", &endpoint.url(), "--api-model", "m"]).args(words.split_whitespace());
    command
}

fn json_of(place: &Place, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(place.path(name)).unwrap()).unwrap()
}

/// The responses of a run that nothing disturbed.
fn undisturbed(num_problems: usize) -> String {
    let place = place(num_problems, "");
    let endpoint = Endpoint::start(|_| Act::Answer);
    done(&mut ask(&place, &endpoint, "--out score.json --save-responses responses.jsonl"));
    fs::read_to_string(place.path("responses.jsonl")).unwrap()
}

/// Expects that what an endpoint computed is within what the journal says, and that nothing was paid twice but
/// what the journal says may have been.
fn assert_all_is_booked(endpoint: &Endpoint, score: &Value) {
    let cost = &score["answered_by"]["cost"];
    let number = |name: &str| cost[name].as_u64().unwrap();
    let seen = endpoint.seen();
    let booked = number("tokens") + number("most_unknown_tokens");
    assert!(seen.tokens <= booked, "{} tokens were computed: {cost}", seen.tokens);
    let num_answers: usize = seen.answered.values().sum();
    let num_twice = num_answers - seen.answered.len();
    assert!(num_twice as u64 <= number("num_unknown"), "{num_twice} were answered twice: {cost}");
}

#[test]
fn every_fault_is_survived_and_booked_and_the_result_is_that_of_a_quiet_endpoint() {
    let place = place(13, "");
    let number = AtomicUsize::new(0);
    let endpoint = Endpoint::start(move |call| match call.num_before {
        // Each call fails in two ways, and all together in each way.
        0 | 1 => faults()[number.fetch_add(1, Ordering::Relaxed) % faults().len()].clone(),
        _ => Act::Answer,
    });
    let words = "--out score.json --save-responses responses.jsonl";
    let text = done(&mut ask(&place, &endpoint, words));
    assert!(text.contains("calls more may have been paid"), "{text}");
    let responses = fs::read_to_string(place.path("responses.jsonl")).unwrap();
    assert_eq!(responses, undisturbed(13));
    assert!(responses.contains("<think>Let me count.</think>"), "{responses}");
    let score = json_of(&place, "score.json");
    assert_all_is_booked(&endpoint, &score);
    let by = &score["answered_by"];
    assert_eq!(by["endpoint"], json!(endpoint.url()));
    let settings = json!({"model": "m", "temperature": 1.0, "max_tokens": 30});
    assert_eq!((&by["settings"], &by["is_replay"]), (&settings, &json!(false)));

    let num_calls = endpoint.seen().came.values().sum::<usize>();
    let again = done(&mut ask(&place, &endpoint, "--out again.json --record score.calls"));
    assert_eq!(endpoint.seen().came.values().sum::<usize>(), num_calls, "nothing is asked twice");
    assert_eq!(again, text);
}

#[test]
fn a_killed_run_goes_on_and_pays_nothing_twice_that_it_could_know_of() {
    kill_and_go_on(20, 3, 8);
}

#[test]
#[ignore = "takes a minute: 1,000 calls, 20 kills"]
fn a_thousand_calls_survive_every_fault_and_twenty_kills() {
    kill_and_go_on(500, 20, 300);
}

/// Kills a run so often while its endpoint fails every third call, and lets it end.
fn kill_and_go_on(num_problems: usize, num_kills: usize, concurrency: usize) {
    let budget = 1_000 * num_problems as u64;
    let place = place(num_problems, &format!("budget.tokens = {budget}"));
    let number = AtomicUsize::new(0);
    let endpoint = Endpoint::start(move |_| {
        std::thread::sleep(Duration::from_millis(20));
        let number = number.fetch_add(1, Ordering::Relaxed);
        match number % 3 {
            0 => faults()[number / 3 % faults().len()].clone(),
            _ => Act::Answer,
        }
    });
    let words = format!(
        "--out score.json --save-responses responses.jsonl --resume --max-sequences {concurrency}"
    );
    let mut num_killed = 0;
    for kill in 0..num_kills {
        let num_before = endpoint.seen().came.len();
        let mut child = ask(&place, &endpoint, &words).stderr(Stdio::piped()).spawn().unwrap();
        // At another moment each time, after it has done something.
        let wanted = num_before + 1 + num_problems * 2 * (kill % 5 + 1) / (8 * num_kills);
        while endpoint.seen().came.len() < wanted && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis((kill * 7 % 40) as u64));
        num_killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(num_killed > 0, "no run was killed");
    done(&mut ask(&place, &endpoint, &words));
    let score = json_of(&place, "score.json");
    assert_all_is_booked(&endpoint, &score);
    assert!(endpoint.seen().tokens <= budget, "{} tokens of {budget}", endpoint.seen().tokens);
    let responses = fs::read_to_string(place.path("responses.jsonl")).unwrap();
    assert_eq!(responses, undisturbed(num_problems));
}

#[test]
fn calls_at_the_same_time_never_exceed_the_budget_and_a_larger_one_goes_on() {
    let place = place(600, "budget.tokens = 25_000");
    let endpoint = Endpoint::start(|_| {
        std::thread::sleep(Duration::from_millis(10));
        Act::Answer
    });
    let words = "--out score.json --resume --max-sequences 300";
    let output = ask(&place, &endpoint, words).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(text.contains("the budget has no room"), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    {
        let seen = endpoint.seen();
        assert!(seen.tokens <= 25_000, "{} tokens", seen.tokens);
        assert!(seen.tokens > 12_000, "{} tokens: hardly anything was spent", seen.tokens);
        assert!(seen.most_at_once > 16, "{} calls at the same time", seen.most_at_once);
    }
    place.write("endpoint.toml", CONFIG);
    done(&mut ask(&place, &endpoint, words));
    assert_eq!(endpoint.seen().tokens, 1200 * (PROMPT_TOKENS + ANSWER_TOKENS));
}

#[test]
fn a_recording_repeats_a_run_without_a_network_and_names_what_it_lacks() {
    let place = place(4, "");
    let endpoint = Endpoint::start(|_| Act::Answer);
    done(&mut ask(&place, &endpoint, "--out a.json --record calls --save-responses a.jsonl"));
    let num_calls = endpoint.seen().came.len();
    let text =
        done(&mut ask(&place, &endpoint, "--out b.json --replay calls --save-responses b.jsonl"));
    assert!(text.contains("from a recording"), "{text}");
    assert_eq!(
        fs::read_to_string(place.path("a.jsonl")).unwrap(),
        fs::read_to_string(place.path("b.jsonl")).unwrap()
    );
    let output = ask(&place, &endpoint, "--replay calls --temperature 0.5").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for part in ["no answer to \"p0\", sample 0", "temperature 1.0 (wanted: 0.5)"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let output = ask(&place, &endpoint, "--replay nothing").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(endpoint.seen().came.len(), num_calls);
}

#[test]
fn the_key_is_sent_and_appears_in_no_file_and_no_log() {
    const KEY: &str = "sk-very-secret-0123456789";
    let place = place(2, "");
    // It repeats the key wherever it can.
    let endpoint = Endpoint::start(|call: &Incoming| {
        let key = call.key.clone().unwrap_or_default();
        match call.num_before {
            0 => Act::Status(500, "", format!("{{\"error\": \"you are {key}\"}}")),
            1 => Act::Body(format!("{{\"error\": {{\"message\": \"you are {key}\"}}}}")),
            _ if key == KEY => Act::Answer,
            _ => Act::Status(401, "", format!("no key like {key}")),
        }
    });
    let mut command = ask(&place, &endpoint, "--out score.json --api-key-env CODESEQ_TEST_KEY");
    command.env("CODESEQ_TEST_KEY", KEY).env("RUST_LOG", "trace");
    let output = command.output().unwrap();
    let logged = stderr(&output);
    assert!(output.status.success(), "{logged}");
    assert!(logged.contains("you are [key]"), "{logged}");
    assert!(!logged.contains(KEY), "the log holds the key");
    for file in place.everything().into_iter().filter(|path| path.is_file()) {
        let bytes = fs::read(&file).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(KEY), "{} holds the key", file.display());
    }
    let output = ask(&place, &endpoint, "--record other --api-key-env CODESEQ_WRONG_KEY")
        .env("CODESEQ_WRONG_KEY", "sk-wrong")
        .output()
        .unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("CODESEQ_WRONG_KEY") && !text.contains("sk-wrong"), "{text}");
}

#[test]
fn an_answer_that_was_cut_off_is_kept_counted_and_not_paid_again() {
    let place = place(3, "");
    let endpoint = Endpoint::start(|_| {
        let message = json!({"content": "", "reasoning_content": "I wonder"});
        let choices = json!([{"message": message, "finish_reason": "length"}]);
        let usage = json!({"prompt_tokens": 20, "completion_tokens": 30});
        Act::Body(json!({"choices": choices, "usage": usage}).to_string())
    });
    let text = done(&mut ask(&place, &endpoint, "--out score.json"));
    assert!(text.contains("6 answers were cut off"), "{text}");
    let score = json_of(&place, "score.json");
    assert_eq!(score["failures"], json!({"unclosed_think": 6}));
    assert_eq!(score["mean_response_tokens"], json!(30.0));
    done(&mut ask(&place, &endpoint, "--out again.json --record score.calls"));
    assert!(endpoint.seen().came.values().all(|&count| count == 1));
}

#[test]
fn mistakes_are_one_line_each() {
    let place = place(2, "");
    let error = |code: &str| json!({"error": {"message": "sorry", "code": code}}).to_string();
    let status =
        |status: u16, body: String| Endpoint::start(move |_| Act::Status(status, "", body.clone()));
    let no_key = status(401, error("invalid_api_key"));
    let no_model = status(404, error("model_not_found"));
    let no_money = status(429, error("insufficient_quota"));
    let too_long = status(400, error("context_length_exceeded"));
    let quiet = Endpoint::start(|_| Act::Answer);
    let base = "eval next-number --data problems.jsonl --rollouts 1 --api-model m --record calls";
    for (url, parts) in [
        (no_key.url(), &["wants a key", "--api-key-env"][..]),
        (no_model.url(), &["has no model \"m\""]),
        (no_money.url(), &["no credit left"]),
        (too_long.url(), &["problem p", "too long"]),
        (quiet.url() + "/v2", &["is not where chat completions are"]),
        (quiet.url().replace("http:", "https:"), &["cannot reach https://127.0.0.1"]),
        ("http://127.0.0.1:9/v1".into(), &["cannot reach http://127.0.0.1:9/v1"]),
        ("http://no-such-host.invalid/v1".into(), &["cannot reach http://no-such-host.invalid"]),
        ("localhost:8000".into(), &["must begin with http"]),
    ] {
        support::expect_mistake(place.train(base).args(["--api", &url]), parts);
    }
    let url = quiet.url();
    for (words, parts) in [
        ("", &["whom to ask?"][..]),
        ("--api-model m", &["--api-model belongs to --api"]),
        ("--api URL", &["`model` is required"]),
        ("--api URL --api-model m", &["has to be kept", "--record"]),
        ("--api URL --api-model m --record c --model m", &["two models"]),
        ("--api URL --api-model m --record c --device cuda", &["--device"]),
        ("--api URL --api-model m --record c --stop-id 3", &["--stop-id"]),
        ("--api URL --api-model m --record c --api-key-env CODESEQ_NO_KEY", &["CODESEQ_NO_KEY"]),
        ("--api URL --api-model m --replay c", &["cannot read the recording"]),
    ] {
        let words =
            format!("eval next-number --data problems.jsonl {}", words.replace("URL", &url));
        support::expect_mistake(&mut place.train(&words), parts);
    }
}

#[test]
fn samples_are_classified_by_an_endpoint_once_each() {
    let place = Place::new();
    let sample = |id: &str, text: &str| {
        json!({"id": id, "messages": [{"role": "user", "content": text},
        {"role": "assistant", "content": "ok"}]})
    };
    place.write("samples.jsonl", &lines(&[sample("a", "def f(): pass"), sample("b", "Hello")]));
    let endpoint = Endpoint::start(|call: &Incoming| {
        let is_code = call.body["messages"].to_string().contains("def f");
        let message = json!({"content": if is_code { "Yes." } else { "No." }});
        Act::Body(json!({"choices": [{"message": message, "finish_reason": "stop"}]}).to_string())
    });
    let classify = |words: &str| {
        let mut command =
            place.train("data classify --data samples.jsonl --api-model m --out codes.jsonl");
        command.args(["--api", &endpoint.url()]).args(words.split_whitespace());
        command
    };
    let text = done(&mut classify(""));
    assert!(text.contains("1  code") && text.contains("1  no code"), "{text}");
    let answers = fs::read_to_string(place.path("codes.jsonl")).unwrap();
    assert!(answers.contains("\"Yes.\""), "{answers}");
    fs::remove_file(place.path("codes.jsonl")).unwrap();
    done(&mut classify(""));
    assert_eq!(endpoint.seen().came.values().sum::<usize>(), 2, "the answers were kept");
    support::expect_mistake(&mut classify("--max-prompt-tokens 5"), &["--max-prompt-tokens"]);
}
