//! The head of the training graph: the scores of a chunk of targets, and their gradients.
//!
//! Logits exist for one chunk of targets at a time. The row of a target is computed alone, so neither the
//! chunk nor the other targets change its bits.

use super::{Buffer, CHUNK, Decoder, Target, TokenScores, Workspace, chunk_of};
use crate::model::weights::Matrix;
use crate::ops::logprob::{ScoreGradient, Statistics, statistics, statistics_backward};
use crate::ops::matmul::{Start, matmul, weight_gradient};
use crate::ops::parallel::{SharedMut, for_each};
use crate::ops::reduce::add_rows;
use crate::ops::rms_norm::rms_norm_backward;

/// A head chunk has at most this many logits.
const HEAD_LOGITS: usize = 1 << 20;

/// One chunk of targets.
#[derive(Default)]
pub(crate) struct HeadBuffers {
    pub(crate) x: Buffer,
    pub(crate) normal: Buffer,
    pub(crate) logits: Buffer,
    statistics: Vec<Statistics>,
    pub(crate) scores: Vec<TokenScores>,
    /// The gradient of the loss with respect to each score.
    pub(crate) gradients: Vec<ScoreGradient>,
    pub(crate) d_x: Buffer,
    pub(crate) partials: Buffer,
}

impl Decoder {
    /// Returns how many targets have logits at the same time.
    pub(crate) fn head_chunk(&self) -> usize {
        (HEAD_LOGITS / self.config().vocab_size).next_multiple_of(CHUNK).clamp(CHUNK, 8 * CHUNK)
    }

    /// Computes logits, statistics and scores of a chunk of targets into `ws.head`.
    pub(crate) fn head_forward(&self, targets: &[Target], temperature: f32, ws: &mut Workspace) {
        let (hidden, vocab) = (self.config().hidden_size, self.config().vocab_size);
        let Workspace { forward, x, head, scratch, .. } = ws;
        let Some(packed) = forward else { return };
        let source = x.as_slice();
        let count = targets.len();
        head.statistics.clear();
        head.statistics.resize(count, Statistics::default());
        head.scores.clear();
        head.scores.resize(count, TokenScores::default());
        let x = SharedMut::new(head.x.grow(count * hidden));
        let normal = SharedMut::new(head.normal.grow(count * hidden));
        let logits = SharedMut::new(head.logits.grow(count * vocab));
        let all_statistics = SharedMut::new(&mut head.statistics);
        let all_scores = SharedMut::new(&mut head.scores);
        for_each(count.div_ceil(CHUNK), scratch, |item, _| {
            let rows = chunk_of(item, count, 1);
            // SAFETY: each item has its own rows.
            let (x, normal, logits, statistics_of, scores) = unsafe {
                (
                    x.part(chunk_of(item, count, hidden)),
                    normal.part(chunk_of(item, count, hidden)),
                    logits.part(chunk_of(item, count, vocab)),
                    all_statistics.part(rows.clone()),
                    all_scores.part(rows.clone()),
                )
            };
            let targets = &targets[rows];
            for (x, target) in x.chunks_exact_mut(hidden).zip(targets) {
                x.copy_from_slice(&source[target.row * hidden..][..hidden]);
            }
            self.logits(1, packed, x, normal, logits);
            let rows = logits.chunks_exact(vocab).zip(targets);
            for ((logits, target), (row, score)) in rows.zip(statistics_of.iter_mut().zip(scores)) {
                *row = statistics(logits, temperature);
                let logp = row.logp(logits[target.token as usize]);
                *score = TokenScores { logp, entropy: row.entropy, mean_logp: row.mean_logp };
            }
        });
    }

    /// Computes the backward of the chunk in `ws.head`. It adds to the gradients of the residual stream, of
    /// the last norm and of the head.
    pub(crate) fn head_backward(
        &self,
        params: &[f32],
        targets: &[Target],
        grads: &mut [f32],
        ws: &mut Workspace,
    ) {
        let (hidden, vocab) = (self.config().hidden_size, self.config().vocab_size);
        let Workspace { backward, head, gradients, scratch, .. } = ws;
        let Some(packed) = backward else { return };
        let HeadBuffers {
            x, normal, logits, statistics, gradients: by_scores, d_x, partials, ..
        } = head;
        let count = targets.len();
        let items = count.div_ceil(CHUNK);
        let weight = &params[self.ranges.norm.clone()];
        let eps = self.config().rms_norm_eps;
        let x = x.grow(count * hidden);
        let normal = normal.grow(count * hidden);
        let logits = logits.grow(count * vocab);
        let d_x = d_x.grow(count * hidden);
        let partials = partials.grow(items * hidden);
        let shared_normal = SharedMut::new(normal);
        let shared_logits = SharedMut::new(logits);
        let (shared_d_x, shared_partials) = (SharedMut::new(d_x), SharedMut::new(partials));
        for_each(items, scratch, |item, _| {
            let rows = chunk_of(item, count, 1);
            let at = chunk_of(item, count, hidden);
            // SAFETY: each item has its own rows and its own partial sum.
            let (normal, logits, d_x, partial) = unsafe {
                (
                    shared_normal.part(at.clone()),
                    shared_logits.part(chunk_of(item, count, vocab)),
                    shared_d_x.part(at.clone()),
                    shared_partials.part(item * hidden..(item + 1) * hidden),
                )
            };
            for (index, logits) in rows.clone().zip(logits.chunks_exact_mut(vocab)) {
                let token = targets[index].token;
                statistics_backward(logits, statistics[index], token, by_scores[index]);
            }
            let panels = packed.panels(Matrix::Head);
            matmul(logits, vocab, rows.len(), panels, Start::Zero, normal, hidden);
            d_x.fill(0.0);
            partial.fill(0.0);
            rms_norm_backward(&x[at], weight, eps, normal, d_x, partial);
        });
        add_rows(partials, &mut grads[self.ranges.norm.clone()]);
        let d_head = &mut grads[self.ranges.head.clone()];
        weight_gradient(logits, normal, count, d_head, scratch);
        let sum = gradients.x.as_mut_slice();
        for (target, d_x) in targets.iter().zip(d_x.chunks_exact(hidden)) {
            add_rows(d_x, &mut sum[target.row * hidden..][..hidden]);
        }
    }
}
