//! This file tests generation on a GPU: against the CPU on the same 16-bit weights, and against
//! itself in other company. It runs on a GPU if there is one, else on the emulated driver, whose
//! products sum in one order. What cuBLASLt does in passes of different sizes can only show on a
//! GPU.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]
#![expect(clippy::print_stdout, reason = "says where it runs, and when it is skipped")]

mod cuda_support;
mod engine_support;
mod support;

use codeseq::base::progress::Progress;
use codeseq::base::rng;
use codeseq::cuda::{Gpu, HalfFormat};
use codeseq::engine::{
    Engine, EngineConfig, Queue, Request, RequestId, Rollout, Sampler, SamplingParams, Team, device,
};
use codeseq::model::cuda::{DeviceModel, GenerationSize};
use codeseq::model::layout::init;
use codeseq::model::{Decoder, ModelConfig, Row};
use codeseq::plan::Plan;
use codeseq::train::rl;
use cuda_support::{Driver, driver, emulated_gpu};
use engine_support::{LEAST_BLOCKS, WIDE, bits, collect, scores};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use support::{Place, done, expect_mistake};

const VOCAB: u32 = 96;
const BF16: HalfFormat = HalfFormat::Bf16;
const FP16: HalfFormat = HalfFormat::Fp16;

struct Tiny {
    format: HalfFormat,
    decoder: Decoder,
    /// The numbers are those that the format can represent.
    params: Vec<f32>,
}

impl Tiny {
    /// Makes a model with bf16 weights so small that rounding errors do not grow from layer to
    /// layer.
    fn new(kind: &str, is_tied: bool) -> Self {
        Self::of(BF16, kind, is_tied)
    }

    /// Makes the same model in another format.
    fn of(format: HalfFormat, kind: &str, is_tied: bool) -> Self {
        let text = format!(
            r#"{{"model_type": "{kind}", "vocab_size": {VOCAB}, "hidden_size": 64,
            "intermediate_size": 104, "num_hidden_layers": 2, "num_attention_heads": 6,
            "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.04,
            "tie_word_embeddings": {is_tied}}}"#
        );
        let decoder = Decoder::new(ModelConfig::from_json(&text).unwrap());
        let mut params = init(decoder.config(), 1);
        for tensor in decoder.layout().tensors.iter().filter(|tensor| !tensor.decays()) {
            for i in tensor.range.clone() {
                params[i] += 0.3 * (rng::uniform(9, i as u64) - 0.5);
            }
        }
        let params = params.iter().map(|&x| format.widen(format.narrow(x))).collect();
        Self { format, decoder, params }
    }

    /// Puts the model on the first GPU. Returns `None` and prints a message where this program has
    /// none to run on.
    fn on_gpu(&self) -> Option<DeviceModel> {
        self.on_gpu_to(WIDE.max_length)
    }

    /// Does the same for sequences of at most `longest` tokens.
    fn on_gpu_to(&self, longest: usize) -> Option<DeviceModel> {
        let driver = driver();
        let gpu = Gpu::open(0, self.format, Some(128 << 20));
        let gpu = match driver {
            Some(Driver::Real) => {
                gpu.inspect_err(|refusal| println!("SKIPPED: {refusal:#}")).ok()?
            }
            Some(Driver::StandIn) => {
                println!("on the emulated driver: no GPU here");
                gpu.unwrap()
            }
            None => {
                println!("SKIPPED: neither an NVIDIA driver nor a C++ compiler");
                return None;
            }
        };
        let mut model = DeviceModel::new(gpu, self.decoder.clone(), longest).unwrap();
        model.upload(0, &self.params).unwrap();
        Some(model)
    }

    /// Returns the CPU's scores of `tokens` after `prompt`.
    fn scores(&self, prompt: &[u32], tokens: &[u32], temperature: f32) -> Vec<f32> {
        scores((&self.decoder, &self.params), prompt, tokens, temperature)
    }
}

fn sampling() -> SamplingParams {
    SamplingParams {
        temperature: 0.8,
        max_new_tokens: 20,
        stop_ids: vec![0, 1],
        ..SamplingParams::default()
    }
}

