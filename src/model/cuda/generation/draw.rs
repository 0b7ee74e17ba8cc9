//! Draws from the logits of a pass, on the device.
//!
//! Contract: the tokens of [`Draw::draw`] on the same logits; only keys and numbers cross to the device,
//! and only tokens and their log-probabilities back. With a repetition penalty, which few ask for, the
//! logits are copied and penalized some rows at a time, since their own say the log-probabilities.

use super::Generation;
use crate::cuda::kernels::Kernels;
use crate::cuda::kernels::logprob::{Shape, Statistics};
use crate::cuda::kernels::repetition::Seen;
use crate::cuda::kernels::sample::{Rows, Sampling};
use crate::cuda::{DeviceSlice, Phase, Stream, Tools};
use crate::model::Decoder;
use crate::model::cuda::memory::Matrix;
use crate::ops::sample::{self, Draw, Policy};
use anyhow::Result;
use bytemuck::Pod;
use std::ops::Range;

/// Most rows that are penalized at a time: about as many as a GPU has multiprocessors, a row each.
const PENALIZED: usize = 128;

/// The buffers of draws.
pub(crate) struct Drawing<'a> {
    keys: Matrix<'a, u64>,
    indices: Matrix<'a, u64>,
    tokens: Matrix<'a, u32>,
    logp: Matrix<'a, f32>,
    penalized: Matrix<'a, f32>,
    /// Where the tokens of each penalized row start, and these.
    starts: Matrix<'a, u32>,
    seen: Matrix<'a, u32>,
    statistics: Matrix<'a, Statistics>,
}

impl<'a> Drawing<'a> {
    /// Room for draws from `rows` rows, of sequences of `length` tokens.
    pub(crate) fn take(
        phase: &mut Phase<'a>,
        decoder: &Decoder,
        rows: usize,
        length: usize,
    ) -> Result<Self> {
        let vocab = decoder.config().vocab_size;
        let penalized = rows.min(PENALIZED);
        Ok(Self {
            keys: Matrix::take(phase, "keys of draws", rows, 1)?,
            indices: Matrix::take(phase, "numbers of draws", rows, 1)?,
            tokens: Matrix::take(phase, "drawn tokens", rows, 1)?,
            logp: Matrix::take(phase, "log-probabilities", rows, 1)?,
            penalized: Matrix::take(phase, "penalized logits", penalized, vocab)?,
            starts: Matrix::take(phase, "starts of seen tokens", penalized + 1, 1)?,
            seen: Matrix::take(phase, "seen tokens", penalized * length, 1)?,
            statistics: Matrix::take(phase, "statistics of logits", penalized, 1)?,
        })
    }
}

