//! An endpoint on this machine that answers, and fails in every way that endpoints fail.

use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What the endpoint does about a call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    /// It answers.
    Answer,
    /// It answers with this body.
    Body(String),
    /// It answers with an error of this status, and more headers.
    Status(u16, &'static str, String),
    /// It computes an answer, and never says a word.
    HangBeforeHeaders,
    /// It says how long the answer is, and no more.
    HangAfterHeaders,
    /// It sends a byte now and then.
    Drip,
    /// It closes the connection at once.
    Close,
    /// It closes the connection amid the answer.
    CloseAmid,
}

/// Every way in which a call fails that may succeed later.
pub(crate) fn faults() -> Vec<Act> {
    let error = |message: &str| json!({"error": {"message": message}}).to_string();
    vec![
        Act::Status(429, "retry-after: 0\r\n", error("slow down")),
        Act::Status(429, "", error("slow down")),
        Act::Status(500, "", "{".to_owned()),
        Act::Status(503, "retry-after-ms: 20\r\n", String::new()),
        Act::HangBeforeHeaders,
        Act::HangAfterHeaders,
        Act::Drip,
        Act::Close,
        Act::CloseAmid,
        Act::Body("<html>".to_owned()),
        Act::Body(String::new()),
        Act::Body(error("the server has a cold")),
        Act::Body(json!({"choices": null}).to_string()),
    ]
}

/// A call as it comes in.
pub(crate) struct Incoming {
    pub(crate) body: Value,
    pub(crate) key: Option<String>,
    /// How often the same call came before.
    pub(crate) num_before: usize,
}

/// What the endpoint has seen and done.
#[derive(Default)]
pub(crate) struct Seen {
    /// How often each call came.
    pub(crate) came: HashMap<String, usize>,
    /// How often each call was answered, as far as the endpoint knows.
    pub(crate) answered: HashMap<String, usize>,
    /// Tokens that were computed, whether or not anybody got them.
    pub(crate) tokens: u64,
    num_at_once: usize,
    pub(crate) most_at_once: usize,
}

pub(crate) type Behaviour = dyn Fn(&Incoming) -> Act + Send + Sync;

/// An endpoint that goes on until the tests end.
pub(crate) struct Endpoint {
    port: u16,
    seen: Arc<Mutex<Seen>>,
}

pub(crate) const PROMPT_TOKENS: u64 = 20;
pub(crate) const ANSWER_TOKENS: u64 = 5;

impl Endpoint {
    pub(crate) fn start(behaviour: impl Fn(&Incoming) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (behaviour, shared): (Arc<Behaviour>, _) = (Arc::new(behaviour), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (behaviour, shared) = (Arc::clone(&behaviour), Arc::clone(&shared));
                let serve = move || drop(serve(&stream, &*behaviour, &shared));
                std::thread::Builder::new().stack_size(256 << 10).spawn(serve).unwrap();
            }
        });
        Self { port, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

/// The first byte of who speaks TLS.
const TLS_HANDSHAKE: u8 = 0x16;

/// Serves the calls of one connection, until it is closed.
fn serve(stream: &TcpStream, behaviour: &Behaviour, seen: &Mutex<Seen>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    if reader.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
        return (&*stream).write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    }
    while let Some((path, key, body)) = read(&mut reader)? {
        let id = body.to_string();
        let num_before = {
            let mut seen = seen.lock().unwrap();
            seen.num_at_once += 1;
            seen.most_at_once = seen.most_at_once.max(seen.num_at_once);
            let came = seen.came.entry(id.clone()).or_default();
            *came += 1;
            *came - 1
        };
        let incoming = Incoming { body, key, num_before };
        let act = match path.as_str() {
            "/v1/chat/completions" => behaviour(&incoming),
            _ => Act::Status(404, "", "nothing here".to_owned()),
        };
        if !matches!(&act, Act::Status(..) | Act::Close) {
            seen.lock().unwrap().tokens += PROMPT_TOKENS + ANSWER_TOKENS;
        }
        let is_answer = act == Act::Answer;
        let sent = send(stream, &mut reader, &incoming.body, act);
        let mut seen = seen.lock().unwrap();
        seen.num_at_once -= 1;
        if is_answer && sent.is_ok() {
            *seen.answered.entry(id).or_default() += 1;
        }
        sent?;
    }
    Ok(())
}

/// The path, key and body of the next request; none if no more come.
fn read(reader: &mut impl BufRead) -> std::io::Result<Option<(String, Option<String>, Value)>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut length, mut key) = (0, None);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => key = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((path, key, serde_json::from_slice(&body).unwrap_or_default())))
}

fn send(
    mut stream: &TcpStream,
    reader: &mut impl BufRead,
    asked: &Value,
    act: Act,
) -> std::io::Result<()> {
    let closed = || Err(std::io::Error::other("closed"));
    let answer = answer(asked);
    let head = |status: u16, more: &str, length: usize| {
        format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\n\r\n"
        )
    };
    match act {
        Act::Answer => {
            write!(stream, "{}{answer}", head(200, "", answer.len()))
        }
        Act::Body(body) => write!(stream, "{}{body}", head(200, "", body.len())),
        Act::Status(status, more, body) => {
            write!(stream, "{}{body}", head(status, more, body.len()))
        }
        Act::HangBeforeHeaders => {
            wait_for_the_end(reader);
            closed()
        }
        Act::HangAfterHeaders => {
            write!(stream, "{}", head(200, "", answer.len()))?;
            wait_for_the_end(reader);
            closed()
        }
        Act::Drip => {
            write!(stream, "{}", head(200, "", answer.len()))?;
            for _ in 0..answer.len() - 1 {
                stream.write_all(b" ")?;
                std::thread::sleep(Duration::from_millis(50));
            }
            closed()
        }
        Act::Close => closed(),
        Act::CloseAmid => {
            write!(stream, "{}{}", head(200, "", answer.len()), &answer[..answer.len() / 2])?;
            closed()
        }
    }
}

/// Waits until the client has had enough.
fn wait_for_the_end(reader: &mut impl Read) {
    let _closed = reader.read(&mut [0]);
}

/// A chat completion that depends on what was asked alone.
pub(crate) fn answer(asked: &Value) -> String {
    let number = asked["seed"].as_u64().unwrap_or_default() % 10;
    let message = json!({"role": "assistant", "content": format!("\\boxed{{{number}}}"),
        "reasoning_content": "Let me count."});
    json!({
        "object": "chat.completion", "model": asked["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS},
    })
    .to_string()
}