fn request(length: u32, num_samples: usize, key: u64) -> Request {
    let prompt = (0..length).map(|i| (7 * i + length) % VOCAB).collect();
    Request { prompt, sampling: sampling(), num_samples, key }
}

/// Makes prompts of many lengths with different numbers of samples.
fn requests() -> Vec<Request> {
    [(1, 3), (9, 1), (40, 5), (17, 2), (64, 4), (66, 3)]
        .into_iter()
        .zip(100..)
        .map(|((length, num_samples), key)| request(length, num_samples, key))
        .collect()
}

fn rollouts(
    model: &mut DeviceModel,
    requests: &[Request],
    sampling: &SamplingParams,
    config: EngineConfig,
) -> Vec<Vec<Rollout>> {
    collect(&mut Engine::on_gpu(model, config).unwrap(), requests, sampling).0
}

/// Compares the log-probabilities of samples with the CPU's. None may differ by more than `most`,
/// and their mean difference is at most `mean`.
fn assert_close(format: HalfFormat, most: f64, mean: f64) {
    let with =
        |temperature, top_k, top_p| SamplingParams { temperature, top_k, top_p, ..sampling() };
    let choosy = SamplingParams { min_p: 0.05, repetition_penalty: 1.3, ..sampling() };
    let padded = SamplingParams { vocab_size: 90, ..sampling() };
    for (kind, is_tied) in [("llama", true), ("qwen2", false), ("qwen3", false)] {
        let tiny = Tiny::of(format, kind, is_tied);
        let Some(mut model) = tiny.on_gpu() else { return };
        for sampling in [
            with(1.0, 0, 1.0),
            with(1.3, 5, 0.9),
            with(0.0, 0, 1.0),
            choosy.clone(),
            padded.clone(),
        ] {
            let temperature = if sampling.temperature == 0.0 { 1.0 } else { sampling.temperature };
            let found = rollouts(&mut model, &requests(), &sampling, WIDE);
            let (mut sum, mut count) = (0.0f64, 0);
            for (request, rollouts) in requests().iter().zip(&found) {
                for rollout in rollouts {
                    assert!(rollout.tokens.iter().all(|&t| (t as usize) < sampling.vocab_size));
                    let scores = tiny.scores(&request.prompt, &rollout.tokens, temperature);
                    for (a, b) in scores.iter().zip(&rollout.logprobs) {
                        let error = f64::from((a - b).abs());
                        assert!(error < most, "{a} {b} {sampling:?}");
                        (sum, count) = (sum + error, count + 1);
                    }
                }
            }
            let found = sum / f64::from(count);
            println!("{format:?}: mean error of {count} log-probabilities: {found:.1e}");
            assert!(count > 100 && found < mean, "{found} of {count} {sampling:?}");
        }
    }
}

#[test]
fn cuda_log_probabilities_are_the_cpus_within_the_error_of_bf16() {
    assert_close(BF16, 2e-2, 4e-3);
}

/// fp16 has three more bits of the fraction.
#[test]
fn cuda_log_probabilities_in_fp16_are_eight_times_closer() {
    assert_close(FP16, 2e-2 / 8.0, 4e-3 / 8.0);
}

/// Returns how many of how many greedy tokens are the CPU's after the same beginning.
fn greedy_tokens_like_the_cpus(tiny: &Tiny) -> Option<(usize, usize)> {
    let mut model = tiny.on_gpu()?;
    let greedy = SamplingParams { temperature: 0.0, stop_ids: Vec::new(), ..sampling() };
    let found = rollouts(&mut model, &requests(), &greedy, WIDE);
    // The CPU's next token is computed after each beginning of the GPU's tokens.
    let (mut beginnings, mut taken) = (Vec::new(), Vec::new());
    for (request, rollouts) in requests().iter().zip(&found) {
        assert!(rollouts.iter().all(|rollout| rollout.tokens == rollouts[0].tokens));
        for (i, &token) in rollouts[0].tokens.iter().enumerate() {
            let prompt = [request.prompt.as_slice(), &rollouts[0].tokens[..i]].concat();
            beginnings.push(Request { prompt, ..self::request(1, 1, 0) });
            taken.push(token);
        }
    }
    let one = SamplingParams { max_new_tokens: 1, ..greedy };
    let mut engine = Engine::new(&tiny.decoder, &tiny.params, WIDE);
    let (of_cpu, _) = collect(&mut engine, &beginnings, &one);
    let same = of_cpu.iter().zip(&taken).filter(|(cpu, gpu)| cpu[0].tokens == [**gpu]).count();
    println!("{:?}: {same} of {} greedy tokens are the CPU's", tiny.format, taken.len());
    Some((same, taken.len()))
}

