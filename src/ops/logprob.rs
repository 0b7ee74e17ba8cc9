//! Log-probability, entropy and mean log-probability of softmax(logits / temperature), row by row, and
//! their gradient.
//!
//! Training and sampling read a row through the same [`statistics`], so a token's log-probability has the
//! same bits in both. A row is `[vocabulary]` logits.

use super::simd::{LANES, Simd, exp, load_partial, max_lanes, simd_fn, store_partial, sum_lanes};

/// Sums over this many logits are in single precision, and the sums of such blocks are added in double
/// precision. In single precision, a sum over a whole vocabulary would lose the small probabilities beside
/// the largest.
const BLOCK: usize = 2048;

/// What a row of logits says about its distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// The largest logit.
    pub max: f32,
    /// 1 / temperature.
    pub inverse_temperature: f32,
    /// ln Σ exp((logit - max) / temperature).
    pub log_sum: f32,
    /// The entropy of the distribution, in nats.
    pub entropy: f32,
    /// The mean log-probability over all tokens of the vocabulary, in nats: label smoothing needs it.
    pub mean_logp: f32,
}

impl Statistics {
    /// Returns the natural log-probability of the token with this logit.
    pub fn logp(&self, logit: f32) -> f32 {
        (logit - self.max) * self.inverse_temperature - self.log_sum
    }

    /// Returns the log-sum-exp of logits / temperature.
    pub fn lse(&self) -> f32 {
        self.max * self.inverse_temperature + self.log_sum
    }
}

simd_fn!(
    /// Returns the statistics of a row; `temperature` is above 0.
    pub fn statistics(logits: &[f32], temperature: f32) -> Statistics = statistics_generic
);

#[inline(always)]
fn statistics_generic<S: Simd>(s: S, logits: &[f32], temperature: f32) -> Statistics {
    let (chunks, tail) = logits.as_chunks::<LANES>();
    let tail_logits = tail;
    let tail = load_partial(s, tail, f32::NEG_INFINITY);
    let mut max = tail;
    for chunk in chunks {
        max = s.max(max, s.load(chunk));
    }
    let max = max_lanes(s, max);
    let inverse_temperature = 1.0 / temperature;
    let scale = (s.splat(max), s.splat(inverse_temperature));
    let tail_total: f32 = tail_logits.iter().map(|x| (x - max) * inverse_temperature).sum();
    let mut odd = add_eight(s, tail, scale, [s.splat(0.0); 3]);
    // The lanes beyond the row hold minus infinity and must not count in the mean.
    odd[2] = s.splat(0.0);
    let mut blocks = chunks.chunks(BLOCK / LANES);
    let mut sums = add_block(s, blocks.next().unwrap_or_default(), scale, odd).map(f64::from);
    sums[2] += f64::from(tail_total);
    for block in blocks {
        let of_block = add_block(s, block, scale, [s.splat(0.0); 3]);
        sums.iter_mut().zip(of_block).for_each(|(sum, part)| *sum += f64::from(part));
    }
    let [sum, weighted, total] = sums.map(|sum| sum as f32);
    let log_sum = sum.ln();
    let mean_logp = total / logits.len() as f32 - log_sum;
    Statistics { max, inverse_temperature, log_sum, entropy: log_sum - weighted / sum, mean_logp }
}

/// Adds the sums of e^z, of z e^z and of z over a block to `odd`.
#[inline(always)]
fn add_block<S: Simd>(
    s: S,
    block: &[[f32; LANES]],
    scale: (S::V, S::V),
    mut odd: [S::V; 3],
) -> [f32; 3] {
    let mut even = [s.splat(0.0); 3];
    let (pairs, last) = block.as_chunks::<2>();
    for [first, second] in pairs {
        even = add_eight(s, s.load(first), scale, even);
        odd = add_eight(s, s.load(second), scale, odd);
    }
    for chunk in last {
        even = add_eight(s, s.load(chunk), scale, even);
    }
    std::array::from_fn(|i| sum_lanes(s, s.add(even[i], odd[i])))
}

/// Adds eight logits to the sums of e^z, of z e^z and of z.
#[inline(always)]
fn add_eight<S: Simd>(s: S, x: S::V, (shift, factor): (S::V, S::V), sums: [S::V; 3]) -> [S::V; 3] {
    let z = s.mul(s.sub(x, shift), factor);
    let e = exp(s, z);
    // A logit of minus infinity has probability 0 and adds nothing to the entropy.
    [s.add(sums[0], e), s.fma(e, s.max(z, s.splat(f32::MIN)), sums[1]), s.add(sums[2], z)]
}

/// The scores of one target under softmax(logits / temperature).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenScores {
    /// The natural log-probability of the target.
    pub logp: f32,
    /// The entropy of the distribution, in nats.
    pub entropy: f32,
    /// The mean log-probability over the vocabulary, in nats.
    pub mean_logp: f32,
}

/// The gradient of a loss with respect to the [`TokenScores`] of one target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreGradient {
    /// With respect to the log-probability.
    pub logp: f32,
    /// With respect to the entropy.
    pub entropy: f32,
    /// With respect to the mean log-probability.
    pub mean_logp: f32,
}

impl ScoreGradient {
    /// Returns the gradient of the loss times `factor`.
    pub fn times(self, factor: f32) -> Self {
        let Self { logp, entropy, mean_logp } = self;
        Self { logp: logp * factor, entropy: entropy * factor, mean_logp: mean_logp * factor }
    }
}

