//! Draws a token from a row of logits, by temperature, top-k, top-p and min-p, with one uniform random
//! number.
//!
//! The token depends only on the row, the settings and the number `u`. Its log-probability is that of
//! softmax(logits / temperature) before any truncation. At temperature 0 the token is the first of the
//! largest logits, with its log-probability at temperature 1. Rows of logits that only pad the vocabulary
//! are never drawn, but they count in the softmax, since they do in training. Where tokens tie at the edge
//! of a truncation, the lower id is kept.

use super::logprob::{Statistics, statistics};
use super::ranking::{Buffers, Ranking};
use super::simd::{LANES, Simd, exp, load_partial, simd_fn, sum_lanes};
use crate::base::rng;
use std::cell::RefCell;
use std::cmp::Ordering;

/// The distribution that tokens are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens are kept; 0 keeps all.
    pub top_k: usize,
    /// Of these, the fewest most likely tokens that together hold this probability are kept; 1 keeps all.
    pub top_p: f32,
    /// Of these, tokens with at least this share of the largest probability are kept; 0 keeps all.
    pub min_p: f32,
}

/// How the tokens of a text are drawn, one after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    pub sampling: Sampling,
    /// Tokens that the text has already become less likely ([`penalize_repetition`]); 1 changes nothing.
    pub repetition_penalty: f32,
    /// Only tokens below this are drawn.
    pub vocab_size: usize,
    /// Whether log-probabilities are those of temperature 1, whatever the distribution's is.
    pub raw_logprobs: bool,
}

impl Policy {
    /// What logits are divided by for log-probabilities.
    pub fn divisor(&self) -> f32 {
        if self.raw_logprobs { 1.0 } else { self.sampling.divisor() }
    }
}

/// Changes of logits before a token is drawn from them, beside the repetition penalty.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Edits<'a> {
    /// Is added to the logits of these tokens.
    pub bias: &'a [(u32, f32)],
    /// Is subtracted from the logits of tokens that were drawn before.
    pub presence_penalty: f32,
    /// Is subtracted as often as the token was drawn before.
    pub frequency_penalty: f32,
    /// These are not drawn.
    pub banned: &'a [u32],
}

impl Edits<'_> {
    /// Whether logits stay as they are.
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One token of a text that is to be drawn.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// The key of the text's randomness.
    pub key: u64,
    /// The tokens of the prompt.
    pub prompt: &'a [u32],
    /// The tokens drawn so far.
    pub response: &'a [u32],
    pub policy: Policy,
    /// The changes of its logits.
    pub edits: Edits<'a>,
    /// The number of most likely tokens to return beside it.
    pub num_top: usize,
}

/// A token that was drawn. Log-probabilities are those before truncation and any change of logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn {
    /// The token's id.
    pub token: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The most likely tokens at its position with their log-probabilities, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl Draw<'_> {
    /// Returns which random number of its key the draw uses: one for each token.
    pub fn index(&self) -> u64 {
        self.response.len() as u64
    }

    /// Returns the tokens that the penalty makes less likely; some occur more than once.
    pub fn seen(&self) -> impl Iterator<Item = u32> {
        self.prompt.iter().chain(self.response).copied()
    }

    /// Draws from `logits`, `[vocabulary]`.
    pub fn draw(&self, logits: &[f32]) -> Drawn {
        let Policy { sampling, repetition_penalty, vocab_size, .. } = self.policy;
        let uniform = rng::uniform(self.key, self.index());
        let is_edited = repetition_penalty != 1.0 || !self.edits.is_empty();
        let (token, logprob) = if is_edited {
            let (token, _) = sample(&self.edited(logits), vocab_size, sampling, uniform);
            (token, self.logp(logits, token))
        } else {
            let (token, logprob) = sample(logits, vocab_size, sampling, uniform);
            let is_asked = self.policy.divisor() == sampling.divisor();
            (token, if is_asked { logprob } else { self.logp(logits, token) })
        };
        Drawn { token, logprob, top: self.top(logits) }
    }

    /// Whether what is asked for is more than a token by its policy with the log-probability at the
    /// policy's temperature: a device that computes only these leaves the draw to the host.
    pub fn is_for_host(&self) -> bool {
        !self.edits.is_empty() || self.policy.divisor() != self.policy.sampling.divisor()
    }

    /// The logits that the token is drawn from, in the order of changes that vLLM has.
    fn edited(&self, logits: &[f32]) -> Vec<f32> {
        let Edits { bias, presence_penalty, frequency_penalty, banned } = self.edits;
        let mut edited = logits.to_vec();
        bias.iter().for_each(|&(token, bias)| edited[token as usize] += bias);
        if self.policy.repetition_penalty != 1.0 {
            penalize_repetition(&mut edited, self.seen(), self.policy.repetition_penalty);
        }
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            let mut drawn = self.response.to_vec();
            drawn.sort_unstable();
            for same in drawn.chunk_by(|a, b| a == b) {
                let penalty = frequency_penalty * same.len() as f32 + presence_penalty;
                edited[same[0] as usize] -= penalty;
            }
        }
        banned.iter().for_each(|&token| edited[token as usize] = f32::NEG_INFINITY);
        edited
    }

    /// The log-probability of a token.
    fn logp(&self, logits: &[f32], token: u32) -> f32 {
        statistics(logits, self.policy.divisor()).logp(logits[token as usize])
    }

    /// Returns the most likely of the tokens that may be drawn, with their log-probabilities; `num_top`
    /// says how many.
    pub fn top(&self, logits: &[f32]) -> Vec<(u32, f32)> {
        let row = || statistics(logits, self.policy.divisor());
        most_likely(logits, self.policy.vocab_size, self.num_top, row)
    }
}

