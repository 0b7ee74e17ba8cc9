//! Weights and their directory in Hugging Face layout.
//!
//! Contract: writes `config.json` as given, `model.safetensors` in f32, and the tokenizer's files byte
//! for byte; reads one file or several with an index, in f32, bf16 or f16, through a memory map into
//! the flat buffer, so nothing is held twice. Every tensor must be there with its shape and none
//! besides; only two that models never read are passed over ([`is_derived`]).

use crate::base::error::usage;
use crate::base::fs::{read_text, write_atomic};
use crate::model::TensorSpec;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Writes a model directory's files into `dir`, which exists.
pub fn save_model(
    dir: &Path,
    config_json: &str,
    specs: &[TensorSpec],
    weights: &[f32],
    tokenizer: &Tokenizer,
) -> Result<()> {
    write_atomic(&dir.join("config.json"), config_json.as_bytes())?;
    let tensors = specs
        .iter()
        .map(|spec| (spec.name.as_str(), spec.shape.as_slice(), &weights[spec.range.clone()]));
    write_tensors(&dir.join(WEIGHTS), tensors)?;
    tokenizer.copy_files(dir)
}

/// Fills `weights` with a model directory's tensors, each at its range.
pub fn load_weights(dir: &Path, specs: &[TensorSpec], weights: &mut [f32]) -> Result<()> {
    let mut slots = split(specs, weights);
    for path in weight_files(dir)? {
        let file = Tensors::open(&path)?;
        let mut jobs = Vec::new();
        for (name, view) in file.views()? {
            match slots.remove(name.as_str()) {
                Some((spec, slot)) => {
                    check_shape(&path, spec, &view)?;
                    jobs.push((name, view, slot));
                }
                None if is_derived(&name) => {}
                None => {
                    return Err(usage(format!(
                        "{}: tensor {name} does not belong to the model that config.json describes, \
                         or is there twice",
                        path.display()
                    )));
                }
            }
        }
        jobs.into_par_iter().try_for_each(|(name, view, slot)| {
            convert(&view, slot).map_err(|e| usage(format!("{}: {name}: {e}", path.display())))
        })?;
    }
    match slots.keys().next() {
        None => Ok(()),
        Some(name) => Err(usage(format!(
            "{}: tensor {name} is missing from the safetensors ({} of {} are)",
            dir.display(),
            slots.len(),
            specs.len()
        ))),
    }
}

/// Tensors that some checkpoints carry though the model computes or ties them.
///
/// `lm_head.weight` gets here only where the model has none of its own: its embedding is tied.
fn is_derived(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight"
}

/// Hands each spec its own part of the buffer.
fn split<'a>(
    specs: &'a [TensorSpec],
    mut weights: &'a mut [f32],
) -> BTreeMap<&'a str, (&'a TensorSpec, &'a mut [f32])> {
    let mut ordered: Vec<&TensorSpec> = specs.iter().collect();
    ordered.sort_by_key(|spec| spec.range.start);
    let mut at = 0;
    let mut slots = BTreeMap::new();
    for spec in ordered {
        let (_, rest) = weights.split_at_mut(spec.range.start - at);
        let (slot, rest) = rest.split_at_mut(spec.range.len());
        slots.insert(spec.name.as_str(), (spec, slot));
        weights = rest;
        at = spec.range.end;
    }
    slots
}

/// The file with all weights, or those that the index lists.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join(WEIGHTS);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join(INDEX);
    if !index.is_file() {
        return Err(usage(format!("{}: no {WEIGHTS} and no {INDEX}", dir.display())));
    }
    let bad = |what: &str| usage(format!("{}: {what}", index.display()));
    let value: Value =
        serde_json::from_str(&read_text(&index)?).map_err(|e| bad(&e.to_string()))?;
    let map = value["weight_map"].as_object().ok_or_else(|| bad("no weight_map"))?;
    let mut names = map
        .values()
        .map(|name| name.as_str().ok_or_else(|| bad("weight_map: expected file names")))
        .collect::<Result<Vec<_>>>()?;
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

fn check_shape(path: &Path, spec: &TensorSpec, view: &TensorView<'_>) -> Result<()> {
    if view.shape() != spec.shape {
        return Err(usage(format!(
            "{}: tensor {} has shape {:?}, but config.json asks for {:?}",
            path.display(),
            spec.name,
            view.shape(),
            spec.shape
        )));
    }
    Ok(())
}