simd_fn!(
    /// Overwrites a row of logits with the gradient of the loss with respect to them. `gradient` is that
    /// with respect to the scores of `token`.
    pub fn statistics_backward(
        logits: &mut [f32],
        statistics: Statistics,
        token: u32,
        gradient: ScoreGradient,
    ) = backward_generic
);

#[inline(always)]
fn backward_generic<S: Simd>(
    s: S,
    logits: &mut [f32],
    statistics: Statistics,
    token: u32,
    gradient: ScoreGradient,
) {
    let Statistics { max, inverse_temperature, log_sum, entropy, .. } = statistics;
    let ScoreGradient { logp: d_logp, entropy: d_entropy, mean_logp: d_mean_logp } = gradient;
    let (shift, factor, log_sum) = (s.splat(max), s.splat(inverse_temperature), s.splat(log_sum));
    // d/dz = d_logp * (onehot - p) - d_entropy * p * (ln p + entropy) + d_mean_logp * (1 / V - p)
    let constant = s.splat(-inverse_temperature * (d_logp + d_mean_logp + d_entropy * entropy));
    let spread = s.splat(inverse_temperature * d_mean_logp / logits.len() as f32);
    let slope = s.splat(-inverse_temperature * d_entropy);
    let constants = [shift, factor, log_sum, constant, slope, spread];
    let (chunks, tail) = logits.as_chunks_mut::<LANES>();
    for chunk in chunks {
        s.store(gradient_eight(s, s.load(chunk), constants), chunk);
    }
    store_partial(s, gradient_eight(s, load_partial(s, tail, 0.0), constants), tail);
    logits[token as usize] += inverse_temperature * d_logp;
}

/// Returns p * (constant + slope * ln p) + spread for eight logits.
#[inline(always)]
fn gradient_eight<S: Simd>(s: S, x: S::V, constants: [S::V; 6]) -> S::V {
    let [shift, factor, log_sum, constant, slope, spread] = constants;
    let log_p = s.sub(s.mul(s.sub(x, shift), factor), log_sum);
    let log_p = s.max(log_p, s.splat(f32::MIN));
    s.fma(exp(s, log_p), s.fma(log_p, slope, constant), spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(logits: &[f64], token: usize, temperature: f64) -> [f64; 3] {
        let sum: f64 = logits.iter().map(|x| (x / temperature).exp()).sum();
        let log_p = |x: &f64| x / temperature - sum.ln();
        let entropy = logits.iter().map(|x| -log_p(x) * log_p(x).exp()).sum();
        let mean_logp = logits.iter().map(log_p).sum::<f64>() / logits.len() as f64;
        [log_p(&logits[token]), entropy, mean_logp]
    }

    #[test]
    fn values_and_gradients_match_double_precision_differences() {
        for (len, temperature) in [(5, 1.0), (37, 0.7), (64, 1.3)] {
            let logits: Vec<f32> = (0..len).map(|i| (i as f32 * 1.9).sin() * 6.0 + 3.0).collect();
            let double: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
            let token = 3;
            let row = statistics(&logits, temperature);
            let [logp, entropy, mean_logp] = exact(&double, token, f64::from(temperature));
            assert!((f64::from(row.mean_logp) - mean_logp).abs() < 4e-6);
            assert!((f64::from(row.logp(logits[token])) - logp).abs() < 2e-6);
            assert!((f64::from(row.entropy) - entropy).abs() < 2e-6);
            let by_scores = ScoreGradient { logp: 0.8, entropy: -0.3, mean_logp: 0.4 };
            let mut gradient = logits.clone();
            statistics_backward(&mut gradient, row, token as u32, by_scores);
            let loss = |x: &[f64]| {
                let [logp, entropy, mean_logp] = exact(x, token, f64::from(temperature));
                0.8 * logp - 0.3 * entropy + 0.4 * mean_logp
            };
            for i in 0..len {
                let (mut up, mut down) = (double.clone(), double.clone());
                up[i] += 1e-5;
                down[i] -= 1e-5;
                let slope = (loss(&up) - loss(&down)) / 2e-5;
                assert!((f64::from(gradient[i]) - slope).abs() < 2e-6, "{i}");
            }
        }
    }

    #[test]
    fn the_tail_of_a_large_vocabulary_counts() {
        for (vocab, peak) in [(151_936, 12.0f32), (128_256, 20.0), (50_257, 8.0)] {
            let mut logits: Vec<f32> =
                (0..vocab).map(|i| ((i * 7919 % 104_729) as f32 * 0.013).sin() * 3.0).collect();
            logits[vocab / 3] = peak;
            let double: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
            let [logp, entropy, _] = exact(&double, vocab / 3, 1.0);
            let row = statistics(&logits, 1.0);
            assert!(
                (f64::from(row.logp(peak)) - logp).abs() < 2e-6 * logp.abs().max(1.0),
                "{vocab}"
            );
            assert!((f64::from(row.entropy) - entropy).abs() < 2e-6 * entropy.max(1.0), "{vocab}");
        }
    }

    #[test]
    fn an_impossible_token_leaves_the_row_finite() {
        let mut logits = vec![1.0, f32::NEG_INFINITY, 2.0];
        let row = statistics(&logits, 1.0);
        assert!(row.entropy.is_finite() && row.lse().is_finite());
        let by_scores = ScoreGradient { logp: 1.0, entropy: 0.5, mean_logp: 0.0 };
        statistics_backward(&mut logits, row, 0, by_scores);
        assert!(logits.iter().all(|x| x.is_finite()));
    }
}
