//! The server as clients meet it: what they send, what they depend on, and what goes wrong on servers.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod serve_support;

use codeseq::base::progress::Progress;
use codeseq::engine::{Request, RequestId, Rollout, SamplingParams};
use codeseq::serve::{ApiKeys, Limits, Server, Settings};
use serde_json::{Value, json};
use serve_support::{
    Connection, MODEL, NAME, engine, get, metric, model, post, raw_post, settings, start,
    wait_until, wait_until_idle,
};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

static SERVER: LazyLock<Server> = LazyLock::new(|| start(settings(), 1));

fn server() -> SocketAddr {
    SERVER.address()
}

fn with(mut body: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn complete(more: Value) -> Value {
    let body = json!({"model": NAME, "prompt": "A wall has 3 rows", "max_tokens": 12, "seed": 5});
    post(server(), COMPLETIONS, &with(body, more)).ok()
}

fn chat(more: Value) -> Value {
    post(server(), CHAT, &with(question(), more)).ok()
}

fn question() -> Value {
    json!({"model": NAME, "max_tokens": 12, "seed": 5,
        "messages": [{"role": "user", "content": "How many bricks?"}]})
}

/// The streamed text of each choice, and its pieces.
fn pieces(path: &str, body: Value) -> (Vec<String>, String) {
    let chunks = post(server(), path, &with(body, json!({"stream": true}))).chunks();
    let text = |chunk: &Value| {
        let choice = &chunk["choices"][0];
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        text.map(str::to_owned)
    };
    let pieces: Vec<String> = chunks.iter().filter_map(text).collect();
    let whole = pieces.concat();
    (pieces, whole)
}

#[test]
fn any_bytes_are_streamed_as_the_same_text_that_comes_at_once() {
    for seed in 0..6 {
        let wild = json!({"model": NAME, "prompt": "é", "temperature": 2.0, "max_tokens": 40,
            "seed": seed, "ignore_eos": true, "logprobs": 2});
        let whole = post(server(), COMPLETIONS, &wild).ok();
        let (pieces, streamed) = pieces(COMPLETIONS, wild.clone());
        assert_eq!(whole["choices"][0]["text"], streamed);
        assert!(pieces.len() > 2);
        let chat_logprobs = with(
            question(),
            json!({"temperature": 2.0, "seed": seed,
            "logprobs": true, "top_logprobs": 1}),
        );
        let answer = post(server(), CHAT, &chat_logprobs).ok();
        let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
        let byte = |byte: &Value| byte.as_u64().unwrap() as u8;
        let bytes = |entry: &Value| entry["bytes"].as_array().unwrap().iter().map(byte).collect();
        let bytes: Vec<Vec<u8>> = entries.iter().map(bytes).collect();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let joined = String::from_utf8_lossy(&bytes.concat()).into_owned();
        assert!(joined.starts_with(&text), "{text:?} {joined:?}");
    }
}

#[test]
fn a_stop_string_leaks_no_part_of_itself_and_nothing_before_it_is_lost() {
    let long = json!({"max_tokens": 40, "temperature": 0});
    let whole = complete(long.clone())["choices"][0]["text"].as_str().unwrap().to_owned();
    let middle: Vec<char> = whole.chars().collect();
    let stop: String = middle[middle.len() / 2..middle.len() / 2 + 9].iter().collect();
    let before = &whole[..whole.find(&stop).unwrap()];
    let body = json!({"model": NAME, "prompt": "A wall has 3 rows", "max_tokens": 40,
        "temperature": 0, "stop": [stop.as_str(), "never"]});
    let (pieces, streamed) = pieces(COMPLETIONS, body.clone());
    assert_eq!(streamed, before);
    assert!(!pieces[0].is_empty(), "held text makes no empty chunk");
    let answer = post(server(), COMPLETIONS, &body).ok();
    assert_eq!(answer["choices"][0]["stop_reason"], stop.as_str());
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let kept = complete(with(body.clone(), json!({"include_stop_str_in_output": true})));
    assert_eq!(kept["choices"][0]["text"], format!("{before}{stop}"));
    // What only began like a stop string is there at the limit.
    let ends = format!("{}#", &whole[whole.len() - 3..]);
    assert_eq!(complete(with(long, json!({"stop": ends})))["choices"][0]["text"], whole);
}

#[test]
fn a_chat_stream_begins_with_its_first_token_and_ends_with_reason_usage_and_done() {
    let body = with(
        question(),
        json!({"stream": true, "n": 2,
        "stream_options": {"include_usage": true}}),
    );
    let chunks = post(server(), CHAT, &body).chunks();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    let whole = chat(json!({"n": 2}));
    assert_eq!(usage["usage"], whole["usage"]);
    let [prompt, completion] =
        ["prompt_tokens", "completion_tokens"].map(|name| whole["usage"][name].as_u64().unwrap());
    assert_eq!(whole["usage"]["total_tokens"], prompt + completion);
    for index in 0..2 {
        let of_choice = chunks.iter().map(|chunk| &chunk["choices"][0]);
        let of_choice: Vec<&Value> = of_choice.filter(|choice| choice["index"] == index).collect();
        assert_eq!(of_choice[0]["delta"], json!({"role": "assistant", "content": ""}));
        let text = |choice: &&Value| choice["delta"]["content"].as_str().map(str::to_owned);
        let text: String = of_choice.iter().filter_map(text).collect();
        let choice = &whole["choices"][index];
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(of_choice.last().unwrap()["finish_reason"], choice["finish_reason"]);
    }
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["model"] == NAME));
    let every = with(body, json!({"stream_options": {"continuous_usage_stats": true}}));
    let chunks = post(server(), CHAT, &every).chunks();
    assert!(chunks.iter().all(|chunk| chunk["usage"]["prompt_tokens"] == prompt));
}

