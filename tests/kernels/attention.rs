//! This file tests attention: in training over packed sequences, and in generation over the paged
//! cache.

use crate::compare::{FORMATS, WIDE, assert_close, bits, on_every_order};
use crate::cuda::half::{Half, HalfFormat};
use crate::cuda::kernels::attention::{BACKWARD_ROWS, FORWARD_ROWS, Forward, tiles};
use crate::cuda::kernels::decode::{Cache, partials_len};
use crate::cuda::kernels::prompt;
use crate::cuda::kernels::rope::{BLOCK_TOKENS, Heads};
use crate::emulation::Gpu;
use codeseq::ops::attention as cpu;
use std::ops::Range;

/// Key heads are shared by as many query heads as in the models: by 4 in LLaMA3-8B, by 7 in
/// Qwen2.5-7B.
const HEADS: [Heads; 5] = [
    Heads { queries: 8, keys: 2, dim: 128 },
    Heads { queries: 7, keys: 1, dim: 128 },
    Heads { queries: 7, keys: 1, dim: 64 },
    Heads { queries: 6, keys: 2, dim: 32 },
    Heads { queries: 2, keys: 2, dim: 64 },
];

fn cpu_heads(heads: Heads) -> cpu::Heads {
    cpu::Heads { queries: heads.queries, keys: heads.keys, dim: heads.dim }
}

/// Returns the sequences without empty ones, which the CPU does not take.
fn not_empty(cu_seqlens: &[usize]) -> Vec<usize> {
    let mut ends = cu_seqlens.to_vec();
    ends.dedup();
    ends
}

/// Returns output and log-sum-exp of the CPU.
fn expected(
    format: HalfFormat,
    heads: Heads,
    qkv: &[Half],
    cu_seqlens: &[usize],
) -> (Vec<f32>, Vec<f32>) {
    let tokens = qkv.len() / heads.row();
    let mut out = vec![0.0; tokens * heads.queries * heads.dim];
    let mut lse = vec![0.0; tokens * heads.queries];
    let mut scratch = [cpu::AttentionScratch::default()];
    let qkv = format.widen_all(qkv);
    cpu::attention(cpu_heads(heads), &qkv, cu_seqlens, &mut out, &mut lse, &mut scratch);
    (out, lse)
}

#[test]
fn attention_within_packed_sequences_and_its_gradients_match_the_cpu() {
    for format in FORMATS {
        let many: &[usize] = &[0, 1, 18, 18, 84, 85, 85];
        let packs: [&[usize]; 5] = [&[0, 1, 18], &[0, 33], &[0, 0, 65], many, &[0]];
        for (heads, cu_seqlens) in HEADS.into_iter().zip(packs) {
            let tokens = cu_seqlens[cu_seqlens.len() - 1];
            let qkv = format.normal(50, tokens * heads.row(), 1.5);
            let d_out = format.normal(51, tokens * heads.queries * heads.dim, 1.0);
            let own_seqlens = not_empty(cu_seqlens);
            let (out, lse) = expected(format, heads, &qkv, &own_seqlens);
            let rounded = format.narrow_all(&out);
            on_every_order(
                format,
                |gpu| {
                    let (kernels, stream) = (&gpu.kernels.attention, &gpu.stream);
                    let qkv = gpu.put(&qkv);
                    let forward_tiles = gpu.put(&tiles(cu_seqlens, FORWARD_ROWS));
                    let backward_tiles = gpu.put(&tiles(cu_seqlens, BACKWARD_ROWS));
                    let (mut own_out, mut own_lse) =
                        (gpu.poisoned(rounded.len()), gpu.poisoned(lse.len()));
                    let results = (own_out.slice_mut(), own_lse.slice_mut());
                    let tiles = forward_tiles.slice();
                    kernels
                        .forward(stream, heads, qkv.slice(), tiles, results.0, results.1)
                        .unwrap();
                    let (out, lse, d_out) = (gpu.put(&rounded), gpu.put(&lse), gpu.put(&d_out));
                    let forward = Forward {
                        qkv: qkv.slice(),
                        out: out.slice(),
                        lse: lse.slice(),
                        d_out: d_out.slice(),
                    };
                    let mut delta = gpu.poisoned(tokens * heads.queries);
                    let mut d_qkv = gpu.poisoned(tokens * heads.row());
                    let (delta, gradients) = (delta.slice_mut(), d_qkv.slice_mut());
                    let tiles = backward_tiles.slice();
                    kernels.backward(stream, heads, forward, tiles, delta, gradients).unwrap();
                    (own_out.get(), own_lse.get(), d_qkv.get())
                },
                |(own_out, own_lse, d_qkv)| {
                    format.assert_close("out", &own_out, &out);
                    assert_close("lse", &own_lse, &lse, WIDE);
                    let mut gradients = format.widen_all(&qkv);
                    let (out, d_out) = (format.widen_all(&rounded), format.widen_all(&d_out));
                    let mut scratch = [cpu::AttentionScratch::default()];
                    let forward = cpu::Attended { out: &out, lse: &lse, d_out: &d_out };
                    let heads_ = cpu_heads(heads);
                    cpu::attention_backward(
                        heads_,
                        &mut gradients,
                        &own_seqlens,
                        forward,
                        &mut scratch,
                    );
                    let widths =
                        [heads.queries, heads.keys, heads.keys].map(|count| count * heads.dim);
                    let mut first = 0;
                    for (name, width) in ["d_queries", "d_keys", "d_values"].into_iter().zip(widths)
                    {
                        let rows = d_qkv
                            .chunks_exact(heads.row())
                            .zip(gradients.chunks_exact(heads.row()));
                        let (own, expected): (Vec<_>, Vec<_>) = rows
                            .map(|(a, e)| (&a[first..first + width], &e[first..first + width]))
                            .unzip();
                        format.assert_close(name, &own.concat(), &expected.concat());
                        first += width;
                    }
                },
            );
        }
    }
}

