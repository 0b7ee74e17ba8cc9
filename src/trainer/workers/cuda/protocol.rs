//! The messages between node 0 and a rank of another node.
//!
//! Contract: one request at a time, each answered once, but for the chunks of targets whose scores a rank
//! gives while it accumulates: node 0 answers those with gradients, so that an objective runs there for all
//! ranks, and models and objectives share only scalars per token between nodes too.

use super::spec::Spec;
use super::ties::Ties;
use crate::engine::{EngineConfig, Next, Request as Prompt, RequestId, Rollout, Stats};
use crate::model::{ScoreGradient, TokenScores};
use crate::nodes::Lane;
use crate::ops::adamw::AdamW;
use crate::ranks::Member;
use crate::trainer::micro_batch::MicroBatch;
use crate::trainer::workers::Parameters;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A request of node 0 to a rank; numbers travel beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// To get ready; its pieces of the parameters follow, a message for each portion.
    Start(Spec),
    /// To join the others, now that all are ready.
    Join,
    /// To add gradients; each chunk of targets is answered with its gradients.
    Accumulate {
        first: usize,
        batches: Vec<MicroBatch>,
        rounds: usize,
        temperature: f32,
    },
    /// The gradients by the scores of the last chunk are its numbers.
    Gradients,
    Reduce,
    Step(Option<AdamW>),
    Score {
        parameters: Parameters,
        rows: Vec<MicroBatch>,
        temperature: f32,
    },
    /// The rank's shard of the parameters is its numbers.
    KeepReference,
    /// Answered by a message for each portion.
    FetchParams,
    /// Answered by a message for each moment.
    Moments,
    /// A message for each moment follows.
    SetMoments,
    PeakBytes,
    /// To sample, with an engine of these sizes, until nothing is left to take.
    Sample(EngineConfig),
    /// A prompt to sample and its place in the queue, as long as there are any.
    Taken(Option<(usize, Prompt)>),
    /// What becomes of the rollout that was shown.
    Next(Next),
    /// Nothing more will come.
    End,
}

/// An answer of a rank; numbers travel beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// The scores of a chunk of targets of the batch, from its target `first` on, are its numbers.
    Chunk {
        batch: usize,
        first: usize,
    },
    /// The bits of the norm, which may be no number.
    Reduced {
        norm: u64,
        culprits: Vec<usize>,
    },
    /// The log-probabilities of rows of these lengths are its numbers.
    Scores(Vec<usize>),
    /// The numbers that were asked for.
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

/// A rollout, whose log-probabilities are sent as numbers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) prompt: RequestId,
    pub(crate) sample: usize,
    pub(crate) rollout: Rollout,
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

/// Waits for the next request of node 0 where its end would come too early.
pub(crate) fn receive_request(lane: &Lane) -> Result<(Request, Vec<f32>)> {
    match lane.receive()? {
        (Request::End, _) => bail!("node 0 ended the run: what it said tells why"),
        request => Ok(request),
    }
}

/// The error of a message that does not fit the one before.
pub(crate) fn mismatch<T>(message: &impl std::fmt::Debug) -> Result<T> {
    bail!("protocol mismatch ({message:?}): are all nodes running the same build?");
}

pub(crate) fn numbers_of_scores(scores: &[TokenScores]) -> Vec<f32> {
    scores.iter().flat_map(|s| [s.logp, s.entropy, s.mean_logp]).collect()
}

pub(crate) fn scores_of(numbers: &[f32]) -> Vec<TokenScores> {
    let (scores, _) = numbers.as_chunks();
    scores
        .iter()
        .map(|&[logp, entropy, mean_logp]| TokenScores { logp, entropy, mean_logp })
        .collect()
}

pub(crate) fn numbers_of_gradients(gradients: &[ScoreGradient]) -> Vec<f32> {
    gradients.iter().flat_map(|g| [g.logp, g.entropy, g.mean_logp]).collect()
}

pub(crate) fn gradients_of(numbers: &[f32]) -> Vec<ScoreGradient> {
    let (gradients, _) = numbers.as_chunks();
    let gradient =
        |&[logp, entropy, mean_logp]: &[f32; 3]| ScoreGradient { logp, entropy, mean_logp };
    gradients.iter().map(gradient).collect()
}
