//! Attention: training, over packed sequences, and decoding, over the paged cache.

use crate::compare::{FORMATS, WIDE, assert_close, bits, on_every_order};
use crate::cuda::half::{Half, HalfFormat};
use crate::cuda::kernels::attention::{BACKWARD_ROWS, FORWARD_ROWS, Forward, tiles};
use crate::cuda::kernels::decode::{Cache, partials_len};
use crate::cuda::kernels::rope::{BLOCK_TOKENS, Heads};
use crate::emulation::Gpu;
use codeseq::ops::attention as cpu;

/// As many heads to a key head as the models have: LLaMA3-8B 4, Qwen2.5-7B 7.
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

/// The sequences without empty ones, which the CPU does not take.
fn not_empty(cu_seqlens: &[usize]) -> Vec<usize> {
    let mut ends = cu_seqlens.to_vec();
    ends.dedup();
    ends
}

/// Output and log-sum-exp on the CPU.
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
                    let forward = (&out[..], &lse[..], &d_out[..]);
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

/// Sequences whose last token attends to all before it.
struct Decoding {
    format: HalfFormat,
    heads: Heads,
    /// Rows of queries, keys and values of each sequence.
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

    /// The outputs of `chosen` sequences in one batch; blocks lie scattered between NaNs.
    fn attend(&self, gpu: &Gpu, chosen: &[usize]) -> Vec<Vec<Half>> {
        let Heads { queries, keys: kv_heads, dim } = self.heads;
        let blocks = |sequence: usize| self.length(sequence).div_ceil(BLOCK_TOKENS);
        let table_width = chosen.iter().map(|&sequence| blocks(sequence)).max().unwrap() + 1;
        let total = chosen.len() * table_width;
        let mut tables = vec![u32::MAX; total];
        let page = kv_heads * BLOCK_TOKENS * dim;
        let [mut keys, mut values] =
            [(); 2].map(|()| vec![self.format.narrow(f32::NAN); total * page]);
        let mut rows = Vec::new();
        for (place, &sequence) in chosen.iter().enumerate() {
            for (position, row) in
                self.sequences[sequence].chunks_exact(self.heads.row()).enumerate()
            {
                let entry = place * table_width + position / BLOCK_TOKENS;
                // Backwards, one sequence's blocks among another's.
                let block = total - 1 - (entry % table_width * chosen.len() + place);
                tables[entry] = block as u32;
                for head in 0..kv_heads {
                    let at = block * page + (head * BLOCK_TOKENS + position % BLOCK_TOKENS) * dim;
                    let key = &row[(queries + head) * dim..][..dim];
                    keys[at..at + dim].copy_from_slice(key);
                    let value = &row[(queries + kv_heads + head) * dim..][..dim];
                    values[at..at + dim].copy_from_slice(value);
                }
            }
            let zeros = vec![Half::ZERO; self.heads.row()];
            let last = self.sequences[sequence].chunks_exact(self.heads.row()).next_back();
            rows.extend_from_slice(last.unwrap_or(&zeros));
        }
        let lengths: Vec<u32> = chosen.iter().map(|&s| self.length(s) as u32).collect();
        let (keys, values, tables) = (gpu.put(&keys), gpu.put(&values), gpu.put(&tables));
        let (lengths, rows) = (gpu.put(&lengths), gpu.put(&rows));
        let cache = Cache {
            keys: keys.slice(),
            values: values.slice(),
            tables: tables.slice(),
            lengths: lengths.slice(),
        };
        let mut out = gpu.poisoned(chosen.len() * queries * dim);
        // Room for two sequences at a time.
        let mut partials = gpu.poisoned(2 * partials_len(self.heads, table_width));
        let (kernels, stream, partials) = (&gpu.kernels.decode, &gpu.stream, partials.slice_mut());
        kernels.attend(stream, self.heads, rows.slice(), cache, partials, out.slice_mut()).unwrap();
        out.get().chunks_exact(queries * dim).map(<[Half]>::to_vec).collect()
    }

    /// What the CPU computes for each sequence, with the same bits alone as together.
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
fn decoding_long_sequences_in_splits_matches_the_cpu_and_does_not_depend_on_the_batch() {
    for format in FORMATS {
        for heads in [HEADS[2], HEADS[3]] {
            Decoding::new(format, heads, &[511, 5, 512, 513, 1030]).check();
        }
    }
}
