//! The order in which samples of several sources follow each other.
//!
//! At every moment, each source has given its share by weight, of samples or of tokens, to within one
//! sample; ties go to the first source. Each source has a shuffled order of its own, and one that runs out
//! starts again with a new shuffle. Nothing but those shuffles is random, so the order resumes anywhere,
//! and adding a source does not change the orders of the others. A single source gives its shuffled order.

use super::shuffle::{Place, Shuffled};
use crate::base::error::usage;
use crate::base::rng;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What the weights of sources are shares of. The paper does not say; see `configs/llama3-8b/sft.toml`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum MixBy {
    #[default]
    Samples,
    Tokens,
}

/// A sample of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draw {
    pub source: usize,
    pub index: usize,
}

/// How far a source has been read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceCursor {
    pub place: Place,
    /// What the source has given so far, in samples or tokens.
    pub taken: u64,
    /// A checksum of the samples.
    pub data: String,
}

/// A source as the order sees it.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its name; empty if it is the only source and has none.
    pub name: String,
    pub weight: f64,
    pub len: usize,
    /// A checksum of the samples.
    pub data: String,
}

/// The endless order over all sources.
#[derive(Debug, Clone)]
pub struct Mixture {
    mix_by: MixBy,
    parts: Vec<Part>,
    orders: Vec<Shuffled>,
    taken: Vec<u64>,
}

impl Mixture {
    /// Starts, or continues from `progress`, which has one entry for each source or none at all.
    pub fn new(
        parts: Vec<Part>,
        mix_by: MixBy,
        seed: u64,
        progress: &[SourceCursor],
    ) -> Result<Self> {
        let is_fresh = progress.is_empty();
        if !is_fresh && progress.len() != parts.len() {
            return Err(usage(format!(
                "the checkpoint has read {} sources, the configuration names {}",
                progress.len(),
                parts.len()
            )));
        }
        let (mut orders, mut taken) = (Vec::new(), Vec::new());
        for (i, part) in parts.iter().enumerate() {
            let (place, so_far) = match progress.get(i) {
                Some(before) if before.data != part.data => {
                    return Err(usage(format!(
                        "the samples of {} have changed since the checkpoint: restore them, or \
                         start a new run",
                        part.title()
                    )));
                }
                Some(before) => (before.place, before.taken),
                None => (Place::default(), 0),
            };
            orders.push(Shuffled::new(part.len, part.seed(seed), place)?);
            taken.push(so_far);
        }
        Ok(Self { mix_by, parts, orders, taken })
    }

    /// Returns how far each source has been read; a later run continues there.
    pub fn progress(&self) -> Vec<SourceCursor> {
        let parts = self.parts.iter().zip(&self.orders).zip(&self.taken);
        parts
            .map(|((part, order), &taken)| SourceCursor {
                place: order.place(),
                taken,
                data: part.data.clone(),
            })
            .collect()
    }

    /// Returns the completed passes over a source that is alone; several sources end theirs at different
    /// times.
    pub fn passes_of_one(&self) -> Option<u64> {
        match &self.orders[..] {
            [only] => Some(only.place().epoch),
            _ => None,
        }
    }

    /// Returns the next sample without taking it: it is of the source that is furthest behind its share.
    pub fn peek(&self) -> Draw {
        let behind = |i: usize| self.taken[i] as f64 / self.parts[i].weight;
        let source = (0..self.parts.len())
            .min_by(|&a, &b| behind(a).total_cmp(&behind(b)))
            .expect("invariant: there is a source");
        Draw { source, index: self.orders[source].peek() }
    }

    /// Takes the next sample, which has `length` tokens.
    pub fn take(&mut self, length: usize) -> Draw {
        let draw = self.peek();
        self.orders[draw.source].take();
        self.taken[draw.source] += match self.mix_by {
            MixBy::Samples => 1,
            MixBy::Tokens => length as u64,
        };
        draw
    }
}

impl Part {
    /// Returns the source's name in the configuration.
    pub fn title(&self) -> String {
        if self.name.is_empty() {
            "data.files".to_owned()
        } else {
            format!("data.sources.{}", self.name)
        }
    }

