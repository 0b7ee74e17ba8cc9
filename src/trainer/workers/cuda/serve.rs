//! The ranks of a node other than node 0: each does what node 0 asks of it.
//!
//! Contract: reads no data and writes no file: all a rank needs comes from node 0. Ends when node 0 is done;
//! a failure here is told to node 0, and one of node 0, or its loss, ends this node with an error.

use super::MEETING;
use super::local::Local;
use super::remote::{Answer, End, Request, gradients_of, heard, numbers_of_scores, out_of_turn};
use super::sampling::sample;
use super::ties::Ties;
use crate::base::interrupt;
use crate::cuda::nccl::UniqueId;
use crate::model::ScoreGradient;
use crate::ranks;
use crate::ranks::Lane;
use crate::ranks::nodes::Nodes;
use crate::ranks::rendezvous::Pace;
use crate::trainer::Chunk;
use anyhow::{Error, Result, ensure};
use std::sync::Arc;

/// Lends `ranks` GPUs of this node to the run of node 0.
pub(crate) fn serve(nodes: &Nodes, ranks: usize) -> Result<()> {
    let meeting = nodes.meet(ranks, Vec::new(), Pace::DEFAULT, MEETING)?;
    let (first, size) = (meeting.first_rank, meeting.world);
    tracing::info!("ranks {first} to {} of {size} do what node 0 asks", first + ranks - 1);
    let id = UniqueId::from_bytes(&meeting.message)?;
    // Whatever is signalled to all nodes, node 0 decides: it needs the ranks to save what they have.
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
        obey(end, end.rank - first, id).inspect_err(|error| {
            // Node 0 may be what failed.
            let _ = end.lane.send(&Answer::Failed(format!("{error:#}")), &[]);
        })
    };
    ranks::on_every_rank(ends, |end| end, work).inspect_err(|_| ties.cut())?;
    Ok(())
}

/// Serves one rank, on the GPU `ordinal`, to the end.
fn obey(end: &End, ordinal: usize, id: UniqueId) -> Result<()> {
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
    let spec = match heard(&end.lane)? {
        (Request::Start(spec), _) => spec,
        (other, _) => return out_of_turn(&other),
    };
    let portions = spec.shards(spec.decoder()?.layout()).portions(end.rank);
    let pieces = portions.iter().map(|_| Ok(end.lane.receive::<()>()?.1));
    let pieces = pieces.collect::<Result<Vec<_>>>()?;
    let pieces: Vec<&[f32]> = pieces.iter().map(Vec::as_slice).collect();
    Local::start((ordinal, end.rank), &spec, &pieces, (Some(id), &end.ties), || {
        end.lane.send(&Answer::Done, &[])?;
        match heard(&end.lane)? {
            (Request::Join, _) => Ok(()),
            (other, _) => out_of_turn(&other),
        }
    })
}

/// Does what is asked, and answers.
fn answer(rank: &mut Local, lane: &Lane, request: Request, numbers: &[f32]) -> Result<()> {
    match request {
        Request::Accumulate { first, batches, rounds, temperature } => {
            let ask =
                |chunk: Chunk<'_>, gradients: &mut [ScoreGradient], failed: &mut Option<Error>| {
                    match by_node_0(lane, chunk) {
                        Ok(answered) => gradients.copy_from_slice(&answered),
                        Err(error) => *failed = failed.take().or(Some(error)),
                    }
                };
            let failed = rank.accumulate((first, &batches), rounds, temperature, &ask)?;
            failed.into_iter().flatten().next().map_or(Ok(()), Err)?;
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
        Request::Score { rows, temperature, by_reference } => {
            let scores = match by_reference {
                true => rank.score_reference(&rows, temperature)?,
                false => rank.score(&rows, temperature)?,
            };
            lane.send(&Answer::Scores(scores.iter().map(Vec::len).collect()), &scores.concat())
        }
        Request::KeepReference => {
            rank.keep_reference(numbers);
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
        Request::Sample { config, sampling, prompts } => {
            let stats = sample(&mut rank.model, lane, config, &sampling, &prompts)?;
            lane.send(&Answer::Sampled(stats), &[])
        }
        Request::PeakBytes => lane.send(&Answer::PeakBytes(rank.peak_bytes()), &[]),
        other => out_of_turn(&other),
    }
}

/// The gradients that the objective, which runs on node 0, gives for a chunk.
fn by_node_0(lane: &Lane, chunk: Chunk<'_>) -> Result<Vec<ScoreGradient>> {
    let Chunk { batch, first, scores } = chunk;
    lane.send(&Answer::Chunk { batch, first }, &numbers_of_scores(scores))?;
    let numbers = match heard(lane)? {
        (Request::Gradients, numbers) => numbers,
        (other, _) => return out_of_turn(&other),
    };
    let gradients = gradients_of(&numbers);
    ensure!(gradients.len() == scores.len(), "gradients of other targets");
    Ok(gradients)
}
