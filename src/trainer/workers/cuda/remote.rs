//! A rank on another node, as node 0 sees it: it sends requests over the node's connection and waits for
//! the answers.

use super::protocol::{Answer, End, Request, mismatch, numbers_of_gradients, scores_of};
use super::rank::Rank;
use super::spec::Spec;
use crate::engine::Sampler;
use crate::model::ScoreGradient;
use crate::objective::{Chunk, Objective};
use crate::ops::adamw::AdamW;
use crate::ranks::Member;
use crate::trainer::micro_batch::MicroBatch;
use crate::trainer::workers::{Parameters, Reduced, Share};
use anyhow::{Result, bail};

pub(crate) struct Remote(End);

impl Remote {
    /// Starts the rank with its pieces of the parameters, by portion, as [`super::local::Local::start`]
    /// does.
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

    /// Sends a request whose answer has no content.
    fn ask(&self, request: &Request, numbers: &[f32]) -> Result<()> {
        self.0.lane.send(request, numbers)?;
        self.expect_done()
    }

    fn expect_done(&self) -> Result<()> {
        match self.answer()? {
            (Answer::Done, _) => Ok(()),
            (other, _) => mismatch(&other),
        }
    }

    fn numbers(&self) -> Result<Vec<f32>> {
        match self.answer()? {
            (Answer::Numbers, numbers) => Ok(numbers),
            (other, _) => mismatch(&other),
        }
    }

    pub(crate) fn answer(&self) -> Result<(Answer, Vec<f32>)> {
        match self.0.lane.receive()? {
            (Answer::Failed(why), _) => bail!(why),
            answered => Ok(answered),
        }
    }
}

impl Member for Remote {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn abort(&self) {
        self.0.abort();
    }
}

impl Rank for Remote {
    fn accumulate(
        &mut self,
        share: Share<'_>,
        rounds: usize,
        temperature: f32,
        objective: &dyn Objective,
    ) -> Result<()> {
        let (first, batches) = (share.first, share.batches.to_vec());
        self.0.lane.send(&Request::Accumulate { first, batches, rounds, temperature }, &[])?;
        loop {
            let (batch, first, numbers) = match self.answer()? {
                (Answer::Done, _) => return Ok(()),
                (Answer::Chunk { batch, first }, numbers) => (batch, first, numbers),
                (other, _) => return mismatch(&other),
            };
            let scores = scores_of(&numbers);
            let mut gradients = vec![ScoreGradient::default(); scores.len()];
            objective.learn(Chunk { batch, first, scores: &scores }, &mut gradients);
            self.0.lane.send(&Request::Gradients, &numbers_of_gradients(&gradients))?;
        }
    }

    fn reduce(&mut self) -> Result<Reduced> {
        self.0.lane.send(&Request::Reduce, &[])?;
        match self.answer()? {
            (Answer::Reduced { norm, culprits }, _) => {
                Ok(Reduced { norm: f64::from_bits(norm), culprits })
            }
            (other, _) => mismatch(&other),
        }
    }

    fn step(&mut self, adamw: Option<AdamW>) -> Result<()> {
        self.ask(&Request::Step(adamw), &[])
    }

    fn score(
        &mut self,
        parameters: Parameters,
        rows: &[MicroBatch],
        temperature: f32,
    ) -> Result<Vec<Vec<f32>>> {
        let rows = rows.to_vec();
        self.0.lane.send(&Request::Score { parameters, rows, temperature }, &[])?;
        match self.answer()? {
            (Answer::Scores(lengths), numbers) => {
                let mut numbers = numbers.into_iter();
                Ok(lengths.into_iter().map(|n| numbers.by_ref().take(n).collect()).collect())
            }
            (other, _) => mismatch(&other),
        }
    }

    fn keep_reference(&mut self, shard: &[f32]) -> Result<()> {
        self.ask(&Request::KeepReference, shard)
    }

    fn sampler(&mut self) -> &mut dyn Sampler {
        self
    }

    fn fetch_params(&mut self, pieces: &mut [&mut [f32]]) -> Result<()> {
        self.0.lane.send(&Request::FetchParams, &[])?;
        pieces.iter_mut().try_for_each(|piece| {
            piece.copy_from_slice(&self.numbers()?);
            Ok(())
        })
    }

    fn moments(&mut self) -> Result<[Vec<f32>; 2]> {
        self.0.lane.send(&Request::Moments, &[])?;
        Ok([self.numbers()?, self.numbers()?])
    }

    fn set_moments(&mut self, moments: [&[f32]; 2]) -> Result<()> {
        self.0.lane.send(&Request::SetMoments, &[])?;
        moments.iter().try_for_each(|moments| self.0.lane.send(&(), moments))?;
        self.expect_done()
    }

    fn peak_bytes(&mut self) -> Result<usize> {
        self.0.lane.send(&Request::PeakBytes, &[])?;
        match self.answer()? {
            (Answer::PeakBytes(bytes), _) => Ok(bytes),
            (other, _) => mismatch(&other),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // A rank that failed does not listen any more.
            let _ = self.0.lane.send(&Request::End, &[]);
        }
    }
}
