//! This file checks embedding, rotary positions and SwiGLU.

use super::rig::{Buffer, Numbers, Rig};
use super::{Comparison, EXACT, expected};
use crate::cuda::Half;
use crate::cuda::kernels::embedding::{DeviceTokenRows, TokenRows};
use crate::cuda::kernels::rope::{Angles, BLOCK_TOKENS, CacheWrite, Direction, Heads};
use crate::ops;
use crate::ops::rope::Rope;
use anyhow::Result;

/// These are the heads of LLaMA3-8B and Qwen2.5-7B, and smaller ones.
const HEADS: [Heads; 4] = [
    Heads { queries: 6, keys: 2, dim: 32 },
    Heads { queries: 14, keys: 2, dim: 64 },
    Heads { queries: 32, keys: 8, dim: 128 },
    Heads { queries: 28, keys: 4, dim: 128 },
];

pub(crate) fn check(to: &mut Comparison<'_>) -> Result<()> {
    let embeddings = to.shapes.choose(
        &[(8, 11, 5), (200, 11, 40), (3584, 11, 1), (4096, 11, 17)],
        &[(4096, 2048, 5120), (3584, 2048, 5120)],
    );
    for (width, vocab, count) in embeddings {
        embedding(to, width, vocab, count)?;
    }
    for heads in HEADS {
        for rows in to.shapes.choose(&[1, 17], &[5120]) {
            rope(to, heads, rows)?;
            cache_write(to, heads, rows)?;
        }
    }
    let swiglus = to
        .shapes
        .choose(&[(8, 3), (512, 17), (14_336, 1), (18_944, 2)], &[(14_336, 5120), (18_944, 300)]);
    for (inner, rows) in swiglus {
        swiglu(to, inner, rows)?;
    }
    Ok(())
}

/// Checks looking up rows of tokens, some of which occur often, and their gradients.
fn embedding(to: &mut Comparison<'_>, width: usize, vocab: usize, count: usize) -> Result<()> {
    let format = to.format;
    let tokens: Vec<u32> = (0..count).map(|i| ((i * i + 3) % vocab) as u32).collect();
    let table = format.normal(1, vocab * width, 1.0);
    let (dy, before) = (format.normal(2, count * width, 1.0), format.normal(3, vocab * width, 1.0));
    let (mut out, mut gradient) = (vec![0.0; count * width], format.widen_all(&before));
    ops::embedding::embedding(&format.widen_all(&table), width, &tokens, &mut out);
    ops::embedding::embedding_backward(&format.widen_all(&dy), width, &tokens, &mut gradient);
    let outputs = [
        expected("rows", out, EXACT),
        expected("gradient", format.widen_all(&format.narrow_all(&gradient)), EXACT),
        expected("in f32", gradient, EXACT),
    ];
    let list = TokenRows::new(&tokens);
    to.compare(format!("embedding {count} x {width} of {vocab}"), &outputs, |rig| {
        let (distinct, starts) = (rig.put(&list.tokens)?, rig.put(&list.starts)?);
        let rows = rig.put(&list.rows)?;
        let (of, starts, rows) = (distinct.slice(), starts.slice(), rows.slice());
        let list = DeviceTokenRows { tokens: of, starts, rows };
        let (kernels, stream) = (&rig.kernels.embedding, rig.stream);
        let (table, tokens, dy) = (rig.put(&table)?, rig.put(&tokens)?, rig.put(&dy)?);
        let mut out = rig.poisoned::<Half>(count * width)?;
        kernels.forward(stream, table.slice(), tokens.slice(), width, out.slice_mut())?;
        let (mut short, mut long) = (rig.put(&before)?, rig.put(&format.widen_all(&before))?);
        kernels.backward(stream, dy.slice(), list, width, short.slice_mut())?;
        kernels.backward(stream, dy.slice(), list, width, long.slice_mut())?;
        Ok(vec![rig.read(&out)?, rig.read(&short)?, rig.read(&long)?])
    })
}

