//! A rank's shard of the optimizer on its GPU: master weights, moments, and sums of gradients.
//!
//! Gradients come in 16 bits, one micro-batch after the other, from the end of the flat buffer to its
//! start. They are added to f32 sums bucket by bucket while the backward runs. All work is queued on the
//! stream of the [`Exchange`]. Moments in bf16 are rounded stochastically, with randomness keyed by the
//! update, so that equal runs, resumed ones too, are equal to the bit. Parameters are gathered after the
//! update, not during it.

use super::exchange::Exchange;
use crate::base::rng;
use crate::cuda::kernels::adamw::{
    AdamWKernels, DecayRange, Moment, Shard as Elements, StepInputs,
};
use crate::cuda::kernels::flat::Flat;
use crate::cuda::{Arena, DeviceBuffer, DeviceSliceMut, Gpu, Half, Stream, Transfer};
use crate::model::Layout;
use crate::ops::adamw::AdamW;
use crate::ranks::Portion;
use crate::trainer::device::{GpuConfig, GradientSums, Moments};
use crate::trainer::workers::{Reduced, within};
use anyhow::Result;
use half::bf16;
use std::ops::Range;

/// Labels the random numbers that round moments.
const ROUNDING: u64 = 0x726f_756e_6469_6e67;

pub(crate) struct Shard {
    portions: Vec<Portion>,
    master: DeviceBuffer<'static, f32>,
    moments: Both,
    /// The sums of the gradients of the shard, or of all parameters.
    sums: DeviceBuffer<'static, f32>,
    kept: GradientSums,
    /// The number of buckets of the current micro-batch that are yet to be added.
    buckets_left: usize,
    /// The ranges to which weight decay applies; there is room for one for each tensor.
    decayed: DeviceBuffer<'static, DecayRange>,
    num_decayed: usize,
    partials: DeviceBuffer<'static, f64>,
    total: DeviceBuffer<'static, f64>,
    not_finite: DeviceBuffer<'static, u32>,
    flat: Flat,
}

