//! What is done about a reply: use it, send the call again, give the call up, or end the run.
//!
//! Contract: pure. What is sure to fail again is not sent again; what may have been paid for is booked so.

use super::answer::{Answer, NoAnswer, Refusal, RefusalKind};
use super::endpoint::Endpoint;
use super::error_body::ErrorBody;
use super::http::Reply;
use crate::base::error::usage;
use anyhow::Error;
use std::time::Duration;

/// Nobody waits longer than this for an endpoint: the run ends and can be continued.
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// What is done about a reply.
#[derive(Debug)]
pub(crate) enum Decision {
    /// It is an answer.
    Answered(Answer),
    /// The call is sent again, later.
    Again(Failure),
    /// The call would fail again.
    Refused(Refusal),
    /// Every call would fail: the run ends, and can be continued once the reason is gone.
    Stop(Error),
}

/// A call that failed and is sent again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// How long the endpoint wants nobody to ask.
    pub(crate) pause: Option<Duration>,
    /// Whether the endpoint had too many calls.
    pub(crate) is_overload: bool,
    /// Whether the endpoint may have computed an answer, and counts it.
    pub(crate) may_be_paid: bool,
}

impl Failure {
    fn of(reason: impl Into<String>, may_be_paid: bool) -> Self {
        Self { reason: reason.into(), pause: None, is_overload: false, may_be_paid }
    }
}

impl Decision {
    /// Decides about the reply to a call. As long as nobody was reached, an endpoint that cannot be is a mistake.
    pub(crate) fn of(reply: &Reply, endpoint: &Endpoint, was_reached: bool) -> Self {
        match reply {
            Reply::NotSent(reason) if !was_reached => {
                Self::Stop(usage(format!("cannot reach {}: {reason}", endpoint.url)))
            }
            Reply::NotSent(reason) => Self::Again(Failure::of(reason, false)),
            Reply::Lost(reason) => Self::Again(Failure::of(reason, true)),
            Reply::Response { status: 200, retry_after, body } => match Answer::read(body) {
                Ok(answer) => Self::Answered(answer),
                Err(NoAnswer::Broken(reason)) => Self::Again(Failure::of(reason, true)),
                Err(NoAnswer::Error(error)) => {
                    let said = |status| of_error(status, *retry_after, &error, endpoint);
                    match error.status() {
                        Some(status) => said(status),
                        None if error.says(&["rate limit"]) => said(429),
                        None if error.has_code("rate_limit_exceeded") => said(429),
                        None if error.has_code("insufficient_quota") => said(402),
                        None => Self::Again(Failure::of(error.message, true)),
                    }
                }
            },
            Reply::Response { status, retry_after, body } => {
                of_error(*status, *retry_after, &ErrorBody::of_failure(body), endpoint)
            }
        }
    }
}