    /// Returns the seed of a source: each named source has its own shuffle.
    fn seed(&self, seed: u64) -> u64 {
        if self.name.is_empty() {
            return seed;
        }
        let digest = Sha256::digest(&self.name);
        let label = digest[..8].try_into().expect("invariant: a digest has 32 bytes");
        rng::key(seed, &[u64::from_le_bytes(label)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(name: &str, weight: f64, len: usize) -> Part {
        Part { name: name.to_owned(), weight, len, data: name.to_owned() }
    }

    /// Tülu's samples are longer here, so that the two ways of mixing differ.
    fn length(draw: Draw) -> usize {
        if draw.source == 1 { 30 } else { 10 + draw.index }
    }

    fn paper(mix_by: MixBy, progress: &[SourceCursor]) -> Mixture {
        let parts = vec![part("codeseq", 1.0, 7), part("tulu", 5.0, 40)];
        Mixture::new(parts, mix_by, 3, progress).unwrap()
    }

    #[test]
    fn shares_are_kept_at_every_moment_by_samples_and_by_tokens() {
        for mix_by in [MixBy::Samples, MixBy::Tokens] {
            let mut mixture = paper(mix_by, &[]);
            let mut given = [0.0, 0.0];
            for _ in 0..500 {
                let draw = mixture.take(length(mixture.peek()));
                let unit = if mix_by == MixBy::Samples { 1.0 } else { length(draw) as f64 };
                given[draw.source] += unit;
                assert!((given[0] - given[1] / 5.0).abs() <= 30.0, "{mix_by:?} {given:?}");
            }
            assert!((given[1] / given[0] - 5.0).abs() < 0.1, "{mix_by:?} {given:?}");
        }
    }

    #[test]
    fn a_source_that_runs_out_starts_over_with_a_new_shuffle() {
        let mut mixture = paper(MixBy::Samples, &[]);
        let mut seen = Vec::new();
        while seen.len() < 14 {
            let draw = mixture.take(1);
            seen.extend((draw.source == 0).then_some(draw.index));
        }
        assert_ne!(seen[..7], seen[7..]);
        for epoch in seen.chunks_mut(7) {
            epoch.sort_unstable();
            assert_eq!(epoch, [0, 1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn adding_a_source_leaves_the_order_of_the_others() {
        let of_tulu = |parts: Vec<Part>| {
            let tulu = parts.len() - 1;
            let mut mixture = Mixture::new(parts, MixBy::Samples, 3, &[]).unwrap();
            let draws = std::iter::from_fn(move || Some(mixture.take(1)));
            draws.filter(|d| d.source == tulu).map(|d| d.index).take(60).collect::<Vec<_>>()
        };
        let alone = of_tulu(vec![part("tulu", 5.0, 40)]);
        assert_eq!(alone, of_tulu(vec![part("codeseq", 1.0, 7), part("tulu", 5.0, 40)]));
    }

    #[test]
    fn other_data_than_the_checkpoint_has_read_are_refused() {
        let progress = paper(MixBy::Samples, &[]).progress();
        let refused = |parts| {
            let error = Mixture::new(parts, MixBy::Samples, 3, &progress).unwrap_err();
            assert_eq!(crate::base::error::exit_code(&error), 2);
            error.to_string()
        };
        assert!(refused(vec![part("codeseq", 1.0, 7)]).contains("2 sources"));
        let other = vec![part("codeseq", 1.0, 7), part("other", 5.0, 40)];
        assert!(refused(other).contains("data.sources.other"));
    }

    proptest! {
        #[test]
        fn the_order_resumes_anywhere(stop in 0usize..200, by_tokens: bool) {
            let mix_by = if by_tokens { MixBy::Tokens } else { MixBy::Samples };
            let mut mixture = paper(mix_by, &[]);
            let next = |mixture: &mut Mixture| mixture.take(length(mixture.peek()));
            for _ in 0..stop {
                next(&mut mixture);
            }
            let mut resumed = paper(mix_by, &mixture.progress());
            for _ in 0..50 {
                prop_assert_eq!(next(&mut mixture), next(&mut resumed));
            }
        }
    }
}