/// Keys and values in blocks, and the blocks of each sequence.
struct Paged {
    keys: Vec<Half>,
    values: Vec<Half>,
    tables: Vec<u32>,
    table_width: usize,
}

/// Sequences whose tokens attend to all before them.
struct Decoding {
    format: HalfFormat,
    heads: Heads,
    /// Each sequence has these rows of queries, keys and values.
    sequences: Vec<Vec<Half>>,
}

impl Decoding {
    fn new(format: HalfFormat, heads: Heads, lengths: &[usize]) -> Self {
        let rows =
            |(i, &length): (usize, &usize)| format.normal(60 + i as u64, length * heads.row(), 1.5);
        Self { format, heads, sequences: lengths.iter().enumerate().map(rows).collect() }
    }

    fn length(&self, sequence: usize) -> usize {
        self.sequences[sequence].len() / self.heads.row()
    }

    /// Caches the first tokens of some sequences; `ends` has the sequences and the numbers of
    /// tokens. Blocks lie scattered between NaNs.
    fn paged(&self, ends: &[(usize, usize)]) -> Paged {
        let Heads { queries, keys: kv_heads, dim } = self.heads;
        let blocks = |&(_, end): &(usize, usize)| end.div_ceil(BLOCK_TOKENS);
        let table_width = ends.iter().map(blocks).max().unwrap() + 1;
        let total = ends.len() * table_width;
        let mut tables = vec![u32::MAX; total];
        let page = kv_heads * BLOCK_TOKENS * dim;
        let [mut keys, mut values] =
            [(); 2].map(|()| vec![self.format.narrow(f32::NAN); total * page]);
        for (place, &(sequence, end)) in ends.iter().enumerate() {
            let rows = self.sequences[sequence].chunks_exact(self.heads.row()).take(end);
            for (position, row) in rows.enumerate() {
                let entry = place * table_width + position / BLOCK_TOKENS;
                // Blocks are given out backwards and interleaved between sequences.
                let block = total - 1 - (entry % table_width * ends.len() + place);
                tables[entry] = block as u32;
                for head in 0..kv_heads {
                    let at = block * page + (head * BLOCK_TOKENS + position % BLOCK_TOKENS) * dim;
                    let key = &row[(queries + head) * dim..][..dim];
                    keys[at..at + dim].copy_from_slice(key);
                    let value = &row[(queries + kv_heads + head) * dim..][..dim];
                    values[at..at + dim].copy_from_slice(value);
                }
            }
        }
        Paged { keys, values, tables, table_width }
    }

    /// Returns the outputs of `chosen` sequences in one batch.
    fn attend(&self, gpu: &Gpu, chosen: &[usize]) -> Vec<Vec<Half>> {
        let ends: Vec<_> = chosen.iter().map(|&s| (s, self.length(s))).collect();
        let Paged { keys, values, tables, table_width } = self.paged(&ends);
        let mut rows = Vec::new();
        for &sequence in chosen {
            let zeros = vec![Half::ZERO; self.heads.row()];
            let last = self.sequences[sequence].chunks_exact(self.heads.row()).next_back();
            rows.extend_from_slice(last.unwrap_or(&zeros));
        }
        let lengths: Vec<u32> = ends.iter().map(|&(_, end)| end as u32).collect();
        let (keys, values, tables) = (gpu.put(&keys), gpu.put(&values), gpu.put(&tables));
        let (lengths, rows) = (gpu.put(&lengths), gpu.put(&rows));
        let cache = Cache {
            keys: keys.slice(),
            values: values.slice(),
            tables: tables.slice(),
            lengths: lengths.slice(),
        };
        let width = self.heads.queries * self.heads.dim;
        let mut out = gpu.poisoned(chosen.len() * width);
        // The scratch memory has room for two sequences at a time.
        let mut partials = gpu.poisoned(2 * partials_len(self.heads, table_width));
        let (kernels, stream, partials) = (&gpu.kernels.decode, &gpu.stream, partials.slice_mut());
        kernels.attend(stream, self.heads, rows.slice(), cache, partials, out.slice_mut()).unwrap();
        out.get().chunks_exact(width).map(<[Half]>::to_vec).collect()
    }

