//! The engine: a rollout has the bits of training and depends on nothing but its own request.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod engine_support;

use codeseq::base::error::exit_code;
use codeseq::engine::{
    Engine, EngineConfig, FinishReason, Next, Observer, Queue, Request, RequestId, Rollout,
    Sampler, SamplingParams, Stats, Team, Threads,
};
use codeseq::model::layout::init;
use codeseq::model::{DecodeWorkspace, Decoder, KvCache, ModelConfig, Row};
use codeseq::ops::sample::Drawn;
use engine_support::{LEAST_BLOCKS, WIDE, bits, collect, scores, with};
use proptest::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::LazyLock;

const VOCAB: u32 = 70;

struct Tiny {
    decoder: Decoder,
    params: Vec<f32>,
}

static LLAMA: LazyLock<Tiny> = LazyLock::new(|| Tiny::new("llama", true));
static QWEN2: LazyLock<Tiny> = LazyLock::new(|| Tiny::new("qwen2", false));

/// Pools of one and of two threads.
static POOLS: LazyLock<[ThreadPool; 2]> =
    LazyLock::new(|| [1, 2].map(|n| ThreadPoolBuilder::new().num_threads(n).build().unwrap()));

/// What [`requests`] give under [`SAMPLING`] in one go.
static REFERENCE: LazyLock<Vec<Vec<Rollout>>> =
    LazyLock::new(|| LLAMA.rollouts(&requests(), &sampling(), WIDE));

impl Tiny {
    fn new(kind: &str, tied: bool) -> Self {
        let text = format!(
            r#"{{"model_type": "{kind}", "vocab_size": {VOCAB}, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "initializer_range": 0.2, "tie_word_embeddings": {tied}}}"#
        );
        let config = ModelConfig::from_json(&text).unwrap();
        Self { params: init(&config, 1), decoder: Decoder::new(config) }
    }

    fn engine(&self, config: EngineConfig) -> Engine<'_> {
        Engine::new(&self.decoder, &self.params, config)
    }

    fn team(&self, ranks: usize) -> Team<'_> {
        let threads = Threads::new(&self.decoder, self.decoder.pack(&self.params));
        Team::new((0..ranks).map(|_| Box::new(threads.clone()) as Box<dyn Sampler>).collect())
    }

    /// Rollouts by request and sample.
    fn rollouts(
        &self,
        requests: &[Request],
        sampling: &SamplingParams,
        config: EngineConfig,
    ) -> Vec<Vec<Rollout>> {
        collect(&mut self.engine(config), requests, sampling).0
    }

    /// The logits after `tokens`.
    fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let weights = self.decoder.pack(&self.params);
        let blocks = KvCache::blocks_for(tokens.len());
        let mut cache = KvCache::new(self.decoder.config(), blocks);
        let table: Vec<u32> = (0..blocks as u32).collect();
        let row = |(position, &token): (usize, &u32)| Row {
            token,
            sequence: 0,
            position: position as u32,
            wants_logits: position + 1 == tokens.len(),
            is_prompt: true,
        };
        let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
        let mut workspace = DecodeWorkspace::new();
        self.decoder.extend(&weights, &mut cache, &[&table], &rows, &mut workspace).to_vec()
    }

    /// Log-probabilities of `tokens` after `prompt` as training computes them.
    fn scores(&self, prompt: &[u32], tokens: &[u32], temperature: f32) -> Vec<f32> {
        scores((&self.decoder, &self.params), prompt, tokens, temperature)
    }
}

fn sampling() -> SamplingParams {
    SamplingParams {
        temperature: 0.8,
        max_new_tokens: 20,
        stop_ids: vec![0, 1, 2, 3],
        ..SamplingParams::default()
    }
}

/// Prompts of many lengths with different numbers of samples.
fn requests() -> Vec<Request> {
    [(1, 3), (9, 1), (40, 5), (17, 2), (2, 4), (66, 3)]
        .into_iter()
        .zip(100..)
        .map(|((length, num_samples), key)| request(length, num_samples, key))
        .collect()
}

