//! This file checks AdamW and the passes over flat buffers.

use super::rig::{Buffer, Number, Numbers, Rig};
use super::{Comparison, EXACT, WIDE, expected};
use crate::cuda::kernels::Float;
use crate::cuda::kernels::adamw::{DecayRange, Moment, Shard, StepInputs};
use crate::cuda::kernels::flat::Flat;
use crate::cuda::{Half, HalfFormat};
use crate::ops;
use crate::ops::adamw::AdamW;
use anyhow::Result;

const STEPS: u64 = 3;
/// This is the largest error of bf16 moments, which are rounded to one of two neighbours.
const ROUNDED: f64 = 1e-2;

pub(crate) fn check(to: &mut Comparison<'_>) -> Result<()> {
    for len in to.shapes.choose(&[1, 8, 4099, 150_001], &[(16 << 20) + 3]) {
        passes(to, len)?;
        adamw(to, len)?;
    }
    Ok(())
}

/// Checks rounding, adding, and the sum of squares of both formats with its flag for numbers that
/// are not finite.
fn passes(to: &mut Comparison<'_>, len: usize) -> Result<()> {
    let format = to.format;
    let short = format.normal(80, len, 1.0);
    let long: Vec<f32> =
        format.widen_all(&format.normal(81, len, 0.01)).iter().map(|x| x * 1.2345).collect();
    let added = long.iter().zip(&short).map(|(long, &short)| long + format.widen(short)).collect();
    let square = |x: &[f32]| ops::reduce::sum_of_squares(x) as f32;
    let squares = vec![square(&format.widen_all(&short)), square(&long)];
    let mut infinite = short.clone();
    infinite[len / 2] = format.narrow(f32::INFINITY);
    let outputs = [
        expected("widened", format.widen_all(&short), EXACT),
        expected("rounded", format.widen_all(&format.narrow_all(&long)), EXACT),
        expected("added", added, EXACT),
        expected("squares", squares, WIDE),
        expected("flags", vec![0.0, 0.0, 1.0], EXACT),
    ];
    to.compare(format!("flat buffers of {len}"), &outputs, |rig| {
        let (flat, stream) = (&rig.kernels.flat, rig.stream);
        let (short, mut long, infinite) = (rig.put(&short)?, rig.put(&long)?, rig.put(&infinite)?);
        let (mut wide, mut rounded) = (rig.poisoned(len)?, rig.poisoned::<Half>(len)?);
        flat.widen(stream, short.slice(), wide.slice_mut())?;
        flat.narrow(stream, long.slice(), rounded.slice_mut())?;
        let of_short = squares_of(rig, &short)?;
        let of_long = squares_of(rig, &long)?;
        let of_infinite = squares_of(rig, &infinite)?;
        flat.accumulate(stream, short.slice(), long.slice_mut())?;
        let squares = vec![of_short.0, of_long.0];
        let flags = vec![of_short.1, of_long.1, of_infinite.1];
        Ok(vec![rig.read(&wide)?, rig.read(&rounded)?, rig.read(&long)?, squares, flags])
    })
}

/// Returns the sum of squares and the flag.
fn squares_of<T: Float>(rig: &Rig<'_>, x: &Buffer<'_, T>) -> Result<(f32, f32)> {
    let mut partials = rig.poisoned(Flat::square_parts(x.slice().len()))?;
    let (mut total, mut flag) = (rig.poisoned::<f64>(1)?, rig.poisoned::<u32>(1)?);
    let (sum, is_bad) = (total.slice_mut(), flag.slice_mut());
    let flat = &rig.kernels.flat;
    flat.sum_of_squares(rig.stream, [x.slice()], partials.slice_mut(), sum, is_bad)?;
    Ok((rig.get(&total)?[0] as f32, rig.read(&flag)?[0]))
}

fn settings(step: u64) -> AdamW {
    AdamW {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        gradient_scale: 0.5,
        step,
    }
}