/// Returns the log-probability of a given token at temperature 1, and the `num_top` most likely tokens below
/// `vocab_size` at its position with theirs.
pub fn score(logits: &[f32], token: u32, vocab_size: usize, num_top: usize) -> Drawn {
    let row = statistics(logits, 1.0);
    let top = most_likely(logits, vocab_size, num_top, || row);
    Drawn { token, logprob: row.logp(logits[token as usize]), top }
}

/// Returns the `count` most likely tokens below `vocab_size`, likeliest first, with their log-probabilities.
fn most_likely(
    logits: &[f32],
    vocab_size: usize,
    count: usize,
    row: impl FnOnce() -> Statistics,
) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let (row, mut tokens) = (row(), Vec::new());
    select_most_likely(&mut tokens, &logits[..vocab_size.min(logits.len())], count);
    tokens.sort_unstable_by(|&a, &b| by_likelihood(logits, a, b));
    tokens.into_iter().map(|token| (token, row.logp(logits[token as usize]))).collect()
}

/// Keeps in `tokens` those with the `count` largest logits, in any order. Of equal logits the lower tokens
/// are kept.
fn select_most_likely(tokens: &mut Vec<u32>, logits: &[f32], count: usize) {
    tokens.clear();
    tokens.extend(0..logits.len() as u32);
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count, |&a, &b| by_likelihood(logits, a, b));
        tokens.truncate(count);
    }
}

