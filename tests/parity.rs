//! Every family of models against transformers, through the program as its users run it.
//!
//! `scripts/golden/parity.py` made the models (`tests/golden/parity/*/model`, tiny and random, as
//! Hugging Face directories) and what transformers and a plain PyTorch loop make of them in f32.
//! `cargo test --test parity -- --nocapture` prints the measured errors.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]
#![expect(clippy::print_stdout, reason = "the measured errors are worth reading")]

mod golden_support;
mod support;

use codeseq::data::shuffle::{Place, Shuffled};
use golden_support::{Tensors, read_tensors, relative_distance};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use support::done;

/// Absolute, of a log-probability.
const LOGP_TOLERANCE: f64 = 1e-4;
/// Relative: of a loss, and of the Euclidean norm of a tensor or its gradient.
const RELATIVE_TOLERANCE: f64 = 1e-4;
/// The seed of `sft.toml`.
const SEED: u64 = 3;
/// lr / eps of `gradient.toml`: what a gradient is multiplied by.
const DESCENT: f32 = 16.0;

/// One family's files, and a place for what a test writes.
struct Family {
    name: &'static str,
    expected: Value,
    place: support::Place,
}

impl Family {
    fn new(name: &'static str) -> Self {
        let text = fs::read_to_string(golden(name).join("expected.json")).unwrap();
        Self { name, expected: serde_json::from_str(&text).unwrap(), place: support::Place::new() }
    }