/// Tables of angles, and a position in them for each row.
struct Turning<'g> {
    cosines: Buffer<'g, f32>,
    sines: Buffer<'g, f32>,
    positions: Buffer<'g, u32>,
}

/// The tables have angles for so many positions.
const POSITIONS: usize = 6000;

fn table(heads: Heads) -> Rope {
    let mut rope = Rope::new(heads.dim, 500_000.0, None);
    rope.grow(POSITIONS);
    rope
}

fn position(row: usize) -> usize {
    (row * 1777 + 3) % POSITIONS
}

impl<'g> Turning<'g> {
    fn put(rig: &Rig<'g>, rope: &Rope, rows: usize) -> Result<Self> {
        let (cosines, sines) = rope.table();
        let positions: Vec<u32> = (0..rows).map(|row| position(row) as u32).collect();
        let positions = rig.put(&positions)?;
        Ok(Self { cosines: rig.put(cosines)?, sines: rig.put(sines)?, positions })
    }

    fn angles(&self) -> Angles<'_> {
        let Self { cosines, sines, positions } = self;
        Angles { cosines: cosines.slice(), sines: sines.slice(), positions: positions.slice() }
    }
}

/// Rotates rows on the CPU.
fn turned(heads: Heads, rope: &Rope, mut rows: Vec<f32>, direction: Direction) -> Vec<f32> {
    for (row, qkv) in rows.chunks_exact_mut(heads.row()).enumerate() {
        let count = heads.queries + heads.keys;
        match direction {
            Direction::Forward => rope.forward(qkv, count, position(row)),
            Direction::Backward => rope.backward(qkv, count, position(row)),
        }
    }
    rows
}

/// Returns rows of queries, keys and values as three tensors, one after the other.
pub(crate) fn parted<T: Copy>(heads: Heads, qkv: &[T]) -> Vec<T> {
    let (queries, keys) = (heads.queries * heads.dim, heads.keys * heads.dim);
    let columns = [0..queries, queries..queries + keys, queries + keys..heads.row()];
    let rows = |columns: std::ops::Range<usize>| {
        qkv.chunks_exact(heads.row()).flat_map(move |row| row[columns.clone()].to_vec())
    };
    columns.into_iter().flat_map(rows).collect()
}

/// Checks rotating rows in place in both directions, splitting them on the way forward and joining
/// them on the way back.
fn rope(to: &mut Comparison<'_>, heads: Heads, rows: usize) -> Result<()> {
    let format = to.format;
    let rope = table(heads);
    let qkv = format.normal(4, rows * heads.row(), 1.0);
    let forth = turned(heads, &rope, format.widen_all(&qkv), Direction::Forward);
    let back = turned(heads, &rope, format.widen_all(&qkv), Direction::Backward);
    let outputs = [
        expected("forth", forth.clone(), format.tolerance()),
        expected("back", back.clone(), format.tolerance()),
        expected("apart", parted(heads, &forth), format.tolerance()),
        expected("together", back, format.tolerance()),
    ];
    let Heads { queries, keys, dim } = heads;
    to.compare(format!("rope {rows} x ({queries}, {keys}) x {dim}"), &outputs, |rig| {
        let turning = Turning::put(rig, &rope, rows)?;
        let (angles, kernels, stream) = (turning.angles(), &rig.kernels.rope, rig.stream);
        let (mut forth, mut back) = (rig.put(&qkv)?, rig.put(&qkv)?);
        kernels.turn(stream, heads, angles, Direction::Forward, forth.slice_mut())?;
        kernels.turn(stream, heads, angles, Direction::Backward, back.slice_mut())?;
        let (rows, tensors) = (rig.put(&qkv)?, rig.put(&parted(heads, &qkv))?);
        let (mut apart, mut together) = (rig.poisoned(qkv.len())?, rig.poisoned(qkv.len())?);
        kernels.split(stream, heads, angles, rows.slice(), apart.slice_mut())?;
        kernels.join(stream, heads, angles, tensors.slice(), together.slice_mut())?;
        [&forth, &back, &apart, &together].into_iter().map(|output| rig.read(output)).collect()
    })
}

