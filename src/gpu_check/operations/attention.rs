//! This file checks training attention over packed sequences, by our kernels and by cuDNN.
//! `cached.rs` checks attention over the paged cache.

use super::elementwise::parted;
use super::rig::{Buffer, Numbers, Rig};
use super::{Comparison, Expected, SUMS, cached, deterministic, expected};
use crate::cuda::cudnn::{Attention, Gradients, Operands, Results, Segments, Sizes};
use crate::cuda::kernels::attention::{BACKWARD_ROWS, FORWARD_ROWS, Forward, tiles};
use crate::cuda::kernels::rope::Heads;
use crate::cuda::{Half, HalfFormat};
use crate::ops::attention as cpu;
use anyhow::Result;
use std::cell::RefCell;
use std::ops::Range;

/// Key heads are shared by as many query heads as in the models: by 4 in LLaMA3-8B, by 7 in
/// Qwen2.5-7B.
const HEADS: [Heads; 4] = [
    Heads { queries: 6, keys: 2, dim: 32 },
    Heads { queries: 7, keys: 1, dim: 64 },
    Heads { queries: 8, keys: 2, dim: 128 },
    Heads { queries: 7, keys: 1, dim: 128 },
];
/// These are all heads of the two models.
const MODELS: [Heads; 2] =
    [Heads { queries: 32, keys: 8, dim: 128 }, Heads { queries: 28, keys: 4, dim: 128 }];

/// Each of the heads has these ends of packed sequences, some of which are empty.
const PACKS: [&[&[usize]]; 4] =
    [&[&[0, 1, 18]], &[&[0, 17]], &[&[0, 0, 65]], &[&[0, 1, 18, 18, 84, 85, 85]]];
const LONG: &[&[usize]] = &[&[0, 5120], &[0, 1, 18, 18, 1042, 1043, 3600, 5120]];

pub(crate) fn check(to: &mut Comparison<'_>) -> Result<()> {
    let odd: Vec<_> = HEADS.into_iter().zip(PACKS).collect();
    for (heads, packs) in to.shapes.choose(&odd, &MODELS.map(|heads| (heads, LONG))) {
        let pack = |ends: &&'static [usize]| Pack::new(to.format, heads, ends);
        let packs: Vec<_> = packs.iter().map(pack).collect();
        packs.iter().try_for_each(|pack| our_kernels(to, pack))?;
        if heads.dim == 128 {
            cudnn(to, &packs)?;
        }
    }
    let heads = [&HEADS[..], &MODELS, &[Heads { queries: 8, keys: 1, dim: 32 }]].concat();
    heads.into_iter().try_for_each(|heads| cached::check(to, heads))
}

/// Packed sequences, with everything that the CPU computes from them.
struct Pack<'e> {
    format: HalfFormat,
    heads: Heads,
    ends: &'e [usize],
    qkv: Vec<Half>,
    d_out: Vec<Half>,
    out: Vec<f32>,
    lse: Vec<f32>,
    d_qkv: Vec<f32>,
}

impl<'e> Pack<'e> {
    fn new(format: HalfFormat, heads: Heads, ends: &'e [usize]) -> Self {
        let Heads { queries, keys, dim } = heads;
        let tokens = ends.last().copied().unwrap_or(0);
        let qkv = format.normal(50, tokens * heads.row(), 1.5);
        let d_out = format.normal(51, tokens * queries * dim, 1.0);
        let (mut out, mut lse) = (vec![0.0; d_out.len()], vec![0.0; tokens * queries]);
        let mut d_qkv = format.widen_all(&qkv);
        // The CPU takes no empty sequences.
        let mut own_ends = ends.to_vec();
        own_ends.dedup();
        let threads = rayon::current_num_threads();
        let mut scratch: Vec<_> = (0..threads).map(|_| cpu::AttentionScratch::default()).collect();
        let of_cpu = cpu::Heads { queries, keys, dim };
        cpu::attention(of_cpu, &d_qkv, &own_ends, &mut out, &mut lse, &mut scratch);
        let rounded = format.widen_all(&format.narrow_all(&out));
        let d_wide = format.widen_all(&d_out);
        let forward = cpu::Attended { out: &rounded, lse: &lse, d_out: &d_wide };
        cpu::attention_backward(of_cpu, &mut d_qkv, &own_ends, forward, &mut scratch);
        Self { format, heads, ends, qkv, d_out, out, lse, d_qkv }
    }

    fn tokens(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn name(&self, what: &str) -> String {
        let Heads { queries, keys, dim } = self.heads;
        let (count, tokens) = (self.ends.len() - 1, self.tokens());
        format!("{what} {count} of {tokens} x ({queries}, {keys}) x {dim}")
    }

    /// Returns output, log-sum-exp and the three gradients. Their tolerance is that of `roundings`
    /// to 16 bits. The gradients are compared separately, because their sizes differ.
    fn expected(&self, roundings: f64) -> Vec<Expected> {
        let parts = self.heads.parts(self.tokens());
        let tolerance = roundings * self.format.tolerance();
        let gradients = parted(self.heads, &self.d_qkv);
        let gradient =
            |(what, part): (_, Range<usize>)| expected(what, gradients[part].to_vec(), tolerance);
        let names = ["d queries", "d keys", "d values"];
        let forward = [
            expected("out", self.out.clone(), tolerance),
            expected("log-sum-exp", self.lse.clone(), SUMS),
        ];
        forward.into_iter().chain(names.into_iter().zip(parts).map(gradient)).collect()
    }

    /// Splits gradients that lie one after the other.
    fn split(&self, gradients: &[f32]) -> [Vec<f32>; 3] {
        self.heads.parts(self.tokens()).map(|part| gradients[part].to_vec())
    }

    /// Uploads the CPU's forward results for the backward.
    fn forward<'g>(&self, rig: &Rig<'g>) -> Result<Kept<'g>> {
        Ok(Kept {
            out: rig.put(&self.format.narrow_all(&self.out))?,
            lse: rig.put(&self.lse)?,
            d_out: rig.put(&self.d_out)?,
        })
    }
}

