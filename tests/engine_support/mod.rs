//! What tests of the engine share, whatever it computes on: sizes, running a workload, and what to
//! compare of it.

use codeseq::engine::{
    Engine, EngineConfig, FinishReason, Request, RequestId, Rollout, SamplingParams, Stats,
};
use codeseq::model::{Decoder, Packed, Target, Workspace};

/// Room for every workload at once.
pub(crate) const WIDE: EngineConfig =
    EngineConfig { max_sequences: 64, max_length: 100, prefill_tokens: 256, cache_blocks: 400 };

/// The fewest blocks in which a sequence of [`WIDE`]'s length fits.
pub(crate) const LEAST_BLOCKS: usize = 5;

/// The requests, all with these sampling settings.
pub(crate) fn with(sampling: &SamplingParams, requests: &[Request]) -> Vec<Request> {
    let request = |request: &Request| Request { sampling: sampling.clone(), ..request.clone() };
    requests.iter().map(request).collect()
}

/// Runs requests with these sampling settings; every sample must finish exactly once, and every block come
/// back.
pub(crate) fn collect(
    engine: &mut Engine<'_>,
    requests: &[Request],
    sampling: &SamplingParams,
) -> (Vec<Vec<Rollout>>, Stats) {
    let mut found: Vec<Vec<Option<Rollout>>> =
        requests.iter().map(|request| vec![None; request.num_samples]).collect();
    let mut note = |RequestId(request): RequestId, sample: usize, rollout: Rollout| {
        assert!(found[request][sample].replace(rollout).is_none(), "finished twice");
    };
    let stats = engine.generate(&with(sampling, requests), &mut note).unwrap();
    assert_eq!(engine.blocks_in_use(), 0, "every block is given back");
    let rollouts =
        found.into_iter().map(|samples| samples.into_iter().map(Option::unwrap).collect());
    (rollouts.collect(), stats)
}

/// Tokens, bits and reasons.
pub(crate) fn bits(rollouts: &[Rollout]) -> Vec<(&[u32], Vec<u32>, FinishReason)> {
    let bits_of = |r: &Rollout| r.logprobs.iter().map(|logp| logp.to_bits()).collect();
    rollouts.iter().map(|r| (r.tokens.as_slice(), bits_of(r), r.finish_reason)).collect()
}

/// Log-probabilities of `tokens` after `prompt` as training computes them on the CPU.
pub(crate) fn scores(
    (decoder, params): (&Decoder, &[f32]),
    prompt: &[u32],
    tokens: &[u32],
    temperature: f32,
) -> Vec<f32> {
    let sequence = [prompt, tokens].concat();
    let targets: Vec<Target> =
        (prompt.len()..sequence.len()).map(|i| Target { row: i - 1, token: sequence[i] }).collect();
    let packed = Packed::from_sequences([sequence.as_slice()]);
    let scores = decoder.score(params, &packed, &targets, temperature, &mut Workspace::new());
    scores.iter().map(|score| score.logp).collect()
}
