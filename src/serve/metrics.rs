//! What a server counts, under vLLM's names, so that its dashboards and autoscalers read it unchanged.
//!
//! Contract: one page in the text format of Prometheus. Times are seconds. The first token's time runs
//! from a request's arrival, before it is tokenised. Left out: a series for each of several engines. Their
//! numbers are sums, but the share of the cache is that of the engine that worked last.

use super::desk::Load;
use super::job::Job;
use crate::base::error::usage;
use crate::engine::{FinishReason, Rollout, Stats};
use anyhow::Result;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// The buckets are vLLM's.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const NEXT_TOKEN: [f64; 18] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    80.0,
];
const LATENCY: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const SAMPLES: [f64; 6] = [1.0, 2.0, 5.0, 10.0, 20.0, 100.0];
const PASS: [f64; 15] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
    32768.0, 65536.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    handler: String,
    method: String,
    status: u16,
}

/// A server's metrics.
pub(crate) struct Metrics {
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    cache_use: Gauge<f64, AtomicU64>,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    preemptions: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    success: Family<Finished, Counter>,
    answered: Family<Answered, Counter>,
    first_token: Histogram,
    next_token: Histogram,
    latency: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt_lengths: Histogram,
    generation_lengths: Histogram,
    max_generation_lengths: Histogram,
    samples: Histogram,
    max_tokens: Histogram,
    pass_tokens: Histogram,
}

impl Metrics {
    /// Creates the metrics of a model whose sequences have at most `max_length` tokens.
    pub(crate) fn new(model: &str, max_length: usize, cache_blocks: usize) -> Self {
        let labels = [("model_name", model), ("engine", "0")];
        let labels = labels.map(|(name, value)| (name.into(), value.to_owned().into()));
        let mut registry = Registry::with_labels(labels.into_iter());
        let info = Family::<Vec<(String, String)>, Gauge>::default();
        let config = [("block_size", crate::model::BLOCK_TOKENS), ("num_gpu_blocks", cache_blocks)];
        let config = config.map(|(name, value)| (name.to_owned(), value.to_string()));
        info.get_or_create(&config.to_vec()).set(1);
        register(&mut registry, "cache_config_info", "Sizes of the cache", info);
        let lengths = || lengths(max_length);
        let mut new = New(&mut registry);
        Self {
            running: new.gauge("num_requests_running", "Samples that are read or sampled"),
            waiting: new.gauge("num_requests_waiting", "Samples that wait for an engine"),
            cache_use: new.gauge("kv_cache_usage_perc", "Share of the cache in use, from 0 to 1"),
            prompt_tokens: new.counter("prompt_tokens", "Tokens of prompts read"),
            generation_tokens: new.counter("generation_tokens", "Tokens sampled"),
            preemptions: new.counter("num_preemptions", "Times that work gave up its blocks"),
            prefix_queries: new.counter("prefix_cache_queries", "Tokens of prompts begun"),
            prefix_hits: new.counter("prefix_cache_hits", "Those that the cache had"),
            success: new.family("request_success", "Samples that ended, by reason"),
            answered: new.http(),
            first_token: new.histogram(
                "time_to_first_token_seconds",
                "From arrival to the first token",
                FIRST_TOKEN,
            ),
            next_token: new.histogram(
                "inter_token_latency_seconds",
                "From token to token",
                NEXT_TOKEN,
            ),
            latency: new.histogram(
                "e2e_request_latency_seconds",
                "From arrival to the end",
                LATENCY,
            ),
            queue: new.histogram("request_queue_time_seconds", "Waiting for an engine", LATENCY),
            prefill: new.histogram("request_prefill_time_seconds", "To the first token", LATENCY),
            decode: new.histogram("request_decode_time_seconds", "From there to the end", LATENCY),
            inference: new.histogram("request_inference_time_seconds", "In an engine", LATENCY),
            prompt_lengths: new.histogram("request_prompt_tokens", "Tokens of a prompt", lengths()),
            generation_lengths: new.histogram(
                "request_generation_tokens",
                "Tokens of a sample",
                lengths(),
            ),
            max_generation_lengths: new.histogram(
                "request_max_num_generation_tokens",
                "The most tokens of a request's samples",
                lengths(),
            ),
            samples: new.histogram("request_params_n", "n of a request", SAMPLES),
            max_tokens: new.histogram("request_params_max_tokens", "max_tokens", lengths()),
            pass_tokens: new.histogram("iteration_tokens_total", "Tokens of a pass", PASS),
            registry,
        }
    }

    /// Counts a job that an engine took.
    pub(crate) fn taken(&self, waited: Duration) {
        self.queue.observe(waited.as_secs_f64());
    }

    /// Counts the first token of a sample.
    pub(crate) fn first_token(&self, since_arrival: Duration, since_taken: Duration) {
        self.first_token.observe(since_arrival.as_secs_f64());
        self.prefill.observe(since_taken.as_secs_f64());
    }

