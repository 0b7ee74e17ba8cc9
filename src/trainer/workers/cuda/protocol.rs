//! The messages between node 0 and a rank of another node.
//!
//! Node 0 sends one request at a time, and each is answered once. The exception is a rank that accumulates:
//! it sends the scores of each chunk of targets, and node 0 answers with gradients. So the objective runs
//! on node 0 for all ranks, and models and objectives share only scalars for each token between nodes too.

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

/// A request of node 0 to a rank; numbers are sent with it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Get ready. The rank's pieces of the parameters follow, one message for each portion.
    Start(Spec),
    /// Join the others, now that all are ready.
    Join,
    /// Add gradients. The rank asks for the gradients of each chunk of targets.
    Accumulate {
        first: usize,
        batches: Vec<MicroBatch>,
        rounds: usize,
        temperature: f32,
    },
    /// The numbers are the gradients with respect to the scores of the last chunk.
    Gradients,
    Reduce,
    Step(Option<AdamW>),
    Score {
        parameters: Parameters,
        rows: Vec<MicroBatch>,
        temperature: f32,
    },
    /// The numbers are the rank's shard of the reference model's parameters.
    KeepReference,
    /// Send the parameters, one message for each portion.
    FetchParams,
    /// Send the moments, one message for each.
    Moments,
    /// The moments follow, one message for each.
    SetMoments,
    PeakBytes,
    /// Sample with an engine of these sizes until there is nothing left to take.
    Sample(EngineConfig),
    /// A prompt to sample and its place in the queue; `None` if there are no more.
    Taken(Option<(usize, Prompt)>),
    /// What happens to the rollout that was shown.
    Next(Next),
    /// Nothing more will come.
    End,
}

/// An answer of a rank; numbers are sent with it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// The numbers are the scores of a chunk of targets of the batch, from target `first` on.
    Chunk {
        batch: usize,
        first: usize,
    },
    /// The bits of the norm, which may be NaN or infinite.
    Reduced {
        norm: u64,
        culprits: Vec<usize>,
    },
    /// The numbers are the log-probabilities of rows of these lengths.
    Scores(Vec<usize>),
    /// The numbers are what was asked for.
    Numbers,
    PeakBytes(usize),
    /// The rank asks for a prompt.
    Take,
    /// The rank shows a rollout that grows, from time to time, with its log-probabilities.
    Growing(Sample),
    /// A rollout ended; its log-probabilities are sent with it, and there is no answer.
    Finished(Sample),
    Sampled(Stats),
    Failed(String),
}

/// A rollout whose log-probabilities are sent as numbers.
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

/// Waits for the next request of node 0, in a state in which [`Request::End`] would come too early.
pub(crate) fn receive_request(lane: &Lane) -> Result<(Request, Vec<f32>)> {
    match lane.receive()? {
        (Request::End, _) => bail!("node 0 ended the run: what it said tells why"),
        request => Ok(request),
    }
}

/// Returns the error of a message that does not fit the one before it.
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
