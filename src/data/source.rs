//! A tokenised source of samples.

use super::mixture::Part;
use super::token_file::TokenFile;
use crate::base::hex::hex;

/// Samples that have a share in what is learnt.
pub struct Source {
    /// Its name in the configuration; empty for `data.files`.
    pub name: String,
    pub weight: f64,
    pub samples: TokenFile,
}

impl Source {
    /// Returns the source as the mixture sees it.
    pub fn part(&self) -> Part {
        Part {
            name: self.name.clone(),
            weight: self.weight,
            len: self.samples.len(),
            data: hex(&self.samples.content()[..8]),
        }
    }

    /// Creates a source of samples that a test made.
    #[cfg(test)]
    pub(crate) fn in_memory(
        name: &str,
        weight: f64,
        samples: &[crate::tokenizer::Tokenized],
    ) -> Self {
        Self { name: name.to_owned(), weight, samples: super::token_file::in_memory(samples) }
    }
}
