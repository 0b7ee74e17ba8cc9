//! The safetensors of a model directory: one file, or several with an index, mapped and checked.
//!
//! [`Shards::open`] reads headers only. It refuses, by name, a file that is missing or cut short, an index
//! that disagrees with its files, and a tensor that is stored twice, is missing, does not belong to the
//! model or has another shape. Every tensor of the model is then a part of a memory map.
//! [`Shards::check_finite`] refuses its numbers while they are in memory, and [`Shards::release`] gives the
//! pages of a part back after use, so that a model is never held twice.

use crate::base::error::usage;
use crate::base::fs::read_text;
use crate::base::progress::Progress;
use crate::model::TensorSpec;
use crate::ops::element::{Dtype, Elements};
use anyhow::Result;
use memmap2::{Advice, Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The name of the weight file, where there is only one.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The name of the file that says which of several files has which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// PyTorch's own format, which is not read.
const PICKLE: &str = "pytorch_model.bin";
const PICKLE_INDEX: &str = "pytorch_model.bin.index.json";

/// Fewer bytes are loaded before a progress bar could be read.
const WORTH_SHOWING: u64 = 256 << 20;

/// A mapped safetensors file.
pub(crate) struct Tensors {
    map: Mmap,
    path: PathBuf,
}

/// A tensor in a mapped file.
struct Place {
    file: usize,
    /// Is `None` for a number format that weights do not have.
    dtype: Option<Dtype>,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// All weight files of a directory, with the places of their tensors.
pub(crate) struct Shards {
    files: Vec<Tensors>,
    places: HashMap<String, Place>,
}

impl Tensors {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let unreadable = |e| usage(format!("cannot read {}: {e}", path.display()));
        let file = File::open(path).map_err(unreadable)?;
        // SAFETY: the map is read-only and lives only while the tensors are copied out of it. Files
        // of finished checkpoints are replaced by rename and never written in place.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        Ok(Self { map, path: path.to_owned() })
    }

    /// Fills `pieces`, one after another, with the tensor `name`, which must be flat, f32 and as long as
    /// all pieces together.
    pub(crate) fn copy_flat(&self, name: &str, pieces: &mut [&mut [f32]]) -> Result<()> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let places = self.places(0)?;
        let found = places.iter().find(|(n, _)| n == name).map(|(_, place)| place);
        let Some(place) = found.filter(|p| p.dtype == Some(Dtype::F32) && p.shape == [len]) else {
            return Err(usage(format!(
                "{}: no {name} of {len} f32 values, the parameters of this model",
                self.path.display()
            )));
        };
        let all = Elements { dtype: Dtype::F32, bytes: &self.map[place.bytes.clone()] };
        let mut start = 0;
        for piece in pieces {
            all.slice(start, piece.len()).widen(piece);
            start += piece.len();
        }
        Ok(())
    }

    /// Returns all tensors of this file, which is number `file`.
    fn places(&self, file: usize) -> Result<Vec<(String, Place)>> {
        let tensors = SafeTensors::deserialize(&self.map).map_err(|e| {
            usage(format!("{}: truncated, or not a safetensors file: {e}", self.path.display()))
        })?;
        let start = self.map.as_ptr().addr();
        let places = tensors.tensors().into_iter().map(|(name, view)| {
            let first = view.data().as_ptr().addr() - start;
            let place = Place {
                file,
                dtype: match view.dtype() {
                    safetensors::Dtype::F32 => Some(Dtype::F32),
                    safetensors::Dtype::BF16 => Some(Dtype::Bf16),
                    safetensors::Dtype::F16 => Some(Dtype::F16),
                    _ => None,
                },
                shape: view.shape().to_vec(),
                bytes: first..first + view.data().len(),
            };
            (name, place)
        });
        Ok(places.collect())
    }
}

impl Shards {
    /// Maps the weight files in `dir`, which must hold exactly the tensors of `specs`.
    pub(crate) fn open(dir: &Path, specs: &[TensorSpec]) -> Result<Self> {
        let shards = Self::map(dir)?;
        shards.check(dir, specs)?;
        Ok(shards)
    }

