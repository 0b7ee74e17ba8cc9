//! Writes the calls to an endpoint down as they happen, so that nothing is asked twice.
//!
//! Contract: what [`Journal::sync`] returns for is on disk. One process writes a file at a time. What an earlier
//! one left unsettled is settled when the file is opened: a response that came is read, and a call without one may
//! have been paid for. Left out: what the rows are (`recording`).

use super::answer::{Answer, Finish};
use super::budget::{Ledger, Spend};
use super::endpoint::Endpoint;
use super::http::Reply;
use super::recording::{Body, Event, FORMAT, Place, Recording, Replied};
use super::request::{Key, Request};
use crate::base::jsonl_log::JsonlLog;
use anyhow::{Context, Result};
use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

pub(crate) struct Journal {
    log: JsonlLog,
    recording: Recording,
}

impl Journal {
    /// Opens the calls of a directory, or begins them, and books them. Says how many were on their way when an
    /// earlier run ended.
    pub(crate) fn open(dir: &Path, endpoint: &Endpoint) -> Result<(Self, Ledger, usize)> {
        let path = Recording::path_in(dir);
        let mut log = JsonlLog::open(&path)?;
        log.lock()?;
        let recording = Recording::open(path)?;
        log.cut(recording.size)?;
        let is_new = recording.size == 0;
        let mut journal = Self { log, recording };
        if is_new {
            journal.append(&Event::Format(FORMAT))?;
        }
        let book = |recording: &Recording| {
            let spends = (recording.spent, recording.unknown);
            Ledger::new(endpoint.prices, endpoint.budget, spends)
        };
        let ledger = book(&journal.recording);
        let mut num_interrupted = 0;
        for (key, reserved) in journal.recording.unsettled() {
            match journal.recording.reply(key)? {
                None => {
                    num_interrupted += 1;
                    journal.settled(key, None, reserved, false)?;
                }
                Some(Reply::Response { status: 200, body, .. }) => {
                    let answer = Answer::read(&body).ok();
                    let (cost, is_known) = ledger.cost_of_answer(answer.as_ref(), reserved);
                    journal.settled(key, answer.as_ref(), cost, is_known)?;
                }
                Some(_) => journal.settled(key, None, Spend::default(), true)?,
            }
        }
        journal.sync()?;
        let ledger = book(&journal.recording);
        Ok((journal, ledger, num_interrupted))
    }

    /// A call is about to be sent.
    pub(crate) fn sent(&mut self, key: Key, reserved: Spend) -> Result<()> {
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let at = chrono::DateTime::from_timestamp(since_1970.as_secs() as i64, 0);
        let at = at.unwrap_or_default().to_rfc3339();
        self.append(&Event::Sent { key, at, reserved })
    }

    /// What came of a call, as it came; `request` says what was asked.
    pub(crate) fn came(
        &mut self,
        request: &Request<'_>,
        key: Key,
        reply: &Reply,
        took: Duration,
    ) -> Result<()> {
        let secs = (took.as_secs_f64() * 1e3).round() / 1e3;
        match reply {
            Reply::Response { status, body, .. } => {
                let written = (*status == 200).then(|| serde_json::value::to_raw_value(request));
                let written = written.transpose().context("encoding a request")?;
                let (request, body) = (written.as_deref(), Body::of(body));
                let status = *status;
                self.append(&Event::Replied(Replied { key, status, secs, request, body }))
            }
            Reply::NotSent(reason) | Reply::Lost(reason) => {
                self.append(&Event::Lost { key, secs, reason: Cow::Borrowed(reason) })
            }
        }
    }

    /// The answer to a call, if it is one, and what it cost.
    pub(crate) fn settled(
        &mut self,
        key: Key,
        answer: Option<&Answer>,
        cost: Spend,
        is_known: bool,
    ) -> Result<()> {
        let is_cut = answer.is_some_and(|answer| answer.finish == Finish::Length);
        self.append(&Event::Settled { key, is_answer: answer.is_some(), is_cut, cost, is_known })
    }

    fn append(&mut self, event: &Event<'_>) -> Result<()> {
        let at = self.log.size()?;
        self.log.append(event)?;
        let len = (self.log.size()? - at) as u32;
        self.recording.note(event, Place { at, len });
        Ok(())
    }

