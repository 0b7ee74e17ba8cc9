//! This file checks attention over the paged cache, of single steps and of prompts, against plain
//! sums in f64.

use super::rig::{Numbers, Rig};
use super::{Comparison, expected};
use crate::cuda::kernels::decode::{Cache, partials_len};
use crate::cuda::kernels::prompt;
use crate::cuda::kernels::rope::{BLOCK_TOKENS, Heads};
use crate::cuda::{Half, HalfFormat};
use anyhow::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Checks single steps and prompts with these heads.
pub(crate) fn check(to: &mut Comparison<'_>, heads: Heads) -> Result<()> {
    let lengths = to.shapes.choose(&[1, 17, 0, 32, 33, 150], &[1024, 2049, 5120]);
    let pieces = to.shapes.choose(&[0..1, 0..17, 40..75], &[0..1, 0..600, 4990..5120]);
    decode(to, heads, &lengths)?;
    prompts(to, heads, &pieces)
}

fn decode(to: &mut Comparison<'_>, heads: Heads, lengths: &[usize]) -> Result<()> {
    let (Heads { queries, keys, dim }, format) = (heads, to.format);
    let last: Vec<_> = lengths.iter().map(|&length| length.saturating_sub(1)..length).collect();
    let cached = Cached::new(format, heads, &last);
    let longest = lengths.iter().max().copied().unwrap_or(0);
    let name = format!("decoding {} to {longest} x ({queries}, {keys}) x {dim}", lengths.len());
    let rows: Vec<_> = lengths.iter().copied().enumerate().collect();
    let qkv = format.normal(62, rows.len() * heads.row(), 1.5);
    let out = cached.attend_all(&qkv, &rows);
    let ends: Vec<u32> = lengths.iter().map(|&length| length as u32).collect();
    to.compare(name, &[expected("out", out, format.tolerance())], |rig| {
        let (qkv, room) = (rig.put(&qkv)?, rows.len() * partials_len(heads, cached.table_width));
        let mut partials = rig.poisoned::<f32>(room)?;
        let mut out = rig.poisoned::<Half>(rows.len() * queries * dim)?;
        cached.with(rig, &cached.tables, &ends, |cache| {
            let (partials, to) = (partials.slice_mut(), out.slice_mut());
            rig.kernels.decode.attend(rig.stream, heads, qkv.slice(), cache, partials, to)
        })?;
        Ok(vec![rig.read(&out)?])
    })
}

/// A prompt's attention rounds to 16 bits so often: weights before they are multiplied with values,
/// as tensor cores take them, and results. With all of the models' heads and 5,000 keys the error
/// is 1.1e-2 at worst in bf16.
const ROUNDINGS: f64 = 2.0;