/// Copies a tensor's elements as f32; the caller has checked the shape.
fn convert(view: &TensorView<'_>, out: &mut [f32]) -> Result<(), String> {
    fn fill<const N: usize>(bytes: &[u8], out: &mut [f32], element: impl Fn([u8; N]) -> f32) {
        let (elements, _) = bytes.as_chunks::<N>();
        out.iter_mut().zip(elements).for_each(|(o, &bytes)| *o = element(bytes));
    }
    match view.dtype() {
        Dtype::F32 => fill(view.data(), out, f32::from_le_bytes),
        Dtype::BF16 => fill(view.data(), out, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => fill(view.data(), out, |b| f16::from_le_bytes(b).to_f32()),
        other => return Err(format!("element type {other:?}: expected f32, bf16 or f16")),
    }
    Ok(())
}

/// A safetensors file, mapped.
pub(super) struct Tensors {
    map: Mmap,
    path: PathBuf,
}

impl Tensors {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let unreadable = |e| usage(format!("cannot read {}: {e}", path.display()));
        let file = File::open(path).map_err(unreadable)?;
        // SAFETY: the map is read-only and lives only while the tensors are copied out of it. Files
        // of finished checkpoints are replaced by rename and never written in place.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        Ok(Self { map, path: path.to_owned() })
    }

    pub(super) fn views(&self) -> Result<Vec<(String, TensorView<'_>)>> {
        let tensors = SafeTensors::deserialize(&self.map).map_err(|e| {
            usage(format!("{}: truncated, or not a safetensors file: {e}", self.path.display()))
        })?;
        Ok(tensors.tensors())
    }
}

/// Writes f32 tensors and flushes them to disk.
fn write_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>,
) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    let views = tensors
        .map(|(name, shape, data)| {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(data))?;
            Ok((name, view))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .with_context(writing)?;
    // transformers refuses files that do not say so.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).with_context(writing)?;
    let file = File::open(path).with_context(writing)?;
    // The library makes it readable for its owner only.
    file.set_permissions(Permissions::from_mode(0o644)).with_context(writing)?;
    file.sync_all().with_context(writing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tokenizer::bpe;
    use serde_json::json;

    const CONFIG: &str = r#"{"model_type": "llama", "zeta": 1, "alpha": 2}"#;

    fn specs() -> Vec<TensorSpec> {
        [("b", vec![2, 3], 4..10), ("a", vec![4], 0..4)]
            .map(|(name, shape, range)| TensorSpec { name: name.to_owned(), shape, range })
            .to_vec()
    }

    fn weights() -> Vec<f32> {
        (0..10).map(|i| i as f32 / 4.0 - 1.0).collect()
    }

    fn saved() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(source.path());
        save_model(dir.path(), CONFIG, &specs(), &weights(), &tokenizer).unwrap();
        dir
    }

    fn refusal(dir: &Path, specs: &[TensorSpec]) -> String {
        let error = load_weights(dir, specs, &mut [0.0; 10]).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        error.to_string()
    }

    #[test]
    fn what_was_saved_is_loaded_bit_for_bit() {
        let dir = saved();
        let mut loaded = vec![0.0; 10];
        load_weights(dir.path(), &specs(), &mut loaded).unwrap();
        assert_eq!(loaded, weights());
        assert_eq!(read_text(&dir.path().join("config.json")).unwrap(), CONFIG);
        assert!(Tokenizer::load(dir.path()).is_ok());
    }

    #[test]
    fn half_precision_and_several_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |name: &str, dtype, shape: Vec<usize>, data: Vec<u8>| {
            let view = TensorView::new(dtype, shape, &data).unwrap();
            let path = dir.path().join(format!("{name}.safetensors"));
            safetensors::serialize_to_file([(name, view)], None, &path).unwrap();
        };
        let w = weights();
        let a = w[..4].iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        bytes("a", Dtype::BF16, vec![4], a);
        let b = w[4..].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        bytes("b", Dtype::F16, vec![2, 3], b);
        let index = json!({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}});
        std::fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
        let mut loaded = vec![0.0; 10];
        load_weights(dir.path(), &specs(), &mut loaded).unwrap();
        assert_eq!(loaded, w);
    }

    #[test]
    fn missing_extra_and_misshapen_tensors_are_named() {
        let dir = saved();
        let mut more = specs();
        more.push(TensorSpec { name: "c".into(), shape: vec![0], range: 10..10 });
        assert!(refusal(dir.path(), &more).contains("tensor c is missing"));
        assert!(refusal(dir.path(), &specs()[..1]).contains("tensor a does not belong"));
        let mut turned = specs();
        turned[0].shape = vec![3, 2];
        let message = refusal(dir.path(), &turned);
        assert!(message.contains("tensor b has shape [2, 3]"), "{message}");
        assert!(message.contains("model.safetensors"), "{message}");
    }

    #[test]
    fn truncated_foreign_and_absent_files_are_refused() {
        let dir = saved();
        let path = dir.path().join(WEIGHTS);
        let whole = std::fs::read(&path).unwrap();
        for bytes in [&whole[..whole.len() - 1], &whole[..20], b"PK\x03\x04 something", b""] {
            std::fs::write(&path, bytes).unwrap();
            assert!(refusal(dir.path(), &specs()).contains("model.safetensors"));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(refusal(dir.path(), &specs()).contains("no model.safetensors"));
    }
}
