//! This file tests embedding, rotary positions, SwiGLU and passes over flat buffers.

use crate::compare::{FORMATS, assert_close, on_every_order};
use crate::cuda::half::{Half, HalfFormat};
use crate::cuda::kernels::embedding::{DeviceTokenRows, TokenRows};
use crate::cuda::kernels::rope::{Angles, BLOCK_TOKENS, CacheWrite, Direction, Heads};
use crate::emulation::{Buffer, Gpu};
use codeseq::ops;
use codeseq::ops::rope::{Llama3Scaling, Rope};

/// Returns tokens of a small vocabulary, some of which occur often.
fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i + 3) % vocab) as u32).collect()
}

#[test]
fn embedding_copies_rows_and_adds_gradients_as_the_cpu_does() {
    for format in FORMATS {
        for (width, count) in [(4096, 17), (3584, 1), (200, 40), (8, 5)] {
            let (vocab, tokens) = (11, tokens(count, 11));
            let table = format.normal(1, vocab * width, 1.0);
            let (dy, before) =
                (format.normal(2, count * width, 1.0), format.normal(3, vocab * width, 1.0));
            on_every_order(
                format,
                |gpu| {
                    let list = TokenRows::new(&tokens);
                    let [distinct, starts, rows] =
                        [&list.tokens, &list.starts, &list.rows].map(|x| gpu.put(x));
                    let list = DeviceTokenRows {
                        tokens: distinct.slice(),
                        starts: starts.slice(),
                        rows: rows.slice(),
                    };
                    let (embedding, stream) = (&gpu.kernels.embedding, &gpu.stream);
                    let (table, tokens, dy) = (gpu.put(&table), gpu.put(&tokens), gpu.put(&dy));
                    let mut out = gpu.poisoned(count * width);
                    let (table, tokens) = (table.slice(), tokens.slice());
                    embedding.forward(stream, table, tokens, width, out.slice_mut()).unwrap();
                    let mut short = gpu.put(&before);
                    embedding.backward(stream, dy.slice(), list, width, short.slice_mut()).unwrap();
                    let mut long = gpu.put(&format.widen_all(&before));
                    embedding.backward(stream, dy.slice(), list, width, long.slice_mut()).unwrap();
                    (out.get(), short.get(), long.get())
                },
                |(out, short, long): (Vec<Half>, Vec<Half>, Vec<f32>)| {
                    let mut expected = vec![0.0; count * width];
                    ops::embedding::embedding(
                        &format.widen_all(&table),
                        width,
                        &tokens,
                        &mut expected,
                    );
                    assert_eq!(format.widen_all(&out), expected);
                    let mut gradient = format.widen_all(&before);
                    ops::embedding::embedding_backward(
                        &format.widen_all(&dy),
                        width,
                        &tokens,
                        &mut gradient,
                    );
                    assert_eq!(long, gradient);
                    assert_eq!(short, format.narrow_all(&gradient));
                },
            );
        }
    }
}

const HEADS: [Heads; 4] = [
    Heads { queries: 32, keys: 8, dim: 128 },
    Heads { queries: 28, keys: 4, dim: 128 },
    Heads { queries: 14, keys: 2, dim: 64 },
    Heads { queries: 6, keys: 2, dim: 32 },
];

/// Returns the CPU's table for positions below 4000.
fn rope(heads: Heads, scaling: Option<Llama3Scaling>) -> Rope {
    let mut rope = Rope::new(heads.dim, 500_000.0, scaling);
    rope.grow(4000);
    rope
}

/// Tables of angles, and positions in them.
struct Turning {
    cosines: Buffer<f32>,
    sines: Buffer<f32>,
    positions: Buffer<u32>,
}

impl Turning {
    fn put(gpu: &Gpu, rope: &Rope, positions: &[u32]) -> Self {
        let (cosines, sines) = rope.table();
        let (cosines, sines) = (gpu.put(cosines), gpu.put(sines));
        Self { cosines, sines, positions: gpu.put(positions) }
    }

    fn angles(&self) -> Angles<'_> {
        let Self { cosines, sines, positions } = self;
        Angles { cosines: cosines.slice(), sines: sines.slice(), positions: positions.slice() }
    }
}

const SCALING: Llama3Scaling = Llama3Scaling {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 256.0,
};

#[test]
fn rope_turns_queries_and_keys_forth_and_back_and_leaves_values() {
    for format in FORMATS {
        for (heads, scaling) in HEADS.into_iter().zip([None, Some(SCALING), None, Some(SCALING)]) {
            let positions = [0u32, 1, 17, 3999, 2];
            let rope = rope(heads, scaling);
            let qkv = format.normal(4, positions.len() * heads.row(), 1.0);
            for direction in [Direction::Forward, Direction::Backward] {
                on_every_order(
                    format,
                    |gpu| {
                        let turning = Turning::put(gpu, &rope, &positions);
                        let angles = turning.angles();
                        let mut rows = gpu.put(&qkv);
                        let kernels = &gpu.kernels.rope;
                        kernels
                            .turn(&gpu.stream, heads, angles, direction, rows.slice_mut())
                            .unwrap();
                        rows.get()
                    },
                    |rows| {
                        let mut expected = format.widen_all(&qkv);
                        let all = expected.chunks_exact_mut(heads.row()).zip(positions);
                        for (row, position) in all {
                            let turned = heads.queries + heads.keys;
                            match direction {
                                Direction::Forward => rope.forward(row, turned, position as usize),
                                Direction::Backward => {
                                    rope.backward(row, turned, position as usize)
                                }
                            }
                        }
                        format.assert_close("turned", &rows, &expected);
                        let values = heads.row() - heads.keys * heads.dim;
                        assert_eq!(rows[values..heads.row()], qkv[values..heads.row()]);
                    },
                );
            }
        }
    }
}

