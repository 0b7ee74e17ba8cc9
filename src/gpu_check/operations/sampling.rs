//! This file checks sampled tokens and the repetition penalty.

use super::rig::{Numbers, Rig};
use super::{Comparison, EXACT, WIDE, expected};
use crate::base::rng;
use crate::cuda::HalfFormat;
use crate::cuda::kernels::repetition::Seen;
use crate::cuda::kernels::sample::{Kinds, RowSampling, Rows, Sampling};
use crate::ops::logprob::statistics;
use crate::ops::sample;
use anyhow::Result;

const ROWS: usize = 16;
const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

pub(crate) fn check(to: &mut Comparison<'_>) -> Result<()> {
    let settings = [
        ("greedy", Sampling { temperature: 0.0, ..PLAIN }),
        ("plain", PLAIN),
        ("top_k, top_p", Sampling { temperature: 0.7, top_k: 20, top_p: 0.9, ..PLAIN }),
        ("min_p", Sampling { min_p: 0.1, ..PLAIN }),
    ];
    for vocab in [96, 1000] {
        for (name, sampling) in settings {
            tokens(to, name, vocab, sampling)?;
        }
    }
    for vocab in to.shapes.choose(&[], &[128_256, 152_064]) {
        tokens(to, "greedy", vocab, settings[0].1)?;
        shares(to, vocab)?;
    }
    penalty(to)
}

fn numbers(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    HalfFormat::Bf16.widen_all(&HalfFormat::Bf16.normal(seed, len, scale))
}

/// Logits, with the key and the index of each row's draw.
struct Draws {
    vocab: usize,
    logits: Vec<f32>,
    keys: Vec<u64>,
    indices: Vec<u64>,
}

impl Draws {
    fn new(vocab: usize) -> Self {
        Self {
            vocab,
            logits: numbers(90, ROWS * vocab, 2.0),
            keys: (0..ROWS as u64).map(|row| rng::key(6, &[row])).collect(),
            indices: (0..ROWS as u64).map(|row| 3 * row).collect(),
        }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.vocab..][..self.vocab]
    }

    fn uniform(&self, row: usize) -> f32 {
        rng::uniform(self.keys[row], self.indices[row])
    }

    /// Draws on the GPU and returns tokens and their log-probabilities.
    fn on(&self, rig: &Rig<'_>, sampling: Sampling) -> Result<(Vec<u32>, Vec<f32>)> {
        let places = self.keys.iter().copied().zip(self.indices.iter().copied());
        let of_rows: Vec<RowSampling> =
            places.map(|place| RowSampling::new(place, sampling, self.vocab)).collect();
        let (logits, sampling) = (rig.put(&self.logits)?, rig.put(&of_rows)?);
        let rows = Rows {
            logits: logits.slice(),
            stride: self.vocab,
            vocab: self.vocab,
            sampling: sampling.slice(),
            kinds: Kinds::of(&of_rows),
        };
        let (mut tokens, mut logp) = (rig.poisoned::<u32>(ROWS)?, rig.poisoned::<f32>(ROWS)?);
        let kernels = &rig.kernels.sample;
        kernels.sample(rig.stream, rows, tokens.slice_mut(), logp.slice_mut())?;
        Ok((rig.get(&tokens)?, rig.get(&logp)?))
    }
}

/// Checks that the GPU draws the CPU's tokens.
fn tokens(to: &mut Comparison<'_>, name: &str, vocab: usize, sampling: Sampling) -> Result<()> {
    let draws = Draws::new(vocab);
    let Sampling { temperature, top_k, top_p, min_p } = sampling;
    let settings = sample::Sampling { temperature, top_k, top_p, min_p };
    let draw = |row| sample::sample(draws.row(row), vocab, settings, draws.uniform(row));
    let (tokens, logp): (Vec<u32>, Vec<f32>) = (0..ROWS).map(draw).unzip();
    let tokens = tokens.into_iter().map(|token| token as f32).collect();
    let outputs = [expected("tokens", tokens, EXACT), expected("logp", logp, WIDE)];
    to.compare(format!("sampling of {vocab}, {name}"), &outputs, |rig| {
        let (tokens, logp) = draws.on(rig, sampling)?;
        Ok(vec![tokens.into_iter().map(|token| token as f32).collect(), logp])
    })
}

/// Checks draws from a whole vocabulary. The device rounds exponentials in its own way, so a draw
/// at the edge of a token's share may move to the neighbour: the uniform number must lie in the
/// token's share within 1e-5.
fn shares(to: &mut Comparison<'_>, vocab: usize) -> Result<()> {
    let draws = Draws::new(vocab);
    let inside = [expected("outside the share", vec![0.0; ROWS], EXACT)];
    to.compare(format!("sampling of {vocab}, plain"), &inside, |rig| {
        let (tokens, _) = draws.on(rig, PLAIN)?;
        let is_outside = |(row, token): (usize, u32)| {
            let lse = f64::from(statistics(draws.row(row), 1.0).lse());
            let share = |logit: &f32| (f64::from(*logit) - lse).exp();
            let (before, from) = draws.row(row).split_at(token as usize);
            let low: f64 = before.iter().map(share).sum();
            let high = low + from.first().map_or(0.0, share);
            let uniform = f64::from(draws.uniform(row));
            f32::from(u8::from(uniform < low - 1e-5 || uniform > high + 1e-5))
        };
        Ok(vec![tokens.into_iter().enumerate().map(is_outside).collect()])
    })
}

/// Checks the penalty for no token of the first row, every third of the second, and more tokens of
/// the third than there are threads.
fn penalty(to: &mut Comparison<'_>) -> Result<()> {
    const STRIDE: usize = 1000;
    let logits = numbers(91, 3 * STRIDE, 3.0);
    let seen = [Vec::new(), (0..STRIDE as u32).step_by(3).collect(), (5..705).collect::<Vec<_>>()];
    let ends = seen.iter().scan(0, |end, seen| {
        *end += seen.len() as u32;
        Some(*end)
    });
    let starts: Vec<u32> = std::iter::once(0).chain(ends).collect();
    let mut penalized = logits.clone();
    for (row, seen) in penalized.chunks_exact_mut(STRIDE).zip(&seen) {
        sample::penalize_repetition(row, seen.iter().copied(), 1.3);
    }
    to.compare("repetition penalty", &[expected("logits", penalized, EXACT)], |rig| {
        let (starts, tokens) = (rig.put(&starts)?, rig.put(&seen.concat())?);
        let seen = Seen { starts: starts.slice(), tokens: tokens.slice() };
        let mut logits = rig.put(&logits)?;
        rig.kernels.repetition.penalize(rig.stream, 1.3, seen, logits.slice_mut(), STRIDE)?;
        Ok(vec![rig.read(&logits)?])
    })
}