/// Checks that rotated keys and values go to their slots of a cache, and that nothing is written
/// elsewhere.
fn cache_write(to: &mut Comparison<'_>, heads: Heads, rows: usize) -> Result<()> {
    let format = to.format;
    let Heads { queries, keys: kv_heads, dim } = heads;
    let rope = table(heads);
    let qkv = format.normal(5, rows * heads.row(), 1.0);
    let turned = turned(heads, &rope, format.widen_all(&qkv), Direction::Forward);
    let blocks = rows.div_ceil(BLOCK_TOKENS) + 1;
    // The slots go downwards from the last one.
    let slots: Vec<u32> = (0..rows).map(|row| (blocks * BLOCK_TOKENS - 1 - row) as u32).collect();
    let len = blocks * kv_heads * BLOCK_TOKENS * dim;
    let (mut keys, mut values) = (vec![1.0; len], vec![1.0; len]);
    for (row, &slot) in turned.chunks_exact(heads.row()).zip(&slots) {
        let (block, token) = (slot as usize / BLOCK_TOKENS, slot as usize % BLOCK_TOKENS);
        for head in 0..kv_heads {
            let at = ((block * kv_heads + head) * BLOCK_TOKENS + token) * dim;
            keys[at..at + dim].copy_from_slice(&row[(queries + head) * dim..][..dim]);
            let value = &row[(queries + kv_heads + head) * dim..][..dim];
            values[at..at + dim].copy_from_slice(value);
        }
    }
    let outputs = [
        expected("rows", turned, format.tolerance()),
        expected("keys", keys, format.tolerance()),
        expected("values", values, EXACT),
    ];
    let name = format!("rope into a cache {rows} x ({queries}, {kv_heads}) x {dim}");
    to.compare(name, &outputs, |rig| {
        let turning = Turning::put(rig, &rope, rows)?;
        let (slots, mut qkv) = (rig.put(&slots)?, rig.put(&qkv)?);
        let ones = format.narrow_all(&vec![1.0; len]);
        let (mut keys, mut values) = (rig.put(&ones)?, rig.put(&ones)?);
        let (to_keys, to_values) = (keys.slice_mut(), values.slice_mut());
        let cache = CacheWrite { keys: to_keys, values: to_values, slots: slots.slice() };
        let (angles, kernels) = (turning.angles(), &rig.kernels.rope);
        kernels.write(rig.stream, heads, angles, qkv.slice_mut(), &cache)?;
        Ok(vec![rig.read(&qkv)?, rig.read(&keys)?, rig.read(&values)?])
    })
}

fn swiglu(to: &mut Comparison<'_>, inner: usize, rows: usize) -> Result<()> {
    let format = to.format;
    let (gate_up, dy) =
        (format.normal(6, rows * 2 * inner, 3.0), format.normal(7, rows * inner, 1.0));
    let (mut gradients, mut product) = (format.widen_all(&gate_up), format.widen_all(&dy));
    ops::swiglu::swiglu_backward(&mut gradients, inner, &mut product);
    let outputs = [
        expected("product", product.clone(), format.tolerance()),
        expected("again", product, format.tolerance()),
        expected("gradients", gradients, format.tolerance()),
    ];
    to.compare(format!("swiglu {rows} x {inner}"), &outputs, |rig| {
        let (kernels, stream) = (&rig.kernels.swiglu, rig.stream);
        let (mut gate_up, mut dy) = (rig.put(&gate_up)?, rig.put(&dy)?);
        let mut out = rig.poisoned::<Half>(rows * inner)?;
        kernels.forward(stream, gate_up.slice(), inner, out.slice_mut())?;
        kernels.backward(stream, gate_up.slice_mut(), inner, dy.slice_mut())?;
        Ok(vec![rig.read(&out)?, rig.read(&dy)?, rig.read(&gate_up)?])
    })
}
