//! What a request that cannot be answered gets: OpenAI's error object, and a status that says whether to
//! try again.
//!
//! Contract: what would fail again is never a 5xx, which clients repeat; a busy or closing server says when
//! to come back. A message quotes at most a few words of the request.

use super::desk::Refusal;
use super::job::Failure;
use crate::base::error::Usage;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::time::Duration;

/// A message has at most so many bytes, because clients show and log it.
const MOST_BYTES: usize = 600;

/// The reason for which a request cannot be answered.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MOST_BYTES {
            let end = (0..=MOST_BYTES).rev().find(|&at| message.is_char_boundary(at));
            message.truncate(end.unwrap_or(0));
            message.push_str(" ...");
        }
        Self { status, message, param: None, code: None, retry_after: None }
    }

    /// The request is wrong as a whole.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// This field is wrong.
    pub(crate) fn field(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::bad(format!("{param}: {}", message.into())) }
    }

    /// This server does not have the field, and without it the request would mean something else.
    pub(crate) fn unsupported(param: &'static str, message: &str) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(param, message) }
    }

    /// The prompt leaves too little room.
    pub(crate) fn too_long(param: &'static str, message: String) -> Self {
        Self { code: Some("context_length_exceeded"), param: Some(param), ..Self::bad(message) }
    }

    pub(crate) fn no_such_model(name: &str, known: &str) -> Self {
        let message = format!("the model {name:?} does not exist: this server has {known:?}");
        let code = Some("model_not_found");
        Self { code, param: Some("model"), ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    pub(crate) fn no_such_path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))
    }

    pub(crate) fn wrong_key() -> Self {
        let message = "give one of the server's API keys, as in Authorization: Bearer KEY";
        let code = Some("invalid_api_key");
        Self { code, ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// Says what was wrong with the work on a field: the user's mistake or ours.
    pub(crate) fn of(param: &'static str, error: &anyhow::Error) -> Self {
        match error.downcast_ref::<Usage>() {
            Some(_) => Self::field(param, format!("{error:#}")),
            None => Self::internal(&format!("{error:#}")),
        }
    }

    /// The failure is ours.
    pub(crate) fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Returns the body of the answer.
    pub(crate) fn object(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let Self { message, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full(waited) => Self {
                code: Some("rate_limit_exceeded"),
                retry_after: Some(waited),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "too many requests wait: try again later",
                )
            },
            Refusal::ShuttingDown => Self::from(Failure::ShuttingDown),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::ShuttingDown => Self {
                retry_after: Some(Duration::from_secs(5)),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
            },
            Failure::SlowReader => Self::bad("the answer was not read fast enough"),
            Failure::Broken(message) => Self::internal(&message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.object())).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            // Above 120 s the official client does not try again at all.
            headers.insert(header::RETRY_AFTER, after.as_secs().clamp(1, 60).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            // Results follow from requests, and so do failures.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}
