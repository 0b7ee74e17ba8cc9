//! What a protocol handler hands to an engine, and what comes back of it while it grows.
//!
//! Contract: an engine never waits for a reader. What is not read yet is bounded: who lags too far behind
//! is given up. Whoever drops [`Answers`], at any moment, gives the work up; an engine sees it before its
//! next pass. Left out: the wire's formats.

use crate::engine::text::Stops;
use crate::engine::{FinishReason, Request};
use crate::ops::sample::Drawn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// So many events may wait for a reader: some MB, where they have log-probabilities.
const MOST_UNREAD: usize = 1 << 15;

/// So many events are read at a time, and the text of each choice is joined.
const READ_AT_ONCE: usize = 256;

/// The reason for which a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finish {
    /// The model ended its turn.
    End,
    /// This token came, which the request named.
    StopToken(u32),
    /// This string came, which the request named.
    StopString(String),
    /// It had as many tokens as it may.
    Length,
}

/// Something new of one choice.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta {
    /// Its number among the choices of all prompts.
    pub(crate) choice: usize,
    pub(crate) text: String,
    /// The tokens of the text, those of a stop string included; empty unless they are asked for.
    pub(crate) tokens: Vec<Drawn>,
    /// So many tokens are new.
    pub(crate) num_tokens: usize,
    pub(crate) finish: Option<Finish>,
}

/// An engine tells this of a job.
#[derive(Debug)]
pub(crate) enum Event {
    /// The tokens of a prompt from the second on have these log-probabilities. It comes before any delta of
    /// the prompt's choices.
    Prompt(usize, Vec<Drawn>),
    Delta(Delta),
    /// Nothing more comes, for this reason.
    Failed(Failure),
}

/// The reason for which a request was not answered to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The server is shutting down.
    ShuttingDown,
    /// The reader lags too far behind.
    SlowReader,
    /// Something broke.
    Broken(String),
}

/// A prompt to be answered.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) stops: Arc<Stops>,
    /// Deltas have tokens, with their log-probabilities.
    pub(crate) wants_tokens: bool,
    /// The request named these stop tokens; the model's own are not among them.
    pub(crate) own_stop_ids: Vec<u32>,
    /// The prompt's number within its request.
    pub(crate) prompt: usize,
    pub(crate) arrived: Instant,
    pub(crate) outbox: Outbox,
}

/// An engine puts here what it has to tell of a job.
#[derive(Clone)]
pub(crate) struct Outbox {
    sender: UnboundedSender<Event>,
    num_unread: Arc<AtomicUsize>,
}

impl Outbox {
    /// Puts an event there. Nothing more is of use once the reader is gone.
    pub(crate) fn put(&self, event: Event) {
        self.num_unread.fetch_add(1, Ordering::Relaxed);
        let _reader_is_gone = self.sender.send(event);
    }

    /// Returns whether nobody reads any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Returns whether the reader lags too far behind.
    pub(crate) fn is_full(&self) -> bool {
        self.num_unread.load(Ordering::Relaxed) > MOST_UNREAD
    }
}

/// The reader's end of the jobs of one request.
pub(crate) struct Answers {
    receiver: UnboundedReceiver<Event>,
    num_unread: Arc<AtomicUsize>,
    num_unfinished: usize,
}

/// Returns the two ends of a channel for `num_choices` choices.
pub(crate) fn mailbox(num_choices: usize) -> (Outbox, Answers) {
    let (sender, receiver) = unbounded_channel();
    let num_unread = Arc::new(AtomicUsize::new(0));
    let outbox = Outbox { sender, num_unread: Arc::clone(&num_unread) };
    (outbox, Answers { receiver, num_unread, num_unfinished: num_choices })
}

