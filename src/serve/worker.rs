//! An engine at work on the jobs of a desk, on a thread of its own.
//!
//! Contract: before each pass the engine takes what it has room for, and gives up jobs whose reader is gone
//! or lags, whether they wait, are read or are sampled; their blocks are free for the next pass. A panic
//! over one job's text ends that job. One in a pass, which belongs to nobody, ends the jobs of this engine,
//! and another takes its place.

use super::desk::Desk;
use super::job::{Delta, Event, Failure, Finish, Job};
use super::metrics::Metrics;
use crate::base::guard::quietly;
use crate::engine::text::TextStream;
use crate::engine::{Engine, EngineConfig, Next, Observer, Rank, RequestId, Rollout};
use crate::ops::sample::Drawn;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// All workers and handlers share this.
pub(crate) struct Shared {
    pub(crate) desk: Desk,
    pub(crate) metrics: Metrics,
}

/// Works on a rank until the desk is closed.
pub(crate) fn work(
    shared: &Shared,
    tokenizer: &Tokenizer,
    rank: &mut Rank<'_>,
    config: &EngineConfig,
) -> Result<()> {
    loop {
        let mut engine = rank.engine(config.clone())?;
        let mut readers = Readers { shared, tokenizer, readers: HashMap::new() };
        let outcome = quietly(|| serve(shared, &mut engine, &mut readers));
        let failure = match outcome {
            Some(Ok(())) => {
                readers.give_up(&Failure::ShuttingDown);
                return Ok(());
            }
            Some(Err(error)) => format!("{error:#}"),
            None => "a pass of the engine panicked".to_owned(),
        };
        tracing::error!("{failure}; its requests are given up");
        readers.give_up(&Failure::Broken(failure));
    }
}

/// Works until the desk is closed, or a pass fails.
fn serve(shared: &Shared, engine: &mut Engine<'_>, readers: &mut Readers<'_>) -> Result<()> {
    let Shared { desk, metrics } = shared;
    loop {
        if engine.is_idle() && !desk.wait() || desk.is_closed() {
            return Ok(());
        }
        while engine.has_room()
            && let Some(job) = desk.take()
        {
            readers.begin(engine, job);
        }
        readers.cancel_unread(engine);
        engine.step(readers)?;
        metrics.passed(&engine.take_stats(), engine.cache_use());
    }
}

/// The jobs of an engine, by the numbers that it gave them.
struct Readers<'m> {
    shared: &'m Shared,
    tokenizer: &'m Tokenizer,
    readers: HashMap<RequestId, Reader<'m>>,
}

/// A job whose answer is being read.
struct Reader<'m> {
    job: Job,
    taken: Instant,
    samples: Vec<Sample<'m>>,
    num_unfinished: usize,
    failure: Option<Failure>,
}