fn prompts(to: &mut Comparison<'_>, heads: Heads, pieces: &[Range<usize>]) -> Result<()> {
    let (Heads { queries, keys, dim }, format) = (heads, to.format);
    let cached = Cached::new(format, heads, pieces);
    let rows: Vec<_> = (0..)
        .zip(pieces)
        .flat_map(|(sequence, piece)| piece.clone().map(move |position| (sequence, position + 1)))
        .collect();
    let name = format!("{} tokens of prompts x ({queries}, {keys}) x {dim}", rows.len());
    let qkv = format.normal(63, rows.len() * heads.row(), 1.5);
    let out = cached.attend_all(&qkv, &rows);
    let (mut all, mut ends, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = 0;
    for (piece, table) in pieces.iter().zip(cached.tables.chunks_exact(cached.table_width)) {
        for tile in prompt::tiles(heads, first..first + piece.len()) {
            ends.push((piece.start + tile.end - first) as u32);
            tables.extend_from_slice(table);
            all.push(tile);
        }
        first += piece.len();
    }
    to.compare(name, &[expected("out", out, ROUNDINGS * format.tolerance())], |rig| {
        let (qkv, numbers) = (rig.put(&qkv)?, rig.put(&prompt::numbers(&all))?);
        let mut out = rig.poisoned::<Half>(rows.len() * queries * dim)?;
        cached.with(rig, &tables, &ends, |cache| {
            let (tiles, to) = (numbers.slice(), out.slice_mut());
            rig.kernels.prompt.attend(rig.stream, heads, qkv.slice(), cache, tiles, to)
        })?;
        Ok(vec![rig.read(&out)?])
    })
}

/// The cached keys and values of some sequences, whose blocks lie scattered between NaNs.
struct Cached {
    format: HalfFormat,
    heads: Heads,
    table_width: usize,
    tables: Vec<u32>,
    keys: Vec<Half>,
    values: Vec<Half>,
}

impl Cached {
    /// Makes sequences that are as long as the ends of `pieces`.
    fn new(format: HalfFormat, heads: Heads, pieces: &[Range<usize>]) -> Self {
        let blocks = |piece: &Range<usize>| piece.end.div_ceil(BLOCK_TOKENS);
        let table_width = pieces.iter().map(blocks).max().unwrap_or(0) + 1;
        let total = pieces.len() * table_width;
        let mut tables = vec![u32::MAX; total];
        let len = total * heads.keys * BLOCK_TOKENS * heads.dim;
        let numbers = [format.normal(60, len, 1.5), format.normal(61, len, 1.5)];
        let [mut keys, mut values] = [(); 2].map(|()| vec![format.narrow(f32::NAN); len]);
        for (sequence, piece) in pieces.iter().enumerate() {
            for position in 0..piece.end {
                let entry = sequence * table_width + position / BLOCK_TOKENS;
                // Blocks are given out backwards and interleaved between sequences.
                let place = position / BLOCK_TOKENS * pieces.len() + sequence;
                let block = total - 1 - place;
                tables[entry] = block as u32;
                for head in 0..heads.keys {
                    let at = (block * heads.keys + head) * BLOCK_TOKENS + position % BLOCK_TOKENS;
                    let range = at * heads.dim..(at + 1) * heads.dim;
                    keys[range.clone()].copy_from_slice(&numbers[0][range.clone()]);
                    values[range.clone()].copy_from_slice(&numbers[1][range]);
                }
            }
        }
        Self { format, heads, table_width, tables, keys, values }
    }

    /// Uploads everything and calls `operation` with it.
    fn with(
        &self,
        rig: &Rig<'_>,
        tables: &[u32],
        ends: &[u32],
        operation: impl FnOnce(Cache<'_>) -> Result<()>,
    ) -> Result<()> {
        let (keys, values) = (rig.put(&self.keys)?, rig.put(&self.values)?);
        let (tables, lengths) = (rig.put(tables)?, rig.put(ends)?);
        operation(Cache {
            keys: keys.slice(),
            values: values.slice(),
            tables: tables.slice(),
            lengths: lengths.slice(),
        })
    }

    /// Returns the outputs of rows of `qkv`; `rows` says of each its sequence and how many tokens
    /// it sees.
    fn attend_all(&self, qkv: &[Half], rows: &[(usize, usize)]) -> Vec<f32> {
        let each = rows.par_iter().zip(qkv.par_chunks_exact(self.heads.row()));
        each.flat_map_iter(|(&(sequence, seen), row)| self.attend(row, sequence, seen)).collect()
    }

    /// Returns the output of one row for all query heads, summed in f64.
    fn attend(&self, row: &[Half], sequence: usize, seen: usize) -> Vec<f32> {
        let Heads { queries, keys: kv_heads, dim } = self.heads;
        let widen = |number: &Half| f64::from(self.format.widen(*number));
        let head = |query: usize| {
            let place = |position: usize| {
                let entry = sequence * self.table_width + position / BLOCK_TOKENS;
                let block = self.tables[entry] as usize * kv_heads + query * kv_heads / queries;
                (block * BLOCK_TOKENS + position % BLOCK_TOKENS) * dim
            };
            let dot = |key: &[Half]| -> f64 {
                let products = row[query * dim..][..dim].iter().zip(key);
                products.map(|(q, k)| widen(q) * widen(k)).sum::<f64>() / (dim as f64).sqrt()
            };
            let scores: Vec<f64> =
                (0..seen).map(|position| dot(&self.keys[place(position)..][..dim])).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let (mut out, mut sum) = (vec![0.0; dim], 0.0);
            for (position, score) in scores.into_iter().enumerate() {
                let weight = (score - most).exp();
                sum += weight;
                let value = &self.values[place(position)..][..dim];
                out.iter_mut().zip(value).for_each(|(out, v)| *out += weight * widen(v));
            }
            let mean = move |out: f64| if sum > 0.0 { (out / sum) as f32 } else { 0.0 };
            out.into_iter().map(mean).collect::<Vec<f32>>()
        };
        (0..queries).flat_map(head).collect()
    }
}
