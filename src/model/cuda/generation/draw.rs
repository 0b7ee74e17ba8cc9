//! This file draws tokens from the logits of a pass, on the device.
//!
//! Contract: the tokens are those of [`Draw::draw`] on the same logits. Each row is drawn by its
//! own policy, which alone decides how it is computed. Settings are copied to the device, tokens
//! and their log-probabilities back; the logits of a row are copied only where its most likely
//! tokens are wanted, or where the host draws from them ([`Draw::is_for_host`]). With a repetition
//! penalty, which is rare, some rows at a time are copied and penalized, because log-probabilities
//! come from the logits without the penalty.

use super::Generation;
use crate::cuda::kernels::Kernels;
use crate::cuda::kernels::logprob::{Shape, Statistics};
use crate::cuda::kernels::repetition::Seen;
use crate::cuda::kernels::sample::{Kinds, RowSampling, Rows, Sampling};
use crate::cuda::{DeviceSlice, Phase, Stream, Tools};
use crate::model::Decoder;
use crate::model::cuda::matrix::Matrix;
use crate::model::gpu_sizes::PENALIZED;
use crate::ops::sample::{self, Draw, Drawn};
use anyhow::Result;
use bytemuck::Pod;
use std::ops::Range;

/// The buffers of draws.
pub(crate) struct Drawing<'a> {
    sampling: Matrix<'a, RowSampling>,
    tokens: Matrix<'a, u32>,
    logp: Matrix<'a, f32>,
    penalized: Matrix<'a, f32>,
    /// The tokens of penalized row `i` are `seen[starts[i]..starts[i + 1]]`.
    starts: Matrix<'a, u32>,
    seen: Matrix<'a, u32>,
    statistics: Matrix<'a, Statistics>,
}

impl<'a> Drawing<'a> {
    /// Takes memory for draws from `rows` rows, of sequences of at most `length` tokens.
    pub(crate) fn take(
        phase: &mut Phase<'a>,
        decoder: &Decoder,
        rows: usize,
        length: usize,
    ) -> Result<Self> {
        let vocab = decoder.config().vocab_size;
        let penalized = rows.min(PENALIZED);
        Ok(Self {
            sampling: Matrix::take(phase, "settings of draws", rows, 1)?,
            tokens: Matrix::take(phase, "drawn tokens", rows, 1)?,
            logp: Matrix::take(phase, "log-probabilities", rows, 1)?,
            penalized: Matrix::take(phase, "penalized logits", penalized, vocab)?,
            starts: Matrix::take(phase, "starts of seen tokens", penalized + 1, 1)?,
            seen: Matrix::take(phase, "seen tokens", penalized * length, 1)?,
            statistics: Matrix::take(phase, "statistics of logits", penalized, 1)?,
        })
    }
}

/// Returns the penalty of a row and the temperature of its log-probability, if it has a penalty.
fn penalty(draw: &Draw<'_>) -> Option<(f32, f32)> {
    let penalty = draw.policy.repetition_penalty;
    (penalty != 1.0).then(|| (penalty, draw.policy.sampling.divisor()))
}

