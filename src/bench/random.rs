//! This file makes random weights and tokens for measurements.

use crate::base::rng;
use crate::model::cuda::DeviceModel;
use crate::model::{Packed, Target};
use anyhow::Result;

/// Fills a model with random weights of the size of freshly initialised ones, and norms with ones.
/// The same numbers repeat, because eight billion different ones would take minutes to make.
pub(crate) fn upload_weights(model: &mut DeviceModel) -> Result<()> {
    const NUMBERS: usize = 1 << 20;
    let size = 2.0 * model.decoder().config().initializer_range;
    let numbers: Vec<f32> =
        (0..NUMBERS as u64).map(|i| size * (rng::uniform(3, i) - 0.5) * 1.73).collect();
    let ones = vec![1.0f32; NUMBERS];
    let tensors = model.decoder().layout().tensors.clone();
    for tensor in tensors {
        let source = if tensor.decays() { &numbers } else { &ones };
        for start in tensor.range.clone().step_by(NUMBERS) {
            let end = tensor.range.end.min(start + NUMBERS);
            model.upload(start, &source[..end - start])?;
        }
    }
    Ok(())
}

/// Returns `count` random tokens of a vocabulary; another `key` gives others.
pub(crate) fn tokens(key: u64, vocab: usize, count: usize) -> Vec<u32> {
    (0..count as u64).map(|i| (rng::uniform(key, i) * vocab as f32) as u32).collect()
}

/// Returns one sequence of random tokens, each of which has the next one as its target.
pub(crate) fn batch(vocab: usize, count: usize) -> (Packed, Vec<Target>) {
    let sequence = tokens(4, vocab, count);
    let target = |row: usize| Target { row, token: sequence[(row + 1) % count] };
    let targets = (0..count).map(target).collect();
    (Packed::from_sequences([sequence.as_slice()]), targets)
}