#[test]
fn rope_takes_queries_keys_and_values_apart_and_together_as_it_turns_them() {
    for format in FORMATS {
        for heads in HEADS {
            let positions = [0u32, 1, 17, 3999, 2];
            let rope = rope(heads, None);
            let qkv = format.normal(12, positions.len() * heads.row(), 1.0);
            on_every_order(
                format,
                |gpu| {
                    let turning = Turning::put(gpu, &rope, &positions);
                    let angles = turning.angles();
                    let (kernels, stream) = (&gpu.kernels.rope, &gpu.stream);
                    let [forward, backward] =
                        [Direction::Forward, Direction::Backward].map(|direction| {
                            let mut rows = gpu.put(&qkv);
                            kernels
                                .turn(stream, heads, angles, direction, rows.slice_mut())
                                .unwrap();
                            rows.get()
                        });
                    let mut apart = gpu.poisoned(qkv.len());
                    kernels
                        .split(stream, heads, angles, gpu.put(&qkv).slice(), apart.slice_mut())
                        .unwrap();
                    let source = gpu.put(&parted(heads, &qkv));
                    let mut together = gpu.poisoned(qkv.len());
                    kernels
                        .join(stream, heads, angles, source.slice(), together.slice_mut())
                        .unwrap();
                    [forward, backward, apart.get(), together.get()]
                },
                |[forward, backward, apart, together]| {
                    assert!(apart == parted(heads, &forward), "queries, keys and values apart");
                    assert!(together == backward, "queries, keys and values together");
                },
            );
        }
    }
}

/// Returns rows of queries, keys and values as three tensors, one after the other.
fn parted(heads: Heads, qkv: &[Half]) -> Vec<Half> {
    let (queries, keys) = (heads.queries * heads.dim, heads.keys * heads.dim);
    let columns = [0..queries, queries..queries + keys, queries + keys..heads.row()];
    let rows = |columns: std::ops::Range<usize>| {
        qkv.chunks_exact(heads.row()).flat_map(move |row| row[columns.clone()].to_vec())
    };
    columns.into_iter().flat_map(rows).collect()
}

#[test]
fn rope_writes_turned_keys_and_values_into_their_slots_alone() {
    for format in FORMATS {
        for heads in HEADS {
            let (positions, slots) = ([40u32, 0, 31], [2 * 32 + 8u32, 0, 32 + 31]);
            let rope = rope(heads, None);
            let qkv = format.normal(5, positions.len() * heads.row(), 1.0);
            let cache_len = 3 * heads.keys * BLOCK_TOKENS * heads.dim;
            on_every_order(
                format,
                |gpu| {
                    let turning = Turning::put(gpu, &rope, &positions);
                    let (angles, slots) = (turning.angles(), gpu.put(&slots));
                    let mut rows = gpu.put(&qkv);
                    let [mut keys, mut values] =
                        [(); 2].map(|()| gpu.put(&vec![format.narrow(1.0); cache_len]));
                    let cache = CacheWrite {
                        keys: keys.slice_mut(),
                        values: values.slice_mut(),
                        slots: slots.slice(),
                    };
                    let kernels = &gpu.kernels.rope;
                    kernels.write(&gpu.stream, heads, angles, rows.slice_mut(), &cache).unwrap();
                    let forward = Direction::Forward;
                    let mut turned = gpu.put(&qkv);
                    kernels.turn(&gpu.stream, heads, angles, forward, turned.slice_mut()).unwrap();
                    (rows.get(), turned.get(), keys.get(), values.get())
                },
                |(rows, turned, keys, values)| {
                    assert_eq!(rows, turned, "the same turn without a cache");
                    let [mut all_keys, mut all_values] =
                        [(); 2].map(|()| vec![format.narrow(1.0); cache_len]);
                    let Heads { queries, keys: kv_heads, dim } = heads;
                    for (row, slot) in rows.chunks_exact(heads.row()).zip(slots) {
                        let (block, token) =
                            (slot as usize / BLOCK_TOKENS, slot as usize % BLOCK_TOKENS);
                        for head in 0..kv_heads {
                            let at = ((block * kv_heads + head) * BLOCK_TOKENS + token) * dim;
                            let key = &row[(queries + head) * dim..][..dim];
                            let value = &row[(queries + kv_heads + head) * dim..][..dim];
                            all_keys[at..at + dim].copy_from_slice(key);
                            all_values[at..at + dim].copy_from_slice(value);
                        }
                    }
                    assert!(keys == all_keys && values == all_values, "the cache");
                },
            );
        }
    }
}

