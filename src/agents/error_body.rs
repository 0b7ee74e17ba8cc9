//! What an endpoint says where it fails: OpenAI's error object, and what others send in its place.

use serde_json::Value;

/// The longest text of an endpoint that is repeated, in characters.
const MOST_REPEATED: usize = 300;

/// An error in the body of a response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ErrorBody {
    /// In one line.
    pub(crate) message: String,
    /// `code` and `type`, in lower case.
    pub(crate) codes: Vec<String>,
    /// The field of the request that it is about.
    pub(crate) param: Option<String>,
}

impl ErrorBody {
    /// The error that a body holds, if it holds one.
    pub(crate) fn of(body: &Value) -> Option<Self> {
        let error = &body["error"];
        match error {
            Value::String(message) => Some(Self { message: one_line(message), ..Self::default() }),
            Value::Object(error) => {
                let text = |key: &str| error.get(key).filter(|value| !value.is_null()).map(spelled);
                let codes = [text("code"), text("type")].into_iter().flatten();
                Some(Self {
                    message: one_line(&text("message").unwrap_or_default()),
                    codes: codes.map(|code| code.to_lowercase()).collect(),
                    param: text("param"),
                })
            }
            _ => None,
        }
    }

    /// The error of a response with another status than 200, whatever its body is.
    pub(crate) fn of_failure(body: &[u8]) -> Self {
        let value: Option<Value> = serde_json::from_slice(body).ok();
        let error = value.as_ref().and_then(Self::of);
        error.unwrap_or_else(|| {
            let said = value
                .as_ref()
                .and_then(|body| ["message", "detail"].iter().find_map(|key| body[*key].as_str()));
            let text = said.map_or_else(|| String::from_utf8_lossy(body), Into::into);
            Self { message: one_line(&text), ..Self::default() }
        })
    }

    pub(crate) fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|own| own == code)
    }

    /// Whether the message has one of these words, in any letter case.
    pub(crate) fn says(&self, words: &[&str]) -> bool {
        let message = self.message.to_lowercase();
        words.iter().any(|word| message.contains(word))
    }

    /// The status that a code is.
    pub(crate) fn status(&self) -> Option<u16> {
        let status = self.codes.iter().find_map(|code| code.parse().ok());
        status.filter(|status| (400..600).contains(status))
    }
}

/// A value as text, without the quotes of a string.
fn spelled(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The beginning of a text, in one line.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(MOST_REPEATED) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_in_each_of_its_shapes() {
        let openai = ErrorBody::of_failure(
            br#"{"error": {"message": "no\n such model", "type": "Invalid", "code": "model_not_found"}}"#,
        );
        assert_eq!(openai.message, "no such model");
        assert!(openai.has_code("model_not_found") && openai.has_code("invalid"));
        assert!(openai.says(&["such model"]) && openai.status().is_none());
        for (body, message) in [
            (r#"{"error": "Unauthorized"}"#, "Unauthorized"),
            (r#"{"detail": "Not Found"}"#, "Not Found"),
            (r#"{"message": "slow down"}"#, "slow down"),
            ("<html>\n 502 </html>", "<html> 502 </html>"),
            ("", ""),
        ] {
            assert_eq!(ErrorBody::of_failure(body.as_bytes()).message, message);
        }
        let long = ErrorBody::of_failure("ü".repeat(1000).as_bytes());
        assert_eq!(long.message.chars().count(), MOST_REPEATED + 1);
    }
}
