//! Weights and their directory in Hugging Face layout.
//!
//! It writes `config.json` as given, `model.safetensors` in f32, and the tokenizer's files byte for byte.
//! It reads the tensors that [`super::shards`] finds, in f32, bf16 or f16, through memory maps into the
//! flat buffer, so nothing is held twice. Where a family stores rows in another order
//! ([`crate::model::RowOrder`]), they are reordered when they are read and when they are written.

pub(crate) use super::shards::Tensors;
use super::shards::{Loading, Shards, WEIGHTS};
use super::weight_files::WeightFiles;
use crate::base::fs::write_atomic;
use crate::model::TensorSpec;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensorError, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A work item converts this many elements.
const PIECE: usize = 1 << 21;

/// [`read_weights`] holds this many elements at a time: 128 MiB, which is work for some threads.
pub(crate) const PART: usize = 1 << 25;

/// Writes the files of a model directory into `dir`, which exists.
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
        .map(|spec| (spec.name.as_str(), Saved { spec, values: &weights[spec.range.clone()] }));
    write_tensors(&dir.join(WEIGHTS), tensors)?;
    tokenizer.copy_files(dir)
}

/// Consecutive rows that are contiguous both in the file and in the flat buffer.
struct Piece<'a> {
    spec: &'a TensorSpec,
    /// The first row, counted in the buffer's tensor.
    first: usize,
    /// The elements of the flat buffer.
    range: Range<usize>,
}

/// Fills `weights` with the tensors of a model directory, each at its range.
pub fn load_weights(dir: &Path, specs: &[TensorSpec], weights: &mut [f32]) -> Result<()> {
    fill_weights(&WeightFiles::Safetensors(Shards::open(dir, specs)?), specs, weights)
}

/// Fills `weights` with the tensors of `files`, each at its range.
pub(crate) fn fill_weights(
    files: &WeightFiles,
    specs: &[TensorSpec],
    weights: &mut [f32],
) -> Result<()> {
    let loading = Loading::of(files.bytes());
    fill(files, &loading, &pieces(specs), 0, weights)?;
    loading.finish();
    Ok(())
}

/// Passes the tensors of `files` to `take` in the order of their ranges, as parts of the flat buffer, each
/// with the index of its first element. A part has at most `most` elements, unless a single piece has more.
pub(crate) fn read_weights(
    files: &WeightFiles,
    specs: &[TensorSpec],
    most: usize,
    mut take: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let loading = Loading::of(files.bytes());
    let pieces = pieces(specs);
    let (mut rest, mut part) = (&pieces[..], Vec::new());
    while let [Piece { range, .. }, others @ ..] = rest {
        let (start, mut end, mut count) = (range.start, range.end, 1);
        let fitting = others.iter().take_while(|piece| piece.range.end - start <= most);
        for piece in fitting {
            (end, count) = (piece.range.end, count + 1);
        }
        part.clear();
        part.resize(end - start, 0.0);
        fill(files, &loading, &rest[..count], start, &mut part)?;
        take(start, &part)?;
        rest = &rest[count..];
    }
    loading.finish();
    Ok(())
}

/// Fills the pieces of a part of the flat buffer that begins at element `start`.
fn fill(
    files: &WeightFiles,
    loading: &Loading,
    pieces: &[Piece<'_>],
    start: usize,
    mut part: &mut [f32],
) -> Result<()> {
    let (mut at, mut places) = (start, Vec::with_capacity(pieces.len()));
    for Piece { range, .. } in pieces {
        let (_, rest) = part.split_at_mut(range.start - at);
        let (place, rest) = rest.split_at_mut(range.len());
        places.push(place);
        (part, at) = (rest, range.end);
    }
    pieces.par_iter().zip(places).try_for_each(|(&Piece { spec, first, .. }, values)| {
        let start = spec.order.file_row(first) * spec.row_len();
        let stored = files.part(spec, start, values.len())?;
        stored.elements().widen(values);
        files.release(spec, start, values.len());
        loading.add(stored.bytes.len());
        anyhow::Ok(())
    })
}

/// Cuts tensors into pieces, large ones into several.
fn pieces<'a>(specs: &'a [TensorSpec]) -> Vec<Piece<'a>> {
    let mut ordered: Vec<&TensorSpec> = specs.iter().collect();
    ordered.sort_by_key(|spec| spec.range.start);
    let cut = |spec: &'a TensorSpec| {
        let TensorSpec { order, range, .. } = spec;
        let row_len = TensorSpec::row_len(spec).max(1);
        let rows = order.run().unwrap_or((PIECE / row_len).max(1));
        range.clone().step_by(rows * row_len).enumerate().map(move |(i, start)| Piece {
            spec,
            first: i * rows,
            range: start..range.end.min(start + rows * row_len),
        })
    };
    ordered.into_iter().flat_map(cut).collect()
}

