//! Step directories: a model directory, and in `state/` what an exact resume needs besides the weights.
//!
//! The directory appears by one rename, when all of it is on disk. `state/` holds the two moments of AdamW
//! as flat f32, one JSON file with what the loop keeps, and checksums of all this and of the weights: a run
//! never resumes from other bits than it saved. Moments are written from consecutive pieces and read into
//! consecutive pieces; the file does not show how they were cut, so any number of ranks reads what any
//! other number wrote.

use super::hf::{self, Tensors};
use crate::base::error::usage;
use crate::base::fs::{AtomicFile, read_text, write_atomic, write_dir_atomic, write_json};
use crate::model::TensorSpec;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use std::io::Write;
use std::path::Path;

const DIR: &str = "state";
const MOMENTS: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const CHECKSUMS: &str = "checksums.json";
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";

/// A model as a checkpoint saves it.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The text of `config.json`.
    pub config_json: &'a str,
    /// The names, shapes and ranges of the tensors.
    pub specs: &'a [TensorSpec],
    /// The flat buffer.
    pub weights: &'a [f32],
    /// The tokenizer, whose files are copied into the directory.
    pub tokenizer: &'a Tokenizer,
}

/// The CRC-32 of each part of a step; numbers count as little-endian f32 in the order of the flat buffer.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Checksums {
    weights: u32,
    first_moment: u32,
    second_moment: u32,
    /// The checksum of the bytes of the JSON file.
    state: u32,
}

impl Checksums {
    fn of(weights: &[f32], moments: [&[&[f32]]; 2], state: &[u8]) -> Self {
        let numbers = |pieces: &[&[f32]]| {
            let mut hasher = crc32fast::Hasher::new();
            pieces.iter().for_each(|piece| hasher.update(bytemuck::cast_slice(piece)));
            hasher.finalize()
        };
        let [first, second] = moments;
        let moments = || rayon::join(|| numbers(first), || numbers(second));
        let (weights, (first_moment, second_moment)) = rayon::join(|| numbers(&[weights]), moments);
        Self { weights, first_moment, second_moment, state: crc32fast::hash(state) }
    }

    /// Refuses a part of `step` that changed since it was saved, by name.
    fn check(&self, found: &Self, step: &Path) -> Result<()> {
        let state = Path::new(DIR);
        let parts = [
            (self.weights == found.weights, "the weights".to_owned()),
            (self.first_moment == found.first_moment, state.join(MOMENTS).display().to_string()),
            (self.second_moment == found.second_moment, state.join(MOMENTS).display().to_string()),
            (self.state == found.state, state.join(STATE).display().to_string()),
        ];
        match parts.into_iter().find(|(is_same, _)| !is_same) {
            None => Ok(()),
            Some((_, part)) => Err(usage(format!(
                "{}: {part} changed since it was saved: resume from another checkpoint",
                step.display()
            ))),
        }
    }
}

/// Writes a model directory at `path`, which must not exist.
pub fn save(path: &Path, model: Model<'_>) -> Result<()> {
    write_dir_atomic(path, |dir| write_model(dir, model))
}

/// Writes a step directory at `path`, which must not exist. The pieces of a moment follow each other in the
/// order of the flat buffer.
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
        let state = serde_json::to_vec_pretty(state).context("encoding the state")?;
        write_atomic(&dir.join(STATE), &state)?;
        let moments = moments.each_ref().map(Vec::as_slice);
        write_json(&dir.join(CHECKSUMS), &Checksums::of(model.weights, moments, &state))
    })
}

fn write_model(dir: &Path, model: Model<'_>) -> Result<()> {
    hf::save_model(dir, model.config_json, model.specs, model.weights, model.tokenizer)
}

/// Writes the moments into a safetensors file: the length of the header, the header, the data.
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