/// The first and second moments, in f32 or rounded to bf16.
enum Both {
    Exact([DeviceBuffer<'static, f32>; 2]),
    Rounded([DeviceBuffer<'static, bf16>; 2]),
}

impl Shard {
    /// Creates a shard of `portions`, without moments and gradients. Its master weights are `pieces` of the
    /// parameters, by portion.
    pub(crate) fn new(
        gpu: &mut Gpu,
        layout: &Layout,
        portions: Vec<Portion>,
        pieces: &[&[f32]],
        decayed: &[Range<usize>],
        config: GpuConfig,
    ) -> Result<Self> {
        let arena = &mut gpu.arena;
        let len = portions.iter().map(|portion| portion.own.len()).sum();
        let sums = match config.gradient_sums {
            GradientSums::Sharded => len,
            GradientSums::Full => layout.len,
        };
        let most_decayed = layout.tensors.len();
        let parts = portions.iter().map(|portion| Flat::square_parts(portion.own.len())).sum();
        let mut shard = Self {
            master: arena.lasting("master weights", len)?,
            moments: match config.moments {
                Moments::F32 => Both::Exact(both(arena, len)?),
                Moments::Bf16 => Both::Rounded(both(arena, len)?),
            },
            sums: arena.lasting("sums of gradients", sums)?,
            kept: config.gradient_sums,
            buckets_left: 0,
            decayed: arena.lasting("ranges with weight decay", most_decayed)?,
            num_decayed: decayed.len(),
            partials: arena.lasting("sums of squares", parts)?,
            total: arena.lasting("sum of squares", 1)?,
            not_finite: arena.lasting("a flag", 1)?,
            flat: Flat::load(&gpu.device)?,
            portions,
        };
        let (stream, transfer) = (&gpu.stream, &mut gpu.tools.transfer);
        let range =
            |range: &Range<usize>| DecayRange { start: range.start as u64, end: range.end as u64 };
        let decayed: Vec<_> = decayed.iter().map(range).collect();
        transfer.upload(stream, &decayed, shard.decayed.slice_mut().range(0..decayed.len()))?;
        for (Portion { in_shard, .. }, piece) in shard.portions.iter().zip(pieces) {
            let master = shard.master.slice_mut().into_range(in_shard.clone());
            transfer.upload(stream, piece, master)?;
        }
        match &mut shard.moments {
            Both::Exact(both) => clear(stream, both)?,
            Both::Rounded(both) => clear(stream, both)?,
        }
        stream.fill(shard.sums.slice_mut(), 0)?;
        stream.synchronize()?;
        Ok(shard)
    }

    /// Takes the `gradients` of a micro-batch in `range`, which are final at this point of `computation`.
    /// Adds every bucket that they complete to the sums.
    pub(crate) fn take(
        &mut self,
        exchange: &Exchange,
        range: Range<usize>,
        mut gradients: DeviceSliceMut<'_, Half>,
        computation: &Stream,
    ) -> Result<()> {
        let Self { portions, sums, kept, flat, buckets_left, .. } = self;
        if range.end == gradients.len() {
            *buckets_left = portions.len();
        }
        exchange.follow(computation)?;
        let stream = exchange.stream();
        while let Some(Portion { bucket, own, in_shard }) =
            portions[..*buckets_left].last().filter(|portion| portion.bucket.start >= range.start)
        {
            let (complete, sums) = match kept {
                GradientSums::Sharded => {
                    let bucket = gradients.range(bucket.clone());
                    exchange.communicator().reduce_scatter(stream, bucket)?;
                    (own, sums.slice_mut().into_range(in_shard.clone()))
                }
                GradientSums::Full => (bucket, sums.slice_mut().into_range(bucket.clone())),
            };
            flat.accumulate(stream, gradients.range(complete.clone()).as_slice(), sums)?;
            *buckets_left -= 1;
        }
        match *buckets_left {
            // The next micro-batch overwrites gradients that are still being sent.
            0 => exchange.precede(computation),
            _ => Ok(()),
        }
    }

    /// Completes the sums over the ranks, and computes their norm.
    pub(crate) fn reduce(
        &mut self,
        exchange: &Exchange,
        transfer: &mut Transfer,
        layout: &Layout,
    ) -> Result<Reduced> {
        let (stream, communicator) = (exchange.stream(), exchange.communicator());
        if self.kept == GradientSums::Full {
            for portion in &self.portions {
                let bucket = self.sums.slice_mut().into_range(portion.bucket.clone());
                communicator.reduce_scatter(stream, bucket)?;
            }
        }
        let own: Vec<_> = self.portions.iter().map(|portion| portion.own.clone()).collect();
        self.square(stream, &own)?;
        communicator.all_reduce(stream, self.total.slice_mut())?;
        let mut square = [0f64];
        transfer.download(stream, self.total.slice(), &mut square)?;
        let norm = square[0].sqrt();
        let culprits = match norm.is_finite() {
            true => Vec::new(),
            false => self.culprits(stream, transfer, layout)?,
        };
        Ok(Reduced { norm, culprits })
    }

    /// Updates the shard's parameters with the sums, and gathers the other shards.
    pub(crate) fn step(
        &mut self,
        exchange: &Exchange,
        kernels: &AdamWKernels,
        adamw: AdamW,
        mut params: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        for index in 0..self.portions.len() {
            let bucket = self.portions[index].bucket.clone();
            self.step_portion(exchange.stream(), kernels, adamw, index, params.reborrow())?;
            exchange.communicator().all_gather(exchange.stream(), params.range(bucket))?;
        }
        Ok(())
    }

    fn step_portion(
        &mut self,
        stream: &Stream,
        kernels: &AdamWKernels,
        adamw: AdamW,
        index: usize,
        mut params: DeviceSliceMut<'_, Half>,
    ) -> Result<()> {
        let Portion { own, in_shard, .. } = self.portions[index].clone();
        let kept = self.place(&self.portions[index], &own);
        let inputs = StepInputs {
            gradients: self.sums.slice().range(kept),
            decays: self.decayed.slice().range(0..self.num_decayed),
            not_finite: self.not_finite.slice(),
        };
        let key = rng::key(ROUNDING, &[adamw.step]);
        let (start, master) =
            (own.start as u64, self.master.slice_mut().into_range(in_shard.clone()));
        let parameters = params.range(own);
        match &mut self.moments {
            Both::Exact(both) => {
                let [first_moments, second_moments] = parts(both, &in_shard);
                let mut shard =
                    Elements { start, master, first_moments, second_moments, parameters };
                kernels.step(stream, adamw, &mut shard, inputs, key)
            }
            Both::Rounded(both) => {
                let [first_moments, second_moments] = parts(both, &in_shard);
                let mut shard =
                    Elements { start, master, first_moments, second_moments, parameters };
                kernels.step(stream, adamw, &mut shard, inputs, key)
            }
        }
    }

    /// Sets the sums of gradients to zero.
    pub(crate) fn clear(&mut self, exchange: &Exchange) -> Result<()> {
        exchange.stream().fill(self.sums.slice_mut(), 0)
    }

    /// Copies the master weights to the pieces of this rank, in order.
    pub(crate) fn fetch_params(
        &self,
        stream: &Stream,
        transfer: &mut Transfer,
        pieces: &mut [&mut [f32]],
    ) -> Result<()> {
        let master = self.master.slice();
        let mut pairs = self.portions.iter().zip(pieces);
        pairs.try_for_each(|(portion, piece)| {
            transfer.download(stream, master.range(portion.in_shard.clone()), piece)
        })
    }

    /// Returns the moments in f32.
    pub(crate) fn moments(
        &self,
        stream: &Stream,
        transfer: &mut Transfer,
    ) -> Result<[Vec<f32>; 2]> {
        Ok(match &self.moments {
            Both::Exact(both) => download(stream, transfer, both, 0.0)?,
            Both::Rounded(both) => download(stream, transfer, both, bf16::ZERO)?
                .map(|moments| moments.into_iter().map(bf16::to_f32).collect()),
        })
    }

    /// Replaces the moments; in bf16 they are rounded to the nearest.
    pub(crate) fn set_moments(
        &mut self,
        stream: &Stream,
        transfer: &mut Transfer,
        moments: [&[f32]; 2],
    ) -> Result<()> {
        for (index, moments) in moments.into_iter().enumerate() {
            match &mut self.moments {
                Both::Exact(both) => transfer.upload(stream, moments, both[index].slice_mut())?,
                Both::Rounded(both) => {
                    let rounded: Vec<_> = moments.iter().map(|&x| bf16::from_f32(x)).collect();
                    transfer.upload(stream, &rounded, both[index].slice_mut())?;
                }
            }
        }
        Ok(())
    }

    /// Returns where the sums of elements of `portion`'s own piece are.
    fn place(&self, portion: &Portion, elements: &Range<usize>) -> Range<usize> {
        match self.kept {
            GradientSums::Full => elements.clone(),
            GradientSums::Sharded => {
                let start = portion.in_shard.start + elements.start - portion.own.start;
                start..start + elements.len()
            }
        }
    }

    /// Adds up the squares of the sums of some elements of the shard: `total` and `not_finite`.
    fn square(&mut self, stream: &Stream, elements: &[Range<usize>]) -> Result<()> {
        let mut places = Vec::new();
        for portion in &self.portions {
            for part in within(elements, &portion.own) {
                let part = portion.own.start + part.start..portion.own.start + part.end;
                places.push(self.place(portion, &part));
            }
        }
        let sums = self.sums.slice();
        self.flat.sum_of_squares(
            stream,
            places.into_iter().map(|place| sums.range(place)),
            self.partials.slice_mut(),
            self.total.slice_mut(),
            self.not_finite.slice_mut(),
        )
    }

    /// Returns the tensors with a sum in this shard that is not finite.
    fn culprits(
        &mut self,
        stream: &Stream,
        transfer: &mut Transfer,
        layout: &Layout,
    ) -> Result<Vec<usize>> {
        let mut culprits = Vec::new();
        for (index, tensor) in layout.tensors.iter().enumerate() {
            self.square(stream, std::slice::from_ref(&tensor.range))?;
            let mut not_finite = [0u32];
            transfer.download(stream, self.not_finite.slice(), &mut not_finite)?;
            if not_finite[0] != 0 {
                culprits.push(index);
            }
        }
        Ok(culprits)
    }
}

fn both<M: Moment>(arena: &mut Arena, len: usize) -> Result<[DeviceBuffer<'static, M>; 2]> {
    Ok([arena.lasting("first moments", len)?, arena.lasting("second moments", len)?])
}

fn clear<M: Moment>(stream: &Stream, both: &mut [DeviceBuffer<'static, M>; 2]) -> Result<()> {
    both.iter_mut().try_for_each(|moments| stream.fill(moments.slice_mut(), 0))
}

fn parts<'b, M: Moment>(
    both: &'b mut [DeviceBuffer<'static, M>; 2],
    range: &Range<usize>,
) -> [DeviceSliceMut<'b, M>; 2] {
    both.each_mut().map(|moments| moments.slice_mut().into_range(range.clone()))
}

fn download<M: Moment>(
    stream: &Stream,
    transfer: &mut Transfer,
    both: &[DeviceBuffer<'static, M>; 2],
    zero: M,
) -> Result<[Vec<M>; 2]> {
    let mut copies = both.each_ref().map(|moments| vec![zero; moments.len()]);
    for (moments, copy) in both.iter().zip(&mut copies) {
        transfer.download(stream, moments.slice(), copy)?;
    }
    Ok(copies)
}