    /// Forces all rows to disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.log.sync()
    }

    /// The answer to a call, if it has one.
    pub(crate) fn answer(&self, key: Key) -> Result<Option<Answer>> {
        self.recording.answer(key)
    }

    pub(crate) fn path(&self) -> &Path {
        self.log.path()
    }

    /// How many calls there are whose cost cannot be known.
    pub(crate) fn num_unknown(&self) -> u64 {
        self.recording.num_unknown
    }

    /// How many answers the token limit cut off.
    pub(crate) fn num_cut(&self) -> u64 {
        self.recording.num_cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::request::tests::{SAMPLING, call, endpoint};
    use crate::base::error::exit_code;

    const RESERVED: Spend = Spend { tokens: 50, pico_usd: 0 };
    const BODY: &str = "{\"choices\": [{\"message\": {\"content\": \"2\"},\n\"finish_reason\": \"stop\"}],\r\n \
                        \"usage\": {\"prompt_tokens\": 5, \"completion_tokens\": 1}}\n";

    fn response(status: u16, body: &str) -> Reply {
        Reply::Response { status, retry_after: None, body: body.as_bytes().to_vec() }
    }

    /// Writes what comes of a call, without settling it.
    fn write(journal: &mut Journal, sample: usize, reply: Option<Reply>) -> Key {
        let (endpoint, call) = (endpoint(), call("a", sample));
        let request = Request::new(&endpoint, SAMPLING, &call);
        let key = request.key().unwrap();
        journal.sent(key, RESERVED).unwrap();
        if let Some(reply) = reply {
            journal.came(&request, key, &reply, Duration::from_millis(1)).unwrap();
        }
        key
    }

    #[test]
    fn what_was_on_its_way_is_settled_when_the_journal_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _, _) = Journal::open(dir.path(), &endpoint()).unwrap();
        let answered = write(&mut journal, 0, Some(response(200, BODY)));
        let broken = write(&mut journal, 1, Some(response(200, "<html>\n")));
        let refused = write(&mut journal, 2, Some(response(500, "")));
        let silent = write(&mut journal, 3, None);
        drop(journal);
        for num_interrupted in [1, 0] {
            let (journal, ledger, interrupted) = Journal::open(dir.path(), &endpoint()).unwrap();
            assert_eq!(interrupted, num_interrupted);
            assert_eq!((ledger.spent.tokens, ledger.unknown.tokens), (6, 100));
            assert_eq!(journal.num_unknown(), 2);
            assert_eq!(journal.answer(answered).unwrap().unwrap().content, "2");
            for key in [broken, refused, silent] {
                assert_eq!(journal.answer(key).unwrap(), None);
            }
        }
    }

    #[test]
    fn a_response_is_kept_as_it_came_and_without_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _, _) = Journal::open(dir.path(), &endpoint()).unwrap();
        let body = "{\"a\":  1.50,\n\"a\": 12345678901234567890123}";
        write(&mut journal, 0, Some(response(200, body)));
        let text = std::fs::read_to_string(journal.path()).unwrap();
        assert!(text.contains(&body.replace('\n', " ")), "{text}");
        assert!(text.contains(r#""messages":[{"role":"system""#), "{text}");
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn a_torn_row_is_cut_off_a_damaged_one_is_named_and_two_writers_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _, _) = Journal::open(dir.path(), &endpoint()).unwrap();
        let key = write(&mut journal, 0, Some(response(200, BODY)));
        let answer = journal.recording.reply(key).unwrap().unwrap();
        let Reply::Response { body, .. } = answer else { panic!("no response") };
        let answer = Answer::read(&body).unwrap();
        journal.settled(key, Some(&answer), RESERVED, true).unwrap();
        let path = journal.path().to_owned();
        let in_use = Journal::open(dir.path(), &endpoint()).err().unwrap();
        assert!(in_use.to_string().contains("in use"), "{in_use}");
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole, &b"{\"sent\":{\"ke"[..]].concat()).unwrap();
        let (journal, ledger, _) = Journal::open(dir.path(), &endpoint()).unwrap();
        assert_eq!(ledger.spent, RESERVED);
        assert!(journal.answer(key).unwrap().is_some());
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        std::fs::write(&path, [&whole, &b"{\"sent\":\n"[..]].concat()).unwrap();
        let damaged = Journal::open(dir.path(), &endpoint()).err().unwrap();
        assert_eq!(exit_code(&damaged), 2);
        assert!(damaged.to_string().contains("calls.jsonl:5:"), "{damaged}");
        std::fs::write(&path, "{\"format\":99}\n").unwrap();
        assert!(Journal::open(dir.path(), &endpoint()).is_err());
    }
}
