//! Step directories: a model directory plus `state/`, what an exact resume needs besides weights.
//!
//! Contract: the directory appears by one rename, when all of it is on disk. `state/` holds the two
//! moments of AdamW as flat f32 and one JSON file with whatever the loop wants to keep.

use super::hf::{self, Tensors};
use crate::base::error::usage;
use crate::base::fs::{read_text, write_atomic, write_dir_atomic};
use crate::model::TensorSpec;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;

const DIR: &str = "state";
const MOMENTS: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";

/// A model as the checkpoint takes it.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The text of `config.json`.
    pub config_json: &'a str,
    /// Names, shapes and places of the tensors.
    pub specs: &'a [TensorSpec],
    /// The flat buffer.
    pub weights: &'a [f32],
    /// Whose files travel along.
    pub tokenizer: &'a Tokenizer,
}

/// Writes a model directory at `path`, which must not exist.
pub fn save(path: &Path, model: Model<'_>) -> Result<()> {
    write_dir_atomic(path, |dir| write_model(dir, model))
}

/// Writes a step directory at `path`, which must not exist.
pub fn save_step(
    path: &Path,
    model: Model<'_>,
    moments: [&[f32]; 2],
    state: &impl Serialize,
) -> Result<()> {
    write_dir_atomic(path, |dir| {
        write_model(dir, model)?;
        let dir = dir.join(DIR);
        std::fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let shape = [model.weights.len()];
        let tensors = [FIRST, SECOND].into_iter().zip(moments);
        hf::write_tensors(&dir.join(MOMENTS), tensors.map(|(name, m)| (name, &shape[..], m)))?;
        let text = serde_json::to_string_pretty(state).context("encoding the state")?;
        write_atomic(&dir.join(STATE), text.as_bytes())
    })
}

fn write_model(dir: &Path, model: Model<'_>) -> Result<()> {
    hf::save_model(dir, model.config_json, model.specs, model.weights, model.tokenizer)
}

/// Reads the moments and the state of a step directory; weights are read as of any model.
pub fn load_step<T: DeserializeOwned>(path: &Path, moments: [&mut [f32]; 2]) -> Result<T> {
    let dir = path.join(DIR);
    if !dir.is_dir() {
        return Err(usage(format!(
            "{}: no {DIR}/: a model, but not a checkpoint to resume from",
            path.display()
        )));
    }
    let file = Tensors::open(&dir.join(MOMENTS))?;
    for (name, out) in [FIRST, SECOND].into_iter().zip(moments) {
        file.copy_flat(name, out)?;
    }
    let path = dir.join(STATE);
    serde_json::from_str(&read_text(&path)?).map_err(|e| usage(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::data::shuffle::Place;
    use crate::tokenizer::bpe;

    #[test]
    fn a_step_comes_back_whole_and_other_sizes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(&dir.path().join("tokenizer"));
        let specs = [TensorSpec { name: "w".into(), shape: vec![3], range: 0..3 }];
        let model = Model {
            config_json: "{}",
            specs: &specs,
            weights: &[1.0, 2.0, 3.0],
            tokenizer: &tokenizer,
        };
        let path = dir.path().join("step-000001");
        let cursor = Place { epoch: 2, index: 7 };
        save_step(&path, model, [&[0.1, 0.2, 0.3], &[4.0, 5.0, 6.0]], &cursor).unwrap();

        let (mut m, mut v, mut w) = ([0.0; 3], [0.0; 3], [0.0; 3]);
        let state: Place = load_step(&path, [&mut m, &mut v]).unwrap();
        assert_eq!((state, m, v), (cursor, [0.1, 0.2, 0.3], [4.0, 5.0, 6.0]));
        hf::load_weights(&path, &specs, &mut w).unwrap();
        assert_eq!(w, [1.0, 2.0, 3.0]);

        let error = load_step::<Place>(&path, [&mut [0.0; 2], &mut [0.0; 2]]).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(save_step(&path, model, [&m, &v], &cursor).is_err(), "an existing step is kept");
        let plain = dir.path().join("model");
        save(&plain, model).unwrap();
        let error = load_step::<Place>(&plain, [&mut m, &mut v]).unwrap_err();
        assert!(error.to_string().contains("resume"), "{error}");
    }
}