    /// Maps the weight files in `dir`, whatever they hold.
    pub(crate) fn map(dir: &Path) -> Result<Self> {
        let index = Index::read(dir)?;
        let files = index.files.iter().map(|path| Tensors::open(path)).collect::<Result<Vec<_>>>();
        let mut shards = Self { files: files?, places: HashMap::new() };
        for (number, file) in shards.files.iter().enumerate() {
            for (name, place) in file.places(number)? {
                if let Some(first) = shards.places.insert(name.clone(), place) {
                    return Err(usage(format!(
                        "{}: tensor {name} is also in {}",
                        file.path.display(),
                        shards.files[first.file].path.display()
                    )));
                }
            }
        }
        index.check(&shards)?;
        Ok(shards)
    }

    /// Returns the names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Returns the tensor `name`, if it is stored in a number format that weights have.
    pub(crate) fn find(&self, name: &str) -> Option<Elements<'_>> {
        let Place { file, dtype, bytes, .. } = self.places.get(name)?;
        Some(Elements { dtype: (*dtype)?, bytes: &self.files[*file].map[bytes.clone()] })
    }

    /// Returns a tensor of the model.
    pub(crate) fn tensor(&self, spec: &TensorSpec) -> Elements<'_> {
        let Place { file, dtype, bytes, .. } = &self.places[&spec.name];
        let dtype = dtype.expect("invariant: checked when opened");
        Elements { dtype, bytes: &self.files[*file].map[bytes.clone()] }
    }

    /// Reads the pages of a part of a tensor ahead, at once rather than one by one.
    pub(crate) fn prepare(&self, spec: &TensorSpec, part: Elements<'_>) {
        let (map, range) = self.pages(spec, part);
        // This is only advice: a kernel that does not know it reads the pages when they are needed.
        let _ = map.advise_range(Advice::PopulateRead, range.start, range.len());
    }

    /// Gives the pages of a part of a tensor back. Reading it again maps them again.
    pub(crate) fn release(&self, spec: &TensorSpec, part: Elements<'_>) {
        let (map, range) = self.pages(spec, part);
        // SAFETY: the map is of a file and read-only, so dropped pages come back with the same bytes.
        let _ = unsafe {
            map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
    }

    /// Refuses a part of a tensor in which a number is NaN or infinite.
    pub(crate) fn check_finite(&self, spec: &TensorSpec, part: Elements<'_>) -> Result<()> {
        if part.is_finite() {
            return Ok(());
        }
        Err(usage(format!(
            "{}: tensor {} has numbers that are NaN or infinite: the file is damaged, or its training \
             diverged; take another checkpoint",
            self.path_of(&self.places[&spec.name]).display(),
            spec.name
        )))
    }

    /// Returns the map in which a part of a tensor is, and where.
    fn pages(&self, spec: &TensorSpec, part: Elements<'_>) -> (&Mmap, Range<usize>) {
        let map = &self.files[self.places[&spec.name].file].map;
        let first = part.bytes.as_ptr().addr() - map.as_ptr().addr();
        (map, first..first + part.bytes.len())
    }

    /// Returns the bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.places.values().map(|place| place.bytes.len() as u64).sum()
    }

    fn path_of(&self, place: &Place) -> &Path {
        &self.files[place.file].path
    }

    fn check(&self, dir: &Path, specs: &[TensorSpec]) -> Result<()> {
        let mut foreign: BTreeSet<&str> = self.places.keys().map(String::as_str).collect();
        let mut missing = Vec::new();
        for spec in specs {
            let Some(place) = self.places.get(&spec.name) else {
                missing.push(&spec.name);
                continue;
            };
            foreign.remove(spec.name.as_str());
            let path = self.path_of(place).display();
            if place.shape != spec.shape {
                return Err(usage(format!(
                    "{path}: tensor {} has shape {:?}, but config.json asks for {:?}",
                    spec.name, place.shape, spec.shape
                )));
            }
            if place.dtype.is_none() {
                return Err(usage(format!(
                    "{path}: tensor {}: its element type is not supported: expected F32, BF16 or F16",
                    spec.name
                )));
            }
        }
        if let Some(name) = foreign.iter().find(|name| !is_derived(name)) {
            return Err(usage(format!(
                "{}: tensor {name} does not belong to the model that config.json describes",
                self.path_of(&self.places[*name]).display()
            )));
        }
        match missing.first() {
            None => Ok(()),
            Some(name) => Err(usage(format!(
                "{}: tensor {name} is missing from the safetensors ({} of {} are)",
                dir.display(),
                missing.len(),
                specs.len()
            ))),
        }
    }
}