/// Compares two tokens: the more likely comes first.
fn by_likelihood(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// Makes the `seen` tokens less likely: divides their positive logits by `penalty` and multiplies the
/// negative ones.
pub fn penalize_repetition(logits: &mut [f32], seen: impl Iterator<Item = u32>, penalty: f32) {
    TOKENS.with_borrow_mut(|tokens| {
        tokens.clear();
        tokens.extend(seen);
        tokens.sort_unstable();
        tokens.dedup();
        for &token in &*tokens {
            let logit = &mut logits[token as usize];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    });
}

impl Sampling {
    /// Returns what logits are divided by: the temperature, or 1 where that is 0.
    pub fn divisor(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { self.temperature }
    }
}

thread_local! {
    // The tokens that a penalty makes less likely. The buffer is kept, so that a thread allocates it once.
    static TOKENS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static TRUNCATION: RefCell<Truncation> = RefCell::default();
}

/// Returns the token below `vocab_size` that `u` in [0, 1) draws from `logits`, and its log-probability.
pub fn sample(logits: &[f32], vocab_size: usize, sampling: Sampling, u: f32) -> (u32, f32) {
    let Sampling { temperature, top_k, top_p, min_p } = sampling;
    let is_greedy = temperature == 0.0;
    let temperature = if is_greedy { 1.0 } else { temperature };
    let row = statistics(logits, temperature);
    let choices = &logits[..vocab_size.min(logits.len())];
    let among = if choices.len() == logits.len() { row } else { statistics(choices, temperature) };
    let is_truncated = (top_k > 0 && top_k < choices.len()) || top_p < 1.0 || min_p > 0.0;
    let token = if is_greedy {
        choices.iter().position(|&x| x == among.max).unwrap_or(0) as u32
    } else if is_truncated {
        TRUNCATION.with_borrow_mut(|truncation| truncation.draw(choices, among, sampling, u))
    } else {
        draw(choices, among, u)
    };
    (token, row.logp(logits[token as usize]))
}

simd_fn!(fn draw(logits: &[f32], row: Statistics, u: f32) -> u32 = draw_generic);

/// Returns the first token whose cumulative weight exceeds `u` times the sum of weights.
#[inline(always)]
fn draw_generic<S: Simd>(s: S, logits: &[f32], row: Statistics, u: f32) -> u32 {
    let target = u * row.log_sum.exp();
    let (shift, factor) = (s.splat(row.max), s.splat(row.inverse_temperature));
    let mut before = 0.0f32;
    for (chunk, logits) in logits.chunks(LANES).enumerate() {
        let z = s.mul(s.sub(load_partial(s, logits, f32::NEG_INFINITY), shift), factor);
        let weights = exp(s, z);
        let sum = sum_lanes(s, weights);
        if before + sum > target {
            let mut lanes = [0.0; LANES];
            s.store(weights, &mut lanes);
            let mut cumulative = before;
            for (lane, &weight) in lanes.iter().enumerate() {
                cumulative += weight;
                if weight > 0.0 && cumulative > target {
                    return (chunk * LANES + lane) as u32;
                }
            }
        }
        before += sum;
    }
    // The sum may stay a little below the target by rounding; then the most likely token is taken.
    logits.iter().position(|&x| x == row.max).unwrap_or(0) as u32
}

/// The buffers of a truncated draw.
#[derive(Default)]
struct Truncation {
    /// The tokens that top-k keeps, in ascending order, and their logits.
    tokens: Vec<u32>,
    logits: Vec<f32>,
    ranked: Buffers,
}

impl Truncation {
    /// Draws as [`draw_generic`] does, among the tokens that top-k, top-p and min-p keep, most likely
    /// first.
    fn draw(&mut self, logits: &[f32], row: Statistics, sampling: Sampling, u: f32) -> u32 {
        let Self { tokens, logits: of_tokens, ranked } = self;
        if sampling.top_k == 0 || sampling.top_k >= logits.len() {
            return draw_likely(Ranking::new(logits, row, ranked), sampling, u);
        }
        select_most_likely(tokens, logits, sampling.top_k);
        tokens.sort_unstable();
        of_tokens.clear();
        of_tokens.extend(tokens.iter().map(|&token| logits[token as usize]));
        tokens[draw_likely(Ranking::new(of_tokens, row, ranked), sampling, u) as usize]
    }
}

/// Draws among the tokens that top-p and min-p keep.
fn draw_likely(mut ranking: Ranking<'_>, Sampling { top_p, min_p, .. }: Sampling, u: f32) -> u32 {
    let mut kept = ranking.all();
    if top_p < 1.0 {
        let share = (f64::from(top_p) * kept.weight as f64).ceil() as u64;
        let nucleus = ranking.reach(|sum| sum.weight >= share).1;
        kept = if nucleus.count < kept.count { nucleus } else { kept };
    }
    if min_p > 0.0 {
        let likely = ranking.at_least(min_p);
        kept = if likely.count < kept.count { likely } else { kept };
    }
    let target = (f64::from(u) * kept.weight as f64) as u64;
    ranking.reach(|sum| sum.weight > target).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng;
    use crate::ops::simd::Scalar;

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    fn frequencies(logits: &[f32], sampling: Sampling) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for i in 0..20_000 {
            counts[sample(logits, logits.len(), sampling, rng::uniform(5, i)).0 as usize] +=
                1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        let logits: Vec<f32> = (0..19).map(|i| (i as f32 * 2.3).sin() * 2.0).collect();
        for temperature in [1.0, 0.5] {
            let sampling = Sampling { temperature, ..PLAIN };
            let row = statistics(&logits, temperature);
            for (f, &x) in frequencies(&logits, sampling).iter().zip(&logits) {
                assert!((f - f64::from(row.logp(x).exp())).abs() < 0.012);
            }
        }
    }

    #[test]
    fn temperature_zero_takes_the_first_largest() {
        let logits = [0.0, 3.0, 1.0, 3.0];
        let (token, logp) = sample(&logits, 4, Sampling { temperature: 0.0, ..PLAIN }, 0.9);
        assert_eq!(token, 1);
        assert_eq!(logp, statistics(&logits, 1.0).logp(3.0));
    }

    #[test]
    fn truncation_keeps_the_most_likely_and_leaves_log_probabilities_alone() {
        let logits = [0.0, 2.0, 1.0, 3.0, -1.0];
        let top_2 = frequencies(&logits, Sampling { top_k: 2, ..PLAIN });
        assert!(top_2[0] + top_2[2] + top_2[4] == 0.0 && top_2[1] > 0.2 && top_2[3] > 0.6);
        let nucleus = frequencies(&logits, Sampling { top_p: 0.7, ..PLAIN });
        assert!(
            nucleus[1] > 0.0 && nucleus[3] > 0.0 && nucleus[0] + nucleus[2] + nucleus[4] == 0.0
        );
        // exp(2 - 3) is 0.37 of the largest weight, exp(1 - 3) is 0.14.
        let likely = frequencies(&logits, Sampling { min_p: 0.2, ..PLAIN });
        assert!(likely[0] + likely[2] + likely[4] == 0.0 && likely[1] > 0.2 && likely[3] > 0.6);
        let narrow = Sampling { top_k: 2, top_p: 0.5, ..PLAIN };
        assert_eq!(sample(&logits, 5, narrow, 0.99), (3, statistics(&logits, 1.0).logp(3.0)));
    }

    /// Does what [`Truncation::draw`] does in the plain way: it sorts all tokens, keeps the first ones and
    /// adds them up.
    fn draw_sorted(logits: &[f32], sampling: Sampling, u: f32) -> u32 {
        let Sampling { temperature, top_k, top_p, min_p } = sampling;
        let row = statistics(logits, temperature);
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        order.truncate(if top_k == 0 { order.len() } else { top_k });
        let weight = |token: u32| {
            let z = (logits[token as usize] - row.max) * row.inverse_temperature;
            exp(Scalar, [z; LANES])[0]
        };
        let fixed = |token: u32| (f64::from(weight(token)) * (1u64 << 40) as f64) as u64;
        let total: u64 = order.iter().map(|&token| fixed(token)).sum();
        let share = (f64::from(top_p) * total as f64).ceil() as u64;
        let enough = if top_p < 1.0 { share } else { u64::MAX };
        let (mut kept, mut count) = (0, 0);
        while count < order.len()
            && (count == 0 || (kept < enough && weight(order[count]) >= min_p))
        {
            kept += fixed(order[count]);
            count += 1;
        }
        let target = (f64::from(u) * kept as f64) as u64;
        let mut cumulative = 0;
        let is_drawn = |&&token: &&u32| {
            cumulative += fixed(token);
            cumulative > target
        };
        *order[..count].iter().find(is_drawn).unwrap()
    }

    #[test]
    fn truncated_draws_are_those_of_sorted_tokens() {
        let settings = [
            Sampling { top_k: 1, ..PLAIN },
            Sampling { top_k: 50, ..PLAIN },
            Sampling { top_p: 0.9, ..PLAIN },
            Sampling { top_p: 0.0, ..PLAIN },
            Sampling { top_p: 0.999, temperature: 1.7, ..PLAIN },
            Sampling { min_p: 0.05, ..PLAIN },
            Sampling { min_p: 1.0, ..PLAIN },
            Sampling { temperature: 0.6, top_k: 30, top_p: 0.95, min_p: 0.01 },
        ];
        for (case, len) in [3, 8, 100, 1000, 5000].into_iter().enumerate() {
            // The rows are peaked, flat, and with many equal logits.
            for scale in [20.0, 0.01, 4.0] {
                let uniform = |i| rng::uniform(case as u64, i as u64) - 0.5;
                let logit = |i| {
                    let logit: f32 = scale * uniform(i);
                    if scale == 4.0 { logit.round() } else { logit }
                };
                let logits: Vec<f32> = (0..len).map(logit).collect();
                // A count that keeps all tokens does not truncate.
                for sampling in settings.into_iter().filter(|sampling| sampling.top_k < len) {
                    for u in [0.0, 0.2, 0.5, 0.9, 0.999_999_9] {
                        let (token, _) = sample(&logits, len, sampling, u);
                        assert_eq!(token, draw_sorted(&logits, sampling, u), "{sampling:?} {u}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_penalty_makes_seen_tokens_less_likely_once_whatever_their_sign() {
        let mut logits = [2.0, -2.0, 3.0, 0.0];
        penalize_repetition(&mut logits, [1, 0, 1, 3].into_iter(), 2.0);
        assert_eq!(logits, [1.0, -4.0, 3.0, 0.0]);
    }

    #[test]
    fn padding_rows_are_never_drawn_and_keep_their_share_of_the_softmax() {
        let logits = [0.5, 1.0, 0.0, 9.0, 8.0];
        let row = statistics(&logits, 1.0);
        let settings = [
            PLAIN,
            Sampling { temperature: 0.0, ..PLAIN },
            Sampling { top_k: 2, ..PLAIN },
            Sampling { top_p: 0.9, ..PLAIN },
        ];
        for sampling in settings {
            for u in [0.0, 0.3, 0.6, 0.999_999_9] {
                let (token, logp) = sample(&logits, 3, sampling, u);
                assert!(token < 3, "{sampling:?} {u}");
                assert_eq!(logp, row.logp(logits[token as usize]));
            }
        }
    }

    #[test]
    fn an_impossible_token_is_never_drawn() {
        let mut logits = vec![f32::NEG_INFINITY; 16];
        logits[9] = 1.0;
        for u in [0.0, 0.5, 0.999_999_9] {
            assert_eq!(sample(&logits, 16, PLAIN, u).0, 9);
        }
    }
}