/// Reads the moments of a step directory into consecutive pieces, and returns its state. Checks them and
/// `weights`, which were read from it before.
pub fn load_step<T: DeserializeOwned>(
    path: &Path,
    weights: &[f32],
    mut moments: [Vec<&mut [f32]>; 2],
) -> Result<T> {
    let dir = path.join(DIR);
    if !dir.is_dir() {
        return Err(usage(format!(
            "{}: no {DIR}/: a model, but not a checkpoint to resume from",
            path.display()
        )));
    }
    let file = Tensors::open(&dir.join(MOMENTS))?;
    for (name, pieces) in [FIRST, SECOND].into_iter().zip(&mut moments) {
        file.copy_flat(name, pieces)?;
    }
    let (state, checksums) = (dir.join(STATE), dir.join(CHECKSUMS));
    let text = read_text(&state)?;
    let written: Checksums = parse(&read_text(&checksums)?, &checksums)?;
    let moments = moments.map(|pieces| pieces.into_iter().map(|piece| &*piece).collect::<Vec<_>>());
    let found = Checksums::of(weights, moments.each_ref().map(Vec::as_slice), text.as_bytes());
    written.check(&found, path)?;
    parse(&text, &state)
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|e| usage(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::data::shuffle::Place;
    use crate::model::RowOrder;
    use crate::tokenizer::test_support::small_tokenizer;

    #[test]
    fn a_step_comes_back_whole_and_other_sizes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(&dir.path().join("tokenizer"));
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
        hf::load_weights(&path, &specs, &mut w).unwrap();
        assert_eq!(w, [1.0, 2.0, 3.0]);
        let (first, rest) = m.split_at_mut(1);
        let state: Place = load_step(&path, &w, [vec![first, rest], vec![&mut v]]).unwrap();
        assert_eq!((state, m, v), (cursor, [0.1, 0.2, 0.3], [4.0, 5.0, 6.0]));

        let shorter = [vec![&mut m[..2]], vec![&mut v[..2]]];
        let error = load_step::<Place>(&path, &w, shorter).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(save_step(&path, model, moments, &cursor).is_err(), "an existing step is kept");
        let plain = dir.path().join("model");
        save(&plain, model).unwrap();
        let error = load_step::<Place>(&plain, &w, [vec![&mut m], vec![&mut v]]).unwrap_err();
        assert!(error.to_string().contains("resume"), "{error}");
    }

    #[test]
    fn a_changed_bit_anywhere_in_a_step_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(&dir.path().join("tokenizer"));
        let order = RowOrder::Same;
        let specs = [TensorSpec { name: "w".into(), shape: vec![2], range: 0..2, order }];
        let weights = &[1.0, 2.0];
        let model = Model { config_json: "{}", specs: &specs, weights, tokenizer: &tokenizer };
        let path = dir.path().join("step-000001");
        let cursor = Place { epoch: 2, index: 7 };
        save_step(&path, model, [vec![&[0.1, 0.2]], vec![&[4.0, 5.0]]], &cursor).unwrap();
        let load = |weights: &[f32]| {
            let mut moments = [[0.0; 2]; 2];
            let [first, second] = moments.each_mut().map(|moment| vec![&mut moment[..]]);
            load_step::<Place>(&path, weights, [first, second]).map_err(|e| format!("{e:#}"))
        };
        load(weights).unwrap();
        assert!(load(&[1.0, 2.0000002]).unwrap_err().contains("the weights changed"));
        for (file, from, to) in [
            (MOMENTS, &5.0f32.to_le_bytes()[..], &5.0000005f32.to_le_bytes()[..]),
            (STATE, b"7", b"8"),
        ] {
            let file = path.join(DIR).join(file);
            let whole = std::fs::read(&file).unwrap();
            let at = whole.windows(from.len()).rposition(|part| part == from).unwrap();
            let mut changed = whole.clone();
            changed[at..at + to.len()].copy_from_slice(to);
            std::fs::write(&file, changed).unwrap();
            let error = load(weights).unwrap_err();
            let name = file.file_name().unwrap().display().to_string();
            assert!(error.contains(&name) && error.contains("changed since"), "{error}");
            std::fs::write(&file, whole).unwrap();
        }
        load(weights).unwrap();
    }
}
