//! This file launches `kernels/sample.cu`.

use super::{blocks, functions, int, rows_of};
use crate::cuda::device::Device;
use crate::cuda::memory::{DeviceSlice, DeviceSliceMut};
use crate::cuda::module::{Function, fatbin};
use crate::cuda::sizes::{self, MOST_CHOICES};
use crate::cuda::stream::Stream;
use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// This many threads read a row of logits; `kernels/statistics.cuh` relies on the number.
pub(crate) const ROW_THREADS: u32 = 1024;

#[derive(Debug)]
pub struct Sampler {
    sample: Function,
    truncated: Function,
}

/// The distribution that tokens are drawn from, as in `ops::sample::Sampling`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// The `top_k` most likely tokens are kept; 0 keeps all.
    pub top_k: usize,
    /// Of those, the fewest most likely that together hold this share are kept; 1 keeps all.
    pub top_p: f32,
    /// Of those, tokens with at least this share of the largest probability are kept; 0 keeps all.
    pub min_p: f32,
}

/// The settings with which one row's token is drawn, as `kernels/sample.cu` reads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct RowSampling {
    key: u64,
    index: u64,
    inverse_temperature: f32,
    top_k: i32,
    top_p: f32,
    min_p: f32,
    choices: i32,
    kind: i32,
}

const _: () = assert!(size_of::<RowSampling>() == sizes::ROW_SAMPLING, "draws are planned for");

// These are the values of `Kind` in the kernel.
const GREEDY: i32 = 0;
const WHOLE: i32 = 1;
const TRUNCATED: i32 = 2;

impl RowSampling {
    /// Makes settings that draw one of the first `choices` tokens by the `index`-th uniform number
    /// of `key`.
    pub fn new((key, index): (u64, u64), sampling: Sampling, choices: usize) -> Self {
        let Sampling { temperature, top_k, top_p, min_p } = sampling;
        assert!(0 < choices && choices <= MOST_CHOICES, "{choices} choices");
        let is_truncated = (top_k > 0 && top_k < choices) || top_p < 1.0 || min_p > 0.0;
        let kind = match temperature {
            0.0 => GREEDY,
            _ if is_truncated => TRUNCATED,
            _ => WHOLE,
        };
        Self {
            key,
            index,
            inverse_temperature: if kind == GREEDY { 1.0 } else { 1.0 / temperature },
            top_k: i32::try_from(top_k).unwrap_or(0),
            top_p,
            min_p,
            choices: choices as i32,
            kind,
        }
    }
}

/// Tells which kernels a batch of rows needs: one draws from the whole vocabulary, another
/// truncates it first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kinds {
    whole: bool,
    truncated: bool,
}

impl Kinds {
    /// Returns the kinds that `rows` have.
    pub fn of(rows: &[RowSampling]) -> Self {
        let has =
            |is_truncated: bool| rows.iter().any(|row| (row.kind == TRUNCATED) == is_truncated);
        Self { whole: has(false), truncated: has(true) }
    }
}

/// Rows of logits, `[rows, stride]`, with the settings of each row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The first `vocab` logits of each row make the softmax.
    pub logits: DeviceSlice<'a, f32>,
    /// Rows start this many elements apart, a multiple of eight.
    pub stride: usize,
    /// It is at least the number of each row's choices.
    pub vocab: usize,
    pub sampling: DeviceSlice<'a, RowSampling>,
    /// These must be the kinds of `sampling`.
    pub kinds: Kinds,
}

impl Sampler {
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let names = ["sample", "sample_truncated"];
        let [sample, truncated] = functions(device, fatbin!("sample"), names)?;
        Ok(Self { sample, truncated })
    }

    /// Draws one token of each row, and writes its log-probability in the distribution before
    /// truncation.
    pub fn sample(
        &self,
        stream: &Stream,
        rows: Rows<'_>,
        tokens: DeviceSliceMut<'_, u32>,
        logp: DeviceSliceMut<'_, f32>,
    ) -> Result<()> {
        let Rows { logits, stride, vocab, sampling, kinds } = rows;
        assert!(vocab <= stride, "{vocab} logits in rows of {stride}");
        let count = rows_of(logits.len(), stride);
        let lens = [sampling.len(), tokens.len(), logp.len()];
        assert_eq!(lens, [count; 3], "as many draws and tokens as rows");
        let [vocab, stride] = [vocab, stride].map(int);
        for kernel in [(&self.sample, kinds.whole), (&self.truncated, kinds.truncated)] {
            let (kernel, true) = kernel else { continue };
            // SAFETY: the kernels' parameters.
            unsafe {
                kernel.launch(
                    blocks(count),
                    ROW_THREADS,
                    0,
                    stream,
                    &[&logits, &sampling, &tokens, &logp, &vocab, &stride],
                )?;
            }
        }
        Ok(())
    }
}