#[test]
fn swiglu_and_its_gradients_match_the_cpu() {
    for format in FORMATS {
        for (inner, rows) in [(14_336, 1), (18_944, 2), (512, 17), (8, 3)] {
            let gate_up = format.normal(6, rows * 2 * inner, 3.0);
            let dy = format.normal(7, rows * inner, 1.0);
            on_every_order(
                format,
                |gpu| {
                    let (mut d_gate_up, mut product) = (gpu.put(&gate_up), gpu.put(&dy));
                    let mut out = gpu.poisoned(rows * inner);
                    let (swiglu, stream) = (&gpu.kernels.swiglu, &gpu.stream);
                    swiglu.forward(stream, d_gate_up.slice(), inner, out.slice_mut()).unwrap();
                    let (gradients, dy) = (d_gate_up.slice_mut(), product.slice_mut());
                    swiglu.backward(stream, gradients, inner, dy).unwrap();
                    (out.get(), d_gate_up.get(), product.get())
                },
                |(out, gradients, product)| {
                    let (mut expected, mut expected_product) =
                        (format.widen_all(&gate_up), format.widen_all(&dy));
                    let mut expected_out = vec![0.0; rows * inner];
                    ops::swiglu::swiglu(&expected, inner, &mut expected_out);
                    ops::swiglu::swiglu_backward(&mut expected, inner, &mut expected_product);
                    format.assert_close("product", &out, &expected_out);
                    assert_eq!(out, product);
                    format.assert_close("gradients", &gradients, &expected);
                },
            );
        }
    }
}

#[test]
fn passes_over_flat_buffers_round_and_add_as_the_cpu_does() {
    for format in FORMATS {
        for len in [1, 8, 4099] {
            let (short, long) =
                (format.normal(8, len, 1.0), format.widen_all(&format.normal(9, len, 0.01)));
            let long: Vec<f32> = long.iter().map(|x| x * 1.2345).collect();
            on_every_order(
                format,
                |gpu| {
                    let (flat, stream) = (&gpu.kernels.flat, &gpu.stream);
                    let (x, mut sum) = (gpu.put(&short), gpu.put(&long));
                    let (mut wide, mut narrowed) = (gpu.poisoned(len), gpu.poisoned(len));
                    flat.widen(stream, x.slice(), wide.slice_mut()).unwrap();
                    flat.narrow(stream, sum.slice(), narrowed.slice_mut()).unwrap();
                    flat.accumulate(stream, x.slice(), sum.slice_mut()).unwrap();
                    (wide.get(), narrowed.get(), sum.get())
                },
                |(wide, narrowed, sum)| {
                    assert_eq!(wide, format.widen_all(&short));
                    assert_eq!(narrowed, format.narrow_all(&long));
                    let added: Vec<f32> =
                        long.iter().zip(&short).map(|(l, &s)| l + format.widen(s)).collect();
                    assert_eq!(sum, added);
                },
            );
        }
    }
}

/// Returns sum of squares and flag of a buffer, in both formats.
fn squares(gpu: &Gpu, format: HalfFormat, x: &[Half]) -> [(f64, u32); 2] {
    let (flat, stream) = (&gpu.kernels.flat, &gpu.stream);
    let parts = crate::cuda::kernels::flat::Flat::square_parts(x.len());
    let mut partials = gpu.poisoned(parts);
    let (mut total, mut flag) = (gpu.poisoned(1), gpu.poisoned(1));
    let (short, long) = (gpu.put(x), gpu.put(&format.widen_all(x)));
    let [of_short, of_long] = [true, false].map(|is_short| {
        let (partials, total_, flag_) = (partials.slice_mut(), total.slice_mut(), flag.slice_mut());
        match is_short {
            true => flat.sum_of_squares(stream, [short.slice()], partials, total_, flag_),
            false => flat.sum_of_squares(stream, [long.slice()], partials, total_, flag_),
        }
        .unwrap();
        (total.get()[0], flag.get()[0])
    });
    [of_short, of_long]
}

#[test]
fn the_sum_of_squares_matches_the_cpu_and_tells_what_is_not_finite() {
    for format in FORMATS {
        for len in [1, 65_536, 150_001] {
            let x = format.normal(10, len, 1.0);
            on_every_order(
                format,
                |gpu| squares(gpu, format, &x),
                |sums| {
                    let expected = ops::reduce::sum_of_squares(&format.widen_all(&x));
                    for (sum, flag) in sums {
                        assert_close("sum", &[sum as f32], &[expected as f32], 1e-6);
                        assert_eq!(flag, 0);
                    }
                },
            );
            for bad in [f32::NAN, f32::INFINITY, f32::MAX / 2.0].map(|bad| format.narrow(bad)) {
                let mut x = x.clone();
                x[len / 2] = bad;
                on_every_order(
                    format,
                    |gpu| squares(gpu, format, &x).map(|(_, flag)| flag),
                    |flags| assert_eq!(flags, [1; 2]),
                );
            }
        }
    }
}