impl Generation<'_> {
    /// A token and its log-probability for each of `draws` from the first logits that were kept.
    pub fn draw(&mut self, draws: &[Draw<'_>], policy: &Policy) -> Result<Vec<(u32, f32)>> {
        let count = draws.len();
        let (keys, indices): (Vec<u64>, Vec<u64>) =
            draws.iter().map(|draw| (draw.key, draw.index())).unzip();
        let Self { stream, tools, drawing, .. } = self;
        tools.transfer.upload(stream, &keys, drawing.keys.rows_mut(count))?;
        tools.transfer.upload(stream, &indices, drawing.indices.rows_mut(count))?;
        if policy.repetition_penalty == 1.0 {
            let Self { stream, tools, buffers, drawing, .. } = self;
            let logits = Some(buffers.logits.rows(count));
            drawing.draw((stream, &tools.kernels), logits, 0..count, policy)?;
        } else {
            for first in (0..count).step_by(PENALIZED) {
                let rows = first..count.min(first + PENALIZED);
                self.draw_penalized(&draws[rows.clone()], rows, policy)?;
            }
        }
        let (mut tokens, mut logp) = (vec![0; count], vec![0.0; count]);
        let Self { stream, tools, drawing, .. } = self;
        tools.transfer.download(stream, drawing.tokens.rows(count), &mut tokens)?;
        tools.transfer.download(stream, drawing.logp.rows(count), &mut logp)?;
        Ok(tokens.into_iter().zip(logp).collect())
    }

    /// Draws from penalized copies of `rows` of the logits.
    fn draw_penalized(
        &mut self,
        draws: &[Draw<'_>],
        rows: Range<usize>,
        policy: &Policy,
    ) -> Result<()> {
        let vocab = self.decoder.config().vocab_size;
        let Self { stream, tools, buffers, drawing, .. } = self;
        let Tools { kernels, transfer, .. } = &mut **tools;
        let (starts, tokens) = seen(draws);
        let count = rows.len();
        transfer.upload(stream, &starts, drawing.starts.rows_mut(count + 1))?;
        transfer.upload(stream, &tokens, drawing.seen.rows_mut(tokens.len()))?;
        let seen = Seen {
            starts: drawing.starts.rows(count + 1),
            tokens: drawing.seen.rows(tokens.len()),
        };
        let logits = part(&buffers.logits, &rows);
        stream.copy(drawing.penalized.rows_mut(count), logits)?;
        let penalized = drawing.penalized.rows_mut(count);
        kernels.repetition.penalize(stream, policy.repetition_penalty, seen, penalized, vocab)?;
        drawing.draw((stream, kernels), None, rows.clone(), policy)?;
        let temperature = match policy.sampling.temperature {
            0.0 => 1.0,
            temperature => temperature,
        };
        kernels.logprob.forward(
            stream,
            Shape { vocab, stride: vocab, temperature },
            logits,
            part(&drawing.tokens, &rows),
            drawing.statistics.rows_mut(count),
            drawing.logp.rows_mut(rows.end).into_range(rows),
        )
    }
}

impl Drawing<'_> {
    /// Draws `rows` from `logits`, or else from the penalized ones.
    fn draw(
        &mut self,
        (stream, kernels): (&Stream, &Kernels),
        logits: Option<DeviceSlice<'_, f32>>,
        rows: Range<usize>,
        policy: &Policy,
    ) -> Result<()> {
        let Self { keys, indices, tokens, logp, penalized, .. } = self;
        let vocab = penalized.width();
        let drawn = Rows {
            logits: logits.unwrap_or_else(|| penalized.rows(rows.len())),
            stride: vocab,
            vocab,
            choices: policy.vocab_size,
            keys: part(keys, &rows),
            indices: part(indices, &rows),
        };
        let tokens = tokens.rows_mut(rows.end).into_range(rows.clone());
        let logp = logp.rows_mut(rows.end).into_range(rows);
        kernels.sample.sample(stream, of_device(policy.sampling), drawn, tokens, logp)
    }
}

/// Some rows of a matrix.
fn part<'s, T: Pod>(matrix: &'s Matrix<'_, T>, rows: &Range<usize>) -> DeviceSlice<'s, T> {
    let width = matrix.width();
    matrix.rows(rows.end).range(rows.start * width..rows.end * width)
}

/// Where the tokens that each text has start, and the tokens, each once a text.
fn seen(draws: &[Draw<'_>]) -> (Vec<u32>, Vec<u32>) {
    let (mut starts, mut tokens) = (vec![0], Vec::new());
    for draw in draws {
        let mut of_draw: Vec<u32> = draw.seen().collect();
        of_draw.sort_unstable();
        of_draw.dedup();
        tokens.append(&mut of_draw);
        starts.push(tokens.len() as u32);
    }
    (starts, tokens)
}

fn of_device(sampling: sample::Sampling) -> Sampling {
    let sample::Sampling { temperature, top_k, top_p, min_p } = sampling;
    Sampling { temperature, top_k, top_p, min_p }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_a_text_has_more_than_once_are_listed_once() {
        let draw = |prompt, response| Draw { key: 0, prompt, response };
        let draws = [draw(&[7, 3, 7], &[3, 1]), draw(&[], &[]), draw(&[5], &[5])];
        assert_eq!(seen(&draws), (vec![0, 3, 3, 4], vec![1, 3, 7, 5]));
    }
}