    /// Returns the outputs of pieces of sequences that are read as prompts in one pass.
    fn read(&self, gpu: &Gpu, pieces: &[(usize, Range<usize>)]) -> Vec<Half> {
        let ends: Vec<_> = pieces.iter().map(|(sequence, piece)| (*sequence, piece.end)).collect();
        let Paged { keys, values, tables, table_width } = self.paged(&ends);
        let (mut rows, mut tiles) = (Vec::new(), Vec::new());
        let (mut own_tables, mut lengths) = (Vec::new(), Vec::new());
        for ((sequence, piece), table) in pieces.iter().zip(tables.chunks_exact(table_width)) {
            let width = self.heads.row();
            let first = rows.len() / width;
            rows.extend_from_slice(
                &self.sequences[*sequence][piece.start * width..piece.end * width],
            );
            for tile in prompt::tiles(self.heads, first..first + piece.len()) {
                lengths.push((piece.start + tile.end - first) as u32);
                own_tables.extend_from_slice(table);
                tiles.push(tile);
            }
        }
        let (keys, values, tables) = (gpu.put(&keys), gpu.put(&values), gpu.put(&own_tables));
        let (lengths, numbers, rows) =
            (gpu.put(&lengths), gpu.put(&prompt::numbers(&tiles)), gpu.put(&rows));
        let cache = Cache {
            keys: keys.slice(),
            values: values.slice(),
            tables: tables.slice(),
            lengths: lengths.slice(),
        };
        let width = self.heads.queries * self.heads.dim;
        let mut out = gpu.poisoned(rows.slice().len() / self.heads.row() * width);
        let (kernels, stream, tiles) = (&gpu.kernels.prompt, &gpu.stream, numbers.slice());
        kernels.attend(stream, self.heads, rows.slice(), cache, tiles, out.slice_mut()).unwrap();
        out.get()
    }

    /// Checks the outputs against the CPU's, and that a sequence alone has the same bits as in
    /// company.
    #[track_caller]
    fn check(&self) {
        let (format, heads) = (self.format, self.heads);
        let all: Vec<usize> = (0..self.sequences.len()).collect();
        on_every_order(
            format,
            |gpu| {
                let together = self.attend(gpu, &all);
                for &sequence in &all {
                    let alone = self.attend(gpu, &[sequence]);
                    let [alone, together] =
                        [&alone[0], &together[sequence]].map(|x| bits(&format.widen_all(x)));
                    assert_eq!(alone, together, "sequence {sequence} alone");
                }
                together
            },
            |together| {
                for (out, qkv) in together.iter().zip(&self.sequences) {
                    let length = qkv.len() / heads.row();
                    let expected = match length {
                        0 => vec![0.0; out.len()],
                        _ => expected(format, heads, qkv, &[0, length])
                            .0
                            .split_off((length - 1) * out.len()),
                    };
                    format.assert_close("out", out, &expected);
                }
            },
        );
    }
}

#[test]
fn decoding_matches_the_cpu_and_does_not_depend_on_the_batch() {
    for format in FORMATS {
        for heads in HEADS.into_iter().chain([Heads { queries: 8, keys: 1, dim: 32 }]) {
            Decoding::new(format, heads, &[1, 17, 0, 32, 33, 150]).check();
        }
    }
}

#[test]
fn prompts_match_the_cpu_and_do_not_depend_on_the_pieces_in_which_they_are_read() {
    for format in FORMATS {
        for heads in HEADS.into_iter().chain([Heads { queries: 8, keys: 1, dim: 32 }]) {
            let prompts = Decoding::new(format, heads, &[1, 17, 75]);
            on_every_order(
                format,
                |gpu| {
                    let whole = prompts.read(gpu, &[(2, 0..75), (0, 0..1), (1, 0..17)]);
                    let width = heads.queries * heads.dim;
                    let mut pieces = prompts.read(gpu, &[(2, 0..3), (1, 0..16)]);
                    let rest = prompts.read(gpu, &[(2, 3..64), (0, 0..1), (1, 16..17)]);
                    let last = prompts.read(gpu, &[(2, 64..75)]);
                    let first_prompt = [&pieces[..3 * width], &rest[..61 * width], &last].concat();
                    let last_prompt = [&pieces.split_off(3 * width), &rest[62 * width..]].concat();
                    let pieces = [&first_prompt, &rest[61 * width..62 * width], &last_prompt];
                    let [own, other] =
                        [&whole, &pieces.concat()].map(|x| bits(&format.widen_all(x)));
                    assert_eq!(own, other, "in pieces");
                    whole
                },
                |whole| {
                    let expected: Vec<f32> = [2, 0, 1]
                        .into_iter()
                        .flat_map(|sequence| {
                            let qkv = &prompts.sequences[sequence];
                            expected(format, heads, qkv, &[0, prompts.length(sequence)]).0
                        })
                        .collect();
                    format.assert_close("out", &whole, &expected);
                },
            );
        }
    }
}

#[test]
fn decoding_long_sequences_in_splits_matches_the_cpu_and_does_not_depend_on_the_batch() {
    for format in FORMATS {
        for heads in [HEADS[2], HEADS[3]] {
            Decoding::new(format, heads, &[511, 5, 512, 513, 1030]).check();
        }
    }
}
