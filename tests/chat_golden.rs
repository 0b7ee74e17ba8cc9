//! Chat templates, loss masks and token ids against what transformers makes of them.
//!
//! `scripts/golden/chat.py` wrote the expectations.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use codeseq::tokenizer::{Message, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    encodings: Vec<Encoding>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    /// Keys to change in `tokenizer_config.json`.
    config: Map<String, Value>,
    /// Special tokens to add to `tokenizer.json`.
    #[serde(default)]
    added_tokens: Vec<String>,
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Refused { error: String },
    Rendered { text: String, prompt: String, ids: Vec<u32>, mask: Vec<u8> },
}

#[derive(Deserialize)]
struct Encoding {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
}

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat")
}

fn golden() -> Golden {
    serde_json::from_str(&std::fs::read_to_string(dir().join("expected.json")).unwrap()).unwrap()
}

fn conversations() -> Vec<Conversation> {
    let text = std::fs::read_to_string(dir().join("conversations.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The tokenizer of the golden files with another template.
fn tokenizer(case: &Case) -> Tokenizer {
    let to = tempfile::tempdir().unwrap();
    let read = |name: &str| -> Map<String, Value> {
        let path = dir().join("tokenizer").join(name);
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let write = |name: &str, object: Map<String, Value>| {
        std::fs::write(to.path().join(name), Value::Object(object).to_string()).unwrap();
    };
    let mut config = read("tokenizer_config.json");
    config.extend(case.config.clone());
    write("tokenizer_config.json", config);
    let mut tokenizer = read("tokenizer.json");
    let first = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.extend(case.added_tokens.iter().enumerate().map(|(i, token)| {
        json!({
            "id": first + i, "content": token, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        })
    }));
    write("tokenizer.json", tokenizer);
    std::fs::write(to.path().join("chat_template.jinja"), &case.template).unwrap();
    Tokenizer::load(to.path()).unwrap()
}

#[test]
fn token_ids_are_those_of_transformers() {
    let tokenizer = Tokenizer::load(&dir().join("tokenizer")).unwrap();
    for row in golden().encodings {
        assert_eq!(tokenizer.encode(&row.text).unwrap(), row.ids, "{:?}", row.text);
        assert_eq!(tokenizer.decode_with_special_tokens(&row.ids).unwrap(), row.text);
    }
}

#[test]
fn templates_render_as_in_transformers() {
    for case in golden().cases {
        let tokenizer = tokenizer(&case);
        let template = tokenizer.template().unwrap();
        for (conversation, outcome) in conversations().iter().zip(&case.outcomes) {
            let rendered = template.render(&conversation.messages, false);
            match outcome {
                Outcome::Refused { error } => {
                    let ours = rendered.unwrap_err().to_string();
                    assert!(ours.contains(error), "{}: {ours} / {error}", case.name);
                }
                Outcome::Rendered { text, prompt, .. } => {
                    assert_eq!(&rendered.unwrap(), text, "{}", case.name);
                    let ours = template.render(&conversation.messages, true).unwrap();
                    assert_eq!(&ours, prompt, "{}", case.name);
                }
            }
        }
    }
}

#[test]
fn loss_masks_are_those_of_transformers() {
    let golden = golden();
    let chatml = golden.cases.iter().find(|case| case.name == "chatml").unwrap();
    let mut compared = 0;
    for case in &golden.cases {
        let tokenizer = tokenizer(case);
        // Without generation tags transformers has no mask; the same template with tags has, and
        // for public templates the script tells it from prefixes.
        let outcomes = if case.name == "plain_chatml" { &chatml.outcomes } else { &case.outcomes };
        for (conversation, outcome) in conversations().iter().zip(outcomes) {
            let Outcome::Rendered { ids, mask, .. } = outcome else { continue };
            let sample = tokenizer.encode_sample(&conversation.messages).unwrap();
            assert_eq!(&sample.input_ids, ids, "{}", case.name);
            let expected: Vec<bool> = mask.iter().map(|&m| m == 1).collect();
            assert_eq!(sample.loss_mask, expected, "{}: {:?}", case.name, conversation.messages);
            compared += 1;
        }
    }
    assert!(compared > 80, "{compared}");
}

/// A row of what `scripts/peers/texts_and_templates.py` writes.
#[derive(Deserialize)]
struct Peer {
    messages: Option<Vec<Message>>,
    #[serde(default)]
    add_generation_prompt: bool,
    /// None where transformers raised an error.
    text: Option<String>,
    #[serde(default)]
    ids: Vec<u32>,
    decoded: Option<String>,
    plain: Option<String>,
}

/// What of a row is another thing here than in transformers.
fn difference(tokenizer: &Tokenizer, row: &Peer) -> Option<String> {
    let mut text = row.text.clone();
    if let Some(messages) = &row.messages {
        let ours = tokenizer.template().and_then(|t| t.render(messages, row.add_generation_prompt));
        match (&ours, &row.text) {
            (Ok(ours), Some(theirs)) if ours == theirs => text = Some(ours.clone()),
            (Err(_), None) => return None,
            (ours, theirs) => return Some(format!("{ours:?}\n  instead of {theirs:?}")),
        }
    }
    let ids = tokenizer.encode(&text?).unwrap();
    let decoded = tokenizer.decode_with_special_tokens(&ids).unwrap();
    let plain = tokenizer.decode(&ids).unwrap();
    let is_same =
        |theirs: &Option<String>, ours: &String| theirs.as_ref().is_none_or(|t| t == ours);
    let is_equal = ids == row.ids && is_same(&row.decoded, &decoded) && is_same(&row.plain, &plain);
    (!is_equal).then(|| format!("{:?}: {ids:?}, {decoded:?}, {plain:?}", row.text))
}

#[test]
#[ignore = "needs $CODESEQ_PEERS, which scripts/peers/texts_and_templates.py makes"]
fn other_tokenizers_and_templates_are_as_in_transformers() {
    let peers = std::env::var("CODESEQ_PEERS").unwrap();
    let mut dirs: Vec<PathBuf> =
        std::fs::read_dir(peers).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    let (mut compared, mut differences) = (0, Vec::new());
    for dir in dirs {
        let name = dir.file_name().unwrap().to_string_lossy();
        let tokenizer = match Tokenizer::load(&dir) {
            Ok(tokenizer) => tokenizer,
            Err(refusal) => {
                differences.push(format!("{name}: {refusal:#}"));
                continue;
            }
        };
        for line in std::fs::read_to_string(dir.join("expected.jsonl")).unwrap().lines() {
            compared += 1;
            let row: Peer = serde_json::from_str(line).unwrap();
            differences.extend(difference(&tokenizer, &row).map(|what| format!("{name}: {what}")));
        }
    }
    let count = differences.len();
    assert!(count == 0, "{count} of {compared} differ:\n{}", differences.join("\n"));
}
