//! The ranks of a node other than node 0, each of which does what node 0 asks.
//!
//! They read no data and write no file: everything that a rank needs comes from node 0. They end when node
//! 0 is done. A failure here is reported to node 0. A failure of node 0, or its loss, ends this node with
//! an error.

use super::exchange::Invitation;
use super::local::Local;
use super::protocol::{
    Answer, End, Request, gradients_of, mismatch, numbers_of_scores, receive_request,
};
use super::rank::Rank;
use super::sampling::sample;
use super::ties::{MEETING, Ties};
use crate::base::interrupt;
use crate::cuda::nccl::UniqueId;
use crate::model::ScoreGradient;
use crate::nodes::{Lane, Nodes, Pace};
use crate::objective::{Chunk, Objective};
use crate::ranks;
use crate::trainer::workers::Share;
use anyhow::{Error, Result, ensure};
use std::sync::{Arc, Mutex, PoisonError};

/// Lends `ranks` GPUs of this node to the run of node 0.
pub(crate) fn serve(nodes: &Nodes, ranks: usize) -> Result<()> {
    let meeting = nodes.meet(ranks, Vec::new(), Pace::DEFAULT, MEETING)?;
    let (first, size) = (meeting.first_rank, meeting.world);
    tracing::info!("ranks {first} to {} of {size} do what node 0 asks", first + ranks - 1);
    let id = UniqueId::from_bytes(&meeting.message)?;
    // Signals that reach all nodes are for node 0 to act on: it needs the ranks to save what they hold.
    interrupt::leave_to_another()?;
    let ties = Ties::new(meeting)?;
    let end = |(ordinal, lane): (usize, &_)| End {
        rank: first + ordinal,
        size,
        lane: Arc::clone(lane),
        ties: ties.clone(),
    };
    let ends: Vec<End> = ties.lanes.iter().enumerate().map(end).collect();
    let work = |end: &mut End| {
        serve_rank(end, end.rank - first, id).inspect_err(|error| {
            // The failure may be that node 0 is lost.
            let _ = end.lane.send(&Answer::Failed(format!("{error:#}")), &[]);
        })
    };
    ranks::on_every_rank(ends, |end| end, work).inspect_err(|_| ties.cut())?;
    Ok(())
}

/// Serves one rank, on the GPU `ordinal`, until node 0 is done.
fn serve_rank(end: &End, ordinal: usize, id: UniqueId) -> Result<()> {
    let lane = &*end.lane;
    let mut rank = start(end, ordinal, id)?;
    lane.send(&Answer::Done, &[])?;
    loop {
        match lane.receive()? {
            (Request::End, _) => return Ok(()),
            (request, numbers) => answer(&mut rank, lane, request, &numbers)?,
        }
    }
}

fn start(end: &End, ordinal: usize, id: UniqueId) -> Result<Local> {
    let spec = match receive_request(&end.lane)? {
        (Request::Start(spec), _) => spec,
        (other, _) => return mismatch(&other),
    };
    let portions = spec.shards(spec.decoder()?.layout()).portions(end.rank);
    let pieces = portions.iter().map(|_| Ok(end.lane.receive::<()>()?.1));
    let pieces = pieces.collect::<Result<Vec<_>>>()?;
    let pieces: Vec<&[f32]> = pieces.iter().map(Vec::as_slice).collect();
    let (rank, size, ties) = (end.rank, end.size, end.ties.clone());
    let invitation = Invitation { id: Some(id), rank, size, ties };
    Local::start(ordinal, invitation, &spec, &pieces, || {
        end.lane.send(&Answer::Done, &[])?;
        match receive_request(&end.lane)? {
            (Request::Join, _) => Ok(()),
            (other, _) => mismatch(&other),
        }
    })
}

/// Does what is asked, and answers.
fn answer(rank: &mut Local, lane: &Lane, request: Request, numbers: &[f32]) -> Result<()> {
    match request {
        Request::Accumulate { first, batches, rounds, temperature } => {
            let objective = OfNode0 { lane, failure: Mutex::new(None) };
            let share = Share { first, batches: &batches };
            rank.accumulate(share, rounds, temperature, &objective)?;
            let failure = objective.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
            failure.map_or(Ok(()), Err)?;
            lane.send(&Answer::Done, &[])
        }
        Request::Reduce => {
            let found = rank.reduce()?;
            let (norm, culprits) = (found.norm.to_bits(), found.culprits);
            lane.send(&Answer::Reduced { norm, culprits }, &[])
        }
        Request::Step(adamw) => {
            rank.step(adamw)?;
            lane.send(&Answer::Done, &[])
        }
        Request::Score { parameters, rows, temperature } => {
            let scores = rank.score(parameters, &rows, temperature)?;
            lane.send(&Answer::Scores(scores.iter().map(Vec::len).collect()), &scores.concat())
        }
        Request::KeepReference => {
            rank.keep_reference(numbers)?;
            lane.send(&Answer::Done, &[])
        }
        Request::FetchParams => {
            let mut pieces: Vec<Vec<f32>> =
                rank.portions().iter().map(|portion| vec![0.0; portion.own.len()]).collect();
            let mut slices: Vec<_> = pieces.iter_mut().map(Vec::as_mut_slice).collect();
            rank.fetch_params(&mut slices)?;
            pieces.iter().try_for_each(|piece| lane.send(&Answer::Numbers, piece))
        }
        Request::Moments => {
            let moments = rank.moments()?;
            moments.iter().try_for_each(|moments| lane.send(&Answer::Numbers, moments))
        }
        Request::SetMoments => {
            let [(_, first), (_, second)] = [lane.receive::<()>()?, lane.receive::<()>()?];
            rank.set_moments([&first, &second])?;
            lane.send(&Answer::Done, &[])
        }
        Request::Sample(config) => {
            let stats = sample(&mut rank.model, lane, config)?;
            lane.send(&Answer::Sampled(stats), &[])
        }
        Request::PeakBytes => lane.send(&Answer::PeakBytes(rank.peak_bytes()?), &[]),
        other => mismatch(&other),
    }
}

/// The objective, which runs on node 0.
struct OfNode0<'l> {
    lane: &'l Lane,
    /// The first failure to reach node 0; gradients stay zero from then on.
    failure: Mutex<Option<Error>>,
}

impl Objective for OfNode0<'_> {
    fn learn(&self, chunk: Chunk<'_>, gradients: &mut [ScoreGradient]) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.is_none() {
            *failure = self.ask(chunk, gradients).err();
        }
    }
}

impl OfNode0<'_> {
    fn ask(&self, chunk: Chunk<'_>, gradients: &mut [ScoreGradient]) -> Result<()> {
        let Chunk { batch, first, scores } = chunk;
        self.lane.send(&Answer::Chunk { batch, first }, &numbers_of_scores(scores))?;
        let answered = match receive_request(self.lane)? {
            (Request::Gradients, numbers) => gradients_of(&numbers),
            (other, _) => return mismatch(&other),
        };
        ensure!(answered.len() == gradients.len(), "gradients of other targets");
        gradients.copy_from_slice(&answered);
        Ok(())
    }
}