#[test]
fn cuda_greedy_tokens_are_almost_always_the_cpus() {
    // Tokens differ where logits are closer than the error, which is an eighth in fp16.
    for (format, percent) in [(BF16, 5.0), (FP16, 5.0 / 8.0)] {
        let tiny = Tiny::of(format, "qwen2", false);
        let Some((same, all)) = greedy_tokens_like_the_cpus(&tiny) else { return };
        let differ = (all - same) as f64;
        assert!(differ <= (percent / 100.0 * all as f64).ceil(), "{format:?}: {same} of {all}");
    }
}

#[test]
fn cuda_numbers_that_fp16_does_not_hold_are_an_error_and_bf16_holds_them() {
    for format in [BF16, FP16] {
        let mut tiny = Tiny::of(format, "llama", true);
        tiny.params.iter_mut().for_each(|x| *x *= 1024.0);
        let Some(mut model) = tiny.on_gpu() else { return };
        let scored = device::score(&mut model, &[vec![1, 2, 3]], 1.0, &Progress::hidden());
        let generated = Engine::on_gpu(&mut model, WIDE)
            .unwrap()
            .generate(&[request(9, 2, 1)], &mut |_: RequestId, _: usize, _: Rollout| {});
        for refusal in [scored.err(), generated.err()] {
            let says = refusal.map(|refusal| format!("{refusal:#}"));
            assert_eq!(says.is_some_and(|text| text.contains("bf16")), format == FP16);
        }
    }
}

#[test]
fn cuda_rollouts_do_not_depend_on_sizes_company_or_preemption() {
    let tiny = Tiny::new("llama", true);
    let Some(mut model) = tiny.on_gpu() else { return };
    let expected = rollouts(&mut model, &requests(), &sampling(), WIDE);
    for (max_sequences, prefill_tokens, cache_blocks) in
        [(1, 256, 400), (3, 7, 9), (64, 31, LEAST_BLOCKS), (64, 256, 13), (5, 1, 40)]
    {
        let config = EngineConfig { max_sequences, prefill_tokens, cache_blocks, ..WIDE };
        let text = format!("{config:?}");
        let (found, stats) =
            collect(&mut Engine::on_gpu(&mut model, config).unwrap(), &requests(), &sampling());
        assert!(cache_blocks > LEAST_BLOCKS || stats.preemptions > 0, "{stats:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(bits(found), bits(expected), "{text}");
        }
    }
    let mut backwards = requests();
    backwards.reverse();
    let found = rollouts(&mut model, &backwards[1..], &sampling(), WIDE);
    for (found, expected) in found.iter().zip(expected.iter().rev().skip(1)) {
        assert_eq!(bits(found), bits(expected));
    }
    let penalized = SamplingParams { repetition_penalty: 1.2, ..sampling() };
    let crowd = [request(20, 40, 7), request(33, 3, 8)];
    let together = rollouts(&mut model, &crowd, &penalized, WIDE);
    let narrow = EngineConfig { max_sequences: 2, ..WIDE };
    for (a, b) in together.iter().zip(rollouts(&mut model, &crowd, &penalized, narrow)) {
        assert_eq!(bits(a), bits(&b), "with a penalty");
    }
}