/// Checks several steps with f32 moments and 16-bit gradients, one step with bf16 moments and f32
/// gradients, and a step that a flag skips.
fn adamw(to: &mut Comparison<'_>, len: usize) -> Result<()> {
    let format = to.format;
    let start = format.widen_all(&format.normal(82, len, 1.0));
    let decays = [len / 10..len / 3, len / 2..len];
    let (mut weights, mut first, mut second) = (start.clone(), vec![0.0; len], vec![0.0; len]);
    let mut after_one = (Vec::new(), Vec::new(), Vec::new());
    for step in 1..=STEPS {
        let gradients = format.widen_all(&gradients(format, step, len));
        settings(step).step(&mut weights, &gradients, &mut first, &mut second, &decays);
        if step == 1 {
            after_one = (weights.clone(), first.clone(), second.clone());
        }
    }
    let decays: Vec<DecayRange> = decays
        .into_iter()
        .map(|range| DecayRange { start: range.start as u64, end: range.end as u64 })
        .collect();
    let of_shard = expected("parameters", weights.clone(), format.tolerance());
    let exact = [
        expected("weights", weights, WIDE),
        expected("first moments", first, WIDE),
        expected("second moments", second, WIDE),
        of_shard,
    ];
    to.compare(format!("adamw, {STEPS} steps of {len}"), &exact, |rig| {
        let steps: Vec<_> = (1..=STEPS).map(|step| gradients(format, step, len)).collect();
        run::<f32, Half>(rig, &start, &steps, &decays, 0)
    })?;
    let (weights, first, second) = after_one;
    let rounded = [
        expected("weights", weights.clone(), WIDE),
        expected("first moments", first, ROUNDED),
        expected("second moments", second, ROUNDED),
        expected("parameters", weights, format.tolerance()),
    ];
    to.compare(format!("adamw, bf16 moments of {len}"), &rounded, |rig| {
        run::<half::bf16, f32>(
            rig,
            &start,
            &[format.widen_all(&gradients(format, 1, len))],
            &decays,
            0,
        )
    })?;
    let skipped = [
        expected("weights", start.clone(), EXACT),
        expected("first moments", vec![0.0; len], EXACT),
        expected("second moments", vec![0.0; len], EXACT),
        expected("parameters", vec![0.0; len], EXACT),
    ];
    to.compare(format!("adamw, a skipped step of {len}"), &skipped, |rig| {
        run::<f32, Half>(rig, &start, &[gradients(format, 1, len)], &decays, 1)
    })
}

fn gradients(format: HalfFormat, step: u64, len: usize) -> Vec<Half> {
    format.normal(83 + step, len, 1.0)
}

/// Returns weights, both moments and parameters after a step with each of the gradients.
fn run<M: Moment + Number, G: Float>(
    rig: &Rig<'_>,
    start: &[f32],
    steps: &[Vec<G>],
    decays: &[DecayRange],
    flag: u32,
) -> Result<Vec<Vec<f32>>> {
    let len = start.len();
    let (mut master, decays, flag) = (rig.put(start)?, rig.put(decays)?, rig.put(&[flag])?);
    let zeros = vec![M::zeroed(); len];
    let (mut first, mut second) = (rig.put(&zeros)?, rig.put(&zeros)?);
    let mut parameters = rig.put(&vec![Half::ZERO; len])?;
    for (step, gradients) in (1..).zip(steps) {
        let gradients = rig.put(gradients)?;
        let mut shard = Shard {
            start: 0,
            master: master.slice_mut(),
            first_moments: first.slice_mut(),
            second_moments: second.slice_mut(),
            parameters: parameters.slice_mut(),
        };
        let inputs = StepInputs {
            gradients: gradients.slice(),
            decays: decays.slice(),
            not_finite: flag.slice(),
        };
        rig.kernels.adamw.step(rig.stream, settings(step), &mut shard, inputs, step)?;
    }
    let moments = [rig.read(&first)?, rig.read(&second)?];
    let ends = [rig.read(&master)?, rig.read(&parameters)?];
    let ([first, second], [master, parameters]) = (moments, ends);
    Ok(vec![master, first, second, parameters])
}