#[test]
fn what_is_wrong_with_a_request_is_a_400_that_names_the_field() {
    let wrong = [
        (json!({"logit_bias": {"1536": 1}}), "logit_bias"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"stop_token_ids": [1536]}), "stop_token_ids"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": vec!["x"; 10_000]}), "stop"),
        (json!({"stop": 7}), "stop"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"n": "2"}), "n"),
        (json!({"temperature": "1"}), "temperature"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": 0.0001}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"presence_penalty": 2.5}), "presence_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"max_tokens": 1u64 << 31}), "max_tokens"),
        (json!({"min_tokens": 13}), "min_tokens"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"tools": [{}]}), "tools"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"skip_special_tokens": false}), "skip_special_tokens"),
        (json!({"best_of": 4}), "best_of"),
        (json!({"use_beam_search": true}), "use_beam_search"),
        (json!({"guided_regex": "a*"}), "guided_regex"),
    ];
    for (fields, param) in &wrong {
        for (path, body) in
            [(CHAT, question()), (COMPLETIONS, json!({"prompt": "a", "max_tokens": 12}))]
        {
            let error = post(server(), path, &with(body, fields.clone())).error(400);
            assert_eq!(error["param"], *param, "{fields}");
            assert!(error["message"].as_str().unwrap().len() < 700);
        }
    }
    for (fields, param) in [
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": [1536]}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt"),
        (json!({"prompt": null}), "prompt"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"max_tokens": 0}), "max_tokens"),
    ] {
        let body = with(json!({"prompt": "a"}), fields.clone());
        assert_eq!(post(server(), COMPLETIONS, &body).error(400)["param"], param, "{fields}");
    }
    for messages in [
        json!([]),
        json!("hi"),
        json!([{"role": "user"}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        json!([{"content": "hi"}]),
        json!([{"role": "pirate", "content": "hi"}]),
    ] {
        let body = with(question(), json!({"messages": messages}));
        assert_eq!(post(server(), CHAT, &body).error(400)["param"], "messages", "{messages}");
    }
    let body = with(question(), json!({"top_logprobs": 2}));
    assert_eq!(post(server(), CHAT, &body).error(400)["param"], "top_logprobs");
    assert_eq!(get(server(), "/health").status, 200);
}

#[test]
fn what_is_no_json_is_a_clean_400_and_what_is_harmless_is_ignored() {
    for body in
        ["", "{", "[]", "{} {}", r#"{"prompt": "\ud83d"}"#, r#"{"seed": 1e400}"#, "{\"n\": NaN}"]
    {
        raw_post(server(), COMPLETIONS, body).error(400);
    }
    let nested = format!("{{\"prompt\": {}", "[".repeat(50_000));
    raw_post(server(), COMPLETIONS, &nested).error(400);
    chat(json!({"user": "me", "store": true, "service_tier": "auto", "no_such_field": {"a": 1},
        "tools": [{}], "tool_choice": "none", "response_format": {"type": "text"}}));
    let nulls = [
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "logit_bias",
        "logprobs",
        "tools",
        "top_logprobs",
        "stream",
        "stream_options",
        "presence_penalty",
        "max_completion_tokens",
    ];
    let nulls: Value = nulls.map(|name| (name.to_owned(), Value::Null)).into_iter().collect();
    chat(nulls.clone());
    complete(nulls);
}

#[test]
fn an_assistant_may_have_said_nothing_and_a_template_refuses_in_its_own_words() {
    for said in
        [json!({"content": null}), json!({}), json!({"content": ""}), json!({"content": []})]
    {
        let turn = with(json!({"role": "assistant"}), said);
        let user = json!({"role": "user", "content": [{"type": "text", "text": "hi"}]});
        chat(
            json!({"messages": [{"role": "developer", "content": "Be brief."}, user, turn, user]}),
        );
    }
    let messages = json!([{"role": "tool", "content": "x"}]);
    let error = post(server(), CHAT, &with(question(), json!({"messages": messages}))).error(400);
    assert!(error["message"].as_str().unwrap().contains("unknown role tool"), "{error}");
}

#[test]
fn the_advertised_context_is_there_and_one_token_more_is_named_with_a_code() {
    let card = get(server(), "/v1/models").ok()["data"][0].clone();
    let length = card["max_model_len"].as_u64().unwrap() as usize;
    assert_eq!((card["id"].as_str(), card["root"].as_str()), (Some(NAME), Some(NAME)));
    let prompt = vec![300; length - 1];
    let answer = complete(json!({"prompt": prompt, "max_tokens": 1}));
    assert_eq!(answer["usage"]["total_tokens"], length);
    for (prompt, max_tokens) in [(vec![300; length], 1), (vec![300; length - 1], 2)] {
        let body = json!({"prompt": prompt, "max_tokens": max_tokens});
        let error = post(server(), COMPLETIONS, &body).error(400);
        assert_eq!(error["code"], "context_length_exceeded");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(&length.to_string()) && message.contains(&prompt.len().to_string())
        );
    }
    // Without a limit an answer may fill the context.
    let answer = chat(json!({"max_tokens": null, "ignore_eos": true, "temperature": 0}));
    assert_eq!(answer["usage"]["total_tokens"], length);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn log_likelihoods_come_as_lm_eval_reads_them() {
    let prompts = json!([[1, 300, 301, 302, 303], [700, 20, 30]]);
    let answer = complete(json!({"prompt": prompts, "echo": true, "logprobs": 1, "max_tokens": 1,
        "temperature": 0}));
    let sequences: Vec<Vec<u32>> = serde_json::from_value(prompts).unwrap();
    let progress = Progress::new("score", 0, "tokens");
    let scores = model(1).score(&sequences, 1.0, &progress).unwrap();
    for (i, sequence) in sequences.iter().enumerate() {
        assert_eq!(answer["choices"][i]["index"], i);
        let logprobs = &answer["choices"][i]["logprobs"];
        let entries = |name: &str| logprobs[name].as_array().unwrap().clone();
        assert_eq!(entries("tokens").len(), sequence.len() + 1, "one generated entry");
        assert_eq!(entries("token_logprobs")[0], Value::Null);
        assert_eq!(entries("top_logprobs")[0], Value::Null);
        let given = &entries("token_logprobs")[1..sequence.len()];
        let given: Vec<f32> =
            given.iter().map(|logprob| logprob.as_f64().unwrap() as f32).collect();
        assert_eq!(given, scores[i]);
        let pairs = entries("token_logprobs").into_iter().zip(entries("top_logprobs"));
        for (chosen, top) in pairs.skip(1) {
            let top: Vec<f64> =
                top.as_object().unwrap().values().map(|p| p.as_f64().unwrap()).collect();
            assert!(top.contains(&chosen.as_f64().unwrap()) && !top.is_empty());
        }
        let last = entries("token_logprobs").pop().unwrap();
        let top = entries("top_logprobs").pop().unwrap();
        assert!(
            top.as_object().unwrap().values().all(|p| *p == last),
            "greedy takes the likeliest"
        );
    }
    let offsets = answer["choices"][0]["logprobs"]["text_offset"].as_array().unwrap();
    assert!(offsets.is_sorted_by_key(|offset| offset.as_u64()));
    let alone = complete(json!({"prompt": "ab", "echo": true, "logprobs": 0, "max_tokens": 0}));
    assert_eq!(alone["choices"][0]["text"], "ab");
    assert_eq!(alone["usage"]["completion_tokens"], 0);
    let tokens = alone["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(alone["usage"]["prompt_tokens"], tokens.len());
}

#[test]
fn log_probabilities_are_there_in_every_mode() {
    for more in [json!({}), json!({"n": 3}), json!({"echo": true}), json!({"n": 2, "echo": true})] {
        let body = with(
            json!({"model": NAME, "prompt": ["A wall", "A box"], "max_tokens": 6,
            "seed": 9, "logprobs": 2}),
            more,
        );
        let whole = post(server(), COMPLETIONS, &body).ok();
        let chunks = post(server(), COMPLETIONS, &with(body, json!({"stream": true}))).chunks();
        for choice in whole["choices"].as_array().unwrap() {
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let of_chunk = |chunk: &Value| {
                    let choice_of = &chunk["choices"][0];
                    let is_ours = choice_of["index"] == choice["index"];
                    is_ours.then(|| choice_of["logprobs"][name].as_array().unwrap().clone())
                };
                let streamed: Vec<Value> = chunks.iter().filter_map(of_chunk).flatten().collect();
                assert!(streamed.len() >= 6);
                assert_eq!(choice["logprobs"][name], Value::Array(streamed), "{name}");
            }
        }
    }
    assert_eq!(complete(json!({"logprobs": null}))["choices"][0]["logprobs"], Value::Null);
    let answer = chat(json!({"logprobs": true, "top_logprobs": 3}));
    for entry in answer["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 3);
    }
}

#[test]
fn seeds_and_temperatures_are_honoured() {
    let text = |more: Value| chat(more)["choices"][0]["message"]["content"].clone();
    let cold = text(json!({"temperature": 0}));
    assert_eq!(cold, text(json!({"temperature": 0, "seed": 77})));
    let warm = |seed: i64| text(json!({"temperature": 1.0, "seed": seed}));
    assert_eq!(warm(3), warm(3));
    assert_eq!(warm(-3), warm(-3));
    assert!((1..9).any(|seed| warm(seed) != cold) && (1..9).any(|seed| warm(seed) != warm(0)));
    let copies = chat(json!({"temperature": 0, "n": 3}));
    for choice in copies["choices"].as_array().unwrap() {
        assert_eq!(choice["message"]["content"], cold);
    }
    let free = json!({"seed": null, "temperature": 2.0, "max_tokens": 30, "ignore_eos": true});
    assert_ne!(text(free.clone()), text(free));
}

#[test]
fn ends_are_where_they_were_asked_for() {
    let greedy = json!({"temperature": 0, "max_tokens": 20, "return_token_ids": true,
        "ignore_eos": true});
    let whole = complete(greedy.clone());
    let ids = whole["choices"][0]["token_ids"].as_array().unwrap().clone();
    assert_eq!(ids.len(), 20);
    let first = ids.iter().position(|id| id == &ids[7]).unwrap();
    let stopped = complete(with(greedy.clone(), json!({"stop_token_ids": [ids[7]]})));
    assert_eq!(stopped["choices"][0]["token_ids"], Value::Array(ids[..=first].to_vec()));
    assert_eq!(stopped["choices"][0]["stop_reason"], ids[7]);
    let later = complete(with(greedy.clone(), json!({"stop_token_ids": ids, "min_tokens": 15})));
    assert!(later["choices"][0]["token_ids"].as_array().unwrap().len() >= 16);
    let banned = with(greedy, json!({"logit_bias": {ids[0].to_string(): -100}}));
    assert_ne!(complete(banned)["choices"][0]["token_ids"][0], ids[0]);
}

/// What `engine` gives for a completion's request.
fn expected(prompt: &[u32], sampling: SamplingParams, n: usize, seed: u64) -> Vec<Rollout> {
    let mut model = model(1);
    let sampling = SamplingParams {
        stop_ids: model.stop_ids(),
        vocab_size: model.tokenizer.vocab_size(),
        raw_logprobs: true,
        ..sampling
    };
    let key = Request::key_of(seed, prompt);
    let request = Request { prompt: prompt.to_vec(), sampling, num_samples: n, key };
    let (mut engine, _) = model.engine(engine(), "").unwrap();
    let mut rollouts = vec![Rollout::default(); n];
    let mut keep = |_: RequestId, sample: usize, rollout: Rollout| rollouts[sample] = rollout;
    engine.generate(&[request], &mut keep).unwrap();
    rollouts
}

#[test]
fn answers_have_their_bits_in_any_company_with_clients_that_come_and_go() {
    let server = start(settings(), 2);
    let to = server.address();
    let number = |i: u64, what: u64, below: u64| codeseq::base::rng::key(i, &[what]) % below;
    std::thread::scope(|scope| {
        for i in 0..36u64 {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(number(i, 0, 400)));
                let prompt: Vec<u32> = (0..1 + number(i, 1, 90))
                    .map(|at| 256 + number(i, 100 + at, 1200) as u32)
                    .collect();
                let (n, max_tokens) = (1 + number(i, 2, 3) as usize, 1 + number(i, 3, 40) as usize);
                let temperature = [0.0, 0.7, 1.0][number(i, 4, 3) as usize];
                let body = json!({"prompt": prompt, "n": n, "max_tokens": max_tokens, "seed": i,
                    "temperature": temperature, "frequency_penalty": 0.25, "logprobs": 1,
                    "return_token_ids": true, "stream": number(i, 5, 2) == 0});
                let mut connection = Connection::open(to);
                connection.post(COMPLETIONS, &body.to_string());
                if number(i, 6, 3) == 0 {
                    // Gone while it waits, is read, or is sampled.
                    std::thread::sleep(Duration::from_millis(number(i, 7, 60)));
                    return;
                }
                let reply = connection.reply();
                let sampling = SamplingParams {
                    temperature,
                    frequency_penalty: 0.25,
                    max_new_tokens: max_tokens,
                    ..SamplingParams::default()
                };
                let answers = match body["stream"] == true {
                    true => reply.chunks(),
                    false => vec![reply.ok()],
                };
                for (sample, rollout) in expected(&prompt, sampling, n, i).into_iter().enumerate() {
                    let choices = answers.iter().flat_map(|a| a["choices"].as_array().unwrap());
                    let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
                    for choice in choices.filter(|choice| choice["index"] == sample) {
                        ids.extend(choice["token_ids"].as_array().unwrap().clone());
                        let of = choice["logprobs"]["token_logprobs"].as_array().unwrap();
                        logprobs.extend(of.iter().map(|p| p.as_f64().unwrap() as f32));
                    }
                    assert_eq!(Value::Array(ids), json!(rollout.tokens), "request {i}");
                    assert_eq!(logprobs, rollout.logprobs, "request {i}");
                }
            });
        }
    });
    wait_until_idle(to);
    server.stop();
    server.join().unwrap();
}

