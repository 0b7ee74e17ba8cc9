//! Writes a model as a GGUF file, for llama.cpp and what is built on it.
//!
//! Contract: norms and biases stay f32, matrices take the format that is asked for; f16 and bf16 of weights that
//! are exact in them change no number. Tokenizer and chat template go with the model. The file takes its name
//! when it is whole. Left out: importance matrices.

use super::StoredModel;
use super::gguf::names::{EMBEDDING, HEAD, QKV, ROPE_FACTORS, gguf_name};
use super::gguf::{architecture, vocabulary};
use crate::base::fs::AtomicFile;
use crate::base::memory;
use crate::base::progress::Progress;
use crate::model::{ModelConfig, RowOrder, TensorSpec};
use anyhow::{Result, anyhow};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

/// The number format of the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Format {
    /// 32-bit floats
    F32,
    /// 16-bit floats
    F16,
    /// The upper half of 32-bit floats
    Bf16,
    /// 8 bits, in blocks of 32
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits, in blocks of 32; the head has 8
    #[value(name = "q4_0")]
    Q4_0,
    /// 4 bits, in blocks of 256; the head, and half of the values and down-projections, have 6
    #[value(name = "q4_k_m")]
    Q4KM,
}

impl Format {
    /// Returns llama.cpp's number of this mixture of formats.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Bf16 => 32,
        }
    }

    /// Returns the format of a tensor by its name in the file; `head` is the tensor that gives the logits.
    fn of_tensor(self, name: &str, head: &str, shape: &[usize], config: &ModelConfig) -> GgmlDType {
        if shape.len() == 1 {
            return GgmlDType::F32;
        }
        let wanted = match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 if name == head => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4KM if name == head || takes_more_bits(name, config.num_layers) => {
                GgmlDType::Q6K
            }
            Self::Q4KM => GgmlDType::Q4K,
        };
        // Rows that are no whole blocks take the next format with smaller ones, as in llama.cpp.
        let fits = |dtype: GgmlDType| shape[1].is_multiple_of(dtype.block_size());
        let smaller = match wanted {
            GgmlDType::Q4K => GgmlDType::Q5_0,
            GgmlDType::Q6K => GgmlDType::Q8_0,
            other => other,
        };
        [wanted, smaller].into_iter().find(|&dtype| fits(dtype)).unwrap_or(GgmlDType::F16)
    }
}

/// Returns whether llama.cpp's mixture M gives a tensor more bits: values and down-projections of the first and last
/// eighth of the layers, and of each third one between.
fn takes_more_bits(name: &str, num_layers: usize) -> bool {
    let Some((layer, tensor)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
    else {
        return false;
    };
    let Ok(layer) = layer.parse::<usize>() else { return false };
    let eighth = num_layers / 8;
    ["attn_v.weight", "ffn_down.weight"].contains(&tensor)
        && (layer < eighth || layer >= 7 * num_layers / 8 || (layer - eighth) % 3 == 2)
}

/// Writes `model` to the file `to`.
pub fn write(model: &StoredModel, format: Format, to: &Path) -> Result<()> {
    let config = model.decoder.config();
    let specs = &model.decoder.layout().tensors;
    // candle writes a file of tensors that it holds all at once.
    memory::check(2 * model.weights.bytes(), "writing a GGUF file", "choose a smaller model")?;
    let progress = Progress::new("convert", specs.len() as u64, "tensors");
    let mut tensors = Vec::new();
    for spec in specs {
        for Part { name, shape, values } in parts(model, spec)? {
            let head = if config.tie_word_embeddings { EMBEDDING } else { HEAD };
            let dtype = format.of_tensor(&name, head, &shape, config);
            tensors.push((name, quantize(values, &shape, dtype)?));
        }
        progress.inc(1);
    }
    if let Some(factors) = architecture::factors(config) {
        let shape = [factors.len()];
        tensors.push((ROPE_FACTORS.to_owned(), quantize(factors, &shape, GgmlDType::F32)?));
    }
    progress.finish();
    let mut metadata = architecture::metadata(config);
    metadata.push(("general.file_type".to_owned(), Value::U32(format.file_type())));
    metadata.push(("general.quantization_version".to_owned(), Value::U32(2)));
    metadata.extend(vocabulary::metadata(&model.tokenizer, config.vocab_size)?);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let mut file = Counted { file: AtomicFile::create(to)?, position: 0 };
    gguf_file::write(&mut file, &metadata, &tensors)
        .map_err(|e| anyhow!("writing {}: {e}", to.display()))?;
    file.file.commit()
}

/// A file that knows how much was written to it, which is all that candle asks of one that seeks.
struct Counted {
    file: AtomicFile,
    position: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Counted {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Current(0) => Ok(self.position),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

fn quantize(values: Vec<f32>, shape: &[usize], dtype: GgmlDType) -> Result<QTensor> {
    let quantized = || QTensor::quantize(&Tensor::from_vec(values, shape, &Device::Cpu)?, dtype);
    quantized().map_err(|e| anyhow!("quantizing to {dtype:?}: {e}"))
}

/// A tensor as it is written.
struct Part {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Returns what a tensor of the model becomes: one of the file, or queries, keys and values apart.
fn parts(model: &StoredModel, spec: &TensorSpec) -> Result<Vec<Part>> {
    let config = model.decoder.config();
    let stored = model.weights.part(spec, 0, spec.range.len())?;
    let mut values = vec![0.0; spec.range.len()];
    stored.elements().widen(&mut values);
    drop(stored);
    model.weights.release(spec, 0, spec.range.len());
    let row_len = spec.row_len();
    let row = |values: &[f32], row: usize| values[row * row_len..][..row_len].to_vec();
    // Whatever the family, queries, keys and values have the buffer's order first.
    let num_rows = spec.shape[0];
    let in_order: Vec<f32> = match spec.order {
        RowOrder::Same => values,
        order => (0..num_rows).flat_map(|r| row(&values, order.file_row(r))).collect(),
    };
    let named: Vec<(String, usize)> = match gguf_name(config.family, &spec.name) {
        Some(name) => vec![(name, num_rows)],
        None => {
            let layer = spec.name.split('.').nth(2).unwrap_or_default();
            let heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads];
            let name = |name: &str| format!("blk.{layer}.{name}.weight");
            QKV.iter().zip(heads).map(|(n, heads)| (name(n), heads * config.head_dim)).collect()
        }
    };
    let is_paired = architecture::is_paired(architecture::of_family(config.family));
    let mut rest = &in_order[..];
    let part = |(name, num_rows): (String, usize)| {
        let (ours, others) = rest.split_at(num_rows * row_len);
        rest = others;
        let is_turned = ["attn_q.", "attn_k."].iter().any(|part| name.contains(part));
        let mut values = ours.to_vec();
        if is_paired && is_turned {
            let order = RowOrder::Paired { head_dim: config.head_dim };
            for r in 0..num_rows {
                let at = order.file_row(r) * row_len;
                values[at..at + row_len].copy_from_slice(&ours[r * row_len..][..row_len]);
            }
        }
        let mut shape = spec.shape.clone();
        shape[0] = num_rows;
        Part { name, shape, values }
    };
    Ok(named.into_iter().map(part).collect())
}
