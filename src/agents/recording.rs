//! The calls to an endpoint as they lie in a directory: what was asked, what came back, what it cost.
//!
//! Contract: `calls.jsonl` holds a row for each event, as text that people and programs can read: a call is `sent`
//! with what is reserved for it; it is `replied` to, with the body as it came, or `lost`; then it is `settled`. A
//! call that is not settled was on its way when the program ended. Of a last row without its end nothing is read.
//! Memory grows with the number of calls and not with their length. Left out: writing (`journal`).

use super::answer::Answer;
use super::budget::Spend;
use super::http::Reply;
use super::request::{Key, Request};
use crate::base::error::usage;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The version of the rows' format.
pub(crate) const FORMAT: u32 = 1;

/// A row.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    /// The first one.
    Format(u32),
    /// A call is about to be sent.
    Sent { key: Key, at: String, reserved: Spend },
    /// A response came.
    Replied(#[serde(borrow)] Replied<'a>),
    /// No response came.
    Lost { key: Key, secs: f64, reason: Cow<'a, str> },
    /// Whether an answer came, whether the token limit cut it off, and what is known of the cost of the call that
    /// was sent last.
    Settled { key: Key, is_answer: bool, is_cut: bool, cost: Spend, is_known: bool },
}

/// A response as it came.
#[derive(Serialize, Deserialize)]
pub(crate) struct Replied<'a> {
    pub(crate) key: Key,
    pub(crate) status: u16,
    pub(crate) secs: f64,
    /// What was asked; not kept of calls that failed.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) body: Body<'a>,
}

/// The bytes of a response: JSON as it came, but without line ends, or any other text.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Body<'a> {
    Json(#[serde(borrow)] Cow<'a, RawValue>),
    Text(Cow<'a, str>),
}

impl<'a> Body<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        // Within JSON a line end is as good as a space: strings hold none.
        let line = text.replace(['\n', '\r'], " ");
        match RawValue::from_string(line) {
            Ok(json) => Self::Json(Cow::Owned(json)),
            Err(_) => Self::Text(text),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Json(json) => json.get().as_bytes(),
            Self::Text(text) => text.as_bytes(),
        }
    }
}

/// Where a row lies.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) at: u64,
    pub(crate) len: u32,
}

/// What is known of a call.
#[derive(Default)]
struct Known {
    /// The response to what was sent last.
    reply: Option<Place>,
    is_answered: bool,
}

/// A file of calls, and where what lies in it.
pub(crate) struct Recording {
    file: File,
    path: PathBuf,
    calls: HashMap<Key, Known>,
    /// What is reserved for calls that are not settled.
    unsettled: HashMap<Key, Spend>,
    pub(crate) spent: Spend,
    pub(crate) unknown: Spend,
    pub(crate) num_unknown: u64,
    /// Answers that the token limit cut off.
    pub(crate) num_cut: u64,
    /// Bytes of all whole rows.
    pub(crate) size: u64,
}

impl Recording {
    /// Where the calls of a directory lie.
    pub(crate) fn path_in(dir: &Path) -> PathBuf {
        dir.join("calls.jsonl")
    }