struct Kept<'g> {
    out: Buffer<'g, Half>,
    lse: Buffer<'g, f32>,
    d_out: Buffer<'g, Half>,
}

/// Checks our kernels, which round only their results.
fn our_kernels(to: &mut Comparison<'_>, pack: &Pack<'_>) -> Result<()> {
    let (heads, tokens) = (pack.heads, pack.tokens());
    to.compare(pack.name("attention"), &pack.expected(1.0), |rig| {
        let (kernels, stream, qkv) = (&rig.kernels.attention, rig.stream, rig.put(&pack.qkv)?);
        let (mut out, mut lse) = (rig.poisoned(pack.out.len())?, rig.poisoned(pack.lse.len())?);
        let forward_tiles = rig.put(&tiles(pack.ends, FORWARD_ROWS))?;
        let (to_out, to_lse) = (out.slice_mut(), lse.slice_mut());
        kernels.forward(stream, heads, qkv.slice(), forward_tiles.slice(), to_out, to_lse)?;
        let kept = pack.forward(rig)?;
        let forward = Forward {
            qkv: qkv.slice(),
            out: kept.out.slice(),
            lse: kept.lse.slice(),
            d_out: kept.d_out.slice(),
        };
        let backward_tiles = rig.put(&tiles(pack.ends, BACKWARD_ROWS))?;
        let mut delta = rig.poisoned(tokens * heads.queries)?;
        let mut d_qkv = rig.poisoned(pack.qkv.len())?;
        let (delta, to_qkv) = (delta.slice_mut(), d_qkv.slice_mut());
        kernels.backward(stream, heads, forward, backward_tiles.slice(), delta, to_qkv)?;
        let gradients = pack.split(&parted(heads, &rig.read(&d_qkv)?));
        Ok([rig.read(&out)?, rig.read(&lse)?].into_iter().chain(gradients).collect())
    })
}

/// cuDNN's graph rounds to 16 bits so often: weights and their gradients before a product, as
/// tensor cores take them; gradients of query heads before they are added up; results.
const ROUNDINGS: f64 = 3.0;

/// A pack has at most so many sequences, which is more than any pack here has, so plans fill up
/// with empty ones.
const SEGMENTS: usize = 8;

/// Checks cuDNN's plans where it opens; packs with the same heads share one plan.
fn cudnn(to: &mut Comparison<'_>, packs: &[Pack<'_>]) -> Result<()> {
    let Heads { queries, keys, dim } = packs[0].heads;
    let length = packs.iter().map(Pack::tokens).max().unwrap_or(0);
    let sizes = Sizes { segments: SEGMENTS, length, heads: queries, kv_heads: keys, head_dim: dim };
    let plans = match Attention::new(&to.gpu.stream, sizes) {
        Ok(plans) => RefCell::new(plans),
        Err(reason) => {
            to.cudnn_did_not_start(&packs[0].name("cuDNN attention"), &reason);
            return Ok(());
        }
    };
    packs.iter().try_for_each(|pack| {
        let capability = to.gpu.device.properties().capability;
        let is_deterministic = deterministic(capability, true);
        to.compare_repeats(
            pack.name("cuDNN attention"),
            &pack.expected(ROUNDINGS),
            is_deterministic,
            |rig| by_cudnn(&mut plans.borrow_mut(), rig, pack),
        )
    })
}

/// Returns cuDNN's results of forward and backward.
fn by_cudnn(plans: &mut Attention, rig: &Rig<'_>, pack: &Pack<'_>) -> Result<Vec<Vec<f32>>> {
    let sizes = plans.sizes();
    let lengths: Vec<usize> = pack.ends.windows(2).map(|ends| ends[1] - ends[0]).collect();
    let (segments, mut scratch) = rig.with_phase(|phase, transfer| {
        let mut segments = Segments::take(phase, sizes)?;
        segments.set(rig.stream, transfer, &lengths)?;
        Ok((segments, phase.take::<u8>("scratch", sizes.scratch_bytes())?))
    })?;
    let (stream, tensors) = (rig.stream, rig.put(&parted(pack.heads, &pack.qkv))?);
    let parts = pack.heads.parts(pack.tokens());
    let [query, key, value] = parts.clone().map(|part| tensors.slice().range(part));
    let operands = Operands { query, key, value };
    let (mut out, mut lse) = (rig.poisoned(pack.out.len())?, rig.poisoned(pack.lse.len())?);
    let results = (out.slice_mut(), lse.slice_mut());
    plans.forward(stream, &segments, operands, results, scratch.slice_mut())?;
    let kept = pack.forward(rig)?;
    let results = Results { output: kept.out.slice(), stats: kept.lse.slice() };
    let mut gradients = rig.poisoned::<Half>(pack.qkv.len())?;
    let (query, rest) = gradients.slice_mut().split_at(parts[0].end);
    let (key, value) = rest.split_at(parts[1].len());
    let to = Gradients { query, key, value };
    let (forward, d_out) = ((operands, results), kept.d_out.slice());
    plans.backward(stream, &segments, forward, d_out, to, scratch.slice_mut())?;
    let gradients = pack.split(&rig.read(&gradients)?);
    Ok([rig.read(&out)?, rig.read(&lse)?].into_iter().chain(gradients).collect())
}
