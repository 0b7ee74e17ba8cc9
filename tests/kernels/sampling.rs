//! This file tests sampled tokens.

use crate::compare::on_every_order;
use crate::cuda::half::HalfFormat;
use crate::cuda::kernels::repetition::Seen;
use crate::cuda::kernels::sample::{Kinds, RowSampling, Rows, Sampling};
use codeseq::base::rng;
use codeseq::ops::sample;

/// Logits are fp32, so one format is enough.
const FORMAT: HalfFormat = HalfFormat::Bf16;

const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

/// Logits `[rows, stride]`, how many of a row count, and how many may be drawn.
struct Case {
    logits: Vec<f32>,
    rows: usize,
    stride: usize,
    vocab: usize,
    choices: usize,
}

impl Case {
    fn new(rows: usize, [stride, vocab, choices]: [usize; 3], scale: f32) -> Self {
        let mut logits = FORMAT.widen_all(&FORMAT.normal(40, rows * stride, scale));
        for row in logits.chunks_exact_mut(stride) {
            // Logits are not rounded to bf16, so that all weights differ; padding must not count.
            row.iter_mut().enumerate().for_each(|(i, x)| *x += (i as f32 * 0.7).sin() * 0.01);
            row[vocab..].fill(1000.0);
        }
        Self { logits, rows, stride, vocab, choices }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.stride..][..self.vocab]
    }

    /// Expects the CPU's tokens.
    #[track_caller]
    fn check(&self, sampling: Sampling) {
        self.check_each(&vec![sampling; self.rows]);
    }

    /// Expects the same where each row has settings of its own.
    #[track_caller]
    fn check_each(&self, sampling: &[Sampling]) {
        let key = |row: usize| rng::key(7, &[row as u64]);
        let index = |row: usize| row as u64 * 3;
        on_every_order(
            FORMAT,
            |gpu| {
                let logits = gpu.put(&self.logits);
                let of_row =
                    |row| RowSampling::new((key(row), index(row)), sampling[row], self.choices);
                let of_rows: Vec<RowSampling> = (0..self.rows).map(of_row).collect();
                let kinds = Kinds::of(&of_rows);
                let of_rows = gpu.put(&of_rows);
                let rows = Rows {
                    logits: logits.slice(),
                    stride: self.stride,
                    vocab: self.vocab,
                    sampling: of_rows.slice(),
                    kinds,
                };
                let (mut tokens, mut logp) = (gpu.poisoned(self.rows), gpu.poisoned(self.rows));
                let (tokens_, logp_) = (tokens.slice_mut(), logp.slice_mut());
                gpu.kernels.sample.sample(&gpu.stream, rows, tokens_, logp_).unwrap();
                (tokens.get(), logp.get())
            },
            |(tokens, logp)| {
                for row in 0..self.rows {
                    let Sampling { temperature, top_k, top_p, min_p } = sampling[row];
                    let settings = sample::Sampling { temperature, top_k, top_p, min_p };
                    let u = rng::uniform(key(row), index(row));
                    let (token, expected) =
                        sample::sample(self.row(row), self.choices, settings, u);
                    assert_eq!(tokens[row], token, "row {row}, u {u}, {:?}", sampling[row]);
                    let error = (logp[row] - expected).abs();
                    assert!(error <= 1e-5 * expected.abs().max(1.0), "{} {expected}", logp[row]);
                }
            },
        );
    }
}

#[test]
fn tokens_of_whole_vocabularies_are_those_of_the_cpu() {
    for (sizes, scale) in [
        ([128_256, 128_256, 128_256], 3.0),
        // Logits are almost equal here, so an error in the sixth digit of a sum changes the token.
        ([152_064, 152_064, 151_665], 0.01),
    ] {
        Case::new(3, sizes, scale).check(PLAIN);
    }
}

#[test]
fn tokens_of_odd_vocabularies_are_those_of_the_cpu() {
    for sizes in [[72, 70, 67], [4104, 4104, 4097], [8, 1, 1], [8, 8, 8], [32, 31, 24]] {
        let case = Case::new(6, sizes, 2.0);
        case.check(PLAIN);
        case.check(Sampling { temperature: 0.6, ..PLAIN });
        case.check(Sampling { temperature: 0.0, ..PLAIN });
    }
}

