//! Launches `kernels/sample.cu`.

use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, cubin};
use crate::cuda::stream::Stream;
use anyhow::Result;
use std::sync::Arc;

/// Threads that read a row of logits: `kernels/statistics.cuh` counts on them.
pub(crate) const ROW_THREADS: u32 = 1024;

/// The largest vocabulary: the tiles that `kernels/sample.cu` has room for.
pub const MOST_CHOICES: usize = 64 * 4096;

/// The kernels.
#[derive(Debug)]
pub struct Sampler {
    sample: Function,
    truncated: Function,
}

/// The distribution that tokens are drawn from, as `ops::sample::Sampling`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Then keeps the fewest most likely of those that together hold this share; 1 keeps all.
    pub top_p: f32,
    /// Then keeps those with at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
}

/// Rows of logits, `[rows, stride]`, and the uniform number of each: the `index`-th of its `key`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Logits; the first `vocab` of a row make the softmax, the first `choices` may be drawn.
    pub logits: DeviceSlice<'a, f32>,
    /// Elements between rows, a multiple of eight.
    pub stride: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// Tokens of the vocabulary.
    pub choices: usize,
    /// Keys of `base::rng`.
    pub keys: DeviceSlice<'a, u64>,
    /// Indices under the keys.
    pub indices: DeviceSlice<'a, u64>,
}

impl Sampler {
    /// Loads the kernels.
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["sample", "sample_truncated"];
        let [sample, truncated] = functions(device, cubin!("sample"), names)?;
        Ok(Self { sample, truncated })
    }

    /// A token of each row, and its log-probability before truncation.
    pub fn sample(
        &self,
        stream: &Stream,
        sampling: Sampling,
        rows: Rows<'_>,
        tokens: DeviceSliceMut<'_, u32>,
        logp: DeviceSliceMut<'_, f32>,
    ) -> Result<()> {
        let Rows { logits, stride, vocab, choices, keys, indices } = rows;
        let Sampling { temperature, top_k, top_p, min_p } = sampling;
        let choices = choices.min(vocab);
        assert!(0 < choices && vocab <= stride && choices <= MOST_CHOICES, "{choices} choices");
        let count = rows_of(logits.len(), stride);
        let lens = [keys.len(), indices.len(), tokens.len(), logp.len()];
        assert_eq!(lens, [count; 4], "as many keys and tokens as rows");
        let is_greedy = temperature == 0.0;
        let scale = if is_greedy { 1.0 } else { 1.0 / temperature };
        let is_truncated = (top_k > 0 && top_k < choices) || top_p < 1.0 || min_p > 0.0;
        let [vocab, choices, stride, greedy] =
            [vocab, choices, stride, usize::from(is_greedy)].map(int);
        // SAFETY: the kernels' parameters.
        unsafe {
            if is_truncated && !is_greedy {
                let top_k = i32::try_from(top_k).unwrap_or(0);
                self.truncated.launch(
                    blocks(count),
                    ROW_THREADS,
                    0,
                    stream,
                    &[
                        &logits, &keys, &indices, &tokens, &logp, &vocab, &choices, &stride,
                        &scale, &top_k, &top_p, &min_p,
                    ],
                )
            } else {
                self.sample.launch(
                    blocks(count),
                    ROW_THREADS,
                    0,
                    stream,
                    &[
                        &logits, &keys, &indices, &tokens, &logp, &vocab, &choices, &stride,
                        &scale, &greedy,
                    ],
                )
            }
        }
    }
}
