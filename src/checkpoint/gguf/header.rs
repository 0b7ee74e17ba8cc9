//! The header of a GGUF file: metadata, and where each tensor lies in the mapped file.
//!
//! Contract: every tensor of a header that was read lies within the file and consists of whole rows of whole
//! blocks. Sizes in a file are claims: none is believed before the file is as long as it says.

use super::metadata::Metadata;
use crate::base::error::usage;
use crate::base::guard::quietly;
use anyhow::Result;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo};
use memmap2::Mmap;
use std::collections::HashMap;
use std::fs::File;
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What a GGUF file says, and the mapped file.
pub(crate) struct Header {
    pub(crate) path: PathBuf,
    pub(crate) map: Mmap,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: HashMap<String, Place>,
}

/// A tensor in the file.
pub(crate) struct Place {
    pub(crate) dtype: GgmlDType,
    /// Row-major.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Range<usize>,
}

impl Place {
    /// Returns the elements of a row; a vector is one row of each element, as in [`crate::model::TensorSpec`].
    pub(crate) fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

impl Header {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let unreadable = |e| usage(format!("cannot read {}: {e}", path.display()));
        let file = File::open(path).map_err(unreadable)?;
        // SAFETY: the map is read-only and lives only while the tensors are copied out of it. A file that
        // somebody cuts short meanwhile ends the program, as with safetensors.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        let damaged = |what: &str| {
            usage(format!("{}: damaged, cut short, or not a GGUF file: {what}", path.display()))
        };
        // A library's own checks may be panics, such as that of an alignment of 0.
        let content = quietly(|| Content::read(&mut Cursor::new(&map[..])))
            .ok_or_else(|| damaged("its header makes no sense"))?
            .map_err(|e| damaged(&explain(&e.to_string())))?;
        let Content { metadata, tensor_infos, tensor_data_offset, .. } = content;
        let metadata = Metadata { path: path.to_owned(), values: metadata };
        let place = |(name, info): (String, TensorInfo)| {
            let place = place(&info, tensor_data_offset, map.len());
            let place = place.map_err(|what| damaged(&format!("tensor {name} {what}")))?;
            Ok((name, place))
        };
        let tensors = tensor_infos.into_iter().map(place).collect::<Result<_>>()?;
        Ok(Self { path: path.to_owned(), map, metadata, tensors })
    }
}

/// Returns what candle says in one line, and what a user can do about it.
fn explain(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    if line.contains("unknown dtype") {
        return format!(
            "{line} (a quantization that is not read, as are those named IQ or TQ: take a file with one of \
             Q4_0 to Q8_0 or Q2_K to Q6_K)"
        );
    }
    line.to_owned()
}

/// Returns where a tensor lies, or why it cannot be there.
fn place(info: &TensorInfo, start: u64, file_len: usize) -> Result<Place, String> {
    let dtype = info.ggml_dtype;
    let shape = info.shape.dims().to_vec();
    let outside = || format!("of shape {shape:?} does not fit into the file");
    let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    let count = count.filter(|&count| count <= file_len.saturating_mul(8)).ok_or_else(outside)?;
    let row = *shape.last().ok_or("has no shape")?;
    if row == 0 || !row.is_multiple_of(dtype.block_size()) {
        return Err(format!("has rows of {row}, not whole blocks of {dtype:?}"));
    }
    let bytes = count / dtype.block_size() * dtype.type_size();
    let first = start.checked_add(info.offset).and_then(|first| usize::try_from(first).ok());
    let end = first.and_then(|first| first.checked_add(bytes)).filter(|&end| end <= file_len);
    let (first, end) = first.zip(end).ok_or_else(outside)?;
    Ok(Place { dtype, shape, bytes: first..end })
}
