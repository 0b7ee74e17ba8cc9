//! One HTTP call: bytes out, bytes back, or why not.
//!
//! Contract: every call ends, within the time-outs. Where a call was lost it is said whether the endpoint may have
//! seen it. The key is read from the environment and leaves this file only in a header; where an endpoint sends it
//! back, it is blanked out. Left out: what a reply means (`decision`).

use super::endpoint::{Endpoint, Limits};
use crate::base::error::usage;
use anyhow::Result;
use std::io::ErrorKind;
use std::time::Duration;
use ureq::{Error, Timeout};

/// Far larger than any answer.
const MOST_BODY_BYTES: u64 = 64 << 20;
/// Shorter than servers wait before they close a connection that nobody uses.
const MOST_IDLE: Duration = Duration::from_secs(4);
const BLANK: &[u8] = b"[key]";

/// What came back.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A response, whole.
    Response {
        status: u16,
        /// How long the endpoint wants nobody to ask again.
        retry_after: Option<Duration>,
        body: Vec<u8>,
    },
    /// There was no connection, so the endpoint has seen nothing.
    NotSent(String),
    /// The endpoint may have seen the call, and answered it.
    Lost(String),
}

/// A way to an endpoint, for many threads at the same time.
pub(crate) struct Http {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
}

impl Http {
    pub(crate) fn new(endpoint: &Endpoint) -> Result<Self> {
        let Limits {
            concurrency, connect_timeout_secs, read_timeout_secs, call_timeout_secs, ..
        } = endpoint.limits;
        let secs = |secs: f64| Some(Duration::from_secs_f64(secs));
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(concurrency)
            .max_idle_connections_per_host(concurrency)
            .max_idle_age(MOST_IDLE)
            .timeout_connect(secs(connect_timeout_secs))
            .timeout_per_read(secs(read_timeout_secs))
            .timeout_per_write(secs(read_timeout_secs))
            .timeout_global(secs(call_timeout_secs))
            .user_agent(concat!("codeseq/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let key = endpoint.key_env.as_deref().map(read_key).transpose()?;
        Ok(Self { agent, url: format!("{}/chat/completions", endpoint.url), key })
    }

    /// Sends a request and waits for all of the response.
    pub(crate) fn post(&self, body: &[u8]) -> Reply {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => return self.without_response(&error),
        };
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let retry_after = retry_after(header("retry-after-ms"), header("retry-after"));
        match response.body_mut().with_config().limit(MOST_BODY_BYTES).read_to_vec() {
            Ok(body) => Reply::Response { status, retry_after, body: self.without_key(body) },
            // Nobody pays for an error, whatever it says.
            Err(_) if status >= 400 => Reply::Response { status, retry_after, body: Vec::new() },
            Err(error) => Reply::Lost(format!("status {status}, then: {error}")),
        }
    }

    fn without_response(&self, error: &Error) -> Reply {
        let said = self.without_key(error.to_string().into_bytes());
        let said = String::from_utf8_lossy(&said).into_owned();
        if is_before_sending(error) { Reply::NotSent(said) } else { Reply::Lost(said) }
    }

    /// The same bytes with the key blanked out.
    fn without_key(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(key) = self.key.as_deref().map(str::as_bytes) else { return bytes };
        let mut clean = Vec::with_capacity(bytes.len());
        let mut rest = &bytes[..];
        while let Some(at) = rest.windows(key.len()).position(|window| window == key) {
            clean.extend_from_slice(&rest[..at]);
            clean.extend_from_slice(BLANK);
            rest = &rest[at + key.len()..];
        }
        clean.extend_from_slice(rest);
        clean
    }
}

/// The key that an environment variable holds.
fn read_key(name: &str) -> Result<String> {
    let key = std::env::var(name).unwrap_or_default();
    let key = key.trim();
    if key.is_empty() {
        return Err(usage(format!(
            "the environment variable {name:?} should hold the endpoint's key: it is not set, or empty"
        )));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(usage(format!(
            "the environment variable {name:?} holds something that is no key: it has spaces or letters \
             outside of ASCII"
        )));
    }
    Ok(key.to_owned())
}

/// Whether a call failed before a byte of it was sent. Where that is not sure, it is not so.
fn is_before_sending(error: &Error) -> bool {
    match error {
        Error::HostNotFound
        | Error::ConnectionFailed
        | Error::BadUri(_)
        | Error::Http(_)
        | Error::Tls(_)
        | Error::TlsRequired
        | Error::InvalidProxyUrl
        | Error::ConnectProxyFailed(_)
        | Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
        Error::Io(error) => {
            let kinds = [
                ErrorKind::ConnectionRefused,
                ErrorKind::HostUnreachable,
                ErrorKind::NetworkUnreachable,
                ErrorKind::AddrNotAvailable,
            ];
            // A name that is not found, and a handshake that fails, have no kind of their own.
            let words = [
                "failed to lookup address",
                "invalid peer certificate",
                "corrupt message",
                "HandshakeFailure",
                "ProtocolVersion",
            ];
            let text = error.to_string();
            kinds.contains(&error.kind()) || words.iter().any(|word| text.contains(word))
        }
        _ => false,
    }
}

/// The wait that a response asks for: milliseconds, seconds, or a date.
fn retry_after(millis: Option<String>, seconds: Option<String>) -> Option<Duration> {
    let number = |text: &str| text.trim().parse().ok();
    if let Some(millis) = millis.as_deref().and_then(number) {
        return Duration::try_from_secs_f64(millis / 1e3).ok();
    }
    let text = seconds?;
    if let Some(seconds) = number(&text) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = chrono::DateTime::parse_from_rfc2822(text.trim()).ok()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
    let at = Duration::from_secs(u64::try_from(date.timestamp()).ok()?);
    Some(at.saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_in_each_of_its_forms() {
        let after = |text: &str| retry_after(None, Some(text.to_owned()));
        assert_eq!(after("2"), Some(Duration::from_secs(2)));
        assert_eq!(after(" 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(after("Fri, 06 Nov 2099 08:49:37 GMT").unwrap() > Duration::from_secs(1 << 30));
        assert_eq!(after("-1"), None);
        assert_eq!(after("soon"), None);
        let both = retry_after(Some("1500".to_owned()), Some("9".to_owned()));
        assert_eq!(both, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn a_key_that_comes_back_is_blanked_out() {
        let endpoint = super::super::request::tests::endpoint();
        let http = Http { key: Some("sk-1".to_owned()), ..Http::new(&endpoint).unwrap() };
        assert_eq!(http.without_key(b"a sk-1sk-1 sk-".to_vec()), b"a [key][key] sk-");
    }

    #[test]
    fn a_key_that_is_missing_is_named_by_its_variable() {
        let error = read_key("CODESEQ_NO_SUCH_KEY").unwrap_err();
        assert!(error.to_string().contains("CODESEQ_NO_SUCH_KEY"), "{error}");
    }
}
