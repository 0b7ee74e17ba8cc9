//! An answer on the wire: whole, or as a stream of server-sent events.
//!
//! Contract: nothing is sent before a request is accepted, and no chunk of a choice before its first token,
//! so that a client's time to the first token is true. Every stream ends with `[DONE]`; one that fails says
//! so in an error object before. A client that goes away drops its answers, which gives the work up.

use super::App;
use super::error::ApiError;
use super::job::{Answers, Delta, Event, Finish, Job};
use super::sampling::StreamOptions;
use crate::ops::sample::Drawn;
use axum::Json;
use axum::http::HeaderValue;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// Proxies cut connections on which nothing comes for a minute.
const PING: Duration = Duration::from_secs(10);

/// A kind of completion, as it is written.
pub(crate) trait Shape: Send + 'static {
    /// Begins the id of an answer.
    const ID: &str;
    /// The `object` of a whole answer.
    const OBJECT: &str;
    /// The `object` of a chunk.
    const CHUNK: &str;

    /// Takes log-probabilities of a prompt, before any delta of its choices.
    fn prompt(&mut self, _prompt: usize, _tokens: Vec<Drawn>) {}

    /// Takes out what was not asked for.
    fn trim(&self, _delta: &mut Delta) {}

    /// Writes a whole choice.
    fn whole(&mut self, delta: Delta) -> Value;

    /// Returns further fields of a whole answer.
    fn extra(&self) -> Map<String, Value> {
        Map::new()
    }

    /// Writes a part of a choice, in one or more chunks.
    fn parts(&mut self, delta: Delta) -> Vec<Value>;
}

/// A request that is ready for the engines.
pub(crate) struct Asked<S> {
    pub(crate) shape: S,
    pub(crate) jobs: Vec<Job>,
    pub(crate) answers: Answers,
    pub(crate) stream: Option<StreamOptions>,
}

/// Counts the tokens that were read and sampled.
#[derive(Clone, Copy, Default)]
struct Usage {
    prompt: usize,
    completion: usize,
}

impl Usage {
    fn object(self) -> Value {
        let Self { prompt, completion } = self;
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        })
    }
}

/// Has a request answered.
pub(crate) async fn respond<S: Shape>(
    app: &Arc<App>,
    Asked { shape, jobs, answers, stream }: Asked<S>,
) -> Result<Response, ApiError> {
    let prompt = jobs.iter().map(|job| job.request.prompt.len()).sum();
    let usage = Usage { prompt, completion: 0 };
    jobs.iter().for_each(|job| app.shared.metrics.accepted(job));
    app.shared.desk.submit(jobs)?;
    let id = format!("{}-{:016x}{:016x}", S::ID, rand::random::<u64>(), rand::random::<u64>());
    let created = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()).timestamp();
    let head = json!({"id": id, "created": created, "model": app.model.name});
    match stream {
        None => whole(head, shape, answers, usage).await,
        Some(options) => Ok(streamed(Streaming {
            head,
            shape,
            answers,
            usage,
            options,
            ready: VecDeque::new(),
            is_over: false,
        })),
    }
}

async fn whole<S: Shape>(
    mut answer: Value,
    mut shape: S,
    mut answers: Answers,
    mut usage: Usage,
) -> Result<Response, ApiError> {
    let mut choices: BTreeMap<usize, Delta> = BTreeMap::new();
    while let Some(events) = answers.next().await {
        for event in events {
            match event {
                Event::Failed(failure) => return Err(failure.into()),
                Event::Prompt(prompt, tokens) => shape.prompt(prompt, tokens),
                Event::Delta(mut delta) => {
                    shape.trim(&mut delta);
                    usage.completion += delta.num_tokens;
                    let choice = choices.entry(delta.choice).or_default();
                    choice.choice = delta.choice;
                    choice.text.push_str(&delta.text);
                    choice.tokens.extend(delta.tokens);
                    choice.finish = delta.finish;
                }
            }
        }
    }
    answer["object"] = S::OBJECT.into();
    answer["choices"] = choices.into_values().map(|choice| shape.whole(choice)).collect();
    answer["usage"] = usage.object();
    for (name, value) in shape.extra() {
        answer[name] = value;
    }
    Ok(Json(answer).into_response())
}

/// A stream that goes on.
struct Streaming<S> {
    head: Value,
    shape: S,
    answers: Answers,
    usage: Usage,
    options: StreamOptions,
    /// These are the data of events that are to be sent.
    ready: VecDeque<String>,
    is_over: bool,
}

fn streamed<S: Shape>(streaming: Streaming<S>) -> Response {
    let events = unfold(streaming, |mut streaming| async move {
        while streaming.ready.is_empty() && !streaming.is_over {
            streaming.advance().await;
        }
        let data = streaming.ready.pop_front()?;
        Some((Ok::<_, Infallible>(Sent::default().data(data)), streaming))
    });
    let ping = KeepAlive::new().interval(PING);
    let mut response = Sse::new(events).keep_alive(ping).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<S: Shape> Streaming<S> {
    /// Waits for what comes next.
    async fn advance(&mut self) {
        let Some(events) = self.answers.next().await else {
            if self.options.include_usage {
                let usage = self.usage.object();
                self.send(json!([]), Some(usage));
            }
            return self.end();
        };
        for event in events {
            match event {
                Event::Prompt(prompt, tokens) => self.shape.prompt(prompt, tokens),
                Event::Failed(failure) => {
                    self.ready.push_back(ApiError::from(failure).object().to_string());
                    return self.end();
                }
                Event::Delta(mut delta) => {
                    self.shape.trim(&mut delta);
                    self.usage.completion += delta.num_tokens;
                    let usage = self.options.continuous_usage.then(|| self.usage.object());
                    for choice in self.shape.parts(delta) {
                        self.send(json!([choice]), usage.clone());
                    }
                }
            }
        }
    }

    fn send(&mut self, choices: Value, usage: Option<Value>) {
        let mut chunk = self.head.clone();
        chunk["object"] = S::CHUNK.into();
        chunk["choices"] = choices;
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        self.ready.push_back(chunk.to_string());
    }

    fn end(&mut self) {
        self.ready.push_back("[DONE]".to_owned());
        self.is_over = true;
    }
}

/// Returns `finish_reason` and vLLM's `stop_reason` of a choice.
pub(crate) fn reasons(finish: Option<&Finish>) -> (Value, Value) {
    match finish {
        None => (Value::Null, Value::Null),
        Some(Finish::End) => ("stop".into(), Value::Null),
        Some(Finish::StopToken(id)) => ("stop".into(), (*id).into()),
        Some(Finish::StopString(string)) => ("stop".into(), string.as_str().into()),
        Some(Finish::Length) => ("length".into(), Value::Null),
    }
}