/// A sample that grows.
struct Sample<'m> {
    text: TextStream<'m>,
    /// The text of these tokens was not handed out yet.
    held: Vec<Drawn>,
    num_held: usize,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl<'m> Readers<'m> {
    fn begin(&mut self, engine: &mut Engine<'_>, job: Job) {
        let taken = Instant::now();
        self.shared.metrics.taken(taken - job.arrived);
        let num_samples = job.request.num_samples;
        match engine.submit(job.request.clone()) {
            Err(refusal) => {
                job.outbox.put(Event::Failed(Failure::Broken(format!("{refusal:#}"))));
                self.shared.desk.finish(num_samples);
            }
            Ok(id) => {
                let sample = || Sample {
                    text: TextStream::new(self.tokenizer, Arc::clone(&job.stops)),
                    held: Vec::new(),
                    num_held: 0,
                    first_token: None,
                    last_token: None,
                };
                let samples = (0..num_samples).map(|_| sample()).collect();
                let num_unfinished = num_samples;
                let reader = Reader { job, taken, samples, num_unfinished, failure: None };
                self.readers.insert(id, reader);
            }
        }
    }

    /// Gives up jobs that nobody reads, or that went wrong.
    fn cancel_unread(&mut self, engine: &mut Engine<'_>) {
        for reader in self.readers.values_mut().filter(|reader| reader.job.outbox.is_full()) {
            reader.failure.get_or_insert(Failure::SlowReader);
        }
        let is_over =
            |reader: &Reader<'_>| reader.job.outbox.is_closed() || reader.failure.is_some();
        let over: Vec<(RequestId, Reader<'_>)> =
            self.readers.extract_if(|_, reader| is_over(reader)).collect();
        for (id, reader) in over {
            engine.cancel(id);
            self.end(reader, None);
        }
    }

    /// Gives up all jobs.
    fn give_up(&mut self, failure: &Failure) {
        for (_, reader) in std::mem::take(&mut self.readers) {
            self.end(reader, Some(failure.clone()));
        }
    }

    /// Tells why a job was given up.
    fn end(&self, reader: Reader<'_>, failure: Option<Failure>) {
        if let Some(failure) = reader.failure.or(failure) {
            reader.job.outbox.put(Event::Failed(failure));
        }
        self.shared.metrics.aborted(reader.num_unfinished as u64);
        self.shared.desk.finish(reader.num_unfinished);
    }
}

impl Reader<'_> {
    /// Takes the last token of a sample, and says whether it goes on.
    fn token(&mut self, metrics: &Metrics, index: usize, rollout: &Rollout) -> Result<Next> {
        let sample = &mut self.samples[index];
        let now = Instant::now();
        sample.first_token.get_or_insert(now);
        match sample.last_token.replace(now) {
            Some(last) => metrics.next_token(now - last),
            None => metrics.first_token(now - self.job.arrived, now - self.taken),
        }
        if let (Some(&token), Some(&logprob)) = (rollout.tokens.last(), rollout.logprobs.last()) {
            sample.num_held += 1;
            if self.job.wants_tokens {
                let top = rollout.top_logprobs.last().cloned().unwrap_or_default();
                sample.held.push(Drawn { token, logprob, top });
            }
            sample.text.push(token)?;
        }
        if sample.text.stop().is_some() {
            return Ok(Next::Stop);
        }
        // Tokens go out with their text, and the last ones with the reason of the end.
        let new = sample.text.take().to_owned();
        if !new.is_empty() {
            self.tell(index, new, None);
        }
        Ok(Next::Continue)
    }

    fn finished(&mut self, index: usize, rollout: &Rollout) -> Result<()> {
        let sample = &mut self.samples[index];
        sample.text.finish()?;
        let rest = sample.text.take().to_owned();
        let finish = match sample.text.stop() {
            Some(string) => Finish::StopString(string.to_owned()),
            None => {
                let last = rollout.tokens.last().copied();
                Finish::of(rollout.finish_reason, last, &self.job.own_stop_ids)
            }
        };
        self.tell(index, rest, Some(finish));
        self.num_unfinished -= 1;
        Ok(())
    }

    /// Returns what was done. Where it failed, the job is given up before the next pass.
    fn checked<T>(&mut self, outcome: Option<Result<T>>) -> Option<T> {
        let failure = match outcome {
            Some(Ok(value)) => return Some(value),
            Some(Err(error)) => format!("{error:#}"),
            None => "reading the answer panicked".to_owned(),
        };
        tracing::error!("{failure}; the request is given up");
        self.failure.get_or_insert(Failure::Broken(failure));
        None
    }

    fn tell(&mut self, index: usize, text: String, finish: Option<Finish>) {
        let sample = &mut self.samples[index];
        self.job.outbox.put(Event::Delta(Delta {
            choice: self.job.prompt * self.job.request.num_samples + index,
            text,
            tokens: std::mem::take(&mut sample.held),
            num_tokens: std::mem::take(&mut sample.num_held),
            finish,
        }));
    }
}

impl Observer for Readers<'_> {
    fn prompt(&mut self, request: RequestId, tokens: Vec<Drawn>) {
        if let Some(Reader { job, .. }) = self.readers.get(&request) {
            job.outbox.put(Event::Prompt(job.prompt, tokens));
        }
    }

    fn token(&mut self, request: RequestId, sample: usize, rollout: &Rollout) -> Next {
        let Some(reader) = self.readers.get_mut(&request) else { return Next::Cancel };
        let metrics = &self.shared.metrics;
        let next = quietly(|| reader.token(metrics, sample, rollout));
        reader.checked(next).unwrap_or(Next::Cancel)
    }

    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout) {
        let Some(reader) = self.readers.get_mut(&request) else { return };
        if reader.failure.is_some() {
            return;
        }
        let done = quietly(|| reader.finished(sample, &rollout));
        if reader.checked(done).is_none() {
            return;
        }
        self.shared.desk.finish(1);
        let first = reader.samples[sample].first_token.unwrap_or(reader.taken);
        self.shared.metrics.finished(&reader.job, reader.taken, first, &rollout);
        if reader.num_unfinished == 0 {
            self.readers.remove(&request);
        }
    }
}