#[test]
fn cuda_requests_with_different_settings_give_together_what_each_gives_alone() {
    let tiny = Tiny::new("llama", true);
    let Some(mut model) = tiny.on_gpu() else { return };
    let settings = [
        sampling(),
        SamplingParams { temperature: 0.0, max_new_tokens: 7, ..sampling() },
        SamplingParams { top_k: 5, top_p: 0.9, ..sampling() },
        SamplingParams { temperature: 1.3, min_p: 0.1, top_logprobs: 3, ..sampling() },
        SamplingParams { repetition_penalty: 1.4, ..sampling() },
        SamplingParams { repetition_penalty: 1.2, temperature: 0.0, vocab_size: 40, ..sampling() },
    ];
    let of_settings = |(request, sampling)| Request { sampling, ..request };
    let mixed: Vec<Request> = requests().into_iter().zip(settings).map(of_settings).collect();
    let mut generate = |requests: &[Request]| {
        let mut found: Vec<Vec<Rollout>> =
            requests.iter().map(|r| vec![Rollout::default(); r.num_samples]).collect();
        let mut keep = |RequestId(request): RequestId, sample: usize, rollout: Rollout| {
            found[request][sample] = rollout;
        };
        Engine::on_gpu(&mut model, WIDE).unwrap().generate(requests, &mut keep).unwrap();
        found
    };
    let together = generate(&mixed);
    for (request, together) in mixed.iter().zip(&together) {
        let alone = generate(std::slice::from_ref(request));
        assert_eq!(bits(&alone[0]), bits(together));
        for (alone, together) in alone[0].iter().zip(together) {
            assert_eq!(alone.top_logprobs, together.top_logprobs);
            let tokens = alone.tokens.iter().zip(&alone.logprobs);
            for (top, (token, logprob)) in alone.top_logprobs.iter().zip(tokens) {
                let own = top.iter().find(|(likely, _)| likely == token);
                assert!(own.is_none_or(|(_, by_host)| (by_host - logprob).abs() < 1e-5));
            }
        }
    }
}

#[test]
fn cuda_two_gpus_share_a_workload_and_give_what_one_does() {
    let tiny = Tiny::new("llama", true);
    let (Some(mut one), Some(mut other)) = (tiny.on_gpu(), tiny.on_gpu()) else { return };
    let expected = rollouts(&mut one, &requests(), &sampling(), WIDE);
    let mut found: Vec<Vec<Option<Rollout>>> =
        requests().iter().map(|request| vec![None; request.num_samples]).collect();
    let mut note = |RequestId(request): RequestId, sample: usize, rollout: Rollout| {
        assert!(found[request][sample].replace(rollout).is_none(), "finished twice");
    };
    let (all, narrow) = (requests(), EngineConfig { max_sequences: 2, ..WIDE });
    let mut team = Team::new(vec![Box::new(&mut one), Box::new(&mut other)]);
    team.sample(&Queue::new(&all, narrow), &mut note).unwrap();
    for (found, expected) in found.into_iter().zip(&expected) {
        let found: Vec<Rollout> = found.into_iter().map(Option::unwrap).collect();
        assert_eq!(bits(&found), bits(expected));
    }
}

#[test]
fn cuda_a_recorded_pass_computes_what_a_launched_one_does() {
    let tiny = Tiny::new("qwen2", false);
    let Some(mut model) = tiny.on_gpu() else { return };
    let size = GenerationSize { rows: 40, logits: 8, length: 64, blocks: 8 };
    let mut generation = model.generation(size).unwrap();
    assert_eq!(generation.num_blocks(), 8);
    let tables: [&[u32]; 3] = [&[5, 0], &[3], &[7]];
    let row = |sequence, position, token, wants_logits| Row {
        token,
        sequence,
        position,
        wants_logits,
        is_prompt: !wants_logits,
    };
    let prompts: Vec<Row> = [(0, 35), (1, 3), (2, 1)]
        .into_iter()
        .flat_map(|(sequence, len)| {
            (0..len).map(move |i| row(sequence, i, (3 * i + 1) % VOCAB, false))
        })
        .collect();
    generation.extend(&tables, &prompts).unwrap();
    // Two steps of three rows, filled up to four, alternate: one is launched, all others are
    // recorded.
    let steps = [11, 23].map(|token| {
        [(0, 35), (1, 3), (2, 1)].map(|(sequence, position)| row(sequence, position, token, true))
    });
    let mut found = Vec::new();
    for turn in 0..5 {
        generation.extend(&tables, &steps[turn % 2]).unwrap();
        let logits: Vec<u32> =
            (0..3).flat_map(|place| generation.logits(place).unwrap()).map(f32::to_bits).collect();
        found.push(logits);
    }
    assert_eq!([&found[2], &found[4]], [&found[0]; 2]);
    assert_eq!(found[3], found[1]);
    assert_ne!(found[0], found[1]);
}

