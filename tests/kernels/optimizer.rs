//! This file tests AdamW over shards.

use crate::compare::{FORMATS, WIDE, assert_close, bits, on_every_order};
use crate::cuda::half::{Half, HalfFormat};
use crate::cuda::kernels::Float;
use crate::cuda::kernels::adamw::{DecayRange, Moment, Shard, StepInputs};
use crate::emulation::Gpu;
use codeseq::ops::adamw::AdamW;
use half::bf16;
use std::ops::Range;

const LEN: usize = 5003;
const DECAYS: [Range<usize>; 2] = [0..11, 1700..3000];

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

fn gradients(format: HalfFormat, step: u64) -> Vec<Half> {
    format.normal(30 + step, LEN, 1.0)
}

/// Weights, moments and parameters after some steps.
#[derive(PartialEq, Clone)]
struct State {
    master: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    parameters: Vec<Half>,
}

/// Runs `steps` steps on shards that end at `ends`, with moments `M` and gradients `G`.
fn run<M: Moment, G: Float>(
    (gpu, format): (&Gpu, HalfFormat),
    steps: u64,
    ends: &[usize],
    flag: u32,
    moment: fn(f32) -> M,
    gradient: fn(HalfFormat, Half) -> G,
    widen_moment: fn(&M) -> f32,
) -> State {
    let decays =
        DECAYS.map(|range| DecayRange { start: range.start as u64, end: range.end as u64 });
    let (decays, flag) = (gpu.put(&decays), gpu.put(&[flag]));
    let mut state = State { master: vec![], first: vec![], second: vec![], parameters: vec![] };
    let start = format.widen_all(&format.normal(29, LEN, 1.0));
    let mut first = 0;
    for &end in ends {
        let range = first..end;
        let zeros = || gpu.put(&vec![moment(0.0); range.len()]);
        let (mut master, mut m, mut v) = (gpu.put(&start[range.clone()]), zeros(), zeros());
        let mut parameters = gpu.put(&vec![format.narrow(1.0); range.len()]);
        for step in 1..=steps {
            let all: Vec<G> = gradients(format, step)[range.clone()]
                .iter()
                .map(|&x| gradient(format, x))
                .collect();
            let gradients = gpu.put(&all);
            let inputs = StepInputs {
                gradients: gradients.slice(),
                decays: decays.slice(),
                not_finite: flag.slice(),
            };
            let mut shard = Shard {
                start: first as u64,
                master: master.slice_mut(),
                first_moments: m.slice_mut(),
                second_moments: v.slice_mut(),
                parameters: parameters.slice_mut(),
            };
            gpu.kernels.adamw.step(&gpu.stream, settings(step), &mut shard, inputs, step).unwrap();
        }
        state.master.extend(master.get());
        state.first.extend(m.get().iter().map(widen_moment));
        state.second.extend(v.get().iter().map(widen_moment));
        state.parameters.extend(parameters.get());
        first = end;
    }
    state
}

fn exact<G: Float>(
    gpu: (&Gpu, HalfFormat),
    steps: u64,
    ends: &[usize],
    flag: u32,
    gradient: fn(HalfFormat, Half) -> G,
) -> State {
    run::<f32, G>(gpu, steps, ends, flag, |x| x, gradient, |&x| x)
}

fn rounded(gpu: (&Gpu, HalfFormat), steps: u64, ends: &[usize]) -> State {
    run::<bf16, Half>(gpu, steps, ends, 0, bf16::from_f32, |_, x| x, |x| x.to_f32())
}

#[test]
fn three_steps_on_shards_match_the_cpu_and_round_the_parameters() {
    for format in FORMATS {
        on_every_order(
            format,
            |gpu| {
                let state = exact((gpu, format), 3, &[2008, LEN], 0, |_, x| x);
                assert!(
                    state == exact((gpu, format), 3, &[LEN], 0, HalfFormat::widen),
                    "whole, with fp32 gradients"
                );
                state
            },
            |state| {
                let mut p = format.widen_all(&format.normal(29, LEN, 1.0));
                let (mut m, mut v) = (vec![0.0; LEN], vec![0.0; LEN]);
                for step in 1..=3 {
                    settings(step).step(
                        &mut p,
                        &format.widen_all(&gradients(format, step)),
                        &mut m,
                        &mut v,
                        &DECAYS,
                    );
                }
                assert_close("weights", &state.master, &p, WIDE);
                assert_close("first moments", &state.first, &m, WIDE);
                assert_close("second moments", &state.second, &v, WIDE);
                assert_eq!(state.parameters, format.narrow_all(&state.master));
            },
        );
    }
}

#[test]
fn a_step_with_gradients_that_are_not_finite_changes_nothing() {
    for format in FORMATS {
        on_every_order(
            format,
            |gpu| exact((gpu, format), 1, &[LEN], 1, |_, x| x),
            |state| {
                assert_eq!(
                    bits(&state.master),
                    bits(&format.widen_all(&format.normal(29, LEN, 1.0)))
                );
                assert!(state.first.iter().chain(&state.second).all(|&x| x == 0.0));
                assert_eq!(state.parameters, vec![format.narrow(1.0); LEN]);
            },
        );
    }
}

#[test]
fn bf16_moments_are_neighbours_of_the_exact_ones_and_right_on_average() {
    for format in FORMATS {
        on_every_order(
            format,
            |gpu| {
                let state = rounded((gpu, format), 1, &[LEN]);
                assert!(state == rounded((gpu, format), 1, &[2008, LEN]), "the same on any shards");
                (state, exact((gpu, format), 1, &[LEN], 0, |_, x| x))
            },
            |(state, exact)| {
                assert_eq!(state.master, exact.master, "the first step uses the exact moments");
                for (rounded, exact) in
                    [(&state.first, &exact.first), (&state.second, &exact.second)]
                {
                    let mut up = 0.0;
                    for (&r, &e) in rounded.iter().zip(exact) {
                        // These are the two neighbours of the exact value.
                        let low = f32::from_bits(e.to_bits() & 0xffff_0000);
                        let high = f32::from_bits((e.to_bits() & 0xffff_0000) + 0x1_0000);
                        assert!(r == low || r == high, "{e} became {r}");
                        let share = (e - low) / (high - low);
                        up += f64::from(u8::from(r == high && e != low)) - f64::from(share);
                    }
                    // The standard deviation of the mean is at most half of 1 / sqrt(n).
                    assert!((up / LEN as f64).abs() < 4.0 * 0.5 / (LEN as f64).sqrt(), "{up}");
                }
            },
        );
    }
}
