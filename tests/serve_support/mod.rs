//! What tests of the server share: a server in this process, and a client that can do everything wrong.

use codeseq::engine::{EngineConfig, OpenModel};
use codeseq::serve::{ApiKeys, Limits, Playground, Server, Settings};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const MODEL: &str = "data/demo/base";
pub(crate) const NAME: &str = "demo/base";

/// Sizes of a server with few places, so that requests wait and meet.
pub(crate) fn engine() -> EngineConfig {
    EngineConfig { max_sequences: 6, max_length: 256, prefill_tokens: 32, cache_blocks: 80 }
}

pub(crate) fn settings() -> Settings {
    Settings {
        name: NAME.to_owned(),
        engine: engine(),
        limits: Limits { max_queued_requests: 64, max_queued_tokens: 1 << 14 },
        keys: ApiKeys::default(),
        origins: Vec::new(),
        playground: Playground::default(),
        drain_time: Duration::from_secs(20),
    }
}

/// The bundled model on so many ranks.
pub(crate) fn model(ranks: usize) -> OpenModel {
    OpenModel::on_threads(Path::new(MODEL), ranks).unwrap()
}

pub(crate) fn start(settings: Settings, ranks: usize) -> Server {
    Server::start(model(ranks), Server::bind("127.0.0.1", 0).unwrap(), settings).unwrap()
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    /// The body of a request that was answered.
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// The error of a request that was not.
    pub(crate) fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let body: Value = serde_json::from_str(&self.body).unwrap();
        assert!(body["error"]["message"].is_string(), "{self:?}");
        body["error"].clone()
    }

    /// The chunks of a stream, which must end as streams do.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        let mut data: Vec<&str> = data.collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{self:?}");
        data.into_iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
    }
}

/// A connection on which requests are sent as they are written.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn post(&mut self, path: &str, body: &str) {
        let len = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Content-Length: {len}\r\n\r\n{body}"
        ));
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// The status and headers of an answer.
    pub(crate) fn head(&mut self) -> (u16, String) {
        let status = self.line();
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("{status:?}"));
        let status = status.parse().unwrap();
        let mut head = String::new();
        loop {
            let line = self.line();
            if line.trim_end().is_empty() {
                return (status, head.to_lowercase());
            }
            head.push_str(&line);
        }
    }

    /// A part of a chunked body; none at its end.
    pub(crate) fn chunk(&mut self) -> Option<String> {
        let size = self.line();
        let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
        let mut chunk = vec![0; size];
        self.0.read_exact(&mut chunk).unwrap();
        self.line();
        (size > 0).then(|| String::from_utf8(chunk).unwrap())
    }

    pub(crate) fn reply(&mut self) -> Reply {
        let (status, head) = self.head();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let body = match length {
            Some(length) => {
                let mut body = vec![0; length.parse().unwrap()];
                self.0.read_exact(&mut body).unwrap();
                String::from_utf8(body).unwrap()
            }
            None if head.contains("transfer-encoding: chunked") => {
                std::iter::from_fn(|| self.chunk()).collect()
            }
            None => String::new(),
        };
        Reply { status, head, body }
    }
}

pub(crate) fn post(to: SocketAddr, path: &str, body: &Value) -> Reply {
    raw_post(to, path, &body.to_string())
}

pub(crate) fn raw_post(to: SocketAddr, path: &str, body: &str) -> Reply {
    let mut connection = Connection::open(to);
    connection.post(path, body);
    connection.reply()
}

pub(crate) fn get(to: SocketAddr, path: &str) -> Reply {
    let mut connection = Connection::open(to);
    connection.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    connection.reply()
}

/// The value of a series of `/metrics`.
pub(crate) fn metric(to: SocketAddr, name: &str) -> f64 {
    let reply = get(to, "/metrics");
    let line = reply.body.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

/// Waits until `is_reached`.
pub(crate) fn wait_until(what: &str, is_reached: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_reached() {
        assert!(started.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until nothing runs, nothing waits and no block is held.
pub(crate) fn wait_until_idle(to: SocketAddr) {
    let names =
        ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];
    wait_until("an idle server", || names.iter().all(|name| metric(to, name) == 0.0));
}