/// Returns whether a tensor is one that some checkpoints store although the model computes it or ties it to
/// another ([`super::derived`]).
///
/// A head is such a tensor only where the model has no head of its own: it is the embedding.
fn is_derived(name: &str) -> bool {
    is_frequencies(name) || ["lm_head.weight", "output.weight"].contains(&name)
}

/// Returns whether a tensor holds the frequencies of rotary positions.
pub(crate) fn is_frequencies(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

/// Returns whether all weight files are in `dir`.
pub(crate) fn has_weights(dir: &Path) -> bool {
    Index::read(dir).is_ok()
}

/// Returns the files that the index at `path` lists.
pub(crate) fn shard_names(path: &Path) -> Result<BTreeSet<String>> {
    Ok(weight_map(path)?.into_values().collect())
}

fn weight_map(path: &Path) -> Result<BTreeMap<String, String>> {
    let IndexFile { weight_map } = serde_json::from_str(&read_text(path)?)
        .map_err(|e| usage(format!("{}: {e}", path.display())))?;
    Ok(weight_map)
}

/// The weight files, and what the index says they hold.
struct Index {
    files: Vec<PathBuf>,
    /// The index's path and its map from tensors to file names; `None` for a single file.
    map: Option<(PathBuf, BTreeMap<String, String>)>,
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn read(dir: &Path) -> Result<Self> {
        let single = dir.join(WEIGHTS);
        if single.is_file() {
            return Ok(Self { files: vec![single], map: None });
        }
        let path = dir.join(INDEX);
        if !path.is_file() {
            let (has_pickle, dir) =
                (dir.join(PICKLE).is_file() || dir.join(PICKLE_INDEX).is_file(), dir.display());
            let convert = format!(
                "; {PICKLE} is not read, since pickles run code: convert it with: python -c \"from transformers \
                 import AutoModelForCausalLM as M; M.from_pretrained('{dir}', torch_dtype='auto')\
                 .save_pretrained('{dir}')\""
            );
            let convert = if has_pickle { &convert } else { "" };
            return Err(usage(format!("{dir}: no {WEIGHTS} and no {INDEX}{convert}")));
        }
        let weight_map = weight_map(&path)?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        let files: Vec<PathBuf> = names.into_iter().map(|name| dir.join(name)).collect();
        if let Some(missing) = files.iter().find(|file| !file.is_file()) {
            return Err(usage(format!(
                "{}: no such file, but {INDEX} lists it",
                missing.display()
            )));
        }
        Ok(Self { files, map: Some((path, weight_map)) })
    }

    /// Refuses files that disagree with the index.
    fn check(&self, shards: &Shards) -> Result<()> {
        let Some((index, map)) = &self.map else { return Ok(()) };
        let index = index.display();
        for (name, file) in map {
            let found = shards.places.get(name).map(|place| shards.path_of(place));
            if !found.is_some_and(|path| path.ends_with(file)) {
                return Err(usage(match found {
                    Some(path) => format!(
                        "{index} says that {file} holds tensor {name}, but it lies in {}",
                        path.display()
                    ),
                    None => format!("{index} says that {file} holds tensor {name}: it does not"),
                }));
            }
        }
        let unlisted = shards.places.keys().filter(|name| !map.contains_key(*name));
        match unlisted.filter(|name| !is_derived(name)).min() {
            None => Ok(()),
            Some(name) => Err(usage(format!(
                "{}: tensor {name} is not listed in {INDEX}",
                shards.path_of(&shards.places[name]).display()
            ))),
        }
    }
}

/// The progress of loading, counted in bytes and shown in MiB.
pub(crate) struct Loading {
    progress: Progress,
    bytes: AtomicU64,
}

impl Loading {
    pub(crate) fn of(bytes: u64) -> Self {
        let progress = if bytes < WORTH_SHOWING {
            Progress::hidden()
        } else {
            Progress::new("weights", bytes >> 20, "MiB")
        };
        Self { progress, bytes: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self, bytes: usize) {
        let before = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.progress.inc(((before + bytes as u64) >> 20) - (before >> 20));
    }

    pub(crate) fn finish(self) {
        self.progress.finish();
    }
}