fn request(length: u32, num_samples: usize, key: u64) -> Request {
    let prompt = (0..length).map(|i| (7 * i + length) % VOCAB).collect();
    Request { prompt, sampling: sampling(), num_samples, key }
}

#[test]
fn log_probabilities_have_the_bits_of_training() {
    let with =
        |temperature, top_k, top_p| SamplingParams { temperature, top_k, top_p, ..sampling() };
    let choosy = SamplingParams { min_p: 0.1, repetition_penalty: 1.3, ..sampling() };
    let settings =
        [with(1.0, 0, 1.0), with(0.7, 0, 1.0), with(1.3, 5, 0.9), with(0.0, 0, 1.0), choosy];
    for model in [&*LLAMA, &*QWEN2] {
        for sampling in &settings {
            let temperature = if sampling.temperature == 0.0 { 1.0 } else { sampling.temperature };
            let requests = requests();
            for (request, rollouts) in
                requests.iter().zip(model.rollouts(&requests, sampling, WIDE))
            {
                for rollout in rollouts {
                    let scores = model.scores(&request.prompt, &rollout.tokens, temperature);
                    let same = scores
                        .iter()
                        .zip(&rollout.logprobs)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same && scores.len() == rollout.logprobs.len(), "{sampling:?}");
                }
            }
        }
    }
}