#[test]
fn cuda_a_cache_shrinks_to_the_memory_that_is_left() {
    let tiny = Tiny::new("llama", true);
    let Some(mut model) = tiny.on_gpu() else { return };
    let size = GenerationSize { rows: 8, logits: 8, length: 64, blocks: 1 << 30 };
    let blocks = model.generation(size).unwrap().num_blocks();
    // A block holds bf16 keys and values of 2 layers with 2 heads of 32 elements, at 32 positions.
    let block_bytes = 2 * 2 * 2 * 2 * 32 * 32;
    assert!(blocks > 1000 && blocks * block_bytes < 128 << 20, "{blocks}");
    let least = EngineConfig { cache_blocks: LEAST_BLOCKS - 1, ..WIDE };
    let refusal = Engine::on_gpu(&mut model, least)
        .unwrap()
        .generate(&[request(4, 1, 1)], &mut |_: RequestId, _: usize, _: Rollout| {})
        .unwrap_err();
    assert!(format!("{refusal:#}").contains("needs 5"), "{refusal:#}");
}

/// Makes a run of reinforcement with so many sequences at a time, whose prompts and responses have
/// these lengths.
fn reinforcement(place: &Place, [sequences, prompt, response]: [usize; 3]) -> rl::Config {
    let text = format!(
        "model = {{ path = '{}' }}
        data = {{ files = [], max_prompt_tokens = {prompt} }}
        rollout = {{ num_prompts = 2, n = 4, temperature = 1.0, max_new_tokens = {response},
            max_sequences = {sequences}, kv_cache_tokens = 4096 }}
        optim = {{ lr = 1e-4 }}
        schedule = {{}}
        train = {{ total_steps = 1, seq_len = 2048, device = 'cuda' }}",
        place.path("").display()
    );
    toml::from_str(&text).unwrap()
}

#[test]
fn cuda_the_memory_of_generation_is_planned_to_the_byte() {
    let place = Place::new();
    for tiny in [Tiny::new("llama", true), Tiny::new("qwen2", false)] {
        place.write("config.json", tiny.decoder.config().to_json());
        // The cases have one split of attention and several for all rows, few draws and more than
        // are penalized at a time.
        for [sequences, prompt, response] in [[8, 60, 40], [8, 700, 900], [300, 20, 501]] {
            let config = reinforcement(&place, [sequences, prompt, response]);
            let plan = Plan::new(&config.workload().unwrap());
            let longest = prompt + response;
            let Some(mut model) = tiny.on_gpu_to(longest) else { return };
            let taken = |model: &mut DeviceModel| -> usize {
                model.split().1.arena.taken().map(|(_, bytes)| bytes).sum()
            };
            model.split().1.arena.phase();
            let before = taken(&mut model);
            let config = EngineConfig::roomy(sequences, longest).within(4096);
            drop(Engine::on_gpu(&mut model, config).unwrap());
            assert_eq!(plan.phases[0].name, "sampling");
            assert_eq!(taken(&mut model) - before, plan.phases[0].bytes(), "{sequences} {longest}");
        }
    }
}

/// Returns the program with an emulated GPU.
fn train(place: &Place, words: &str) -> Option<Command> {
    let mut command = place.train(words);
    match driver()? {
        Driver::Real => {}
        Driver::StandIn => {
            command.env("LD_LIBRARY_PATH", emulated_gpu()?);
        }
    }
    Some(command)
}