fn of_error(
    status: u16,
    pause: Option<Duration>,
    error: &ErrorBody,
    endpoint: &Endpoint,
) -> Decision {
    let Endpoint { url, model, .. } = endpoint;
    let said = match error.message.as_str() {
        "" => format!("status {status}"),
        message => format!("{status}, {message}"),
    };
    let stop = |text: String| Decision::Stop(usage(text));
    let is_about_model = error.has_code("model_not_found")
        || (error.says(&["model"])
            && error.says(&["not exist", "not found", "unknown", "no such"]));
    match status {
        401 | 403 => stop(match &endpoint.key_env {
            Some(name) => format!("{url} refuses the key in {name}: {said}"),
            None => format!(
                "{url} wants a key ({said}): name the environment variable that holds it (--api-key-env)"
            ),
        }),
        402 => stop(format!("{url} wants to be paid first: {said}; continue afterwards")),
        429 if error.has_code("insufficient_quota") => {
            stop(format!("{url} has no credit left: {said}; continue once it has"))
        }
        400 | 404 | 422 if is_about_model => stop(format!("{url} has no model {model:?}: {said}")),
        400 | 413 | 422
            if error.has_code("context_length_exceeded")
                || error.has_code("exceed_context_size_error")
                || error.says(&["context length", "maximum context", "context size"]) =>
        {
            Decision::Refused(Refusal { kind: RefusalKind::TooLong, message: said })
        }
        400 | 422
            if error.has_code("unsupported_parameter") || error.has_code("unsupported_value") =>
        {
            let param = error.param.as_deref().unwrap_or("a field");
            stop(format!(
                "{url} does not take {param} ({said}): say so in `accepts` of the endpoint's file \
                 (--api-config)"
            ))
        }
        404 | 405 | 300..400 => stop(format!(
            "{url}/chat/completions is not where chat completions are ({said}): the URL should be the base, \
             such as https://api.openai.com/v1"
        )),
        408 | 409 | 425 | 429 | 500.. => match pause {
            Some(pause) if pause > LONGEST_PAUSE => stop(format!(
                "{url} wants to be left alone for {} minutes ({said}): continue then",
                pause.as_secs() / 60
            )),
            _ => Decision::Again(Failure {
                is_overload: matches!(status, 429 | 503),
                pause,
                // A gateway that waited in vain knows nothing of what stands behind it.
                ..Failure::of(said, matches!(status, 502 | 504 | 520..))
            }),
        },
        _ => Decision::Refused(Refusal { kind: RefusalKind::Rejected, message: said }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::request::tests::endpoint;
    use crate::base::error::exit_code;

    fn decide(status: u16, body: &str, pause: Option<u64>) -> Decision {
        let retry_after = pause.map(Duration::from_secs);
        let reply = Reply::Response { status, retry_after, body: body.as_bytes().to_vec() };
        Decision::of(&reply, &endpoint(), true)
    }

    fn failure(decision: Decision) -> Failure {
        match decision {
            Decision::Again(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_may_pass_is_sent_again_and_what_may_be_paid_is_said() {
        for (status, body, may_be_paid, is_overload) in [
            (429, "", false, true),
            (503, "loading", false, true),
            (500, "{", false, false),
            (408, "", false, false),
            (504, "", true, false),
            (200, "", true, false),
            (200, "<html>", true, false),
            (200, r#"{"choices": null}"#, true, false),
            (200, r#"{"error": {"message": "oops"}}"#, true, false),
            (200, r#"{"error": {"message": "Rate limit reached"}}"#, false, true),
            (200, r#"{"error": {"message": "later", "code": 429}}"#, false, true),
        ] {
            let failure = failure(decide(status, body, None));
            assert_eq!(
                (failure.may_be_paid, failure.is_overload),
                (may_be_paid, is_overload),
                "{status} {body}"
            );
        }
        assert_eq!(failure(decide(429, "", Some(7))).pause, Some(Duration::from_secs(7)));
        let lost = Decision::of(&Reply::Lost("timeout".into()), &endpoint(), true);
        assert!(failure(lost).may_be_paid);
        let not_sent = Decision::of(&Reply::NotSent("refused".into()), &endpoint(), true);
        assert!(!failure(not_sent).may_be_paid);
    }

    #[test]
    fn what_fails_for_all_calls_ends_the_run_in_one_line() {
        for (status, body, part) in [
            (401, r#"{"error": "Unauthorized"}"#, "wants a key (401, Unauthorized)"),
            (402, "", "paid first"),
            (429, r#"{"error": {"message": "x", "code": "insufficient_quota"}}"#, "no credit left"),
            (
                404,
                r#"{"error": {"message": "x", "code": "model_not_found"}}"#,
                "has no model \"m\"",
            ),
            (400, r#"{"error": {"message": "Model Not Exist"}}"#, "has no model \"m\""),
            (404, "nothing here", "is not where chat completions are"),
            (301, "", "is not where chat completions are"),
            (
                400,
                r#"{"error": {"message": "x", "code": "unsupported_parameter", "param": "seed"}}"#,
                "does not take seed",
            ),
        ] {
            let Decision::Stop(error) = decide(status, body, None) else {
                panic!("{status} {body}")
            };
            assert_eq!(exit_code(&error), 2);
            let text = error.to_string();
            assert!(text.contains(part) && text.contains("localhost:1"), "{text}");
            assert!(!text.contains('\n'));
        }
        let Decision::Stop(error) = decide(429, "", Some(3600)) else { panic!() };
        assert!(error.to_string().contains("60 minutes"), "{error}");
        let unreached = Decision::of(&Reply::NotSent("no route".into()), &endpoint(), false);
        assert!(matches!(unreached, Decision::Stop(error) if exit_code(&error) == 2));
    }

    #[test]
    fn what_fails_for_one_call_is_that_calls_outcome() {
        let kind = |status, body: &str| match decide(status, body, None) {
            Decision::Refused(refusal) => refusal.kind,
            other => panic!("{other:?}"),
        };
        let too_long = r#"{"error": {"message": "x", "code": "context_length_exceeded"}}"#;
        assert_eq!(kind(400, too_long), RefusalKind::TooLong);
        assert_eq!(kind(400, r#"{"error": {"message": "odd"}}"#), RefusalKind::Rejected);
        assert_eq!(kind(415, ""), RefusalKind::Rejected);
    }
}