#[test]
fn an_answer_is_that_of_train_generate() {
    let output = Command::new(env!("CARGO_BIN_EXE_train"))
        .args([
            "generate",
            "--model",
            MODEL,
            "--chat",
            "How many bricks?",
            "--seed",
            "5",
            "-n",
            "2",
        ])
        .args(["--max-new-tokens", "12", "--json", "--presence-penalty", "0.5"])
        .output()
        .unwrap();
    let answer = chat(json!({"n": 2, "presence_penalty": 0.5, "return_token_ids": true}));
    for (i, line) in String::from_utf8(output.stdout).unwrap().lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(answer["choices"][i]["message"]["content"], line["text"]);
        assert_eq!(answer["choices"][i]["token_ids"], line["output_ids"]);
    }
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
}

/// A request that goes on for long.
fn long(n: usize) -> String {
    json!({"prompt": [300, 301], "n": n, "max_tokens": 250, "ignore_eos": true, "stream": true})
        .to_string()
}

#[test]
fn whoever_leaves_gives_everything_back_whether_it_waits_is_read_or_is_sampled() {
    let server = start(settings(), 1);
    let to = server.address();
    let mut sampled = Connection::open(to);
    sampled.post(COMPLETIONS, &long(6));
    assert_eq!(sampled.head().0, 200);
    sampled.chunk().unwrap();
    let mut others: Vec<Connection> = (0..4).map(|_| Connection::open(to)).collect();
    others[0].post(COMPLETIONS, &json!({"prompt": vec![400; 200], "max_tokens": 9}).to_string());
    for other in &mut others[1..] {
        other.post(COMPLETIONS, &long(1));
    }
    wait_until("requests wait", || metric(to, "vllm:num_requests_waiting") > 0.0);
    drop(others);
    wait_until("nobody waits", || metric(to, "vllm:num_requests_waiting") == 0.0);
    assert!(sampled.chunk().is_some(), "the others' leave ends no answer");
    drop(sampled);
    wait_until_idle(to);
    let tokens = metric(to, "vllm:generation_tokens_total");
    assert!(tokens < 6.0 * 250.0, "{tokens} tokens were sampled for nobody");
    server.stop();
    server.join().unwrap();
}