#[test]
fn cuda_commands_generate_score_and_evaluate_the_demos_model() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = root.join("data/demo/base").display().to_string();
    let place = Place::new();
    let problems = std::fs::read_to_string(root.join("data/demo/test.jsonl")).unwrap();
    let first: Vec<&str> = problems.lines().take(2).collect();
    place.write("problems.jsonl", &(first.join("\n") + "\n"));

    let words = format!("generate --model {model} --max-new-tokens 12 -n 2 --json --prompt print(");
    let Some(mut command) = train(&place, &format!("{words} --device cuda")) else { return };
    let generated = done(&mut command);
    let lines: Vec<Value> =
        generated.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let numbers = |line: &Value, key: &str| -> Vec<f64> {
        line[key].as_array().unwrap().iter().filter_map(Value::as_f64).collect()
    };

    // Both devices score what was generated.
    place.write(
        "ids.jsonl",
        &generated
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                format!("{}\n", serde_json::json!({"input_ids": line["output_ids"]}))
            })
            .collect::<String>(),
    );
    let score = |device: &str| {
        let words =
            format!("score --model {model} --data @ids.jsonl --out @scores --device {device}");
        done(&mut train(&place, &words).unwrap());
        let text = std::fs::read_to_string(place.path("scores")).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter().flat_map(|line| numbers(line, "logprobs")).collect::<Vec<f64>>()
    };
    let cpu = score("cpu");
    for (precision, bound) in [("bf16", 5e-2), ("fp16", 5e-2 / 8.0)] {
        let cuda = score(&format!("cuda --precision {precision}"));
        assert_eq!(cpu.len(), cuda.len());
        let errors = cpu.iter().zip(&cuda).map(|(a, b)| (a - b).abs());
        let mean = errors.sum::<f64>() / cpu.len() as f64;
        println!("mean error of {} scores, weights and all in {precision}: {mean:.1e}", cpu.len());
        assert!(cpu.len() > 2 && mean < bound, "{mean}");
    }
    let in_fp16 = train(&place, &format!("{words} --device cuda --precision fp16"));
    let in_fp16 = done(&mut in_fp16.unwrap());
    assert_eq!(in_fp16.lines().count(), 2);
    assert_ne!(in_fp16, generated, "other log-probabilities, in their last digits");

    let words = format!(
        "eval gtg --model {model} --data @problems.jsonl --rollouts 2 --max-new-tokens 16 --device cuda"
    );
    done(&mut train(&place, &format!("{words} --out @score.json")).unwrap());
    let score: Value =
        serde_json::from_str(&std::fs::read_to_string(place.path("score.json")).unwrap()).unwrap();
    assert_eq!([&score["num_problems"], &score["num_rollouts"]], [2, 2]);
    done(&mut train(&place, &format!("{words} --precision fp16")).unwrap());
    let too_many = &mut train(&place, &format!("{words} --ranks 9")).unwrap();
    expect_mistake(too_many, &["9 ranks on device cuda", "CUDA_VISIBLE_DEVICES"]);
}

#[test]
fn cuda_a_model_gives_the_answers_about_samples_that_it_gives_on_a_cpu() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo/base").display().to_string();
    let place = Place::new();
    let sample = |id: &str| {
        let message = serde_json::json!({"role": "user", "content": format!("print {id}")});
        format!("{}\n", serde_json::json!({"id": id, "messages": [message]}))
    };
    place.write("samples.jsonl", &["one", "two", "three"].map(sample).concat());
    let answers = |device: &str| {
        let words = format!(
            "data classify --model {model} --data @samples.jsonl --out @{device}.jsonl --device {device}"
        );
        done(&mut train(&place, &words)?);
        let text = std::fs::read_to_string(place.path(&format!("{device}.jsonl"))).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        Some(lines)
    };
    let Some(cuda) = answers("cuda") else { return };
    assert_eq!(cuda.len(), 3);
    assert_eq!(Some(cuda), answers("cpu"));
}