    fn model(&self) -> PathBuf {
        golden(self.name).join("model")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// Expects the log-probability of every token of every sequence.
    fn check_log_probabilities(&self) {
        let out = self.path("scores.jsonl");
        let data = golden("sequences.jsonl");
        let mut score = self.place.train("score");
        score.arg("--model").arg(self.model()).arg("--data").arg(data).arg("--out").arg(&out);
        done(&mut score);
        let text = fs::read_to_string(out).unwrap();
        let scores: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expected = self.expected["logprobs"].as_array().unwrap();
        assert_eq!(scores.len(), expected.len());
        let mut errors = Vec::new();
        for (score, expected) in scores.iter().zip(expected) {
            assert!(score["logprobs"][0].is_null() && expected[0].is_null());
            let (actual, expected) = (numbers(&score["logprobs"]), numbers(expected));
            assert_eq!(actual.len(), expected.len());
            errors.extend(actual.iter().zip(expected).map(|(a, e)| (a - e).abs()));
        }
        self.report("log-probabilities, absolute", max(errors.into_iter()), LOGP_TOLERANCE);
    }

    /// Expects the most likely continuation of every prompt, token by token.
    fn check_greedy_tokens(&self) {
        let prompts = self.expected["prompts"].as_array().unwrap();
        for (prompt, expected) in prompts.iter().zip(self.expected["greedy"].as_array().unwrap()) {
            let mut generate = self.place.train("generate");
            generate.arg("--model").arg(self.model()).arg("--prompt").arg(prompt.as_str().unwrap());
            generate.args(["--temperature", "0", "--max-new-tokens", "128", "--json"]);
            let line: Value = serde_json::from_str(&done(&mut generate)).unwrap();
            assert_eq!(expected.as_array().unwrap().len(), 128);
            assert_eq!(line["output_ids"], *expected, "{}: {prompt}", self.name);
        }
    }

    /// Expects the gradient of every tensor, which one step of plain descent leaves in the weights.
    fn check_gradients(&self) {
        let samples = fs::read_to_string(golden("packed.jsonl")).unwrap();
        let (metrics, after) = self.fine_tune("gradient.toml", &samples);
        assert_eq!(metrics[0]["data/tokens"], 136.0, "all samples are in one row");
        let before = tensors(&self.model(), "");
        let gradients = before.iter().map(|(name, before)| {
            let moved = before.iter().zip(&after[name]).map(|(b, a)| (b - a) / DESCENT);
            (name.clone(), moved.collect())
        });
        self.compare("gradients, relative", &gradients.collect(), "gradient.");
    }

    /// Expects loss, gradient norm and learning rate of every step, and the weights after the last.
    fn check_fine_tuning(&self) {
        let samples = fs::read_to_string(golden("samples.jsonl")).unwrap();
        let (metrics, weights) = self.fine_tune("sft.toml", &in_loader_order(&samples));
        let steps = &self.expected["steps"];
        let metrics: BTreeMap<&str, Vec<f64>> = ["loss/nll", "optim/grad_norm", "optim/lr"]
            .map(|key| (key, metrics.iter().map(|row| row[key].as_f64().unwrap()).collect()))
            .into();
        for (key, expected) in
            [("loss/nll", "loss"), ("optim/grad_norm", "grad_norm"), ("optim/lr", "lr")]
        {
            let expected = numbers(&steps[expected]);
            assert_eq!((metrics[key].len(), expected.len()), (20, 20));
            let errors = metrics[key].iter().zip(&expected).map(|(a, e)| match e {
                0.0 => a.abs(),
                _ => (a / e - 1.0).abs(),
            });
            self.report(&format!("{key}, relative"), max(errors), RELATIVE_TOLERANCE);
        }
        self.compare("final weights, relative", &weights, "trained.");
    }

    /// Runs `train sft` on these samples and returns its metrics and the weights that it saves.
    fn fine_tune(&self, config: &str, samples: &str) -> (Vec<Value>, Tensors) {
        let (file, out) = (self.path("samples.jsonl"), self.path("run"));
        fs::write(&file, samples).unwrap();
        let mut sft = self.place.train("sft");
        sft.arg("--config").arg(golden(config)).arg("--out").arg(&out);
        sft.arg("--set").arg(format!("model.path='{}'", self.model().display()));
        sft.arg("--set").arg(format!("data.files=['{}']", file.display()));
        sft.arg("--set").arg(format!("seed={SEED}"));
        let checkpoint = done(&mut sft);
        let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let metrics = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (metrics, tensors(Path::new(checkpoint.trim_end()), ""))
    }

    /// Compares tensors with those of `expected.safetensors` under `prefix`.
    fn compare(&self, what: &str, actual: &Tensors, prefix: &str) {
        let expected = tensors(&golden(self.name), prefix);
        assert_eq!(actual.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        let errors = expected.iter().map(|(name, expected)| {
            let error = relative_distance(&actual[name], expected);
            assert!(error < RELATIVE_TOLERANCE, "{}: {what}: {name}: {error:.1e}", self.name);
            error
        });
        self.report(what, max(errors), RELATIVE_TOLERANCE);
    }

    fn report(&self, what: &str, error: f64, tolerance: f64) {
        println!("{}: {what}: {error:.1e}", self.name);
        assert!(error < tolerance, "{}: {what}: {error:.1e}", self.name);
    }
}

fn golden(name: &str) -> PathBuf {
    golden_support::golden("parity").join(name)
}

/// Rearranges the lines of a file such that the loader's shuffle takes them in this order.
fn in_loader_order(lines: &str) -> String {
    let lines: Vec<&str> = lines.lines().collect();
    let mut order = Shuffled::new(lines.len(), SEED, Place::default()).unwrap();
    let mut file = vec![""; lines.len()];
    for line in lines {
        file[order.take()] = line;
    }
    file.join("\n")
}

/// The tensors of all safetensors files of a directory whose names begin with `prefix`, without it.
fn tensors(dir: &Path, prefix: &str) -> Tensors {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|file| file.extension().is_some_and(|e| e == "safetensors"))
        .flat_map(|file| read_tensors(&file))
        .filter_map(|(name, values)| Some((name.strip_prefix(prefix)?.to_owned(), values)))
        .collect()
}

/// The numbers of an array; others are passed over.
fn numbers(array: &Value) -> Vec<f64> {
    array.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

fn max(errors: impl Iterator<Item = f64>) -> f64 {
    errors.fold(0.0, |worst, error| if error.is_nan() { f64::INFINITY } else { worst.max(error) })
}

/// The four comparisons of a family.
macro_rules! parity {
    ($module:ident, $name:literal) => {
        mod $module {
            use super::Family;

            #[test]
            fn log_probabilities_are_those_of_transformers() {
                Family::new($name).check_log_probabilities();
            }

            #[test]
            fn greedy_tokens_are_those_of_transformers() {
                Family::new($name).check_greedy_tokens();
            }

            #[test]
            fn gradients_are_those_of_pytorch() {
                Family::new($name).check_gradients();
            }

            #[test]
            fn fine_tuning_follows_pytorch_for_twenty_steps() {
                Family::new($name).check_fine_tuning();
            }
        }
    };
}

parity!(llama3, "llama3");
parity!(llama3_2, "llama3.2");
parity!(qwen2_5_tied, "qwen2.5-tied");
parity!(qwen2_5_untied, "qwen2.5-untied");
parity!(r1_distill_qwen, "r1-distill-qwen");
parity!(mistral, "mistral");
parity!(qwen3, "qwen3");
parity!(internlm2_5, "internlm2.5");