#[test]
fn the_first_of_equal_logits_is_taken_at_temperature_zero_and_an_impossible_one_never() {
    let mut case = Case::new(2, [64, 64, 60], 1.0);
    case.logits[33] = 9.0;
    case.logits[35] = 9.0;
    case.logits[64..128].fill(f32::NEG_INFINITY);
    case.logits[64 + 17] = -3.0;
    case.check(Sampling { temperature: 0.0, ..PLAIN });
    case.check(PLAIN);
}

#[test]
fn truncated_tokens_are_those_of_the_cpu() {
    let settings = [
        Sampling { top_k: 1, ..PLAIN },
        Sampling { top_k: 20, ..PLAIN },
        Sampling { top_p: 0.8, ..PLAIN },
        Sampling { top_p: 0.0, ..PLAIN },
        Sampling { min_p: 0.1, ..PLAIN },
        Sampling { temperature: 0.7, top_k: 50, top_p: 0.9, min_p: 0.02 },
        Sampling { temperature: 1.5, top_k: 0, top_p: 0.99, min_p: 1e-4 },
    ];
    for sizes in [[1000, 999, 990], [72, 70, 67]] {
        let mut case = Case::new(5, sizes, 2.0);
        // Logits at the edge are equal; the lower token counts as the likelier one.
        for row in case.logits.chunks_exact_mut(case.stride) {
            row[3..60].iter_mut().step_by(2).for_each(|x| *x = 1.5);
        }
        settings.iter().for_each(|&sampling| case.check(sampling));
    }
    let large = Case::new(2, [128_256, 128_256, 128_000], 3.0);
    large.check(Sampling { temperature: 0.7, top_k: 50, top_p: 0.95, min_p: 0.0 });
    large.check(Sampling { top_p: 0.9, ..PLAIN });
}

#[test]
fn rows_are_drawn_each_in_its_own_way() {
    let settings = [
        PLAIN,
        Sampling { top_k: 3, ..PLAIN },
        Sampling { temperature: 0.0, ..PLAIN },
        Sampling { temperature: 0.5, ..PLAIN },
        Sampling { top_p: 0.7, min_p: 0.05, ..PLAIN },
        Sampling { temperature: 0.0, top_k: 3, ..PLAIN },
    ];
    Case::new(6, [1000, 999, 990], 2.0).check_each(&settings);
}

#[test]
fn a_repetition_penalty_makes_seen_tokens_as_unlikely_as_on_the_cpu() {
    const STRIDE: usize = 1000;
    let logits = FORMAT.widen_all(&FORMAT.normal(41, 3 * STRIDE, 3.0));
    // No token of the first row is seen, every third of the second, and more of the third than
    // there are threads.
    let seen = [Vec::new(), (0..STRIDE as u32).step_by(3).collect(), (5..705).collect::<Vec<_>>()];
    let starts: Vec<u32> =
        [0, 0, seen[1].len(), seen[1].len() + seen[2].len()].map(|n| n as u32).to_vec();
    for penalty in [1.3, 0.7] {
        on_every_order(
            FORMAT,
            |gpu| {
                let mut penalized = gpu.put(&logits);
                let (starts, tokens) = (gpu.put(&starts), gpu.put(&seen.concat()));
                let seen = Seen { starts: starts.slice(), tokens: tokens.slice() };
                let (kernel, rows) = (&gpu.kernels.repetition, penalized.slice_mut());
                kernel.penalize(&gpu.stream, penalty, seen, rows, STRIDE).unwrap();
                (penalized.get(), ())
            },
            |(penalized, ())| {
                let mut expected = logits.clone();
                for (row, seen) in expected.chunks_exact_mut(STRIDE).zip(&seen) {
                    sample::penalize_repetition(row, seen.iter().copied(), penalty);
                }
                assert_eq!(penalized, expected, "penalty {penalty}");
            },
        );
    }
}