/// A tensor as it is written: in f32, with the rows in the file's order.
struct Saved<'a> {
    spec: &'a TensorSpec,
    values: &'a [f32],
}

impl View for Saved<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.spec.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let Self { spec, values } = self;
        let Some(run) = spec.order.run() else {
            return Cow::Borrowed(bytemuck::cast_slice(values));
        };
        let len = run * spec.row_len();
        let mut reordered = vec![0u8; size_of_val(*values)];
        for (i, rows) in values.chunks_exact(len).enumerate() {
            let start = spec.order.file_row(i * run) * spec.row_len() * 4;
            reordered[start..start + len * 4].copy_from_slice(bytemuck::cast_slice(rows));
        }
        Cow::Owned(reordered)
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

/// Writes tensors and flushes them to disk.
fn write_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, Saved<'a>)>,
) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    // transformers refuses files without this entry.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .map_err(|e| match e {
            // The text of this variant repeats that of the error in it.
            SafeTensorError::IoError(e) => e.into(),
            e => anyhow::Error::from(e),
        })
        .with_context(writing)?;
    let file = File::open(path).with_context(writing)?;
    // The library creates the file readable for its owner only.
    file.set_permissions(Permissions::from_mode(0o644)).with_context(writing)?;
    file.sync_all().with_context(writing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::base::fs::read_text;
    use crate::checkpoint::shards::INDEX;
    use crate::model::RowOrder;
    use crate::tokenizer::test_support::small_tokenizer;
    use half::{bf16, f16};
    use safetensors::tensor::TensorView;
    use serde_json::json;

    const CONFIG: &str = r#"{"model_type": "llama", "zeta": 1, "alpha": 2}"#;

    fn specs() -> Vec<TensorSpec> {
        [("b", vec![2, 3], 4..10), ("a", vec![4], 0..4)]
            .map(|(name, shape, range)| TensorSpec {
                name: name.to_owned(),
                shape,
                range,
                order: RowOrder::Same,
            })
            .to_vec()
    }

    fn weights() -> Vec<f32> {
        (0..10).map(|i| i as f32 / 4.0 - 1.0).collect()
    }

    fn saved() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(source.path());
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

    /// Makes two files, `a.safetensors` in bf16 and `b.safetensors` in f16, and their index.
    fn sharded() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let w = weights();
        let a: Vec<u8> = w[..4].iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        write_shard(dir.path(), "a", &[("a", Dtype::BF16, vec![4], a)]);
        let b: Vec<u8> = w[4..].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        write_shard(dir.path(), "b", &[("b", Dtype::F16, vec![2, 3], b)]);
        write_index(dir.path(), json!({"a": "a.safetensors", "b": "b.safetensors"}));
        dir
    }

    fn write_shard(dir: &Path, file: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let path = dir.join(format!("{file}.safetensors"));
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }

    fn write_index(dir: &Path, map: serde_json::Value) {
        std::fs::write(dir.join(INDEX), json!({"weight_map": map}).to_string()).unwrap();
    }

    #[test]
    fn half_precision_and_several_files_are_read() {
        let dir = sharded();
        let mut loaded = vec![0.0; 10];
        load_weights(dir.path(), &specs(), &mut loaded).unwrap();
        assert_eq!(loaded, weights());
    }

    #[test]
    fn weights_are_read_in_parts_as_they_are_loaded_whole() {
        let dir = sharded();
        let files = WeightFiles::Safetensors(Shards::open(dir.path(), &specs()).unwrap());
        for (most, expected) in [(1, vec![(0, 4), (4, 6)]), (10, vec![(0, 10)])] {
            let (mut read, mut parts) = (Vec::new(), Vec::new());
            let take = |start: usize, part: &[f32]| {
                parts.push((start, part.len()));
                read.extend_from_slice(part);
                Ok(())
            };
            read_weights(&files, &specs(), most, take).unwrap();
            assert_eq!((read, parts), (weights(), expected));
        }
    }

    #[test]
    fn an_index_that_disagrees_with_its_files_is_named() {
        let dir = sharded();
        let index = |map| write_index(dir.path(), map);
        index(json!({"a": "b.safetensors", "b": "a.safetensors"}));
        let message = refusal(dir.path(), &specs());
        assert!(message.contains("b.safetensors holds tensor a, but it lies in"), "{message}");
        index(json!({"a": "a.safetensors", "b": "b.safetensors", "c": "b.safetensors"}));
        assert!(refusal(dir.path(), &specs()).contains("tensor c: it does not"));
        index(json!({"a": "a.safetensors", "b": "gone.safetensors"}));
        assert!(refusal(dir.path(), &specs()).contains("gone.safetensors: no such file"));
        let extra = ("x", Dtype::F32, vec![1], vec![0; 4]);
        write_shard(dir.path(), "c", &[("c", Dtype::F32, vec![1], vec![0; 4]), extra]);
        index(json!({"a": "a.safetensors", "b": "b.safetensors", "c": "c.safetensors"}));
        assert!(refusal(dir.path(), &specs()).contains("tensor x is not listed"));
        let twice = ("b", Dtype::F32, vec![2, 3], vec![0; 24]);
        write_shard(dir.path(), "c", &[("c", Dtype::F32, vec![1], vec![0; 4]), twice]);
        assert!(refusal(dir.path(), &specs()).contains("tensor b is also in"));
    }

    #[test]
    fn grouped_rows_change_places_on_the_way_in_and_out() {
        let dir = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(source.path());
        // There are two groups with one query head each; a head is one row of two elements.
        let order = RowOrder::Grouped { groups: 2, queries: 1, head_dim: 1 };
        let spec = TensorSpec { name: "w".into(), shape: vec![6, 2], range: 0..12, order };
        let rows =
            |rows: [f32; 6]| rows.into_iter().flat_map(|row| [row, -row]).collect::<Vec<_>>();
        // The buffer has queries, keys, values; the file has a query, its key and its value, twice.
        let buffer = rows([1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let specs = [spec.clone()];
        save_model(dir.path(), CONFIG, &specs, &buffer, &tokenizer).unwrap();
        let mut loaded = vec![0.0; 12];
        load_weights(dir.path(), &specs, &mut loaded).unwrap();
        assert_eq!(loaded, buffer);
        let as_it_lies = [TensorSpec { order: RowOrder::Same, ..spec }];
        load_weights(dir.path(), &as_it_lies, &mut loaded).unwrap();
        assert_eq!(loaded, rows([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    }

    #[test]
    fn missing_extra_and_misshapen_tensors_are_named() {
        let dir = saved();
        let mut more = specs();
        more.push(TensorSpec {
            name: "c".into(),
            shape: vec![0],
            range: 10..10,
            ..more[0].clone()
        });
        assert!(refusal(dir.path(), &more).contains("tensor c is missing"));
        assert!(refusal(dir.path(), &specs()[..1]).contains("tensor a does not belong"));
        let mut turned = specs();
        turned[0].shape = vec![3, 2];
        let message = refusal(dir.path(), &turned);
        assert!(message.contains("tensor b has shape [2, 3]"), "{message}");
        assert!(message.contains("model.safetensors"), "{message}");
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused_by_tensor() {
        let dir = sharded();
        for (dtype, bytes) in [
            (Dtype::F32, f32::NAN.to_le_bytes().to_vec()),
            (Dtype::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
            (Dtype::BF16, bf16::INFINITY.to_le_bytes().to_vec()),
            (Dtype::F16, f16::NAN.to_le_bytes().to_vec()),
        ] {
            let data = [vec![0; 3 * bytes.len()], bytes].concat();
            write_shard(dir.path(), "a", &[("a", dtype, vec![4], data)]);
            let message = refusal(dir.path(), &specs());
            assert!(message.contains("a.safetensors: tensor a"), "{message}");
            assert!(message.contains("NaN or infinite"), "{message}");
        }
        let largest = [f16::MAX, f16::MIN, f16::ZERO, f16::MIN_POSITIVE];
        let data = largest.iter().flat_map(|x| x.to_le_bytes()).collect();
        write_shard(dir.path(), "a", &[("a", Dtype::F16, vec![4], data)]);
        load_weights(dir.path(), &specs(), &mut [0.0; 10]).unwrap();
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