impl Answers {
    /// Waits for events and returns what came since the last time, or `None` once every choice has
    /// finished. Deltas of one choice are joined.
    pub(crate) async fn next(&mut self) -> Option<Vec<Event>> {
        if self.num_unfinished == 0 {
            return None;
        }
        let mut events = Vec::new();
        if self.receiver.recv_many(&mut events, READ_AT_ONCE).await == 0 {
            self.num_unfinished = 0;
            return Some(vec![Event::Failed(Failure::Broken("the engine ended".to_owned()))]);
        }
        self.num_unread.fetch_sub(events.len(), Ordering::Relaxed);
        let events = joined(events);
        for event in &events {
            match event {
                Event::Delta(delta) if delta.finish.is_some() => self.num_unfinished -= 1,
                Event::Failed(_) => self.num_unfinished = 0,
                Event::Delta(_) | Event::Prompt(..) => {}
            }
        }
        Some(events)
    }
}

/// Returns the same events with all deltas of a choice as one, at the place of its first.
fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut joined: Vec<Event> = Vec::new();
    for event in events {
        let Event::Delta(delta) = event else {
            joined.push(event);
            continue;
        };
        let same = joined.iter_mut().find_map(|event| match event {
            Event::Delta(earlier) if earlier.choice == delta.choice => Some(earlier),
            _ => None,
        });
        match same {
            None => joined.push(Event::Delta(delta)),
            Some(earlier) => {
                earlier.text.push_str(&delta.text);
                earlier.tokens.extend(delta.tokens);
                earlier.num_tokens += delta.num_tokens;
                earlier.finish = delta.finish;
            }
        }
    }
    joined
}

impl Finish {
    /// Returns the reason for which a rollout with this last token ended without a stop string.
    pub(crate) fn of(reason: FinishReason, last: Option<u32>, own_stop_ids: &[u32]) -> Self {
        match (reason, last) {
            (FinishReason::Stop, Some(token)) if own_stop_ids.contains(&token) => {
                Self::StopToken(token)
            }
            (FinishReason::Stop, _) => Self::End,
            (FinishReason::Length | FinishReason::Cancelled, _) => Self::Length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(choice: usize, text: &str, finish: Option<Finish>) -> Event {
        let text = text.to_owned();
        Event::Delta(Delta { choice, text, num_tokens: 1, finish, ..Delta::default() })
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn what_waits_is_joined_by_choice_and_ends_with_the_last_choice() {
        let (outbox, mut answers) = mailbox(2);
        outbox.put(delta(0, "a", None));
        outbox.put(delta(1, "x", Some(Finish::End)));
        outbox.put(delta(0, "b", Some(Finish::Length)));
        let events = block_on(answers.next()).unwrap();
        let text = |event: &Event| match event {
            Event::Delta(delta) => (delta.choice, delta.text.clone(), delta.num_tokens),
            _ => panic!("{event:?}"),
        };
        let texts: Vec<_> = events.iter().map(text).collect();
        assert_eq!(texts, [(0, "ab".to_owned(), 2), (1, "x".to_owned(), 1)]);
        assert!(block_on(answers.next()).is_none());
    }

    #[test]
    fn an_engine_that_ends_early_is_a_failure_and_a_reader_that_lags_is_noticed() {
        let (outbox, mut answers) = mailbox(1);
        for _ in 0..=MOST_UNREAD {
            assert!(!outbox.is_full());
            outbox.put(delta(0, "a", None));
        }
        assert!(outbox.is_full() && !outbox.is_closed());
        block_on(answers.next()).unwrap();
        assert!(!outbox.is_full());
        drop(outbox);
        while let Some(events) = block_on(answers.next()) {
            if let Event::Failed(failure) = &events[0] {
                assert_eq!(*failure, Failure::Broken("the engine ended".to_owned()));
                return;
            }
        }
        panic!("no failure");
    }

    #[test]
    fn a_reader_that_is_gone_is_seen() {
        let (outbox, answers) = mailbox(1);
        drop(answers);
        assert!(outbox.is_closed());
    }
}