impl Generation<'_> {
    /// Draws one token for each of `draws`, from the first logits that were kept.
    pub fn draw(&mut self, draws: &[Draw<'_>]) -> Result<Vec<Drawn>> {
        let vocab = self.decoder.config().vocab_size;
        let of_row = |draw: &Draw<'_>| {
            let choices = draw.policy.vocab_size.min(vocab);
            RowSampling::new((draw.key, draw.index()), of_device(draw.policy.sampling), choices)
        };
        let sampling: Vec<RowSampling> = draws.iter().map(of_row).collect();
        let Self { stream, tools, drawing, .. } = self;
        tools.transfer.upload(stream, &sampling, drawing.sampling.rows_mut(draws.len()))?;
        // Neighbouring rows that are penalized alike, or not at all, are drawn together.
        let mut first = 0;
        for alike in draws.chunk_by(|a, b| penalty(a) == penalty(b)) {
            let most = if penalty(&alike[0]).is_some() { PENALIZED } else { alike.len() };
            for part in alike.chunks(most) {
                let rows = first..first + part.len();
                let kinds = Kinds::of(&sampling[rows.clone()]);
                self.draw_alike(part, rows.clone(), kinds)?;
                first = rows.end;
            }
        }
        let (mut tokens, mut logp) = (vec![0; draws.len()], vec![0.0; draws.len()]);
        let Self { stream, tools, drawing, .. } = self;
        tools.transfer.download(stream, drawing.tokens.rows(draws.len()), &mut tokens)?;
        tools.transfer.download(stream, drawing.logp.rows(draws.len()), &mut logp)?;
        let drawn = tokens.into_iter().zip(logp);
        let mut drawn: Vec<Drawn> =
            drawn.map(|(token, logprob)| Drawn { token, logprob, top: Vec::new() }).collect();
        for (row, draw) in draws.iter().enumerate() {
            if draw.is_for_host() {
                drawn[row] = draw.draw(&self.logits(row)?);
            } else if draw.num_top > 0 {
                drawn[row].top = draw.top(&self.logits(row)?);
            }
        }
        Ok(drawn)
    }

    /// Draws from `rows` of the logits, or from penalized copies of them; all `draws` have the same
    /// penalty.
    fn draw_alike(&mut self, draws: &[Draw<'_>], rows: Range<usize>, kinds: Kinds) -> Result<()> {
        let vocab = self.decoder.config().vocab_size;
        let Self { stream, tools, buffers, drawing, .. } = self;
        let Tools { kernels, transfer, .. } = &mut **tools;
        let logits = part(&buffers.logits, &rows);
        let Some((penalty, temperature)) = penalty(&draws[0]) else {
            return drawing.draw((stream, kernels), Some(logits), rows, kinds);
        };
        let (starts, tokens) = seen(draws);
        let count = rows.len();
        transfer.upload(stream, &starts, drawing.starts.rows_mut(count + 1))?;
        transfer.upload(stream, &tokens, drawing.seen.rows_mut(tokens.len()))?;
        let seen = Seen {
            starts: drawing.starts.rows(count + 1),
            tokens: drawing.seen.rows(tokens.len()),
        };
        stream.copy(drawing.penalized.rows_mut(count), logits)?;
        let penalized = drawing.penalized.rows_mut(count);
        kernels.repetition.penalize(stream, penalty, seen, penalized, vocab)?;
        drawing.draw((stream, kernels), None, rows.clone(), kinds)?;
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
    /// Draws `rows` from `logits`, or from the penalized logits if there are none.
    fn draw(
        &mut self,
        (stream, kernels): (&Stream, &Kernels),
        logits: Option<DeviceSlice<'_, f32>>,
        rows: Range<usize>,
        kinds: Kinds,
    ) -> Result<()> {
        let Self { sampling, tokens, logp, penalized, .. } = self;
        let vocab = penalized.width();
        let drawn = Rows {
            logits: logits.unwrap_or_else(|| penalized.rows(rows.len())),
            stride: vocab,
            vocab,
            sampling: part(sampling, &rows),
            kinds,
        };
        let tokens = tokens.rows_mut(rows.end).into_range(rows.clone());
        let logp = logp.rows_mut(rows.end).into_range(rows);
        kernels.sample.sample(stream, drawn, tokens, logp)
    }
}

/// Returns the rows `rows` of a matrix.
fn part<'s, T: Pod>(matrix: &'s Matrix<'_, T>, rows: &Range<usize>) -> DeviceSlice<'s, T> {
    let width = matrix.width();
    matrix.rows(rows.end).range(rows.start * width..rows.end * width)
}

/// Returns the distinct tokens of each text, and where those of each text start.
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
    use crate::ops::sample::{Edits, Policy};

    #[test]
    fn tokens_that_a_text_has_more_than_once_are_listed_once() {
        let sampling = sample::Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        let policy =
            Policy { sampling, repetition_penalty: 1.0, vocab_size: 10, raw_logprobs: false };
        let edits = Edits::default();
        let draw = |prompt, response| Draw { key: 0, prompt, response, policy, edits, num_top: 0 };
        let draws = [draw(&[7, 3, 7], &[3, 1]), draw(&[], &[]), draw(&[5], &[5])];
        assert_eq!(seen(&draws), (vec![0, 3, 3, 4], vec![1, 3, 7, 5]));
    }
}