#[test]
fn rollouts_do_not_depend_on_the_engines_sizes_or_threads() {
    for (max_sequences, cache_blocks) in [(1, 400), (3, 9), (64, 400), (64, LEAST_BLOCKS), (64, 13)]
    {
        for prefill_tokens in [1, 7, 256] {
            for pool in &*POOLS {
                let config = EngineConfig { max_sequences, prefill_tokens, cache_blocks, ..WIDE };
                let text = format!("{config:?}");
                let found = pool.install(|| LLAMA.rollouts(&requests(), &sampling(), config));
                for (found, expected) in found.iter().zip(&*REFERENCE) {
                    assert_eq!(bits(found), bits(expected), "{text}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn rollouts_do_not_depend_on_order_or_company(
        order in Just((0..6).collect::<Vec<usize>>()).prop_shuffle(),
        num_present in 1usize..=6,
        max_sequences in 1usize..12,
        prefill_tokens in 1usize..80,
        cache_blocks in LEAST_BLOCKS..40,
        threads in 0usize..2,
    ) {
        let present = &order[..num_present];
        let all = requests();
        let some: Vec<Request> = present.iter().map(|&i| all[i].clone()).collect();
        let config = EngineConfig { max_sequences, prefill_tokens, cache_blocks, ..WIDE };
        let found = POOLS[threads].install(|| LLAMA.rollouts(&some, &sampling(), config));
        for (found, &i) in found.iter().zip(present) {
            prop_assert_eq!(bits(found), bits(&REFERENCE[i]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn rollouts_do_not_depend_on_how_many_ranks_share_them(
        ranks in 1usize..=3,
        order in Just((0..6).collect::<Vec<usize>>()).prop_shuffle(),
        max_sequences in 1usize..12,
        prefill_tokens in 1usize..80,
        cache_blocks in LEAST_BLOCKS..40,
        threads in 0usize..2,
    ) {
        let all = requests();
        let shuffled: Vec<Request> = order.iter().map(|&i| all[i].clone()).collect();
        let config = EngineConfig { max_sequences, prefill_tokens, cache_blocks, ..WIDE };
        let (found, stats) = POOLS[threads].install(|| shared(ranks, &config, &shuffled));
        let mut num_tokens = 0;
        for (found, &i) in found.iter().zip(&order) {
            prop_assert_eq!(bits(found), bits(&REFERENCE[i]));
            num_tokens += found.iter().map(|rollout| rollout.tokens.len()).sum::<usize>();
        }
        prop_assert_eq!(stats.generated_tokens, num_tokens);
        prop_assert!(stats.occupancy <= 1.0 && stats.peak_cache_use <= 1.0);
    }
}

/// Rollouts by request and sample, each finished once by one of the ranks.
fn shared(ranks: usize, config: &EngineConfig, requests: &[Request]) -> (Vec<Vec<Rollout>>, Stats) {
    let mut found: Vec<Vec<Option<Rollout>>> =
        requests.iter().map(|request| vec![None; request.num_samples]).collect();
    let mut note = |RequestId(request): RequestId, sample: usize, rollout: Rollout| {
        assert!(found[request][sample].replace(rollout).is_none(), "finished twice");
    };
    let queue = Queue::new(requests, config.clone());
    let stats = LLAMA.team(ranks).sample(&queue, &mut note).unwrap();
    let found = found.into_iter().map(|samples| samples.into_iter().map(Option::unwrap).collect());
    (found.collect(), stats)
}

#[test]
fn what_one_rank_refuses_no_rank_does() {
    let requests = [request(9, 1, 1), request(100, 1, 1)];
    for ranks in [1, 2] {
        let mut nothing = |_: RequestId, _: usize, _: Rollout| unreachable!("refused");
        let queue = Queue::new(&requests, WIDE);
        let error = LLAMA.team(ranks).sample(&queue, &mut nothing).unwrap_err();
        assert!(error.to_string().contains("prompt 2"), "{error}");
    }
}

#[test]
fn a_request_keeps_its_first_samples_when_it_asks_for_more() {
    let more: Vec<Request> =
        requests().into_iter().map(|r| Request { num_samples: r.num_samples + 4, ..r }).collect();
    for (found, expected) in LLAMA.rollouts(&more, &sampling(), WIDE).iter().zip(&*REFERENCE) {
        assert_eq!(bits(&found[..expected.len()]), bits(expected));
    }
}

#[test]
fn an_engine_can_be_used_again() {
    let mut engine = LLAMA.engine(EngineConfig { max_sequences: 4, ..WIDE });
    collect(&mut engine, &[request(90, 6, 1)], &sampling());
    for (found, expected) in
        collect(&mut engine, &requests(), &sampling()).0.iter().zip(&*REFERENCE)
    {
        assert_eq!(bits(found), bits(expected));
    }
}

#[test]
fn a_full_cache_preempts_and_computes_again() {
    // Samples that start in one block each and grow into a second.
    let crowd = [request(30, 8, 1), request(25, 8, 2)];
    let endless = SamplingParams { stop_ids: Vec::new(), ..sampling() };
    let config = EngineConfig { cache_blocks: 9, ..WIDE };
    let (rollouts, stats) = collect(&mut LLAMA.engine(config), &crowd, &endless);
    assert!(stats.preemptions > 0 && stats.peak_cache_use > 0.9, "{stats:?}");
    for (found, expected) in rollouts.iter().zip(LLAMA.rollouts(&crowd, &endless, WIDE)) {
        assert_eq!(bits(found), bits(&expected));
    }
}

#[test]
fn prompts_that_begin_alike_are_computed_once() {
    let begin: Vec<u32> = (0..64).collect();
    let prompts = [1, 2, 3].map(|last| [begin.as_slice(), &[last]].concat());
    let requests: Vec<Request> =
        prompts.map(|prompt| Request { prompt, num_samples: 2, ..request(1, 1, 5) }).to_vec();
    let mut engine = LLAMA.engine(EngineConfig { max_sequences: 2, ..WIDE });
    let (first, _) = collect(&mut engine, &requests, &sampling());
    let (again, stats) = collect(&mut engine, &requests, &sampling());
    assert_eq!((stats.shared_tokens, stats.prompt_tokens), (3 * 64, 3));
    for (a, b) in first.iter().zip(&again) {
        assert_eq!(bits(a), bits(b));
    }
}

/// Notes every token; stops one rollout and cancels another.
#[derive(Default)]
struct Watching {
    seen: Vec<(RequestId, usize, u32)>,
    finished: Vec<(RequestId, usize, Rollout)>,
}

impl Observer for Watching {
    fn token(&mut self, request: RequestId, sample: usize, rollout: &Rollout) -> Next {
        self.seen.push((request, sample, *rollout.tokens.last().unwrap()));
        match (request.0, sample, rollout.tokens.len()) {
            (2, 0, 3) => Next::Stop,
            (2, 1, 2) => Next::Cancel,
            _ => Next::Continue,
        }
    }

    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout) {
        self.finished.push((request, sample, rollout));
    }
}

#[test]
fn an_observer_sees_every_token_and_may_end_a_rollout() {
    let mut watching = Watching::default();
    let endless = SamplingParams { stop_ids: Vec::new(), ..sampling() };
    let mut engine = LLAMA.engine(EngineConfig { cache_blocks: 12, ..WIDE });
    engine.generate(&with(&endless, &requests()), &mut watching).unwrap();
    assert_eq!(engine.blocks_in_use(), 0);
    assert_eq!(watching.finished.len(), requests().iter().map(|r| r.num_samples).sum::<usize>());
    for (request, sample, rollout) in &watching.finished {
        let seen = watching.seen.iter().filter(|(r, s, _)| (r, s) == (request, sample));
        assert!(seen.map(|(_, _, token)| token).eq(&rollout.tokens));
        let expected = match (request.0, sample) {
            (2, 0) => (3, FinishReason::Stop),
            (2, 1) => (2, FinishReason::Cancelled),
            _ => (20, FinishReason::Length),
        };
        assert_eq!((rollout.tokens.len(), rollout.finish_reason), expected);
    }
}

/// Requests that differ in all that a request can ask for.
fn mixed() -> Vec<Request> {
    let settings = [
        sampling(),
        SamplingParams { temperature: 0.0, max_new_tokens: 7, ..sampling() },
        SamplingParams { top_k: 5, prompt_logprobs: Some(1), stop_ids: Vec::new(), ..sampling() },
        SamplingParams { min_p: 0.1, top_logprobs: 3, raw_logprobs: true, ..sampling() },
        SamplingParams { repetition_penalty: 1.4, presence_penalty: 0.5, ..sampling() },
        SamplingParams { vocab_size: 40, logit_bias: vec![(7, 3.0)], ..sampling() },
    ];
    let of_settings = |(request, sampling)| Request { sampling, ..request };
    requests().into_iter().zip(settings).map(of_settings).collect()
}

/// What each of [`mixed`] gives alone.
static ALONE: LazyLock<Vec<Vec<Rollout>>> = LazyLock::new(|| {
    let alone = |request: Request| {
        let mut rollouts = vec![Rollout::default(); request.num_samples];
        let mut keep = |_: RequestId, sample: usize, rollout: Rollout| rollouts[sample] = rollout;
        LLAMA.engine(WIDE).generate(&[request], &mut keep).unwrap();
        rollouts
    };
    mixed().into_iter().map(alone).collect()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn rollouts_do_not_depend_on_arrivals_and_cancellations(
        // Each request's arrival, and how many steps later it is cancelled, if it is.
        plans in proptest::collection::vec((0usize..30, proptest::option::of(0usize..12)), 12),
        max_sequences in 1usize..12,
        prefill_tokens in 1usize..80,
        cache_blocks in LEAST_BLOCKS..40,
    ) {
        let mut engine =
            LLAMA.engine(EngineConfig { max_sequences, prefill_tokens, cache_blocks, ..WIDE });
        let mut finished: Vec<(RequestId, usize, Rollout)> = Vec::new();
        let (mut ids, mut cancelled) = (vec![None; plans.len()], Vec::new());
        for step in 0.. {
            for (plan, &(arrival, cancel_after)) in plans.iter().enumerate() {
                if arrival == step {
                    ids[plan] = Some(engine.submit(mixed()[plan % 6].clone()).unwrap());
                }
                if let (Some(id), Some(after)) = (ids[plan], cancel_after)
                    && arrival + after == step
                {
                    engine.cancel(id);
                    cancelled.push((id, finished.len()));
                }
            }
            if step > 30 && engine.is_idle() {
                break;
            }
            let mut keep = |id: RequestId, sample: usize, rollout: Rollout| {
                finished.push((id, sample, rollout));
            };
            engine.step(&mut keep).unwrap();
        }
        prop_assert_eq!(engine.blocks_in_use(), 0);
        for (plan, &(_, cancel_after)) in plans.iter().enumerate() {
            let id = ids[plan].unwrap();
            let alone = &ALONE[plan % 6];
            let own: Vec<_> = finished.iter().filter(|(finished, _, _)| *finished == id).collect();
            prop_assert!(own.len() == alone.len() || cancel_after.is_some());
            for (_, sample, rollout) in own {
                let (found, alone) = (std::slice::from_ref(rollout), std::slice::from_ref(&alone[*sample]));
                prop_assert_eq!(bits(found), bits(alone));
                prop_assert_eq!(&rollout.top_logprobs, &alone[0].top_logprobs);
            }
        }
        for (id, before) in cancelled {
            let said = finished[before..].iter().any(|(finished, _, _)| *finished == id);
            prop_assert!(!said, "nothing is said of what is cancelled");
        }
    }
}

/// Hears nothing.
fn deaf(_: RequestId, _: usize, _: Rollout) {}

#[test]
fn a_cancelled_request_gives_its_blocks_back_in_whatever_state_it_is() {
    let endless = SamplingParams { stop_ids: Vec::new(), ..sampling() };
    let crowd = with(&endless, &[request(30, 8, 1), request(60, 4, 2), request(25, 8, 3)]);
    // Samples that start in one block and grow into a second, so that some are preempted.
    let config = EngineConfig { cache_blocks: 9, prefill_tokens: 20, ..WIDE };
    for steps in 0..24 {
        let mut engine = LLAMA.engine(config.clone());
        let ids: Vec<RequestId> =
            crowd.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        for _ in 0..steps {
            engine.step(&mut deaf).unwrap();
        }
        for &id in &ids[..2] {
            engine.cancel(id);
        }
        let mut num_finished = 0;
        while !engine.is_idle() {
            engine.step(&mut |_: RequestId, _: usize, _: Rollout| num_finished += 1).unwrap();
        }
        assert!(num_finished <= 8 && (steps > 0 || num_finished == 8), "{num_finished}");
        let mut engine = LLAMA.engine(config.clone());
        let id = engine.submit(crowd[0].clone()).unwrap();
        for _ in 0..steps {
            engine.step(&mut deaf).unwrap();
        }
        engine.cancel(id);
        assert_eq!((engine.blocks_in_use(), engine.is_idle()), (0, true), "after {steps} steps");
    }
}

#[test]
fn the_most_likely_tokens_come_with_the_log_probabilities_of_training() {
    for (temperature, vocab_size) in [(0.0, 70), (0.7, 70), (1.3, 50)] {
        let sampling = SamplingParams { temperature, vocab_size, top_logprobs: 4, ..sampling() };
        let divisor = if temperature == 0.0 { 1.0 } else { temperature };
        let request = request(9, 2, 3);
        for rollout in &LLAMA.rollouts(std::slice::from_ref(&request), &sampling, WIDE)[0] {
            assert_eq!(rollout.top_logprobs.len(), rollout.tokens.len());
            for (i, top) in rollout.top_logprobs.iter().enumerate() {
                let context = [request.prompt.as_slice(), &rollout.tokens[..i]].concat();
                let mut all: Vec<(u32, f32)> = (0..vocab_size as u32)
                    .map(|token| (token, LLAMA.scores(&context, &[token], divisor)[0]))
                    .collect();
                all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                let bits = |tokens: &[(u32, f32)]| -> Vec<(u32, u32)> {
                    tokens.iter().map(|&(token, logp)| (token, logp.to_bits())).collect()
                };
                assert_eq!(bits(top), bits(&all[..4]));
                if temperature == 0.0 {
                    assert_eq!(top[0], (rollout.tokens[i], rollout.logprobs[i]));
                }
            }
        }
    }
}

/// Keeps what it hears of prompts.
#[derive(Default)]
struct PromptKeeper(Vec<(RequestId, Vec<Drawn>)>);

impl Observer for PromptKeeper {
    fn prompt(&mut self, request: RequestId, tokens: Vec<Drawn>) {
        self.0.push((request, tokens));
    }

    fn finished(&mut self, request: RequestId, _: usize, _: Rollout) {
        assert!(self.0.iter().any(|(heard, _)| *heard == request), "its prompt comes first");
    }
}

#[test]
fn log_probabilities_of_prompts_are_those_of_training_in_any_company() {
    let sampling = SamplingParams { prompt_logprobs: Some(2), ..sampling() };
    let requests = with(&sampling, &requests());
    for config in [
        WIDE,
        EngineConfig { prefill_tokens: 7, max_sequences: 3, ..WIDE },
        EngineConfig { cache_blocks: LEAST_BLOCKS, max_sequences: 5, ..WIDE },
    ] {
        let mut keeper = PromptKeeper::default();
        LLAMA.engine(config).generate(&requests, &mut keeper).unwrap();
        keeper.0.sort_by_key(|(id, _)| *id);
        assert_eq!(keeper.0.len(), requests.len(), "each prompt is heard of once");
        for (RequestId(id), tokens) in keeper.0 {
            let prompt = &requests[id].prompt;
            let heard: Vec<f32> = tokens.iter().map(|token| token.logprob).collect();
            assert_eq!(heard, LLAMA.scores(&prompt[..1], &prompt[1..], 1.0));
            for Drawn { token, logprob, top } in tokens {
                assert!(top.len() == 2 && top[0].1 >= top[1].1 && top[0].1 >= logprob);
                assert!(top.iter().all(|&(other, p)| other != token || p == logprob));
            }
        }
    }
}

#[test]
fn logits_are_changed_as_vllm_changes_them_and_log_probabilities_are_not() {
    let greedy = SamplingParams {
        temperature: 0.0,
        logit_bias: vec![(5, 0.7), (9, -100.0)],
        presence_penalty: 0.4,
        frequency_penalty: 0.9,
        repetition_penalty: 1.3,
        min_new_tokens: 12,
        max_new_tokens: 24,
        stop_ids: vec![11, 30, 44],
        ..SamplingParams::default()
    };
    let request = request(9, 1, 1);
    let rollout = &LLAMA.rollouts(std::slice::from_ref(&request), &greedy, WIDE)[0][0];
    for (i, &token) in rollout.tokens.iter().enumerate() {
        let drawn = &rollout.tokens[..i];
        let context = [request.prompt.as_slice(), drawn].concat();
        let logits = LLAMA.logits(&context);
        let mut changed = logits;
        changed[5] += 0.7;
        changed[9] -= 100.0;
        for (other, logit) in changed.iter_mut().enumerate() {
            let count = drawn.iter().filter(|&&d| d as usize == other).count();
            if context.contains(&(other as u32)) {
                *logit = if *logit > 0.0 { *logit / 1.3 } else { *logit * 1.3 };
            }
            *logit -= 0.9 * count as f32 + if count > 0 { 0.4 } else { 0.0 };
            if i < 12 && [11, 30, 44].contains(&other) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let most = changed.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(changed[token as usize], most, "token {i}");
        assert_eq!(rollout.logprobs[i], LLAMA.scores(&context, &[token], 1.0)[0]);
    }
    assert!(rollout.tokens.len() >= 12);
}

#[test]
fn raw_log_probabilities_are_those_of_temperature_1_and_the_tokens_the_same() {
    let cold = SamplingParams { temperature: 0.6, top_logprobs: 1, ..sampling() };
    let raw = SamplingParams { raw_logprobs: true, ..cold.clone() };
    let requests = requests();
    let found = LLAMA.rollouts(&requests, &raw, WIDE);
    for ((request, raw), cold) in
        requests.iter().zip(&found).zip(LLAMA.rollouts(&requests, &cold, WIDE))
    {
        for (raw, cold) in raw.iter().zip(cold) {
            assert_eq!(raw.tokens, cold.tokens);
            assert_eq!(raw.logprobs, LLAMA.scores(&request.prompt, &raw.tokens, 1.0));
        }
    }
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let mut engine = LLAMA.engine(WIDE);
    let wrong = [
        Request { prompt: vec![1, VOCAB], ..request(3, 1, 1) },
        Request {
            sampling: SamplingParams { stop_ids: vec![VOCAB], ..sampling() },
            ..request(3, 1, 1)
        },
        Request {
            sampling: SamplingParams { logit_bias: vec![(VOCAB, 1.0)], ..sampling() },
            ..request(3, 1, 1)
        },
    ];
    for request in wrong {
        assert_eq!(exit_code(&engine.submit(request).unwrap_err()), 2);
    }
}

#[test]
fn the_key_and_the_sample_decide_what_is_drawn() {
    let same_prompt = [request(9, 2, 1), request(9, 2, 1), request(9, 2, 2)];
    let found = LLAMA.rollouts(&same_prompt, &sampling(), WIDE);
    assert_eq!(bits(&found[0]), bits(&found[1]));
    assert_ne!(found[0][0].tokens, found[0][1].tokens);
    assert_ne!(found[0][0].tokens, found[2][0].tokens);
}

#[test]
fn temperature_zero_takes_the_most_likely_token() {
    let greedy = SamplingParams { temperature: 0.0, max_new_tokens: 8, ..sampling() };
    let prompts = [request(9, 3, 1), request(40, 1, 2)];
    for (request, rollouts) in prompts.iter().zip(LLAMA.rollouts(&prompts, &greedy, WIDE)) {
        assert!(rollouts.iter().all(|rollout| rollout == &rollouts[0]));
        let Rollout { tokens, logprobs, .. } = &rollouts[0];
        for (i, &token) in tokens.iter().enumerate() {
            let context = [request.prompt.as_slice(), &tokens[..i]].concat();
            let all: Vec<f32> =
                (0..VOCAB).map(|other| LLAMA.scores(&context, &[other], 1.0)[0]).collect();
            assert_eq!(all.iter().copied().fold(f32::NEG_INFINITY, f32::max), logprobs[i]);
            assert_eq!(all[token as usize], logprobs[i]);
        }
    }
}

#[test]
fn a_stop_token_ends_a_rollout_and_belongs_to_it() {
    let SamplingParams { stop_ids, max_new_tokens, .. } = sampling();
    let all: Vec<&Rollout> = REFERENCE.iter().flatten().collect();
    for rollout in &all {
        let (last, before) = rollout.tokens.split_last().unwrap();
        assert!(before.iter().all(|token| !stop_ids.contains(token)), "{rollout:?}");
        assert_eq!(stop_ids.contains(last), rollout.finish_reason == FinishReason::Stop);
        assert!(
            rollout.finish_reason == FinishReason::Stop || rollout.tokens.len() == max_new_tokens
        );
    }
    for reason in [FinishReason::Stop, FinishReason::Length] {
        assert!(
            all.iter().any(|rollout| rollout.finish_reason == reason),
            "{reason:?} is not tested"
        );
    }
}

#[test]
fn limits_cut_off_and_change_nothing_before() {
    let short = SamplingParams { max_new_tokens: 5, ..sampling() };
    let narrow = EngineConfig { max_length: 69, ..WIDE };
    let by_response = LLAMA.rollouts(&requests(), &short, WIDE);
    let by_length = LLAMA.rollouts(&requests(), &sampling(), narrow.clone());
    for (i, request) in requests().iter().enumerate() {
        let room = narrow.max_length - request.prompt.len();
        for (cut, limit) in [(&by_response[i], 5), (&by_length[i], room)] {
            for (cut, whole) in cut.iter().zip(&REFERENCE[i]) {
                let length = whole.tokens.len().min(limit);
                assert_eq!(cut.tokens, whole.tokens[..length]);
                assert_eq!(cut.logprobs, whole.logprobs[..length]);
                let is_whole = length == whole.tokens.len();
                let reason = if is_whole { whole.finish_reason } else { FinishReason::Length };
                assert_eq!(cut.finish_reason, reason);
            }
        }
    }
}

#[test]
fn nothing_asked_for_is_nothing_done() {
    let mut engine = LLAMA.engine(WIDE);
    let nothing = Request { num_samples: 0, ..request(9, 1, 1) };
    for requests in [&[] as &[Request], std::slice::from_ref(&nothing)] {
        let (_, stats) = collect(&mut engine, requests, &sampling());
        assert_eq!((stats.passes, stats.generated_tokens, stats.prompt_tokens), (0, 0, 0));
    }
    let between = [nothing.clone(), requests()[2].clone(), nothing];
    assert_eq!(bits(&collect(&mut engine, &between, &sampling()).0[1]), bits(&REFERENCE[2]));
}

#[test]
fn more_samples_than_places_read_each_prompt_once() {
    let crowd = [request(30, 40, 1), request(12, 25, 2)];
    let config = EngineConfig { max_sequences: 3, ..WIDE };
    let (rollouts, stats) = collect(&mut LLAMA.engine(config), &crowd, &sampling());
    let lengths = rollouts.iter().flatten().map(|rollout| rollout.tokens.len());
    assert_eq!(stats.generated_tokens, lengths.sum::<usize>());
    assert_eq!(stats.prompt_tokens, 42);
    assert!(stats.occupancy > 0.8 && stats.occupancy <= 1.0, "{stats:?}");
}

#[test]
fn what_could_never_finish_is_refused() {
    let refusal = |config: EngineConfig, request: Request, sampling: SamplingParams| {
        let mut nothing = |_: RequestId, _: usize, _: Rollout| unreachable!("refused");
        let mut engine = LLAMA.engine(config);
        let request = Request { sampling, ..request };
        let error = engine.generate(std::slice::from_ref(&request), &mut nothing).unwrap_err();
        assert_eq!([exit_code(&error), exit_code(&engine.submit(request).unwrap_err())], [2, 2]);
        format!("{error:#}")
    };
    let empty = Request { prompt: Vec::new(), ..request(1, 1, 1) };
    assert!(refusal(WIDE, empty, sampling()).contains("prompt 1: the prompt is empty"));
    assert!(refusal(WIDE, request(100, 1, 1), sampling()).contains("max_length"));
    for (config, max_new_tokens, name) in [
        (EngineConfig { max_sequences: 0, ..WIDE }, 1, "max_sequences"),
        (EngineConfig { prefill_tokens: 0, ..WIDE }, 1, "prefill_tokens"),
        (EngineConfig { cache_blocks: LEAST_BLOCKS - 1, ..WIDE }, 1, "needs 5"),
        (WIDE, 0, "max_new_tokens"),
    ] {
        let sampling = SamplingParams { max_new_tokens, ..sampling() };
        assert!(refusal(config, request(4, 1, 1), sampling).contains(name));
    }
}

#[test]
fn a_model_whose_numbers_are_not_finite_says_so_instead_of_drawing() {
    let mut broken = Tiny::new("llama", true);
    broken.params.fill(f32::NAN);
    let request = with(&sampling(), &requests()[..1]);
    let mut nobody = |_: RequestId, _: usize, _: Rollout| {};
    let text = broken.engine(WIDE).generate(&request, &mut nobody).unwrap_err().to_string();
    assert!(text.contains("not finite"), "{text}");
}
