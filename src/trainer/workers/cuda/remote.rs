//! A rank on another node, as node 0 sees it: what it is asked, and what it answers.
//!
//! Contract: one request at a time, each answered once, but for the chunks of targets whose scores a rank
//! gives while it accumulates: node 0 answers those with gradients, so that an objective runs there for all
//! ranks, and models and objectives share only scalars per token between nodes too.

use super::local::Spec;
use super::ties::Ties;
use crate::engine::{EngineConfig, FinishReason, Next, Request as Prompt, SamplingParams, Stats};
use crate::model::{ScoreGradient, TokenScores};
use crate::ops::adamw::AdamW;
use crate::ranks::Lane;
use crate::ranks::Member;
use crate::trainer::Chunk;
use crate::trainer::MicroBatch;
use crate::trainer::workers::Reduced;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What node 0 asks of a rank.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// To get ready; its pieces of the parameters follow, a message for each portion.
    Start(Spec),
    /// To join the others, now that all are ready.
    Join,
    /// As of [`super::local::Local::accumulate`].
    Accumulate {
        first: usize,
        batches: Vec<MicroBatch>,
        rounds: usize,
        temperature: f32,
    },
    /// With the gradients by the scores of the last chunk.
    Gradients,
    Reduce,
    Step(Option<AdamW>),
    Score {
        rows: Vec<MicroBatch>,
        temperature: f32,
        by_reference: bool,
    },
    /// With its pieces of the parameters.
    KeepReference,
    /// Answered by a message for each portion.
    FetchParams,
    /// Answered by a message for each moment.
    Moments,
    /// A message for each moment follows.
    SetMoments,
    PeakBytes,
    /// To sample until nothing is left to take.
    Sample {
        config: EngineConfig,
        sampling: SamplingParams,
        prompts: Vec<Prompt>,
    },
    /// The index of a prompt to sample, as long as there are any.
    Taken(Option<usize>),
    /// What becomes of the rollout that was shown.
    Next(Next),
    /// Nothing more will come.
    End,
}

/// What a rank answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// With the scores of a chunk of targets of the batch, from its target `first` on.
    Chunk {
        batch: usize,
        first: usize,
    },
    /// The bits of the norm, which may be no number.
    Reduced {
        norm: u64,
        culprits: Vec<usize>,
    },
    /// With the log-probabilities of rows of these lengths.
    Scores(Vec<usize>),
    /// With numbers that were asked for.
    Numbers,
    PeakBytes(usize),
    /// Asks for a prompt.
    Take,
    /// Shows a rollout that grows, now and then, with its log-probabilities.
    Growing(Sample),
    /// A rollout that ended, with its log-probabilities; not answered.
    Finished(Sample),
    Sampled(Stats),
    Failed(String),
}

/// A rollout without its log-probabilities, which are sent as numbers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) prompt: usize,
    pub(crate) sample: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish_reason: FinishReason,
}

/// One end of the connection between node 0 and a rank of another node.
pub(crate) struct End {
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) lane: Arc<Lane>,
    pub(crate) ties: Arc<Ties>,
}

impl Member for End {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn abort(&self) {
        self.ties.cut();
    }
}

/// The rank at the other end.
pub(crate) struct Remote(End);

impl Remote {
    /// Starts it with its pieces of the parameters, by portion; as [`super::local::Local::start`].
    pub(crate) fn start(
        end: End,
        spec: &Spec,
        pieces: &[&[f32]],
        ready: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let remote = Self(end);
        remote.0.lane.send(&Request::Start(spec.clone()), &[])?;
        pieces.iter().try_for_each(|piece| remote.0.lane.send(&(), piece))?;
        remote.expect_done()?;
        ready()?;
        remote.ask(&Request::Join, &[])?;
        Ok(remote)
    }

    pub(crate) fn end(&self) -> &End {
        &self.0
    }

    pub(crate) fn peak_bytes(&mut self) -> Result<usize> {
        self.0.lane.send(&Request::PeakBytes, &[])?;
        match self.answer()? {
            (Answer::PeakBytes(bytes), _) => Ok(bytes),
            (other, _) => out_of_turn(&other),
        }
    }