    /// Counts another token of a sample.
    pub(crate) fn next_token(&self, since_last: Duration) {
        self.next_token.observe(since_last.as_secs_f64());
    }

    /// Counts what an engine did in a pass.
    pub(crate) fn passed(&self, stats: &Stats, cache_use: f64) {
        let Stats { generated_tokens, prompt_tokens, shared_tokens, passes, preemptions, .. } =
            *stats;
        self.prompt_tokens.inc_by((prompt_tokens + shared_tokens) as u64);
        self.generation_tokens.inc_by(generated_tokens as u64);
        self.prefix_queries.inc_by((prompt_tokens + shared_tokens) as u64);
        self.prefix_hits.inc_by(shared_tokens as u64);
        self.preemptions.inc_by(preemptions as u64);
        if passes > 0 {
            self.pass_tokens.observe((generated_tokens + prompt_tokens) as f64);
        }
        self.cache_use.set(cache_use);
    }

    /// Counts a sample that has ended.
    pub(crate) fn finished(&self, job: &Job, taken: Instant, first: Instant, rollout: &Rollout) {
        let finished_reason = match rollout.finish_reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "abort",
        };
        self.success.get_or_create(&Finished { finished_reason }).inc();
        let length = rollout.tokens.len() as f64;
        self.latency.observe(job.arrived.elapsed().as_secs_f64());
        self.inference.observe(taken.elapsed().as_secs_f64());
        self.decode.observe(first.elapsed().as_secs_f64());
        self.generation_lengths.observe(length);
        self.max_generation_lengths.observe(length);
    }

    /// Counts a job that was accepted.
    pub(crate) fn accepted(&self, job: &Job) {
        let request = &job.request;
        self.prompt_lengths.observe(request.prompt.len() as f64);
        self.samples.observe(request.num_samples as f64);
        self.max_tokens.observe(request.sampling.max_new_tokens as f64);
    }

    /// Counts samples that were given up.
    pub(crate) fn aborted(&self, count: u64) {
        self.success.get_or_create(&Finished { finished_reason: "abort" }).inc_by(count);
    }

    /// Counts an answer over HTTP.
    pub(crate) fn answered(&self, handler: &str, method: &str, status: u16) {
        let (handler, method) = (handler.to_owned(), method.to_owned());
        self.answered.get_or_create(&Answered { handler, method, status }).inc();
    }

    /// Returns the page.
    pub(crate) fn text(&self, load: Load) -> Result<String> {
        self.running.set(load.num_running as i64);
        self.waiting.set(load.num_waiting as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry).map_err(|e| usage(format!("encoding metrics: {e}")))?;
        Ok(text)
    }
}

fn register(registry: &mut Registry, name: &str, help: &str, metric: impl Metric) {
    registry.register(format!("vllm:{name}"), help, metric);
}

/// Makes and registers metrics.
struct New<'r>(&'r mut Registry);

impl New<'_> {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        register(self.0, name, help, metric.clone());
        metric
    }

    fn gauge<N, A>(&mut self, name: &str, help: &str) -> Gauge<N, A>
    where
        Gauge<N, A>: Metric + Clone + Default,
    {
        self.add(name, help, Gauge::default())
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.add(name, help, Counter::default())
    }

    fn family(&mut self, name: &str, help: &str) -> Family<Finished, Counter> {
        self.add(name, help, Family::default())
    }

    fn http(&mut self) -> Family<Answered, Counter> {
        let family = Family::default();
        self.0.register("http_requests", "Requests of HTTP answered", family.clone());
        family
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        buckets: impl IntoIterator<Item = f64>,
    ) -> Histogram {
        self.add(name, help, Histogram::new(buckets))
    }
}

/// Returns 1, 2, 5, 10, 20, ... up to a length.
fn lengths(max_length: usize) -> Vec<f64> {
    let decades = (0..).map(|power| 10usize.pow(power));
    let all = decades.flat_map(|decade| [1, 2, 5].map(|digit| digit * decade));
    all.take_while(|&length| length <= max_length).map(|length| length as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_vllms_names_and_says_which_model() {
        let metrics = Metrics::new("tiny", 300, 7);
        metrics.first_token(Duration::from_millis(30), Duration::from_millis(20));
        metrics.aborted(2);
        metrics.answered("/v1/models", "GET", 200);
        let text = metrics.text(Load { num_waiting: 3, num_running: 1 }).unwrap();
        for line in [
            "vllm:num_requests_waiting{model_name=\"tiny\",engine=\"0\"} 3",
            "vllm:time_to_first_token_seconds_count{model_name=\"tiny\",engine=\"0\"} 1",
            "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"abort\"} 2",
            "vllm:prompt_tokens_total{model_name=\"tiny\",engine=\"0\"} 0",
            "num_gpu_blocks=\"7\"",
            "handler=\"/v1/models\"",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(lengths(300), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]);
    }
}
