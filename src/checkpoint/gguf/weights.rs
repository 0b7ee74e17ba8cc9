//! The weights in a GGUF file, as our decoder takes them.

use super::architecture;
use super::header::{Header, Place};
use super::names::{ROPE_FACTORS, gguf_name};
use crate::base::error::usage;
use crate::model::{Decoder, RowOrder, TensorSpec};
use crate::ops::element::{Dtype, Elements, Stored};
use anyhow::{Context, Result, anyhow};
use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::f16;
use memmap2::UncheckedAdvice;
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// Numbers that one thread makes of blocks at a time.
const PIECE: usize = 1 << 18;

/// A GGUF file with the places of a decoder's tensors.
pub(crate) struct GgufWeights {
    header: Header,
    /// By our names, each with the order of its rows.
    places: HashMap<String, (Place, RowOrder)>,
}

impl GgufWeights {
    /// Finds every tensor; refuses one that is missing, left over or of another shape.
    pub(crate) fn new(mut header: Header, decoder: &Decoder) -> Result<Self> {
        let config = decoder.config();
        let is_paired = architecture::is_paired(architecture::name(&header)?);
        let mut places = HashMap::new();
        for spec in &decoder.layout().tensors {
            let name = gguf_name(config.family, &spec.name).expect(
                "invariant: the families of GGUF files keep queries, keys and values apart",
            );
            let wrong =
                |what: &str| usage(format!("{}: tensor {name} {what}", header.path.display()));
            let place = header.tensors.remove(&name).ok_or_else(|| wrong("is missing"))?;
            if place.shape != spec.shape {
                return Err(wrong(&format!(
                    "has shape {:?}, but the file's metadata asks for {:?}",
                    place.shape, spec.shape
                )));
            }
            if spec.shape.len() == 1 && of_floats(place.dtype).is_none() {
                return Err(wrong("is a quantized vector, which is not read"));
            }
            let is_turned = ["attn_q.", "attn_k."].iter().any(|part| name.contains(part));
            let order = if is_paired && is_turned {
                RowOrder::Paired { head_dim: config.head_dim }
            } else {
                RowOrder::Same
            };
            places.insert(spec.name.clone(), (place, order));
        }
        header.tensors.remove(ROPE_FACTORS);
        let left: BTreeSet<&String> = header.tensors.keys().collect();
        if let Some(name) = left.first() {
            return Err(usage(format!(
                "{}: tensor {name} does not belong to the model that the file's metadata describes",
                header.path.display()
            )));
        }
        Ok(Self { header, places })
    }

    /// Returns `len` numbers of a tensor from `first` on, whole rows of it, in the order of Hugging Face's
    /// files. Refuses numbers that are not finite.
    pub(crate) fn part(&self, spec: &TensorSpec, first: usize, len: usize) -> Result<Stored<'_>> {
        let (place, order) = &self.places[&spec.name];
        let row_len = place.row_len();
        let rows = first / row_len..(first + len) / row_len;
        let stored = match of_floats(place.dtype) {
            Some(dtype) => self.floats(place, *order, rows, dtype),
            None => self
                .dequantized(place, *order, rows)
                .with_context(|| format!("{}: tensor {}", self.header.path.display(), spec.name))?,
        };
        if stored.elements().is_finite() {
            return Ok(stored);
        }
        Err(usage(format!(
            "{}: tensor {} has numbers that are NaN or infinite: the file is damaged, or its training diverged; \
             take another",
            self.header.path.display(),
            spec.name
        )))
    }

    /// Gives the pages of a tensor back; reading it again would map them again.
    pub(crate) fn release(&self, spec: &TensorSpec) {
        let Range { start, end } = self.places[&spec.name].0.bytes;
        // SAFETY: the map is of a file and read-only, so dropped pages come back with the same bytes.
        let _ = unsafe {
            self.header.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
        };
    }

    /// Returns the bytes of all tensors as [`GgufWeights::part`] gives them.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |(place, _): &(Place, RowOrder)| {
            let size = of_floats(place.dtype).unwrap_or(Dtype::F16).size();
            place.shape.iter().product::<usize>() as u64 * size as u64
        };
        self.places.values().map(bytes).sum()
    }

    /// Returns the bytes of a row in the file.
    fn row(&self, place: &Place, row: usize) -> &[u8] {
        let len = place.row_len() / place.dtype.block_size() * place.dtype.type_size();
        &self.header.map[place.bytes.start + row * len..][..len]
    }

    fn floats(
        &self,
        place: &Place,
        order: RowOrder,
        rows: Range<usize>,
        dtype: Dtype,
    ) -> Stored<'_> {
        if order == RowOrder::Same {
            let len = place.row_len() * dtype.size();
            let start = place.bytes.start;
            let bytes = &self.header.map[start + rows.start * len..start + rows.end * len];
            return Elements { dtype, bytes }.into();
        }
        let of_row = |row| self.row(place, order.file_row(row)).iter().copied();
        Stored { dtype, bytes: rows.flat_map(of_row).collect() }
    }

    /// Turns rows of blocks into f16.
    fn dequantized(
        &self,
        place: &Place,
        order: RowOrder,
        rows: Range<usize>,
    ) -> Result<Stored<'_>> {
        let row_len = place.row_len();
        let mut bytes = vec![0; rows.len() * row_len * 2];
        let piece = (PIECE / row_len).max(1);
        bytes.par_chunks_mut(piece * row_len * 2).enumerate().try_for_each(|(i, out)| {
            let first = rows.start + i * piece;
            let rows = first..first + out.len() / row_len / 2;
            let blocks: Vec<&[u8]> = rows.map(|row| self.row(place, order.file_row(row))).collect();
            let numbers = dequantize(&blocks, place.dtype, out.len() / 2)?;
            for (out, number) in out.as_chunks_mut().0.iter_mut().zip(numbers) {
                *out = f16::from_f32(number).to_le_bytes();
            }
            anyhow::Ok(())
        })?;
        Ok(Stored { dtype: Dtype::F16, bytes: bytes.into() })
    }
}

/// Turns rows of blocks into their `len` numbers.
fn dequantize(rows: &[&[u8]], dtype: GgmlDType, len: usize) -> Result<Vec<f32>> {
    let row = rows.first().map_or(0, |row| row.len());
    // candle takes blocks only where their numbers are aligned, which those in a file need not be.
    let mut aligned = vec![0u64; (rows.len() * row).div_ceil(size_of::<u64>())];
    let blocks = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..rows.len() * row];
    blocks.chunks_exact_mut(row.max(1)).zip(rows).for_each(|(to, from)| to.copy_from_slice(from));
    let numbers = || {
        let storage = QStorage::from_data((&*blocks).into(), &Device::Cpu, dtype)?;
        QTensor::new(storage, len)?.dequantize(&Device::Cpu)?.to_vec1()
    };
    numbers().map_err(|e| anyhow!("dequantizing {dtype:?}: {e}"))
}

/// Returns the format of numbers that are no blocks.
fn of_floats(dtype: GgmlDType) -> Option<Dtype> {
    match dtype {
        GgmlDType::F32 => Some(Dtype::F32),
        GgmlDType::F16 => Some(Dtype::F16),
        GgmlDType::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}