    pub(crate) fn accumulate<M: Default>(
        &mut self,
        (first, batches): (usize, &[MicroBatch]),
        rounds: usize,
        temperature: f32,
        objective: &impl Fn(Chunk<'_>, &mut [ScoreGradient], &mut M),
    ) -> Result<Vec<M>> {
        let mut of_batches: Vec<M> = batches.iter().map(|_| M::default()).collect();
        let batches = batches.to_vec();
        let request = Request::Accumulate { first, batches, rounds, temperature };
        self.0.lane.send(&request, &[])?;
        loop {
            let (batch, at, numbers) = match self.answer()? {
                (Answer::Done, _) => return Ok(of_batches),
                (Answer::Chunk { batch, first }, numbers) => (batch, first, numbers),
                (other, _) => return out_of_turn(&other),
            };
            let scores = scores_of(&numbers);
            let mut gradients = vec![ScoreGradient::default(); scores.len()];
            let chunk = Chunk { batch, first: at, scores: &scores };
            objective(chunk, &mut gradients, &mut of_batches[batch - first]);
            self.0.lane.send(&Request::Gradients, &numbers_of_gradients(&gradients))?;
        }
    }

    pub(crate) fn reduce(&mut self) -> Result<Reduced> {
        self.0.lane.send(&Request::Reduce, &[])?;
        match self.answer()? {
            (Answer::Reduced { norm, culprits }, _) => {
                Ok(Reduced { norm: f64::from_bits(norm), culprits })
            }
            (other, _) => out_of_turn(&other),
        }
    }

    pub(crate) fn step(&mut self, adamw: Option<AdamW>) -> Result<()> {
        self.ask(&Request::Step(adamw), &[])
    }

    pub(crate) fn score(&mut self, rows: &[MicroBatch], temperature: f32) -> Result<Vec<Vec<f32>>> {
        self.scores(rows, temperature, false)
    }

    pub(crate) fn score_reference(
        &mut self,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        self.scores(rows, temperature, true)
    }

    fn scores(
        &mut self,
        rows: &[MicroBatch],
        temperature: f32,
        by_reference: bool,
    ) -> Result<Vec<Vec<f32>>> {
        let rows = rows.to_vec();
        self.0.lane.send(&Request::Score { rows, temperature, by_reference }, &[])?;
        match self.answer()? {
            (Answer::Scores(lengths), numbers) => {
                let mut numbers = numbers.into_iter();
                Ok(lengths.into_iter().map(|n| numbers.by_ref().take(n).collect()).collect())
            }
            (other, _) => out_of_turn(&other),
        }
    }

    pub(crate) fn keep_reference(&mut self, pieces: &[f32]) -> Result<()> {
        self.ask(&Request::KeepReference, pieces)
    }

    pub(crate) fn fetch_params(&mut self, pieces: &mut [&mut [f32]]) -> Result<()> {
        self.0.lane.send(&Request::FetchParams, &[])?;
        pieces.iter_mut().try_for_each(|piece| {
            piece.copy_from_slice(&self.numbers()?);
            Ok(())
        })
    }

    pub(crate) fn moments(&mut self) -> Result<[Vec<f32>; 2]> {
        self.0.lane.send(&Request::Moments, &[])?;
        Ok([self.numbers()?, self.numbers()?])
    }

    pub(crate) fn set_moments(&mut self, moments: [&[f32]; 2]) -> Result<()> {
        self.0.lane.send(&Request::SetMoments, &[])?;
        moments.iter().try_for_each(|moments| self.0.lane.send(&(), moments))?;
        self.expect_done()
    }

    /// Asks for what is only done.
    fn ask(&self, request: &Request, numbers: &[f32]) -> Result<()> {
        self.0.lane.send(request, numbers)?;
        self.expect_done()
    }

    fn expect_done(&self) -> Result<()> {
        match self.answer()? {
            (Answer::Done, _) => Ok(()),
            (other, _) => out_of_turn(&other),
        }
    }

    fn numbers(&self) -> Result<Vec<f32>> {
        match self.answer()? {
            (Answer::Numbers, numbers) => Ok(numbers),
            (other, _) => out_of_turn(&other),
        }
    }

    pub(crate) fn answer(&self) -> Result<(Answer, Vec<f32>)> {
        match self.0.lane.receive()? {
            (Answer::Failed(why), _) => bail!(why),
            answered => Ok(answered),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // A rank that failed listens no more.
            let _ = self.0.lane.send(&Request::End, &[]);
        }
    }
}

/// What node 0 says, in the midst of things: the end would come too early.
pub(crate) fn heard(lane: &Lane) -> Result<(Request, Vec<f32>)> {
    match lane.receive()? {
        (Request::End, _) => bail!("node 0 ended the run: what it said tells why"),
        heard => Ok(heard),
    }
}

/// An answer that does not fit the request, or the other way round.
pub(crate) fn out_of_turn<T>(said: &impl std::fmt::Debug) -> Result<T> {
    bail!("the nodes do not understand each other ({said:?}): do all run the same program?");
}

pub(crate) fn numbers_of_scores(scores: &[TokenScores]) -> Vec<f32> {
    scores.iter().flat_map(|s| [s.logp, s.entropy, s.mean_logp]).collect()
}

fn scores_of(numbers: &[f32]) -> Vec<TokenScores> {
    let (scores, _) = numbers.as_chunks();
    scores
        .iter()
        .map(|&[logp, entropy, mean_logp]| TokenScores { logp, entropy, mean_logp })
        .collect()
}

fn numbers_of_gradients(gradients: &[ScoreGradient]) -> Vec<f32> {
    gradients.iter().flat_map(|g| [g.logp, g.entropy, g.mean_logp]).collect()
}

pub(crate) fn gradients_of(numbers: &[f32]) -> Vec<ScoreGradient> {
    let (gradients, _) = numbers.as_chunks();
    let gradient =
        |&[logp, entropy, mean_logp]: &[f32; 3]| ScoreGradient { logp, entropy, mean_logp };
    gradients.iter().map(gradient).collect()
}