#[test]
fn a_reader_that_does_not_read_holds_up_nobody() {
    let mut lazy = Connection::open(server());
    lazy.post(COMPLETIONS, &long(4));
    for _ in 0..3 {
        complete(json!({}));
    }
    drop(lazy);
}

#[test]
fn a_burst_is_refused_before_the_first_byte_with_a_time_to_come_back() {
    let limits = Limits { max_queued_requests: 8, max_queued_tokens: 1000 };
    let server = start(Settings { limits, ..settings() }, 1);
    let to = server.address();
    let body = json!({"prompt": "A wall", "max_tokens": 30, "seed": 1, "ignore_eos": true});
    let replies: Vec<_> = std::thread::scope(|scope| {
        let ask = || post(to, COMPLETIONS, &body);
        let threads: Vec<_> = (0..48).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (busy, done): (Vec<_>, Vec<_>) = replies.into_iter().partition(|r| r.status == 429);
    assert!(!busy.is_empty() && done.len() >= 8, "{} of 48 were refused", busy.len());
    for reply in busy {
        assert!(reply.head.contains("retry-after: "), "{}", reply.head);
        assert_eq!(reply.error(429)["code"], "rate_limit_exceeded");
    }
    let texts: Vec<Value> =
        done.into_iter().map(|reply| reply.ok()["choices"][0]["text"].clone()).collect();
    assert!(texts.iter().all(|text| text == &texts[0]), "one request has one answer");
    server.stop();
    server.join().unwrap();
}

#[test]
fn a_server_that_is_asked_to_stop_finishes_what_runs_and_refuses_what_is_new() {
    let server = start(settings(), 1);
    let to = server.address();
    let mut running = Connection::open(to);
    running.post(COMPLETIONS, &long(2));
    assert_eq!(running.head().0, 200);
    let first = running.chunk().unwrap();
    server.stop();
    wait_until("health says so", || get(to, "/health").status == 503);
    let refused = post(to, COMPLETIONS, &json!({"prompt": "a"}));
    assert!(refused.head.contains("retry-after: "));
    refused.error(503);
    let rest: String = std::iter::from_fn(|| running.chunk()).collect();
    let text = first + &rest;
    assert_eq!(text.matches("\"finish_reason\":\"length\"").count(), 2, "{text}");
    assert!(text.trim_end().ends_with("[DONE]"));
    server.join().unwrap();
}

#[test]
fn a_deadline_gives_up_what_runs_and_says_so() {
    let server = start(Settings { drain_time: Duration::ZERO, ..settings() }, 1);
    let mut running = Connection::open(server.address());
    running.post(COMPLETIONS, &long(2));
    let mut waiting = Connection::open(server.address());
    assert_eq!(running.head().0, 200);
    running.chunk().unwrap();
    waiting.post(
        COMPLETIONS,
        &json!({"prompt": "a", "max_tokens": 200, "ignore_eos": true}).to_string(),
    );
    wait_until("both run", || metric(server.address(), "vllm:num_requests_running") == 3.0);
    server.stop();
    let rest: String = std::iter::from_fn(|| running.chunk()).collect();
    assert!(rest.contains("shutting down") && rest.trim_end().ends_with("[DONE]"), "{rest}");
    waiting.reply().error(503);
    server.join().unwrap();
}

#[test]
fn keys_let_in_who_has_one_and_open_routes_stay_open() {
    let keys = ApiKeys::parse("secret", "test").unwrap();
    let server = start(Settings { keys, ..settings() }, 1);
    let to = server.address();
    for path in ["/v1/models", "/tokenizer_info", "/playground/problems"] {
        let reply = get(to, path);
        assert!(reply.head.contains("www-authenticate: bearer"), "{}", reply.head);
        assert_eq!(reply.error(401)["code"], "invalid_api_key");
    }
    for path in ["/health", "/metrics", "/"] {
        assert_eq!(get(to, path).status, 200);
    }
    let mut connection = Connection::open(to);
    for key in ["secret", "Secret", ""] {
        let head = format!("Host: x\r\nX-Request-Id: abc\r\nAuthorization: Bearer {key}\r\n\r\n");
        connection.send(&format!("GET /v1/models HTTP/1.1\r\n{head}"));
        let reply = connection.reply();
        assert_eq!(reply.status, if key == "secret" { 200 } else { 401 });
        assert!(reply.head.contains("x-request-id: abc"));
    }
    server.stop();
    server.join().unwrap();
}

#[test]
fn requests_of_http_that_are_odd_are_answered_as_http_says() {
    let to = server();
    assert_eq!(get(to, "/nothing").error(404)["type"], "not_found_error");
    get(to, CHAT).error(405);
    let unknown = post(to, CHAT, &with(question(), json!({"model": "gpt-4"}))).error(404);
    assert_eq!(unknown["code"], "model_not_found");
    get(to, "/v1/models/other/one").error(404);
    assert_eq!(get(to, &format!("/v1/models/{NAME}")).ok()["id"], NAME);
    let body = question().to_string();
    let (start, rest) = body.split_at(9);
    let mut connection = Connection::open(to);
    // A connection is used again, whatever came over it before.
    connection.send(&format!(
        "POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{start}\r\n{:x}\r\n\
         {rest}\r\n0\r\n\r\n",
        start.len(),
        rest.len()
    ));
    assert_eq!(connection.reply().status, 200);
    connection.send(&format!(
        "POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    connection.reply().error(415);
    connection.send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(connection.head().0, 200);
    connection.send("OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: http://a.b\r\n\r\n");
    let (_, head) = connection.head();
    assert!(!head.contains("access-control-allow-origin"), "{head}");
    let mut old = Connection::open(to);
    old.send("GET /health HTTP/1.0\r\n\r\n");
    assert_eq!(old.head().0, 200);
    let mut huge = Connection::open(to);
    huge.send(&format!(
        "POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        17 << 20
    ));
    assert_eq!(huge.head().0, 413);
}

#[test]
fn texts_and_tokens_are_turned_into_each_other() {
    let tokens =
        post(server(), "/tokenize", &json!({"prompt": "A wall é", "return_token_strs": true}));
    let tokens = tokens.ok();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let strings: Vec<String> = serde_json::from_value(tokens["token_strs"].clone()).unwrap();
    assert_eq!(strings.concat().replace('\u{fffd}', ""), "A wall ");
    let text = post(server(), "/detokenize", &json!({"tokens": tokens["tokens"]})).ok();
    assert_eq!(text["prompt"], "A wall é");
    let llama = post(server(), "/tokenize", &json!({"content": "A wall é"})).ok();
    assert_eq!(llama["tokens"], tokens["tokens"]);
    let of_chat = post(server(), "/tokenize", &json!({"messages": question()["messages"]})).ok();
    assert_eq!(of_chat["count"], chat(json!({}))["usage"]["prompt_tokens"]);
    post(server(), "/detokenize", &json!({"tokens": [99_999]})).error(400);
    let info = get(server(), "/tokenizer_info").ok();
    assert_eq!(info["eos_token"], "<|im_end|>");
}