    /// Reads what is at `path`.
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path)
            .map_err(|e| usage(format!("cannot read the recording {}: {e}", path.display())))?;
        let mut recording = Self {
            file,
            path,
            calls: HashMap::new(),
            unsettled: HashMap::new(),
            spent: Spend::default(),
            unknown: Spend::default(),
            num_unknown: 0,
            num_cut: 0,
            size: 0,
        };
        recording.for_each_row(|recording, number, row, place| {
            let event: Event<'_> = recording.event(row).map_err(|e| {
                let path = recording.path.display();
                usage(format!("{path}:{number}: {e}; what is damaged has to be removed"))
            })?;
            match (number, &event) {
                (1, Event::Format(FORMAT)) => {}
                (1, _) => {
                    let path = recording.path.display();
                    return Err(usage(format!("{path} was not recorded by this version")));
                }
                _ => recording.note(&event, place),
            }
            Ok(())
        })?;
        Ok(recording)
    }

    fn event<'r>(&self, row: &'r [u8]) -> serde_json::Result<Event<'r>> {
        serde_json::from_slice(row)
    }

    /// Gives `take` all whole rows with their numbers and places.
    fn for_each_row(
        &mut self,
        mut take: impl FnMut(&mut Self, usize, &[u8], Place) -> Result<()>,
    ) -> Result<()> {
        let unreadable = format!("reading {}", self.path.display());
        let mut rows = BufReader::new(File::open(&self.path).context(unreadable.clone())?);
        let (mut row, mut at) = (Vec::new(), 0);
        for number in 1.. {
            row.clear();
            let len = rows.read_until(b'\n', &mut row).context(unreadable.clone())?;
            if row.last() != Some(&b'\n') {
                break;
            }
            take(self, number, &row, Place { at, len: len as u32 })?;
            at += len as u64;
        }
        self.size = at;
        Ok(())
    }

    /// Takes note of a row and where it lies.
    pub(crate) fn note(&mut self, event: &Event<'_>, place: Place) {
        match event {
            Event::Format(_) | Event::Lost { .. } => {}
            Event::Sent { key, reserved, .. } => {
                self.unsettled.insert(*key, *reserved);
                self.calls.entry(*key).or_default().reply = None;
            }
            Event::Replied(Replied { key, .. }) => {
                self.calls.entry(*key).or_default().reply = Some(place);
            }
            Event::Settled { key, is_answer, is_cut, cost, is_known } => {
                self.num_cut += u64::from(*is_cut);
                self.unsettled.remove(key);
                self.calls.entry(*key).or_default().is_answered |= is_answer;
                if *is_known {
                    self.spent += *cost;
                } else {
                    self.unknown += *cost;
                    self.num_unknown += 1;
                }
            }
        }
    }

    /// The calls that were on their way when the program ended, with what was reserved for each.
    pub(crate) fn unsettled(&self) -> Vec<(Key, Spend)> {
        self.unsettled.iter().map(|(key, reserved)| (*key, *reserved)).collect()
    }

    /// The answer to a call, if it has one.
    pub(crate) fn answer(&self, key: Key) -> Result<Option<Answer>> {
        if !self.calls.get(&key).is_some_and(|known| known.is_answered) {
            return Ok(None);
        }
        match self.reply(key)? {
            Some(Reply::Response { body, .. }) => Ok(Answer::read(&body).ok()),
            _ => Ok(None),
        }
    }

    /// The response to what was sent last, if one came.
    pub(crate) fn reply(&self, key: Key) -> Result<Option<Reply>> {
        let Some(place) = self.calls.get(&key).and_then(|known| known.reply) else {
            return Ok(None);
        };
        let mut row = vec![0; place.len as usize];
        let read = self.file.read_exact_at(&mut row, place.at).map_err(anyhow::Error::from);
        let event = read.and_then(|()| Ok(self.event(&row)?));
        match event.with_context(|| format!("reading {}", self.path.display()))? {
            Event::Replied(Replied { status, body, .. }) => {
                let body = body.bytes().to_vec();
                Ok(Some(Reply::Response { status, retry_after: None, body }))
            }
            _ => Ok(None),
        }
    }

    /// In what the answered call that is most like `request` differs from it, for people.
    pub(crate) fn nearest(&mut self, request: &Request<'_>) -> Result<String> {
        let wanted = serde_json::to_value(request).context("encoding a request")?;
        let mut nearest: Option<Vec<String>> = None;
        self.for_each_row(|recording, _, row, _| {
            let Ok(Event::Replied(Replied { request: Some(request), .. })) = recording.event(row)
            else {
                return Ok(());
            };
            let Ok(there) = serde_json::from_str::<Value>(request.get()) else { return Ok(()) };
            let differences = differences(&there, &wanted);
            if nearest.as_ref().is_none_or(|least| differences.len() < least.len()) {
                nearest = Some(differences);
            }
            Ok(())
        })?;
        Ok(match nearest {
            Some(differences) => format!("the nearest one has {}", differences.join(", ")),
            None => "it holds no answer at all".to_owned(),
        })
    }
}

/// The fields in which a recorded request differs from the one that is wanted, with both values.
fn differences(there: &Value, wanted: &Value) -> Vec<String> {
    let fields = |value: &Value| -> Vec<(String, Value)> {
        let own = value.as_object().into_iter().flatten().filter(|(name, _)| *name != "body");
        let sent = value["body"].as_object().into_iter().flatten();
        own.chain(sent).map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let (there, wanted) = (fields(there), fields(wanted));
    let value = |fields: &[(String, Value)], name: &str| {
        fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone())
    };
    let mut names: Vec<&String> = there.iter().chain(&wanted).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| value(&there, name) != value(&wanted, name))
        .map(|name| match (name.as_str(), value(&there, name), value(&wanted, name)) {
            ("messages", ..) => "other messages".to_owned(),
            (_, Some(there), Some(wanted)) => format!("{name} {there} (wanted: {wanted})"),
            (_, Some(there), None) => format!("{name} {there} (wanted: none)"),
            (_, None, _) => format!("no {name}"),
        })
        .collect()
}
