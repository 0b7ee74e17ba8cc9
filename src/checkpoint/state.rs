//! Step directories: a model directory plus `state/`, what an exact resume needs besides weights.
//!
//! Contract: the directory appears by one rename, when all of it is on disk. `state/` holds the two
//! moments of AdamW as flat f32 and one JSON file with whatever the loop wants to keep. Moments are
//! written from and read into consecutive pieces; the file does not show how they were cut, so any
//! number of ranks reads what any other wrote.

use super::hf::{self, Tensors};
use crate::base::error::usage;
use crate::base::fs::{AtomicFile, read_text, write_dir_atomic, write_json};
use crate::model::TensorSpec;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use std::io::Write;
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

/// Writes a step directory at `path`, which must not exist; the pieces of a moment follow each
/// other in the order of the flat buffer.
pub fn save_step(
    path: &Path,
    model: Model<'_>,
    moments: [Vec<&[f32]>; 2],
    state: &impl Serialize,
) -> Result<()> {
    write_dir_atomic(path, |dir| {
        write_model(dir, model)?;
        let dir = dir.join(DIR);
        std::fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        write_moments(&dir.join(MOMENTS), &moments)?;
        write_json(&dir.join(STATE), state)
    })
}

fn write_model(dir: &Path, model: Model<'_>) -> Result<()> {
    hf::save_model(dir, model.config_json, model.specs, model.weights, model.tokenizer)
}

/// Streams the moments into a safetensors file: the length of the header, the header, the data.
fn write_moments(path: &Path, moments: &[Vec<&[f32]>; 2]) -> Result<()> {
    let len: usize = moments[0].iter().map(|piece| piece.len()).sum();
    let bytes = size_of::<f32>() * len;
    let entry = |start: usize| json!({"dtype": "F32", "shape": [len], "data_offsets": [start, start + bytes]});
    let mut header = json!({FIRST: entry(0), SECOND: entry(bytes)}).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = AtomicFile::create(path)?;
    let mut write =
        |bytes: &[u8]| file.write_all(bytes).with_context(|| format!("writing {}", path.display()));
    write(&(header.len() as u64).to_le_bytes())?;
    write(header.as_bytes())?;
    moments.iter().flatten().try_for_each(|piece| write(bytemuck::cast_slice(piece)))?;
    file.commit()
}

/// Reads the moments, into consecutive pieces, and the state of a step directory; weights are read
/// as of any model.
pub fn load_step<T: DeserializeOwned>(path: &Path, moments: [Vec<&mut [f32]>; 2]) -> Result<T> {
    let dir = path.join(DIR);
    if !dir.is_dir() {
        return Err(usage(format!(
            "{}: no {DIR}/: a model, but not a checkpoint to resume from",
            path.display()
        )));
    }
    let file = Tensors::open(&dir.join(MOMENTS))?;
    for (name, pieces) in [FIRST, SECOND].into_iter().zip(moments) {
        file.copy_flat(name, pieces)?;
    }
    let path = dir.join(STATE);
    serde_json::from_str(&read_text(&path)?).map_err(|e| usage(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::data::shuffle::Place;
    use crate::model::RowOrder;
    use crate::tokenizer::bpe;

    #[test]
    fn a_step_comes_back_whole_and_other_sizes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(&dir.path().join("tokenizer"));
        let order = RowOrder::Same;
        let specs = [TensorSpec { name: "w".into(), shape: vec![3], range: 0..3, order }];
        let model = Model {
            config_json: "{}",
            specs: &specs,
            weights: &[1.0, 2.0, 3.0],
            tokenizer: &tokenizer,
        };
        let path = dir.path().join("step-000001");
        let cursor = Place { epoch: 2, index: 7 };
        let moments: [Vec<&[f32]>; 2] = [vec![&[0.1, 0.2], &[0.3]], vec![&[], &[4.0, 5.0, 6.0]]];
        save_step(&path, model, moments.clone(), &cursor).unwrap();

        let (mut m, mut v, mut w) = ([0.0; 3], [0.0; 3], [0.0; 3]);
        let (first, rest) = m.split_at_mut(1);
        let state: Place = load_step(&path, [vec![first, rest], vec![&mut v]]).unwrap();
        assert_eq!((state, m, v), (cursor, [0.1, 0.2, 0.3], [4.0, 5.0, 6.0]));
        hf::load_weights(&path, &specs, &mut w).unwrap();
        assert_eq!(w, [1.0, 2.0, 3.0]);

        let error =
            load_step::<Place>(&path, [vec![&mut [0.0; 2]], vec![&mut [0.0; 2]]]).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(save_step(&path, model, moments, &cursor).is_err(), "an existing step is kept");
        let plain = dir.path().join("model");
        save(&plain, model).unwrap();
        let error = load_step::<Place>(&plain, [vec![&mut m], vec![&mut v]]).unwrap_err();
        assert!(error.to_string().contains("resume"), "{error}");
    }
}
