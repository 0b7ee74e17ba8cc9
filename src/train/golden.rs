//! What tests of loops read of golden files, and how far from them a loop is.

use crate::checkpoint::LanguageModel;
use crate::model::{Decoder, ModelConfig};
use crate::optim::{AdamWConfig, Schedule};
use crate::tokenizer::test_support::small_tokenizer;
use crate::trainer::{Execution, Trainer};
use safetensors::SafeTensors;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Relative: of a loss, of a gradient's norm, and of the Euclidean norm of a tensor.
pub(crate) const TOLERANCE: f64 = 1e-4;

/// A folder of `tests/golden`.
pub(crate) struct Golden(PathBuf);

impl Golden {
    pub(crate) fn of(name: &str) -> Self {
        Self(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// The weights before and after every step.
    pub(crate) fn weights(&self) -> Weights {
        let bytes = std::fs::read(self.path("expected.safetensors")).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let config = &metadata.metadata().as_ref().unwrap()["config"];
        Weights { decoder: Decoder::new(ModelConfig::from_json(config).unwrap()), bytes }
    }
}

pub(crate) struct Weights {
    pub(crate) decoder: Decoder,
    bytes: Vec<u8>,
}

impl Weights {
    /// All parameters whose names in the file begin with `prefix`.
    pub(crate) fn of(&self, prefix: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let mut params = vec![0.0; self.decoder.layout().len];
        for tensor in &self.decoder.layout().tensors {
            let values = file.tensor(&format!("{prefix}.{}", tensor.name)).unwrap();
            let values = values.data().as_chunks().0.iter().map(|&x| f32::from_le_bytes(x));
            params[tensor.range.clone()].iter_mut().zip(values).for_each(|(p, value)| *p = value);
        }
        params
    }

    /// A trainer that begins with the initial weights.
    pub(crate) fn trainer(
        &self,
        optim: AdamWConfig,
        schedule: Schedule,
        total_steps: u64,
        execution: Execution,
    ) -> Trainer {
        let dir = tempfile::tempdir().unwrap();
        let model = LanguageModel {
            decoder: self.decoder.clone(),
            params: self.of("initial"),
            tokenizer: small_tokenizer(dir.path()),
        };
        Trainer::new(model, optim, schedule, total_steps, execution).unwrap()
    }

    /// |actual - expected| over |expected|, of the tensor that is farthest from the one in the file.
    pub(crate) fn distance(&self, prefix: &str, actual: &[f32]) -> f64 {
        let expected = self.of(prefix);
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let of_tensor = |range: std::ops::Range<usize>| {
            let (actual, expected) = (&actual[range.clone()], &expected[range]);
            let pairs = actual.iter().zip(expected);
            norm(&mut pairs.map(|(a, e)| f64::from(*a) - f64::from(*e)))
                / norm(&mut expected.iter().map(|&e| f64::from(e)))
        };
        let tensors = self.decoder.layout().tensors.iter();
        tensors.map(|tensor| of_tensor(tensor.range.clone())).fold(0.0, f64::max)
    }
}

/// The relative distance of two numbers.
pub(crate) fn relative(actual: f64, expected: f64) -> f64 {
    (actual - expected).abs() / expected.abs()
}
